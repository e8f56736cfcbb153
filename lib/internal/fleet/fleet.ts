/** The service `Berth` of a program whose containers are on a fleet's runners. */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import * as RpcServer from "@effect/rpc/RpcServer"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import { NodeInspectSymbol } from "effect/Inspectable"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Berth from "../../Berth.ts"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import { FleetError } from "../../FleetError.ts"
import type { Allow, Identity, Options, RunnerOptions, Serving } from "../../fleet.ts"
import type { Image, PullOptions } from "../../Image.ts"
import { parseBytes } from "../util/bytes.ts"
import type { Fleet } from "../util/elsewhere.ts"
import { later } from "../util/later.ts"
import * as Client from "./client.ts"
import { CLIENT_BYTES_MAX, serialization } from "./frames.ts"
import * as Metrics from "./metrics.ts"
import * as plain from "./options.ts"
import * as Place from "./place.ts"
import type { Request } from "./policy.ts"
import { Rpcs } from "./protocol.ts"
import { remoteImage, start } from "./remote.ts"
import * as Runner from "./runner.ts"
import { seenOf } from "./seen.ts"
import { keptMillis, RENEWED } from "./session.ts"
import * as Transport from "./transport.ts"

const members = later(() => import("./members.ts"))

// A runner

/** Serves the clients of a runner until the scope closes, or its supervisor has ended. */
export const serve = (
  options: RunnerOptions
): Effect.Effect<Serving, BerthError, Berth.Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    const asked = yield* Transport.parseAddress(options.listen)
    const runner = yield* Runner.make(options)
    const { leaseMillis } = runner.description
    const ended = yield* Deferred.make<void>()
    const scope = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
    yield* Scope.addFinalizer(scope, Deferred.succeed(ended, undefined))
    const { address, layer } = yield* Scope.extend(Transport.server(asked, options), scope)
    yield* Layer.buildWithScope(
      RpcServer.layer(Rpcs, { disableFatalDefects: true, spanPrefix: "berth.runner" }).pipe(
        Layer.provide(Runner.handlers(runner)),
        Layer.provide(RpcServer.layerProtocolSocketServer),
        Layer.provide(Layer.succeed(RpcSerialization.RpcSerialization, serialization(CLIENT_BYTES_MAX))),
        Layer.provide(layer)
      ),
      scope
    )
    // The supervisor of a runner that is stopped ends what the runner has. A runner without a supervisor serves nobody.
    const live = Effect.sync(() => supervisor.renew(keptMillis(leaseMillis))).pipe(
      Effect.zipRight(Effect.sleep(leaseMillis * RENEWED)),
      Effect.repeat({ while: () => supervisor.isRunning() }),
      Effect.zipRight(Effect.forkDaemon(Scope.close(scope, Exit.void)))
    )
    yield* Effect.forkIn(live, scope)
    // The supervisor belongs to its program alone again.
    yield* Scope.addFinalizer(
      scope,
      Effect.sync(() => supervisor.renew(0))
    )
    const { database } = options
    if (database !== undefined)
      yield* Scope.extend(
        members(({ register }) => register(database, address, runner.description)),
        scope
      )
    return { address: Transport.print(address), ended: Deferred.await(ended) }
  })

// A client

/** The links to the runners that answer, and what wakes those who wait for a change of them. */
class Links implements Place.Runners {
  private readonly all = new Set<Client.Link>()
  private changed = Deferred.unsafeMake<void>(FiberId.none)

  readonly links = (): ReadonlyArray<Client.Link> => [...this.all]
  readonly change = (): Deferred.Deferred<void> => this.changed

  readonly wake = (): void => {
    const before = this.changed
    this.changed = Deferred.unsafeMake<void>(FiberId.none)
    Deferred.unsafeDone(before, Effect.void)
  }

  add(link: Client.Link): Effect.Effect<void, never, Scope.Scope> {
    const changeBy = (by: 1 | -1, edit: () => unknown) =>
      Effect.suspend(() => {
        edit()
        this.wake()
        return Metric.incrementBy(Metrics.runners, by)
      })
    return Effect.acquireRelease(
      changeBy(1, () => this.all.add(link)),
      () => changeBy(-1, () => this.all.delete(link))
    )
  }
}

/** How long to wait before a runner that does not answer is tried again. */
const again = Schedule.union(Schedule.exponential("200 millis"), Schedule.spaced("5 seconds"))

/** Keeps a link to a runner, made again when it is lost, as long as the runner is `wanted`; `first` is told of each try. */
const keep = (
  links: Links,
  address: Transport.Address,
  identity: Identity,
  first: (tried: Effect.Effect<void, BerthError>) => Effect.Effect<unknown>,
  wanted: () => boolean = () => true
): Effect.Effect<unknown> =>
  Effect.scoped(
    Effect.gen(function* () {
      const link = yield* Client.link(address, identity, links.wake)
      yield* links.add(link)
      yield* first(Effect.void)
      return yield* Effect.catchAll(Deferred.await(link.lost), (error) =>
        Effect.zipRight(Metric.increment(Metrics.of(Metrics.lost, error.runner)), Effect.logDebug(error))
      )
    })
  ).pipe(
    Effect.tapError((error) => first(Effect.fail(error))),
    Effect.retry({ schedule: again, while: wanted }),
    Effect.ignore,
    Effect.repeat({ while: wanted })
  )

/** The addresses of the runners that a database has, now and after each change. */
export const addresses = (
  database: Redacted.Redacted<string>
): Stream.Stream<ReadonlyArray<string>, BerthError> =>
  Stream.asyncPush<ReadonlyArray<string>, BerthError>((emit) =>
    members(({ watch }) => watch(database, (found) => Effect.sync(() => emit.single(found))))
  ).pipe(Stream.changesWith((before, now) => before.join("\n") === now.join("\n")))

/** How long a program waits for a runner in its database: both may start at once. */
const FIRST_MILLIS = 5000

/** Links to the runners that a database names. While it is away, they are the ones that it named last. */
const named = (
  links: Links,
  database: Redacted.Redacted<string>,
  identity: Identity
): Effect.Effect<Effect.Effect<void, BerthError>, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const first = yield* Deferred.make<void>()
    const kept = new Set<string>()
    let all: ReadonlyArray<string> = []
    let failure: BerthError = new FleetError({
      reason: "NoRunner",
      subject: "fleet",
      detail: "no runner in its database is alive: start one with the same database"
    })
    const tried = Effect.matchEffect({
      onFailure: (error: BerthError) => Effect.sync(() => (failure = error)),
      onSuccess: () => Deferred.succeed(first, undefined)
    })
    const found = (text: string) =>
      Effect.gen(function* () {
        const address = yield* Transport.parseAddress(text)
        kept.add(text)
        const isNamed = () => all.includes(text)
        yield* keep(links, address, identity, tried, isNamed).pipe(
          Effect.ensuring(Effect.sync(() => kept.delete(text))),
          Effect.forkIn(scope)
        )
      }).pipe(Effect.catchAll((error) => Effect.logWarning(error)))
    yield* members(({ watch }) =>
      watch(database, (addresses) => {
        all = addresses
        return Effect.forEach(
          addresses.filter((text) => !kept.has(text)),
          found,
          { discard: true }
        )
      })
    )
    return Effect.timeoutFail(Deferred.await(first), { duration: FIRST_MILLIS, onTimeout: () => failure })
  })

/** How long to wait for the other runners once one has answered. */
const STRAGGLERS = "1 second"

/** Links to all runners. Succeeds once one answers, and fails when none does. */
const linked = (options: Options): Effect.Effect<Links, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const links = new Links()
    const tries = yield* Effect.forEach(options.runners ?? [], (text) =>
      Effect.gen(function* () {
        const address = yield* Transport.parseAddress(text)
        const first = yield* Deferred.make<void, BerthError>()
        yield* Effect.forkScoped(keep(links, address, options, (tried) => Effect.intoDeferred(tried, first)))
        return Deferred.await(first)
      })
    )
    const { database } = options
    const all = database === undefined ? tries : [...tries, yield* named(links, database, options)]
    const settled = yield* Effect.fork(Effect.forEach(all, Effect.either, { concurrency: "unbounded" }))
    yield* Effect.raceAll(all)
    // The first container finds the others as well, unless one of them does not answer.
    yield* Effect.timeoutOption(Fiber.join(settled), STRAGGLERS)
    return links
  })

const requestOf = ({ limits }: plain.PlainStart): Request => {
  const { cpus, memory } = (limits ?? {}) as { readonly cpus?: unknown; readonly memory?: unknown }
  const max =
    typeof memory === "object" && memory !== null ? (memory as { readonly max?: unknown }).max : memory
  const bytes = typeof max === "number" || typeof max === "string" ? parseBytes(max) : undefined
  return { memoryBytes: bytes ?? 0, cpus: typeof cpus === "number" ? cpus : 0 }
}

const pullOn = (
  links: Links,
  reference: string,
  { platform }: PullOptions
): Effect.Effect<Image, BerthError> =>
  Place.place(
    links,
    { request: { memoryBytes: 0, cpus: 0 }, architecture: platform?.split("/")[1], digest: undefined },
    (link) =>
      Effect.map(
        link.call((calls) => calls.pull({ reference, platform })),
        ({ room, ...image }) => {
          link.setRoom(room)
          return remoteImage(image)
        }
      )
  )

/** What this machine does for a program whose containers are elsewhere: nothing. */
const absent = (part: string): never => {
  throw new Unsupported({
    feature: `${part} of this machine`,
    why: "the containers of this program are on the runners of its fleet",
    hint: "Use Container, Image.pull and WaitFor with Fleet.layer, or the rest with Berth.layer"
  })
}

/** What this machine has for its own containers. */
const ofThisMachine = [
  "folder",
  "ids",
  "fileSystem",
  "supervisor",
  "holds",
  "idOwner",
  "layers",
  "memory",
  "turns",
  "responder",
  "uplink",
  "usualNamespace"
]

const Proto = Object.defineProperties(
  {
    [Berth.TypeId]: Berth.TypeId,
    toJSON: () => ({ _id: "berth/Berth", fleet: true }),
    toString: () => "Berth(fleet)",
    [NodeInspectSymbol]: () => "Berth(fleet)"
  },
  Object.fromEntries(ofThisMachine.map((part) => [part, { get: () => absent(part) }]))
)

const berthOf = (links: Links): Berth.Berth => {
  const fleet: Fleet = {
    pull: (reference, options) => pullOn(links, reference, options),
    start: (image, options) =>
      Effect.flatMap(plain.sent(options), (sent) =>
        Place.place(
          links,
          {
            request: requestOf(sent),
            architecture: image.digest === undefined ? undefined : image.config.architecture,
            digest: image.digest
          },
          (link) => start(berth, link, image, sent, options)
        )
      ).pipe(Metric.trackDuration(Metrics.startTime)),
    ...seenOf(links)
  }
  const berth: Berth.Berth = Object.assign(Object.create(Proto), { fleet, rootless: false })
  return berth
}

/** What the program may do without a fleet, too. */
const everything: Allow = { hostImage: true, hostNamespaces: true, privileges: true, binds: ["/"] }

/** A runner in this program, which nobody else can reach. */
const embedded = (
  options: Options
): Effect.Effect<Options, BerthError, FileSystem.FileSystem | Scope.Scope> =>
  Effect.gen(function* () {
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => fs.mkdtempSync(`${os.tmpdir()}/berth-fleet-`)),
      (path) => Effect.sync(() => fs.rmSync(path, { recursive: true, force: true }))
    )
    const token = Redacted.make(randomBytes(32).toString("hex"))
    const own = yield* Layer.build(Berth.layerWith(options.berth ?? {}))
    const { address } = yield* Effect.provide(
      serve({
        name: "here",
        ...options.runner,
        listen: `unix:${folder}/runner`,
        token,
        allow: options.runner?.allow ?? everything
      }),
      own
    )
    return { runners: [address], token }
  })

export const make = (
  options: Options
): Effect.Effect<
  Context.Context<Berth.Berth>,
  BerthError | FleetError,
  FileSystem.FileSystem | Scope.Scope
> =>
  Effect.gen(function* () {
    const where =
      options.runners === undefined && options.database === undefined ? yield* embedded(options) : options
    return Context.make(Berth.Berth, berthOf(yield* linked(where)))
  })
