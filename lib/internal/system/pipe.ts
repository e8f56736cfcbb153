/** A container's standard streams: pipes, which are read on demand, or kept flowing without a reader. */
import { Buffer } from "node:buffer"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError, OperationFailed } from "../../BerthError.ts"
import type { Captured } from "../util/captured.ts"
import { EAGAIN, EIO, ENODATA, EPIPE } from "../util/errno.ts"
import * as Turn from "../util/turn.ts"
import { EPOLLIN, EPOLLOUT, native } from "./addon.ts"
import * as Loop from "./eventLoop.ts"
import { type Part, RING_BYTES, Ring } from "./ring.ts"

/** The minimum room for one read, and the size of a buffer. */
const READ_BYTES = 64 * 1024
const BUFFER_BYTES = 256 * 1024

/** The number of consecutive reads from a ready pipe before other work runs. */
const READS_MAX = 16

// The size of a pipe: a larger pipe is full less often, and wakes its two ends less often.
const PIPE_BYTES = 256 * 1024

// The size of one read for a log: processing it is short, even if each byte is a line.
const PUMP_BYTES = 8 * 1024

// Output of so many bytes at once is a flood: later output collects in a pipe of this size until a timer fires, because
// a wake-up for each small write would cost more than the reads.
const FLOOD_BYTES = 64 * 1024
const FLOOD_PIPE_BYTES = 1024 * 1024

// The number of parts in one chunk of a stream, which share the overhead of the chunk.
const PARTS_MAX = 4

const failed = (syscall: string, errno: number): OperationFailed =>
  new OperationFailed({ operation: "stdio", index: -1, syscall, errno, hint: "" })

/** One end of a pipe, for which at most one consumer waits. */
abstract class End {
  protected fd: number
  private wake: (() => void) | undefined

  constructor(fd: number) {
    this.fd = fd
  }

  /** Sets the descriptor of an end that was made before the pipe. */
  open(fd: number): void {
    this.fd = fd
  }

  get closed(): boolean {
    return this.fd < 0
  }

  /** For the supervisor, which can keep a duplicate. */
  get descriptor(): number {
    return this.fd
  }

  get busy(): boolean {
    return this.wake !== undefined
  }

  close(): void {
    if (this.fd < 0) return
    native().close(this.fd)
    this.fd = -1
    this.wake?.()
  }

  /** Calls `wake` once the descriptor is ready; returns a function that cancels the wait, or -errno. */
  protected whenReady(events: number): (wake: () => void) => (() => void) | number {
    return (wake) => Loop.watch(this.fd, events, wake)
  }

  /**
   * Calls `attempt` once `until` wakes it or the descriptor is closed; returns a function that cancels the wait. The wait keeps
   * the program alive if it is `held`.
   */
  protected wait(
    until: (wake: () => void) => (() => void) | number,
    attempt: () => void,
    held = true
  ): () => void {
    const done = (): void => {
      if (this.wake !== wake) return
      this.wake = undefined
      if (typeof cancel !== "number") cancel()
      if (held) Loop.release()
    }
    const wake = (): void => {
      done()
      attempt()
    }
    this.wake = wake
    if (held) Loop.retain()
    const cancel = until(wake)
    if (typeof cancel === "number") queueMicrotask(wake)
    return done
  }
}

// Bytes are read into the rest of one buffer of this thread and passed on without copying or clearing. Each part of the
// buffer is used once; a new buffer replaces it when too little is left.
const newBuffer = (): Uint8Array => {
  const { buffer } = Buffer.allocUnsafeSlow(BUFFER_BYTES)
  return new Uint8Array(buffer)
}

let buffer = newBuffer()

const taken = (length: number): Uint8Array => {
  const part = buffer.subarray(0, length)
  buffer = buffer.length - length < READ_BYTES ? newBuffer() : buffer.subarray(length)
  return part
}

/** Who gets each part of an output beside its reader. `take` returns false to let others have their turn. */
export interface Listener {
  readonly take: (bytes: Uint8Array) => boolean
  readonly end: (error?: BerthError) => void
}

/**
 * An end that Berth reads. Without more, it is read for a reader alone: the process waits where there is none. Once it flows, it is
 * read whether or not there is a reader, and its newest bytes are kept; while there is a reader, the process waits for it.
 */
export class Output extends End {
  private readonly container: string
  private readonly isDatagrams: boolean
  private readonly ring = new Ring()
  private listener: Listener | undefined
  private flowing = false
  private readers = 0
  /** Cancels the wait of the flow. */
  private standStill: () => void = () => {}
  private ended: { readonly error: BerthError | undefined } | undefined
  /** Whether the last read emptied the pipe: then the next read waits first. */
  private emptied = false
  /** The number of bytes since the last wait. */
  private came = 0
  private enlarged = false

  /** Of datagrams, each is a part of its own, and an empty one is no end. */
  constructor(fd: number, container: string, isDatagrams = false) {
    super(fd)
    this.container = container
    this.isDatagrams = isDatagrams
  }

  /**
   * Reads until the pipe is empty and gives the bytes to `take`, which returns false when it has enough. After some
   * reads, or some time, it stops although the pipe is ready, so that a container that writes without end does not
   * block other work.
   */
  private drain(
    take: (bytes: Uint8Array) => boolean,
    end: (error?: BerthError) => void,
    most = BUFFER_BYTES
  ): void {
    if (this.busy) {
      end(
        new ContainerError({
          reason: "AlreadyRead",
          container: this.container,
          detail: "two readers wait for the same output: read it once and share the stream"
        })
      )
      return
    }
    for (let turn = 0; turn < READS_MAX; turn++) {
      if (this.emptied && !this.closed) return
      if (turn > 0 && Turn.isOver()) return
      const room = Math.min(buffer.length, most)
      const read = this.closed
        ? 0
        : native().read(this.fd, room < buffer.length ? buffer.subarray(0, room) : buffer)
      if (read === -EAGAIN) return
      // A terminal that no process has open any more fails with EIO, which is the end of its output.
      const n = read === -EIO ? 0 : read
      if (n < 0 || (n === 0 && (this.closed || !this.isDatagrams))) {
        const error = n < 0 ? failed("read", -n) : undefined
        this.finish(error)
        this.close()
        end(error)
        return
      }
      this.emptied = n < room
      this.came += n
      const bytes = taken(n)
      if (this.flowing) this.ring.add(bytes, this.readers > 0)
      const goesOn = this.listener?.take(bytes) ?? true
      if (!take(bytes) || !goesOn) return
    }
  }

  private gathered(wake: () => void): () => void {
    // If the kernel refuses (pipe-user-pages-soft, pipe(7)), the pipe keeps its size.
    if (!this.enlarged) native().enlargePipe(this.fd, FLOOD_PIPE_BYTES)
    this.enlarged = true
    const timer = setTimeout(wake, 0)
    return () => clearTimeout(timer)
  }

  /** Calls `attempt` when there are more bytes to read. */
  private more(attempt: () => void, held = true): () => void {
    const flood = held && this.came >= FLOOD_BYTES
    this.came = 0
    return this.wait(
      flood ? (wake) => this.gathered(wake) : this.whenReady(EPOLLIN),
      () => {
        this.emptied = false
        attempt()
      },
      held
    )
  }

  /** The next bytes, as many as the pipe has up to a limit; fails with `None` at the end. */
  private next(): Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<BerthError>> {
    return Effect.async((resume) => {
      let cancel = (): void => {}
      const attempt = (): void => {
        const missed = this.ring.skip()
        if (missed > 0) return resume(Effect.fail(Option.some(this.dropped(missed))))
        const unread = this.ring.unread()
        if (unread.length > 0) return resume(Effect.succeed(Chunk.of(unread)))
        const parts: Array<Uint8Array> = []
        let ended = false
        this.drain(
          (bytes) => parts.push(bytes) < PARTS_MAX,
          (error) => {
            // The bytes before the end come first; the next call finds the end again.
            if (parts.length > 0 && error === undefined) return
            ended = true
            resume(Effect.fail(Option.fromNullable(error)))
          }
        )
        if (ended) return
        if (parts.length > 0) return resume(Effect.succeed(Chunk.unsafeFromArray(parts)))
        cancel = this.more(attempt)
      }
      // A reader that always finds more bytes must let other work run too: the time of its work counts.
      if (this.busy || !Turn.isOver()) attempt()
      else cancel = this.wait(Turn.next, attempt)
      return Effect.sync(() => cancel())
    })
  }

  private dropped(missed: number): ContainerError {
    return new ContainerError({
      reason: "OutputDropped",
      container: this.container,
      detail: `${missed} bytes of output were dropped before they were read, as Berth keeps the newest ${RING_BYTES} only: start it with "pipe" for this output, or read it from the start; a second read gives the bytes that are left`
    })
  }

  get stream(): Stream.Stream<Uint8Array, BerthError> {
    const reader = Effect.acquireRelease(
      Effect.sync(() => {
        if (this.readers++ === 0) this.standStill()
      }),
      () =>
        Effect.sync(() => {
          if (--this.readers === 0) this.pump()
        })
    )
    return Stream.unwrapScoped(Effect.as(reader, Stream.repeatEffectChunkOption(this.next())))
  }

  /** The newest output, once it flows. */
  get kept(): ReadonlyArray<Part> {
    return this.ring.parts
  }

  /** Makes the output flow from the next turn on: a start does not wait for it, and a reader may come before. */
  flow(): void {
    if (this.flowing) return
    this.flowing = true
    if (this.readers === 0) this.standStill = this.wait(Turn.next, () => this.pump(), false)
  }

  /** Makes the output flow, and passes all bytes that arrive to the only listener. */
  listen(listener: Listener): void {
    this.listener = listener
    if (this.ended === undefined) this.flow()
    else listener.end(this.ended.error)
  }

  /** Reads the bytes that arrive while the output has no reader. It does not keep the program alive. */
  private pump(): void {
    if (!this.flowing || this.ended !== undefined || this.readers > 0) return
    this.drain(
      () => true,
      () => {},
      this.listener === undefined ? BUFFER_BYTES : PUMP_BYTES
    )
    if (this.ended === undefined) this.standStill = this.more(() => this.pump(), false)
  }

  private finish(error?: BerthError): void {
    if (this.ended !== undefined) return
    this.ended = { error }
    this.listener?.end(error)
  }

  override close(): void {
    super.close()
    this.finish()
  }

  /** Takes all output until the end; what `captured` has no room for fails with `exceeded`, or is dropped without it. */
  collect(captured: Captured, exceeded?: () => BerthError): Effect.Effect<void, BerthError> {
    return Effect.async((resume) => {
      let cancel = (): void => {}
      const attempt = (): void => {
        let done = false
        this.drain(
          (bytes) => {
            if (captured.add(bytes) || exceeded === undefined) return true
            done = true
            resume(Effect.fail(exceeded()))
            return false
          },
          (error) => {
            done = true
            resume(error === undefined ? Effect.void : Effect.fail(error))
          }
        )
        if (!done) cancel = this.more(attempt)
      }
      attempt()
      return Effect.sync(() => cancel())
    })
  }
}

/** An end that Berth writes. */
export class Input extends End {
  /** Writes all bytes. If no process reads them any more, the rest is dropped without an error. */
  write(bytes: Uint8Array): Effect.Effect<void, BerthError> {
    return Effect.async((resume) => {
      let cancel = (): void => {}
      let at = 0
      const attempt = (): void => {
        // An empty datagram is sent as well.
        do {
          if (this.closed) return resume(Effect.void)
          const n = native().write(this.fd, bytes, at)
          if (n === -EAGAIN) {
            cancel = this.wait(this.whenReady(EPOLLOUT), attempt)
            return
          }
          if (n < 0) {
            this.close()
            return resume(n === -EPIPE ? Effect.void : Effect.fail(failed("write", -n)))
          }
          at += n
        } while (at < bytes.length)
        resume(Effect.void)
      }
      attempt()
      return Effect.sync(() => cancel())
    })
  }

  /** Writes everything and then closes the container's stdin. */
  get sink(): Sink.Sink<void, Uint8Array, never, BerthError> {
    return Sink.forEach((bytes: Uint8Array) => this.write(bytes)).pipe(
      Sink.ensuring(Effect.sync(() => this.close()))
    )
  }
}

/** The input side of a terminal: closing it writes the terminal's end-of-file character, termios(3). */
export class Typing extends Input {
  override close(): void {
    if (!this.closed) native().write(this.fd, VEOF, 0)
    super.close()
  }
}

const VEOF = new Uint8Array([4])

/** Makes a pipe of which Berth keeps the end numbered `ours`; throws `OperationFailed`. */
export const makePipe = (ours: 0 | 1): readonly [ours: number, theirs: number] => {
  const [read, write] = native().pipe(ours, PIPE_BYTES)
  if (read < 0) throw failed("pipe2", -read)
  return ours === 0 ? [read, write] : [write, read]
}

/** Receives the one descriptor that was sent over a socket with one byte; throws `OperationFailed`. */
export const takeDescriptor = (socket: number): number => {
  const [n, fd] = native().receive(socket, new Uint8Array(1))
  if (n >= 0 && fd >= 0) return fd
  throw failed("recvmsg", n < 0 ? -n : ENODATA)
}

/** Duplicates a descriptor; throws `OperationFailed`. */
export const duplicate = (fd: number): number => {
  const copy = native().duplicate(fd)
  if (copy < 0) throw failed("fcntl", -copy)
  return copy
}

/** Makes two connected sockets, ours and the one over which a child sends a descriptor; throws `OperationFailed`. */
export const makeSocketPair = (): readonly [ours: number, theirs: number] => {
  const [ours, theirs] = native().socketpair()
  if (ours < 0) throw failed("socketpair", -ours)
  return [ours, theirs]
}
