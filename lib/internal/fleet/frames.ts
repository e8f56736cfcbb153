/**
 * The messages of a fleet as bytes: MessagePack of @effect/rpc, each message with its length before it. The library's own way to find the
 * end of a message copies and parses all that has come of it with each part that comes.
 */
import * as RpcSerialization from "@effect/rpc/RpcSerialization"

const HEAD_BYTES = 4

/** The longest message of a client: it cannot have a runner keep more than this. */
export const CLIENT_BYTES_MAX = 16 * 1024 * 1024

/** The longest message of a runner: both outputs of a command, at their limits, each byte of which may be invalid UTF-8. */
export const RUNNER_BYTES_MAX = 128 * 1024 * 1024

const framed = (bytes: Uint8Array): Uint8Array => {
  const frame = new Uint8Array(HEAD_BYTES + bytes.length)
  new DataView(frame.buffer).setUint32(0, bytes.length)
  frame.set(bytes, HEAD_BYTES)
  return frame
}

/** Gathers the parts of one frame after the other. */
class Frames {
  private readonly head = new Uint8Array(HEAD_BYTES)
  private body: Uint8Array | undefined
  private filled = 0
  private readonly most: number

  constructor(most: number) {
    this.most = most
  }

  /** The frames that end in these bytes. */
  add(bytes: Uint8Array): ReadonlyArray<Uint8Array> {
    const whole: Array<Uint8Array> = []
    for (let at = 0; at < bytes.length; ) {
      const into = this.body ?? this.head
      const part = bytes.subarray(at, at + into.length - this.filled)
      into.set(part, this.filled)
      this.filled += part.length
      at += part.length
      if (this.filled < into.length) break
      this.filled = 0
      if (this.body === undefined) this.body = new Uint8Array(this.length())
      else {
        whole.push(this.body)
        this.body = undefined
      }
    }
    return whole
  }

  private length(): number {
    const length = new DataView(this.head.buffer).getUint32(0)
    if (length === 0 || length > this.most)
      throw new RpcSerialization.RpcSerializationError({
        reason: "BufferSizeExceeded",
        maxBufferSize: this.most,
        bufferSize: length
      })
    return length
  }
}

/** See `RpcSerialization` of @effect/rpc. `most` is the longest message that is taken. */
export const serialization = (most: number): RpcSerialization.RpcSerialization["Type"] => ({
  contentType: "application/msgpack",
  includesFraming: true,
  unsafeMake: () => {
    const messages = RpcSerialization.msgPack.unsafeMake()
    const frames = new Frames(most)
    return {
      decode: (bytes) => frames.add(bytes as Uint8Array).flatMap((frame) => messages.decode(frame)),
      encode: (message) => framed(messages.encode(message) as Uint8Array)
    }
  }
})
