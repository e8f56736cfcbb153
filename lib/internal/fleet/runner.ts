/** The handlers of a runner: each procedure does on this machine what a client asks for. */
import { randomBytes } from "node:crypto"
import * as os from "node:os"
import type { PlatformError } from "@effect/platform/Error"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Address } from "../../Connection.ts"
import * as Container from "../../Container.ts"
import { FleetError } from "../../FleetError.ts"
import type { RunnerOptions } from "../../fleet.ts"
import * as Image from "../../Image.ts"
import type { Process } from "../../Process.ts"
import * as WaitFor from "../../WaitFor.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as validate from "../util/validate.ts"
import { plainInfo } from "./files.ts"
import * as Metrics from "./metrics.ts"
import * as plain from "./options.ts"
import * as Policy from "./policy.ts"
import { type Description, type ImageName, Rpcs, type RunningContainer, VERSION } from "./protocol.ts"
import * as Room from "./room.ts"
import { containerOf, entryOf, heldOf, hold, releaseOf, type Session, Sessions } from "./session.ts"

/** The largest difference of two machines' clocks. */
const CLOCK_MILLIS_MAX = 60_000

/** The number of parts that wait for a process, a connection or an archive. */
const PARTS = 4

/** The number of parts of an output, of up to 256 KiB each, in one message. */
const BATCH = 8

const newId = (): string => randomBytes(8).toString("hex")

export interface Runner {
  readonly description: Description
  readonly policy: Policy.Policy
  readonly rooms: Room.Rooms
  readonly sessions: Sessions
}

const checkClient = (
  name: string,
  { clockMillis, version }: { readonly clockMillis: number; readonly version: number }
): Effect.Effect<void, FleetError> =>
  Effect.suspend(() => {
    const subject = `runner ${name}`
    if (version !== VERSION)
      return new FleetError({
        reason: "Version",
        subject,
        detail: `it speaks version ${VERSION} of the fleet's protocol, and this program version ${version}: install the same version of berth on both`
      })
    const off = Date.now() - clockMillis
    return Math.abs(off) > CLOCK_MILLIS_MAX
      ? new FleetError({
          reason: "Clock",
          subject,
          detail: `its clock is ${Math.round(Math.abs(off) / 1000)} seconds ${off > 0 ? "ahead" : "behind"}: set the clocks of both machines, by NTP for example`
        })
      : Effect.void
  })

/** A place for bytes that a client writes, from which `consume` reads; it is there until the scope closes. */
const entry = (
  session: Session,
  id: string,
  consume: (bytes: Stream.Stream<Uint8Array>) => Effect.Effect<void, BerthError>
) =>
  Effect.gen(function* () {
    const queue = yield* Effect.acquireRelease(Queue.bounded<Uint8Array | undefined>(PARTS), Queue.shutdown)
    const done = yield* Deferred.make<void, BerthError>()
    const bytes = Stream.fromQueue(queue).pipe(
      Stream.takeWhile((part) => part !== undefined),
      Stream.map((part) => part as Uint8Array)
    )
    // What is forked where nothing interrupts would not be interrupted either.
    yield* Effect.forkScoped(Effect.interruptible(Effect.intoDeferred(consume(bytes), done)))
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        session.entries.set(id, {
          // Nobody reads the queue any more once the consumer has ended.
          write: (part) =>
            Effect.raceFirst(
              Effect.interruptible(Effect.asVoid(Queue.offer(queue, part))),
              Effect.interruptible(Deferred.await(done))
            ),
          end: Effect.asVoid(Queue.offer(queue, undefined))
        })
      ),
      () => Effect.sync(() => session.entries.delete(id))
    )
    return done
  })

/** How long after a change clients are told of the room: what they start and release themselves tells them at once. */
const QUIET_MILLIS = 20

/** The room as it is now, for an answer that the client takes in any case. */
const tell = (rooms: Room.Rooms, session: Session) =>
  Effect.map(SubscriptionRef.get(rooms), (room) => {
    session.told = Math.max(session.told, room.serial)
    return room
  })

/** What a session tells its client: the runner at first, then its room when it changes, and the ends of what the client has there. */
const told = (runner: Description, rooms: Room.Rooms, session: Session) => {
  const hello = Effect.map(tell(rooms, session), (room) => ({ _tag: "Hello", runner, room }) as const)
  const later = Effect.zipRight(Effect.sleep(QUIET_MILLIS), SubscriptionRef.get(rooms))
  const changes = rooms.changes.pipe(
    Stream.buffer({ capacity: 1, strategy: "sliding" }),
    Stream.mapEffect(() => later),
    Stream.filter(({ serial }) => serial > session.told),
    Stream.mapEffect(() => Effect.map(tell(rooms, session), (room) => ({ _tag: "Changed", room }) as const))
  )
  return Stream.fromEffect(hello).pipe(
    Stream.concat(Stream.merge(changes, Stream.fromQueue(session.ends))),
    Stream.interruptWhenDeferred(session.over)
  )
}

const description = (options: RunnerOptions) =>
  Effect.gen(function* () {
    const leaseMillis = yield* attempt(() =>
      Duration.toMillis(validate.duration("lease", options.lease ?? "10 seconds"))
    )
    const { doctor } = yield* Effect.promise(() => import("../../Berth.ts"))
    const berth = yield* Berth
    const { checks } = yield* doctor
    const made: Description = {
      name: options.name ?? os.hostname(),
      version: VERSION,
      architecture: { x64: "amd64", arm64: "arm64" }[os.arch() as "x64"] ?? os.arch(),
      kernel: os.release(),
      rootless: berth.rootless,
      features: checks.filter(({ status }) => status === "ok").map(({ name }) => name),
      labels: options.labels ?? {},
      leaseMillis
    }
    return made
  })

/** What a runner gives away. */
const roomOf = ({ cpus, memory }: RunnerOptions) =>
  attempt(() => ({
    memoryBytes: memory === undefined ? os.totalmem() : validate.bytes("memory", memory),
    cpus:
      cpus === undefined
        ? os.availableParallelism()
        : cpus > 0
          ? cpus
          : validate.invalid("cpus", cpus, "a number of CPUs above 0")
  }))

export const make = (options: RunnerOptions): Effect.Effect<Runner, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { cpus, memoryBytes } = yield* roomOf(options)
    const made = yield* description(options)
    const rooms = yield* Room.make(memoryBytes, cpus)
    yield* Effect.forkScoped(Stream.runForEach(rooms.changes, Metrics.settingRoom(made.name)))
    return {
      description: made,
      policy: yield* Policy.make(made.name, options.allow ?? {}),
      rooms,
      sessions: new Sessions(made.name, made.leaseMillis)
    }
  })

/** The name of the image of a start: the one that its client has pulled, if it has a digest. */
const nameOf = ({ digest, reference }: typeof ImageName.Type): string =>
  digest === undefined ? reference : `${reference.replace(/@.*$/, "").replace(/:[^/:]*$/, "")}@${digest}`

/** What a client needs to know of an image. */
const pulled = ({ config: { healthcheck: _, ...config }, digest, reference }: Image.Image) => ({
  reference,
  digest,
  config
})

export const handlers = ({ description, policy, rooms, sessions }: Runner) =>
  Rpcs.toLayer(
    Effect.gen(function* () {
      const berth = yield* Berth
      const here = <A, E, R>(effect: Effect.Effect<A, E, R | Berth>) =>
        Effect.provideService(effect, Berth, berth) as Effect.Effect<A, E, Exclude<R, Berth>>

      const running = new Map<string, RunningContainer>()

      /** The image of a start: the store's, or else its registry's. */
      const imageOf = (name: string) =>
        Effect.gen(function* () {
          const image = yield* name === "host" ? Image.host : Image.get(name)
          if (image.digest !== undefined) yield* Room.hasImage(rooms, image.digest)
          return image
        })

      type Caller = { readonly clientId: number }
      const inSession =
        <P, A, E, R>(run: (session: Session, payload: P) => Effect.Effect<A, E, R>) =>
        (payload: P, { clientId }: Caller) =>
          Effect.flatMap(sessions.of(clientId), (session) => here(run(session, payload)))
      const streamed =
        <P, A, E, R>(run: (session: Session, payload: P) => Stream.Stream<A, E, R>) =>
        (payload: P, { clientId }: Caller) =>
          Stream.unwrap(Effect.map(sessions.of(clientId), (session) => run(session, payload))).pipe(
            Stream.provideService(Berth, berth)
          ) as Stream.Stream<A, E | FleetError | BerthError, never>
      /** The same for bytes: what comes while the client has not confirmed the last message is one message. */
      const batched =
        <P, A, E, R>(run: (session: Session, payload: P) => Stream.Stream<A, E, R>) =>
        (payload: P, caller: Caller) =>
          Mailbox.fromStream(streamed(run)(payload, caller), { capacity: BATCH })
      type OfOne = { readonly id: string }
      /** Does something with one container of the session. */
      const withContainer = <P extends OfOne, A, E, R>(
        run: (container: Container.Container, payload: P) => Effect.Effect<A, E, R>
      ) =>
        inSession((session, payload: P) =>
          Effect.flatMap(containerOf(session, payload.id), (container) => run(container, payload))
        )
      const withProcess = <P extends OfOne, A, E, R>(
        run: (process: Process, payload: P) => Effect.Effect<A, E, R>
      ) =>
        inSession((session, payload: P) =>
          Effect.flatMap(heldOf(session, payload.id), ({ process }) => run(process, payload))
        )

      const started = (
        session: Session,
        id: string,
        start: Effect.Effect<Process, BerthError, Berth | Scope.Scope>
      ) =>
        hold(session, id, here(start), (process) =>
          process.state.stdin === undefined
            ? Effect.void
            : entry(session, id, (bytes) => Stream.run(bytes, process.stdin))
        ).pipe(
          Effect.flatMap((process) =>
            Effect.map(tell(rooms, session), (room) => ({
              container: process.id,
              pid: process.pid,
              room
            }))
          )
        )

      return Rpcs.of({
        session: (client, { clientId }) =>
          Stream.unwrapScoped(
            Effect.gen(function* () {
              yield* checkClient(description.name, client)
              return told(description, rooms, yield* sessions.begin(clientId, client.client))
            })
          ),
        renew: inSession((session) => Effect.sync(() => sessions.renew(session))),
        containers: inSession(() => Effect.sync(() => [...running.values()])),
        pull: inSession((_, { platform, reference }) =>
          Effect.gen(function* () {
            yield* Policy.admitImage(policy, reference)
            const image = yield* reference === "host" ? Image.host : Image.pull(reference, { platform })
            if (image.digest !== undefined) yield* Room.hasImage(rooms, image.digest)
            return { ...pulled(image), room: yield* SubscriptionRef.get(rooms) }
          })
        ),
        commit: withContainer((container, { options, reference }) =>
          Effect.gen(function* () {
            yield* Policy.admitPush(policy, reference)
            // Without a name: those of the runner's store are not its clients' to give.
            const image = yield* Container.commit(container, yield* plain.commitOptions(options))
            yield* Image.push(image, reference)
            return { ...pulled(image), reference }
          })
        ),
        start: inSession((session, { id, image, options }) => {
          const start = Effect.gen(function* () {
            const wanted = yield* plain.startOptions(options)
            const admitted = yield* Policy.admit(policy, wanted)
            const name = nameOf(image)
            yield* Policy.admitImage(policy, name)
            yield* Room.reserve(rooms, description.name, admitted.request)
            const container = yield* Container.start(yield* imageOf(name), admitted.options)
            yield* Effect.acquireRelease(
              Effect.sync(() =>
                running.set(container.id, { id: container.id, image: image.reference, ...admitted.request })
              ),
              () => Effect.sync(() => running.delete(container.id))
            )
            return container
          })
          return started(session, id, start)
        }),
        release: inSession((session, { id }) =>
          Effect.flatMap(releaseOf(session, id), (status) =>
            Effect.map(tell(rooms, session), (room) => ({ status, room }))
          )
        ),
        exec: withContainer((container, { command, options }) =>
          Effect.gen(function* () {
            const how = yield* Policy.admitExec(policy, yield* plain.execOptions(options))
            return yield* Container.exec(container, command, how)
          })
        ),
        spawn: inSession((session, { command, container, id, options }) => {
          const start = Effect.gen(function* () {
            const how = yield* Policy.admitExec(policy, yield* plain.processOptions(options))
            return yield* Container.execStream(yield* containerOf(session, container), command, how)
          })
          return started(session, id, start)
        }),
        output: batched((session, { id, name }) =>
          Stream.unwrap(Effect.map(heldOf(session, id), ({ process }) => process[name]))
        ),
        logs: streamed((session, { follow, id, since, tail }) =>
          Stream.unwrap(
            Effect.map(heldOf(session, id), ({ process }) => Container.logs(process, { follow, since, tail }))
          )
        ),
        write: inSession((session, { bytes, id }) =>
          Effect.flatMap(entryOf(session, id), ({ write }) => write(bytes))
        ),
        end: inSession((session, { id }) => Effect.flatMap(entryOf(session, id), ({ end }) => end)),
        signal: withProcess((process, { signal }) => Container.signal(process, signal)),
        stop: withProcess((process, { graceMillis, signal }) =>
          Container.stop(process, { signal, grace: graceMillis })
        ),
        resize: withProcess((process, { columns, rows }) => Container.resize(process, { rows, columns })),
        stats: withContainer((container) => Container.stats(container)),
        top: withContainer((container) => Container.top(container)),
        pause: withContainer((container) => Container.pause(container)),
        resume: withContainer((container) => Container.resume(container)),
        waitForPort: withContainer((container, { port, timeoutMillis }) =>
          WaitFor.port(container, port, { timeout: timeoutMillis })
        ),
        file: withContainer((container, { arguments: given, method }) =>
          Effect.suspend(() => {
            const files = Container.fileSystem(container) as unknown as Record<
              string,
              (...given: ReadonlyArray<unknown>) => Effect.Effect<unknown, PlatformError, Scope.Scope>
            >
            const answer = Effect.scoped(files[method]!(...given))
            return method === "stat"
              ? Effect.map(answer, (info) => plainInfo(info as FileSystem.File.Info))
              : answer
          })
        ),
        read: batched((session, { id, path }) =>
          Stream.unwrap(
            Effect.map(containerOf(session, id), (container) => Container.fileSystem(container).stream(path))
          )
        ),
        tarOut: batched((session, { id, maxHoleBytes, path }) =>
          Stream.unwrap(
            Effect.map(containerOf(session, id), (container) =>
              Container.tarOut(container, path, { maxHoleBytes })
            )
          )
        ),
        tarIn: streamed((session, { id, path }) =>
          Stream.unwrapScoped(
            Effect.gen(function* () {
              const container = yield* containerOf(session, id)
              const opened = newId()
              const done = yield* entry(session, opened, (bytes) =>
                Stream.run(bytes, Container.tarIn(container, path))
              )
              return Stream.concat(
                Stream.succeed({ _tag: "Opened", id: opened } as const),
                Stream.drain(Stream.fromEffect(Deferred.await(done)))
              )
            })
          )
        ),
        connect: batched((session, { address, id }) =>
          Stream.unwrapScoped(
            Effect.gen(function* () {
              const container = yield* containerOf(session, id)
              const connection = yield* Container.connect(container, address as Address)
              const opened = newId()
              yield* entry(session, opened, (bytes) => Stream.run(bytes, connection.sink))
              return Stream.concat(Stream.succeed({ _tag: "Opened", id: opened } as const), connection.stream)
            })
          )
        )
      })
    })
  )
