/** The packets of a container, as the program sees them at the network's end of its interface. */
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError, OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Capture, CaptureStatistics, FileCapture, Network } from "../../Network.ts"
import { failedAs } from "../files/fileFailure.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { EAGAIN, ENETDOWN } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as Turn from "../util/turn.ts"
import { memberOf } from "./member.ts"
import { near } from "./router.ts"

const AF_PACKET = 17
const SOCK_RAW = 3

/** So many bytes of packets the kernel keeps until they are read; it drops others. */
const KERNEL_BYTES = 8 * 1024 ** 2

/** So many bytes of a packet are kept: all, as the kernel hands over what it will cut into packets of the link later (GSO). */
const PACKET_BYTES_MAX = 256 * 1024

const READ_BYTES = 2 * PACKET_BYTES_MAX

/** The kernel counts more than the bytes of a packet, and allows twice the number. */
const LEFT_BYTES_MAX = 2 * KERNEL_BYTES

const LINKTYPE_ETHERNET = 1

/** The header of a pcap file with times in nanoseconds, in the byte order of this machine, which its readers find out. */
const pcapHeader = (): Uint8Array => {
  const header = new ArrayBuffer(24)
  new Uint32Array(header).set([0xa1b23c4d, 0, 0, 0, PACKET_BYTES_MAX, LINKTYPE_ETHERNET])
  new Uint16Array(header).set([2, 4], 2)
  return new Uint8Array(header)
}

const failed = (container: string, syscall: string, errno: number): BerthError =>
  new OperationFailed({ operation: `capture of container ${container}`, index: -1, syscall, errno, hint: "" })

/** A socket that gets the packets of an interface, until it is closed. */
class Packets {
  private fd: number
  readonly container: string
  private readonly buffer = new Uint8Array(READ_BYTES)
  /** What is left to be read after the end. */
  private left: ReadonlyArray<Uint8Array> = []
  private wake: (() => void) | undefined
  private isRead = false
  private packets = 0
  private dropped = 0

  constructor(fd: number, container: string) {
    this.fd = fd
    this.container = container
  }

  /** The packets that have come, at most as many as fit, and 0, or why no more will come or have come: -errno. */
  private take(): readonly [bytes: Uint8Array, reason: number] {
    const [length, reason] = native().packets(this.fd, this.buffer, PACKET_BYTES_MAX)
    return [this.buffer.slice(0, length), reason]
  }

  /** The kernel forgets what it has told. */
  private count(): void {
    if (this.fd < 0) return
    const [all, dropped] = native().packetStatistics(this.fd)
    this.packets += Math.max(all - dropped, 0)
    this.dropped += dropped
  }

  readonly statistics: Effect.Effect<CaptureStatistics> = Effect.sync(() => {
    this.count()
    return { packets: this.packets, dropped: this.dropped }
  })

  /** Nothing that comes later is captured; what has come can still be read. */
  end(): void {
    if (this.fd < 0) return
    const left: Array<Uint8Array> = []
    // More may come meanwhile, for as long as a container likes to send.
    for (let size = 0; size < LEFT_BYTES_MAX; ) {
      const [bytes, reason] = this.take()
      if (bytes.length > 0) left.push(bytes)
      if (reason < 0 && reason !== -ENETDOWN) break
      size += bytes.length
    }
    this.left = left
    this.count()
    native().close(this.fd)
    this.fd = -1
    this.wake?.()
  }

  private next(held: boolean): Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<BerthError>> {
    return Effect.async((resume) => {
      let cancel = (): void => {}
      const wait = (): void => {
        const watch = Loop.watch(this.fd, EPOLLIN, () => this.wake?.())
        if (typeof watch === "number")
          return resume(Effect.fail(Option.some(failed(this.container, "epoll_ctl", -watch))))
        if (held) Loop.retain()
        cancel = () => {
          watch()
          if (held) Loop.release()
          this.wake = undefined
          cancel = () => {}
        }
        this.wake = () => {
          cancel()
          attempt()
        }
      }
      const attempt = (): void => {
        const { left } = this
        this.left = []
        if (this.fd < 0)
          return resume(
            left.length > 0 ? Effect.succeed(Chunk.unsafeFromArray(left)) : Effect.fail(Option.none())
          )
        const [bytes, reason] = this.take()
        // The interface is gone, with the container; what came before is read.
        if (reason === -ENETDOWN) this.end()
        else if (reason < 0 && reason !== -EAGAIN)
          return resume(Effect.fail(Option.some(failed(this.container, "recvmsg", -reason))))
        if (bytes.length > 0) return resume(Effect.succeed(Chunk.of(bytes)))
        if (reason === -ENETDOWN) attempt()
        else wait()
      }
      if (Turn.isOver()) cancel = Turn.next(attempt)
      else attempt()
      return Effect.sync(() => cancel())
    })
  }

  /** `held`: its reader keeps the program alive. */
  stream(held: boolean): Stream.Stream<Uint8Array, BerthError> {
    return Stream.suspend(() => {
      if (this.isRead) {
        const detail =
          "its packets are read already: read the capture once and share the stream, or begin another"
        return Stream.fail(new ContainerError({ reason: "AlreadyRead", container: this.container, detail }))
      }
      this.isRead = true
      return Stream.concat(Stream.make(pcapHeader()), Stream.repeatEffectChunkOption(this.next(held)))
    })
  }
}

const begin = (network: Network, container: Container): Effect.Effect<Packets, BerthError> =>
  attempt(() => {
    const { number } = memberOf(network, "container", container)
    const fd = socketIn(network.state.router.namespace.fd, AF_PACKET, SOCK_RAW)
    if (fd < 0) throw failed(container.id, "socket", -fd)
    const result = native().capture(fd, near(number).index, KERNEL_BYTES)
    if (result === 0) return new Packets(fd, container.id)
    native().close(fd)
    throw failed(container.id, "bind", -result)
  })

const finish = (packets: Packets): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.zipRight(
      Effect.sync(() => packets.end()),
      packets.statistics
    ),
    ({ dropped }) => {
      const what = `capture of container ${packets.container}`
      return dropped === 0
        ? Effect.void
        : Effect.logWarning(`${what}: ${dropped} packets were not read in time, and are missing`)
    }
  )

/** See `Network.capture`. */
export const capture: {
  (container: Container): (network: Network) => Effect.Effect<Capture, BerthError, Scope.Scope>
  (network: Network, container: Container): Effect.Effect<Capture, BerthError, Scope.Scope>
} = dual(2, (network: Network, container: Container) =>
  Effect.map(Effect.acquireRelease(begin(network, container), finish), (packets) => ({
    stream: packets.stream(true),
    statistics: packets.statistics
  })).pipe(Effect.withSpan("berth.Network.capture", { attributes: { "container.id": container.id } }))
)

/** See `Network.captureToFile`. */
export const captureToFile: {
  (
    container: Container,
    path: string
  ): (network: Network) => Effect.Effect<FileCapture, BerthError, Scope.Scope>
  (network: Network, container: Container, path: string): Effect.Effect<FileCapture, BerthError, Scope.Scope>
} = dual(3, (network: Network, container: Container, path: string) =>
  Effect.gen(function* () {
    const what = `capture of container ${container.id} to ${path}`
    const attemptFile = <A>(body: () => Promise<A>): Effect.Effect<A, BerthError> =>
      Effect.tryPromise({ try: body, catch: failedAs(what) })
    const file = yield* Effect.acquireRelease(
      attemptFile(() => fs.promises.open(path, "w")),
      (file) => Effect.ignore(attemptFile(() => file.close()))
    )
    const { packets } = yield* Effect.acquireRelease(
      Effect.gen(function* () {
        const packets = yield* begin(network, container)
        const write = (bytes: Uint8Array) => attemptFile(() => file.writeFile(bytes))
        const writer = yield* Effect.forkDaemon(Stream.runForEach(packets.stream(false), write))
        return { packets, writer }
      }),
      ({ packets, writer }) =>
        Effect.zipRight(finish(packets), Fiber.join(writer)).pipe(
          Effect.catchAllCause((cause) => Effect.logWarning(`${what} is not complete`, cause))
        )
    )
    return { statistics: packets.statistics }
  }).pipe(Effect.withSpan("berth.Network.captureToFile", { attributes: { "container.id": container.id } }))
)
