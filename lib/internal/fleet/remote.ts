/** The handles of containers and processes that run on a runner. */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import type { RpcClientError } from "@effect/rpc/RpcClientError"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import {
  type BerthError,
  InvalidOption,
  NetworkError,
  type SupervisorError,
  Unsupported
} from "../../BerthError.ts"
import type { Address, Connection, Publishable, PublishedPort } from "../../Connection.ts"
import type { Container, ExecOptions, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Plan from "../../Plan.ts"
import type { ExitStatus, LogsOptions, Process, ProcessOptions } from "../../Process.ts"
import { buffered, bufferedOptions } from "../container/buffered.ts"
import { type ContainerState, makeContainer, makeProcess, type ProcessState } from "../container/handle.ts"
import * as images from "../image/image.ts"
import { parseOnePort } from "../network/ports.ts"
import type { Ended } from "../supervisor/protocol.ts"
import * as Loop from "../system/eventLoop.ts"
import { copyIn, copyOut, type Far } from "../tar/farCopy.ts"
import type { Captured } from "../util/captured.ts"
import type { ContainerElsewhere } from "../util/elsewhere.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalNumber } from "../util/signals.ts"
import type { Calls, Life, Link } from "./client.ts"
import { filesOf } from "./files.ts"
import * as plain from "./options.ts"
import type { Started } from "./protocol.ts"

/** The largest output that comes in one message; a larger one comes as it is written. */
const BUFFERED_BYTES_MAX = 16 * 1024 * 1024

/** The largest part of a write. */
const PART_BYTES = 1024 * 1024

/** Writes to what the runner has opened under this id. */
const writing =
  (link: Link, id: string) =>
  (bytes: Uint8Array): Effect.Effect<void, BerthError> =>
    Effect.forEach(
      Array.from({ length: Math.ceil(bytes.length / PART_BYTES) }, (_, k) =>
        bytes.subarray(k * PART_BYTES, (k + 1) * PART_BYTES)
      ),
      (part) => link.call((calls) => calls.write({ id, bytes: part })),
      { discard: true }
    )

const sinkTo = (link: Link, id: string): Sink.Sink<void, Uint8Array, never, BerthError> =>
  Sink.ensuring(Sink.forEach(writing(link, id)), Effect.ignore(link.call((calls) => calls.end({ id }))))

/** An output as those of processes here. */
const outputOf = (link: Link, id: string, name: "stdout" | "stderr") => {
  const stream = link.listen((calls) => calls.output({ id, name }))
  return {
    stream,
    collect: (captured: Captured, exceeded?: () => BerthError): Effect.Effect<void, BerthError> =>
      Stream.runForEach(stream, (bytes) =>
        captured.add(bytes) || exceeded === undefined ? Effect.void : Effect.fail(exceeded())
      )
  }
}

const logOf = (link: Link, id: string) => ({
  whole: Effect.void,
  tail: (): ReadonlyArray<string> => [],
  stream: ({ follow = false, since, tail }: LogsOptions) =>
    link.listen((calls) =>
      calls.logs({ id, follow, since: since === undefined ? undefined : Number(since), tail })
    )
})

/** The status of wait(2) from which handles make the end of a process. */
const waitStatus = ({ exitCode, signal }: ExitStatus): number =>
  signal === undefined ? exitCode << 8 : (signalNumber(signal) ?? 0)

interface Lived {
  readonly id: string
  readonly container: string
  readonly pid: number
  readonly exit: Effect.Effect<ExitStatus, BerthError>
  readonly ended: ProcessState["ended"]
  readonly release: Effect.Effect<void>
}

/** Starts a process under an id that the runner knows it by, and releases it when the scope closes. */
const lived = (
  link: Link,
  begin: (calls: Calls, id: string) => Effect.Effect<Started, BerthError | RpcClientError>
): Effect.Effect<Lived, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const id = randomBytes(8).toString("hex")
      const exit = yield* Deferred.make<ExitStatus, BerthError>()
      const ended = yield* Deferred.make<Ended, SupervisorError>()
      const life: Life = {
        ended: (status) => {
          Deferred.unsafeDone(
            ended,
            Effect.succeed({
              status: waitStatus(status),
              userMicros: status.userMicros,
              systemMicros: status.systemMicros,
              maxRssKiB: status.maxRssBytes / 1024
            })
          )
          Deferred.unsafeDone(exit, Effect.succeed(status))
        },
        failed: (error) => {
          Deferred.unsafeDone(ended, Effect.fail(error as never))
          Deferred.unsafeDone(exit, Effect.fail(error))
        }
      }
      // The runner tells of an end once, unless it has released what ended.
      const release = link
        .call((calls) => calls.release({ id }))
        .pipe(
          Effect.tap(({ room, status }) =>
            Effect.sync(() => {
              link.setRoom(room)
              if (link.lives.delete(id) && status !== undefined) life.ended(status)
            })
          ),
          Effect.ignore
        )
      link.lives.set(id, life)
      const { container, pid, room } = yield* restore(link.call((calls) => begin(calls, id))).pipe(
        // The runner may have started it by now.
        Effect.onInterrupt(() => release),
        Effect.onError(() => Effect.sync(() => link.lives.delete(id)))
      )
      link.setRoom(room)
      yield* Effect.addFinalizer(() => release)
      const wait = Effect.acquireUseRelease(
        Effect.sync(Loop.retain),
        () => Deferred.await(exit),
        () => Effect.sync(Loop.release)
      )
      return { id, container, pid, exit: wait, ended, release }
    })
  )

/** An image that a runner has told of. Its layers are on runners. */
export const remoteImage = ({
  config,
  digest,
  reference
}: {
  readonly reference: string
  readonly digest: string | undefined
  readonly config: Omit<Image["config"], "healthcheck">
}): Image =>
  images.make({ reference, digest, layers: [], config: { ...config, healthcheck: undefined }, upper: "disk" })

/** The parts of a handle's state that a container and a process beside it have in common. */
const stateOf = (berth: Berth, link: Link, { ended, id }: Lived, options: ProcessOptions) => {
  const hasPipe = options.stdin === "pipe"
  const output = (name: "stdout" | "stderr") =>
    options[name] === "null" ? undefined : outputOf(link, id, name)
  return {
    berth,
    pidfd: -1,
    cgroup: undefined,
    stdin: hasPipe ? { sink: sinkTo(link, id), write: writing(link, id) } : undefined,
    stdout: output("stdout"),
    stderr: options.terminal ? undefined : output("stderr"),
    terminal: options.terminal
      ? {
          resize: (rows: number, columns: number) =>
            Effect.runFork(Effect.ignore(link.call((calls) => calls.resize({ id, rows, columns }))))
        }
      : undefined,
    log: () => logOf(link, id),
    inside: {
      ended,
      entering: 0,
      executed: new Set<Process>(),
      adopting: undefined,
      copying: undefined
    },
    ended,
    elsewhere: {
      signal: (signal: string | number) => link.call((calls) => calls.signal({ id, signal })),
      stop: ({ grace = "10 seconds", signal }) =>
        link.call((calls) => calls.stop({ id, signal, graceMillis: Duration.toMillis(grace) }))
    } satisfies ProcessState["elsewhere"]
  }
}

const spawned = (
  berth: Berth,
  link: Link,
  container: string,
  command: ReadonlyArray<string>,
  options: ProcessOptions
): Effect.Effect<Process, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const sent = yield* plain.processOptions(options)
    const life = yield* lived(link, (calls, id) => calls.spawn({ id, container, command, options: sent }))
    const state = stateOf(berth, link, life, options) as unknown as ProcessState
    return Object.assign(makeProcess(life.container, life.pid, Plan.make([]), state), { exit: life.exit })
  })

/** A connection to a server in the container: a tunnel through the runner's. */
const connected = (
  link: Link,
  container: string,
  address: Address
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const events = link.listen((calls) => calls.connect({ id: container, address }))
    // The first event says where to write; the others are what the server sends.
    const pull = yield* Stream.toPull(Stream.rechunk(events, 1))
    const next = Effect.map(pull, (chunk) => [...chunk][0]!)
    const opened = yield* Effect.mapError(
      next,
      Option.getOrElse(
        (): BerthError =>
          new NetworkError({
            reason: "Reset",
            subject: `container ${container}`,
            address: JSON.stringify(address),
            errno: 104,
            detail: "the runner ended the connection"
          })
      )
    )
    if (opened instanceof Uint8Array) return yield* Effect.dieMessage("a connection that begins with data")
    const received = Stream.repeatEffectOption(
      Effect.map(next, (event) => (event instanceof Uint8Array ? event : new Uint8Array(0)))
    )
    return { stream: received, sink: sinkTo(link, opened.id) }
  })

/** Gives the bytes of a socket of this machine to a connection, and those of the connection to the socket. */
const relay = (
  near: net.Socket,
  far: Effect.Effect<Connection, BerthError, Scope.Scope>
): Effect.Effect<void> =>
  Effect.scoped(
    Effect.flatMap(far, ({ sink, stream }) => {
      const sent = Stream.run(
        Stream.fromAsyncIterable(near as AsyncIterable<Uint8Array>, (error) => error as never),
        sink
      )
      const received = Stream.runForEach(stream, (bytes) =>
        Effect.async<void, never>((resume) => {
          near.write(bytes, () => resume(Effect.void))
        })
      ).pipe(Effect.zipRight(Effect.sync(() => near.end())))
      return Effect.all([sent, received], { concurrency: "unbounded", discard: true })
    })
  ).pipe(
    Effect.catchAllCause((cause) => Effect.sync(() => near.destroy(new Error(String(cause))))),
    Effect.ensuring(Effect.sync(() => near.destroy()))
  )

/** A server of this machine whose connections go to the container, until the scope closes. */
const tunnel = (
  listen: net.ListenOptions,
  far: Effect.Effect<Connection, BerthError, Scope.Scope>
): Effect.Effect<net.Server, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const run = Runtime.runFork(yield* Effect.runtime<never>())
    const sockets = new Set<net.Socket>()
    return yield* Effect.acquireRelease(
      Effect.async<net.Server, BerthError>((resume) => {
        const server = net.createServer({ allowHalfOpen: true }, (near) => {
          sockets.add(near)
          near.on("close", () => sockets.delete(near)).on("error", () => {})
          run(relay(near, far))
        })
        server.once("error", (cause: NodeJS.ErrnoException) =>
          resume(
            new NetworkError({
              reason: cause.code === "EADDRINUSE" ? "AddressInUse" : "Unreachable",
              subject: "published port",
              address: `${listen.host}:${listen.port}`,
              errno: Math.abs(cause.errno ?? 0),
              detail: cause.message,
              cause
            })
          )
        )
        server.listen(listen, () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.sync(() => {
          server.close()
          for (const socket of sockets) socket.destroy()
        })
    )
  })

const publishedBy = (
  connect: ContainerElsewhere["connect"],
  given: Publishable
): Effect.Effect<PublishedPort, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const options = yield* attempt(() => parseOnePort(given))
    if ("path" in options || options.protocol === "udp")
      return yield* new Unsupported({
        feature: "UDP, or a path, of a container of another machine",
        why: "its tunnel is TCP",
        hint: "Publish a TCP port"
      })
    const host =
      options.hostname === undefined || options.hostname === "localhost" ? "127.0.0.1" : options.hostname
    const server = yield* tunnel({ host, port: options.host ?? 0 }, connect(options.container))
    return { hostname: host, port: (server.address() as net.AddressInfo).port }
  })

/** A socket of node:net that the container's server answers: one end of a pair, whose other end is the tunnel. */
const socketTo = (connect: ContainerElsewhere["connect"], address: Address): net.Socket => {
  const socket = new net.Socket()
  const begin = Effect.scoped(
    Effect.gen(function* () {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => fs.mkdtempSync(`${os.tmpdir()}/berth-socket-`)),
        (path) => Effect.sync(() => fs.rmSync(path, { recursive: true, force: true }))
      )
      const path = `${folder}/tunnel`
      yield* tunnel({ path }, connect(address))
      socket.connect(path)
      yield* Effect.async<void>((resume) => {
        socket.once("close", () => resume(Effect.void))
      })
    })
  )
  Effect.runFork(Effect.catchAll(begin, (error) => Effect.sync(() => socket.destroy(error))))
  return socket
}

const elsewhereOf = (
  berth: Berth,
  link: Link,
  id: string,
  base: ProcessState["elsewhere"]
): ContainerElsewhere => {
  const connect = (address: Address) => connected(link, id, address)
  const files: Far = {
    fileSystem: filesOf(link, id),
    tarOut: (path, { maxHoleBytes }) => link.listen((calls) => calls.tarOut({ id, path, maxHoleBytes })),
    tarIn: (path) => unpackedAt(link, id, path)
  }
  return {
    ...base!,
    runner: link.description.name,
    exec: (command, options) => {
      const { input } = options
      const isLong = (options.maxOutputBytes ?? 0) > BUFFERED_BYTES_MAX
      if (isLong || (typeof input === "object" && Stream.StreamTypeId in input))
        return execByStreams(berth, link, id, command, options)
      return Effect.gen(function* () {
        yield* attempt(() => bufferedOptions(options))
        const sent = yield* plain.execOptions(options)
        return yield* link.call((calls) => calls.exec({ id, command, options: sent }))
      })
    },
    execStream: (command, options) => spawned(berth, link, id, command, options),
    stats: link.call((calls) => calls.stats({ id })) as never,
    top: link.call((calls) => calls.top({ id })) as never,
    pause: link.call((calls) => calls.pause({ id })),
    resume: link.call((calls) => calls.resume({ id })),
    ...files,
    copyIn: (hostPath, containerPath) => copyIn(files, hostPath, containerPath),
    copyOut: (containerPath, hostPath, options) => copyOut(files, containerPath, hostPath, options),
    connect,
    netSocket: (address) => socketTo(connect, address),
    commit: ({ tag, ...options }) =>
      tag === undefined
        ? new InvalidOption({
            option: "tag",
            value: "undefined",
            expected: "the name of the image in a registry, where every runner finds it"
          })
        : Effect.flatMap(plain.commitOptions(options), (sent) =>
            Effect.map(
              link.call((calls) => calls.commit({ id, reference: tag, options: sent })),
              remoteImage
            )
          ),
    publish: (given) => publishedBy(connect, given),
    waitForPort: (port, { timeout = "30 seconds" }) =>
      link.call((calls) => calls.waitForPort({ id, port, timeoutMillis: Duration.toMillis(timeout) }))
  }
}

const execByStreams = (
  berth: Berth,
  link: Link,
  id: string,
  command: ReadonlyArray<string>,
  options: ExecOptions
) =>
  Effect.flatMap(
    attempt(() => bufferedOptions(options)),
    ({ input, maxOutputBytes, onOverflow, ...how }) =>
      Effect.scoped(
        Effect.flatMap(spawned(berth, link, id, command, how), (process) =>
          buffered(process, { input, maxOutputBytes, onOverflow })
        )
      )
  )

const unpackedAt = (link: Link, id: string, path: string): Sink.Sink<void, Uint8Array, never, BerthError> =>
  Sink.unwrapScoped(
    Effect.gen(function* () {
      const opened = yield* Deferred.make<string, BerthError>()
      const done = yield* Deferred.make<void, BerthError>()
      yield* Stream.runForEach(
        link.listen((calls) => calls.tarIn({ id, path })),
        (event) => Deferred.succeed(opened, event.id)
      ).pipe(Effect.intoDeferred(done), Effect.forkScoped)
      const entry = yield* Effect.raceFirst(
        Deferred.await(opened),
        Effect.zipRight(Deferred.await(done), Effect.never)
      )
      // An archive that is refused ends before its bytes do, and the runner says why.
      const orWhy = Effect.catchAll((error: BerthError) =>
        Effect.zipRight(Deferred.await(done), Effect.fail(error))
      )
      const write = writing(link, entry)
      return Sink.mapEffect(
        Sink.forEach((bytes: Uint8Array) => orWhy(write(bytes))),
        () => Effect.zipRight(orWhy(link.call((calls) => calls.end({ id: entry }))), Deferred.await(done))
      )
    })
  )

/** Starts a container on a runner. */
export const start = (
  berth: Berth,
  link: Link,
  image: Image,
  sent: plain.PlainStart,
  options: StartOptions
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const name = { reference: image.reference, digest: image.digest }
    const scope = yield* Effect.scope
    const life = yield* lived(link, (calls, id) => calls.start({ id, image: name, options: sent }))
    const common = stateOf(berth, link, life, options)
    const state = {
      ...common,
      elsewhere: elsewhereOf(berth, link, life.id, common.elsewhere),
      root: -1,
      base: {
        image,
        upper: undefined,
        mountedUpper: undefined,
        targets: undefined,
        isThere: () => false,
        isOwn: false
      },
      names: undefined,
      ids: undefined,
      started: options,
      settings: {},
      kinds: [],
      addresses: [],
      station: undefined,
      scope,
      release: life.release
    } as unknown as ContainerState
    return Object.assign(makeContainer(life.container, life.pid, Plan.make([]), state), { exit: life.exit })
  })
