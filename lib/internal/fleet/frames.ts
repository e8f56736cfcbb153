/**
 * The messages of a fleet as bytes: MessagePack of @effect/rpc, each message with its length before it. The library's own way to find the
 * end of a message copies and parses all that has come of it with each part that comes.
 *
 * Bytes that a stream gives are not part of the message: they follow it, and nothing copies them, from the file or socket that they come
 * from to whoever reads the stream. In the message a number stands for so many bytes.
 */
import type { Duplex } from "node:stream"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"

/** The lengths of the message and of the bytes after it. */
const HEAD_BYTES = 8

/** The longest message of a client: it cannot have a runner keep more than this. */
export const CLIENT_BYTES_MAX = 16 * 1024 * 1024

/** The longest message of a runner: both outputs of a command, at their limits, each byte of which may be invalid UTF-8. */
export const RUNNER_BYTES_MAX = 128 * 1024 * 1024

type Bytes = Uint8Array

/** What a stream gives at once. */
interface Values {
  readonly _tag: "Chunk"
  readonly values: ReadonlyArray<unknown>
}

const isValues = (message: unknown): message is Values =>
  typeof message === "object" &&
  message !== null &&
  "_tag" in message &&
  message._tag === "Chunk" &&
  "values" in message &&
  Array.isArray(message.values)

const isBytes = (value: unknown): value is Bytes => value instanceof Uint8Array

const lengthOf = (parts: ReadonlyArray<Bytes>): number => parts.reduce((sum, { length }) => sum + length, 0)

/** The beginning of a frame, and the bytes that follow it. */
class Gathered extends Uint8Array {
  parts: ReadonlyArray<Bytes> = []
}

/** Has a socket write the parts of a frame without putting them together. */
export const gathering = <Socket extends Duplex>(socket: Socket): Socket => {
  type Write = (bytes: Bytes, done: (error?: Error | null) => void) => boolean
  const write: Write = socket.write.bind(socket)
  const writeAll: Write = (bytes, done) => {
    if (!(bytes instanceof Gathered) || bytes.parts.length === 0) return write(bytes, done)
    socket.cork()
    const all = [bytes, ...bytes.parts]
    const taken = all.map((part, index) => write(part, index === all.length - 1 ? done : () => {}))
    socket.uncork()
    return taken.every(Boolean)
  }
  return Object.assign(socket, { write: writeAll })
}

const framed = (message: Bytes, parts: ReadonlyArray<Bytes>): Bytes => {
  const frame = new Gathered(HEAD_BYTES + message.length)
  const head = new DataView(frame.buffer)
  head.setUint32(0, message.length)
  head.setUint32(4, lengthOf(parts))
  frame.set(message, HEAD_BYTES)
  frame.parts = parts
  return frame
}

/** Puts bytes in the place of their lengths. Bytes that came in several parts stay so: they are those of a stream. */
const withBytes = (message: unknown, parts: ReadonlyArray<Bytes>): unknown => {
  if (!isValues(message)) {
    if (parts.length > 0) throw new Error("bytes follow a message that has none")
    return message
  }
  const left = [...parts]
  const take = (length: number): ReadonlyArray<Bytes> => {
    const taken: Array<Bytes> = []
    while (length > 0) {
      const part = left.shift()
      if (part === undefined) throw new Error("fewer bytes follow a message than it has")
      taken.push(part.subarray(0, length))
      if (part.length > length) left.unshift(part.subarray(length))
      length -= Math.min(length, part.length)
    }
    return taken
  }
  const values = message.values.flatMap<unknown>((value) =>
    typeof value === "number" ? take(value) : [value]
  )
  if (left.length > 0) throw new Error("more bytes follow a message than it has")
  return { ...message, values }
}

interface Frame {
  readonly message: Bytes
  readonly parts: ReadonlyArray<Bytes>
}

/** Gathers one frame after the other. */
class Frames {
  private into = new Uint8Array(HEAD_BYTES)
  private filled = 0
  private isHead = true
  /** How many bytes follow the message, and those of them that are here. */
  private following = 0
  private parts: Array<Bytes> = []
  private readonly most: number

  constructor(most: number) {
    this.most = most
  }

  /** The frames that end in these bytes. */
  add(bytes: Bytes): ReadonlyArray<Frame> {
    const whole: Array<Frame> = []
    for (let at = 0; at < bytes.length; ) {
      if (this.filled < this.into.length) {
        const part = bytes.subarray(at, at + this.into.length - this.filled)
        this.into.set(part, this.filled)
        this.filled += part.length
        at += part.length
      } else {
        const part = bytes.subarray(at, at + this.following)
        this.parts.push(part)
        this.following -= part.length
        at += part.length
      }
      if (this.filled < this.into.length) continue
      if (this.isHead) this.begin(...this.lengths())
      else if (this.following === 0) {
        whole.push({ message: this.into, parts: this.parts })
        this.parts = []
        this.expect(HEAD_BYTES, true)
      }
    }
    return whole
  }

  private expect(length: number, isHead: boolean): void {
    this.into = new Uint8Array(length)
    this.filled = 0
    this.isHead = isHead
  }

  private begin(message: number, following: number): void {
    if (message === 0 || message + following > this.most)
      throw new RpcSerialization.RpcSerializationError({
        reason: "BufferSizeExceeded",
        maxBufferSize: this.most,
        bufferSize: message + following
      })
    this.following = following
    this.expect(message, false)
  }

  private lengths(): readonly [message: number, following: number] {
    const head = new DataView(this.into.buffer)
    return [head.getUint32(0), head.getUint32(4)]
  }
}

/** See `RpcSerialization` of @effect/rpc. `most` is the longest message that is taken, with the bytes that follow it. */
export const serialization = (most: number): RpcSerialization.RpcSerialization["Type"] => ({
  contentType: "application/msgpack",
  includesFraming: true,
  unsafeMake: () => {
    const messages = RpcSerialization.msgPack.unsafeMake()
    const frames = new Frames(most)
    return {
      decode: (bytes) =>
        frames
          .add(bytes as Bytes)
          .flatMap(({ message, parts }) =>
            messages.decode(message).map((decoded) => withBytes(decoded, parts))
          ),
      encode: (message) => {
        if (!isValues(message)) return framed(messages.encode(message) as Bytes, [])
        const values = message.values.map((value) => (isBytes(value) ? value.length : value))
        return framed(messages.encode({ ...message, values }) as Bytes, message.values.filter(isBytes))
      }
    }
  }
})
