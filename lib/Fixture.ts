/**
 * Fixtures: servers for tests. A fixture is prepared once: its server is started, filled with data and stopped, and its writable layer
 * becomes a layer of the store. Each test then forks it: a container on top of that layer, which costs no copy of the data. Later
 * runs and other programs find the prepared layer by the digest of all that made it.
 *
 * @since 0.2.0
 */
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Container, ExitStatus, StartOptions, StopOptions } from "./Container.ts"
import type { GetOptions, Image } from "./Image.ts"
import { withLog } from "./internal/fixtures/addLog.ts"
import * as internal from "./internal/fixtures/fixture.ts"
import * as groups from "./internal/fixtures/group.ts"
import type { Mount } from "./Mount.ts"
import type { Network, NetworkOptions } from "./Network.ts"
import type * as Volume from "./Volume.ts"
import type { Healthcheck } from "./WaitFor.ts"

/**
 * A port of the host that leads to a fixture's server.
 *
 * @since 0.2.0
 * @category models
 */
export interface Address {
  readonly hostname: string
  readonly port: number
}

/**
 * A running server of a fixture: its container, and what its clients need.
 *
 * @since 0.2.0
 * @category models
 */
export type Server<A> = A & { readonly container: Container }

/**
 * The origin of a fixture's image: a name for `Image.get`, an image, or an effect that gets one.
 *
 * @since 0.2.0
 * @category models
 */
export type ImageSource = string | Image | Effect.Effect<Image, BerthError, Berth>

/**
 * A kind of server as data and two functions: what its clients need, and what prepares it.
 *
 * @since 0.2.0
 * @category models
 */
export interface Definition<A, R = never> {
  /** For messages and spans. */
  readonly name: string
  readonly image: ImageSource
  /** How its container starts, to be prepared and in each fork. `upper` is for forks alone: the preparation is on disk. */
  readonly start: Pick<
    StartOptions,
    "command" | "entrypoint" | "env" | "user" | "cwd" | "mounts" | "init" | "upper"
  >
  /** The text of the log line, or an expression for it, by which the server says that it accepts connections. */
  readonly ready: string | RegExp
  /** The limit of the time until that line. Default: 60 seconds. */
  readonly timeout?: Duration.DurationInput | undefined
  /** The TCP port of the server in its container. */
  readonly port: number
  /** What clients need to reach the server at this address, such as a URL. */
  readonly client: (address: Address) => A
  /**
   * Tells each started server the address that its clients use, before it is ready, if the server itself has to give clients that
   * address. What it writes for this belongs below `/dev/shm`: files elsewhere are kept with the preparation.
   */
  readonly announce?: ((server: Server<A>) => Effect.Effect<unknown, unknown>) | undefined
  /**
   * Fills a new server. It runs once for all forks that have the same image, `start` and `key`; the server is then stopped, and its
   * files are kept. Without it, a fork is a container of the image itself.
   */
  readonly prepare?: ((server: Server<A>) => Effect.Effect<unknown, unknown, R>) | undefined
  /** All that `prepare` depends on, as text: another key prepares again. Default: the text of the function `prepare`. */
  readonly key?: string | Effect.Effect<string, BerthError> | undefined
  /** The signal that stops the server cleanly. Default: the image's, else SIGTERM. */
  readonly stopSignal?: string | undefined
  /**
   * `"run"`: one server for all programs, and all threads of programs, that have opened the fixture at the same time, such as the
   * workers of a test runner. The first one starts it, and the others wait; it ends within a second after the last one closes the
   * fixture or dies, in whatever way. They know each other by the folder of Berth, the image, `name`, `start`, `port` and `key`: another
   * one of these is another server. Each fork is that same server, at an address that ends with its program, and the options of a fork
   * have no effect. Its log is in the first program alone. It cannot be combined with `announce`, or with volumes.
   */
  readonly shared?: "run" | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface ForkOptions
  extends Pick<StartOptions, "network" | "name" | "aliases" | "limits" | "userns" | "extraHosts" | "upper"> {}

/**
 * An opened fixture, which can be forked. `fork` is a server of its own until its scope closes.
 *
 * @since 0.2.0
 * @category models
 */
export interface Source<A> {
  readonly fork: (options?: ForkOptions) => Effect.Effect<Server<A>, BerthError, Berth | Scope.Scope>
}

/**
 * A fixture. Nothing starts until it is opened.
 *
 * @since 0.2.0
 * @category models
 */
export interface Fixture<A, R = never> {
  readonly name: string
  /** Prepares the fixture, unless that has been done. What its forks share is there until the scope closes. */
  readonly open: Effect.Effect<Source<A>, BerthError, Berth | Scope.Scope | R>
}

/**
 * A fixture of any server that tells in its log that it is ready. `open` and `fork` fail with `FixtureFailed` if `prepare` fails or the
 * server does not stop cleanly, and nothing is kept then, or if a process that they wait for has been stopped by a signal for 5 seconds: a
 * shared server, or the program that prepares or starts it; with `WaitFailed`, which has the end of the log, if the server ends or does not
 * become ready; and as `Container.start` does.
 *
 * Programs that prepare the same fixture at the same time do it once: one does it, the others wait.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const memcached = Fixture.make({
 *   name: "memcached",
 *   image: "docker.io/library/memcached:1",
 *   start: { command: ["memcached", "-vv"] },
 *   ready: "server listening",
 *   port: 11211,
 *   client: ({ hostname, port }) => ({ server: `${hostname}:${port}` })
 * })
 */
export const make: <A extends object, R = never>(definition: Definition<A, R>) => Fixture<A, R> =
  internal.make

/**
 * Opens a fixture and forks it once. Several forks of one program share more if they come from one `open`.
 *
 * @since 0.2.0
 * @category constructors
 */
export const fork = <A, R>(
  fixture: Fixture<A, R>,
  options?: ForkOptions
): Effect.Effect<Server<A>, BerthError, Berth | Scope.Scope | R> =>
  Effect.flatMap(fixture.open, (source) => source.fork(options))

/**
 * Uses a fork of a fixture, which ends with the effect. If `body` fails, its errors and defects have the last 20 lines of the server's log
 * at the end of their messages, where every test runner shows them.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const counted = Fixture.use(database, ({ url }) => countRows(url))
 */
export const use = <A, R, B, E, R2>(
  fixture: Fixture<A, R>,
  body: (server: Server<A>) => Effect.Effect<B, E, R2>,
  options?: ForkOptions
): Effect.Effect<B, E | BerthError, Berth | R | Exclude<R2, Scope.Scope>> =>
  Effect.scoped(
    Effect.flatMap(fork(fixture, options), (server) => withLog(fixture.name, server.container)(body(server)))
  ) as never

/**
 * A layer with a fork of a fixture as a service. As every layer, it is built once where it is provided, whoever uses it.
 *
 * @since 0.2.0
 * @category layers
 * @example
 * class Database extends Context.Tag("Database")<Database, Fixture.Server<Postgres>>() {}
 *
 * const live = Fixture.layer(Database, postgres({ version: "15" }))
 */
export const layer = <I, A, R>(
  tag: Context.Tag<I, Server<A>>,
  fixture: Fixture<A, R>,
  options?: ForkOptions
): Layer.Layer<I, BerthError, Berth | R> => Layer.scoped(tag, fork(fixture, options)) as never

/**
 * What a service waits for before it starts: that another one runs, that it is healthy (`ready` and its health check), or that it has ended
 * with exit code 0.
 *
 * @since 0.2.0
 * @category groups
 */
export type Condition = "started" | "healthy" | "completed"

/**
 * What all services of a group have.
 *
 * @since 0.2.0
 * @category groups
 */
export interface Member<Others extends PropertyKey = string> {
  /** The services that this one starts after: `{ db: "healthy" }`. It ends before them. */
  readonly dependsOn?: { readonly [Name in Others]?: Condition | undefined } | undefined
  /**
   * The group's networks that it is on, by their names, under its own name and these aliases. Default: the network `default`, which a
   * group has unless none of its services is on it.
   */
  readonly networks?:
    | Readonly<Record<string, { readonly aliases?: ReadonlyArray<string> | undefined }>>
    | undefined
}

/**
 * A mount of a service: one of `Mount`, or of a volume of the group by its name.
 *
 * @since 0.2.0
 * @category groups
 */
export type ServiceMount =
  | Mount
  | {
      readonly type: "volume"
      readonly volume: string
      readonly target: string
      readonly readOnly?: boolean | undefined
    }

/**
 * A service of an image: how its container starts, and when it is ready.
 *
 * @since 0.2.0
 * @category groups
 */
export interface ImageService<Others extends PropertyKey = string>
  extends Member<Others>,
    Omit<StartOptions, "network" | "name" | "aliases" | "mounts"> {
  readonly image: ImageSource
  /** When an image that is given by its name is pulled: see `Image.GetOptions`. */
  readonly pull?: GetOptions["pull"]
  readonly mounts?: ReadonlyArray<ServiceMount> | undefined
  /** The text of a log line or an expression for it, or an effect, by which the service says that it is ready. */
  readonly ready?: string | RegExp | ((container: Container) => Effect.Effect<unknown, unknown>) | undefined
  /** The limit of the time until that log line. Default: 60 seconds. An effect and a health check have limits of their own. */
  readonly timeout?: Duration.DurationInput | undefined
  /** Replaces the health check of the image; `"none"` removes it. */
  readonly healthcheck?: Healthcheck | "none" | undefined
  /**
   * Starts another container of the service whenever one has ended, as long as the schedule continues; see `Container.supervised`. Default:
   * none.
   */
  readonly restart?: Schedule.Schedule<unknown, ExitStatus> | undefined
  /** Has the service stop by itself at the end of the group, `{}` with the defaults of `Container.stop`. Default: it is killed. */
  readonly stop?: StopOptions | undefined
}

/**
 * A fork of a fixture as a service. It is healthy once it has started.
 *
 * @since 0.2.0
 * @category groups
 */
export interface FixtureService<Others extends PropertyKey = string>
  extends Member<Others>,
    Omit<ForkOptions, "network" | "name" | "aliases"> {
  readonly fixture: Fixture<unknown>
}

/**
 * A service of a group that has these other services.
 *
 * @since 0.2.0
 * @category groups
 */
export type Service<Others extends PropertyKey = string> = ImageService<Others> | FixtureService<Others>

/**
 * The services of a group by their names, each of which can depend on the others alone: another name does not compile.
 *
 * @since 0.2.0
 * @category groups
 */
export type Services<S> = { readonly [Name in keyof S]: Service<Exclude<keyof S, Name>> }

/**
 * @since 0.2.0
 * @category groups
 */
export interface GroupOptions<S> {
  readonly services: S
  /** The options of the networks by their names. Default: `{ default: {} }`. */
  readonly networks?: Readonly<Record<string, NetworkOptions>> | undefined
  /** The volumes that `mounts` of services name: `{ data: {} }`. One without an option `name` is removed with the group. */
  readonly volumes?: Readonly<Record<string, Volume.Options>> | undefined
}

/**
 * Services that run, by their names.
 *
 * @since 0.2.0
 * @category groups
 */
export interface Group<S> {
  /**
   * The container of each service, and of a fixture its server. With `restart` it is the present container, or the last one: ask again
   * after a restart.
   */
  readonly services: {
    readonly [Name in keyof S]: S[Name] extends { readonly fixture: Fixture<infer A> } ? Server<A> : Container
  }
  readonly networks: Readonly<Record<string, Network>>
}

/**
 * Starts services that belong together, on networks where they find each other by their names. Each starts as soon as those that it depends on
 * are as far as it needs them. The group is there when all its services are: started, healthy if they have `ready` or a health check,
 * and ended with exit code 0 if another service waits for that. When the scope closes, each service ends after those that depend on
 * it.
 *
 * Fails with `ServiceFailed`, which names the service and has the end of its log, if one cannot be started, does not become healthy, or ends
 * with another exit code than 0 before the group is there and has no `restart`; the others end then. Fails with `InvalidOption` for services that depend on each other
 * in a circle, and for names of networks and volumes that the group lacks.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const app = yield* Fixture.group({
 *   services: {
 *     db: { fixture: postgres({ version: "17" }) },
 *     api: { image: "api:1", dependsOn: { db: "healthy" }, ready: "listening" }
 *   }
 * })
 * const response = yield* Container.fetch(app.services.api, "http://api:8080/")
 */
export const group: <const S extends Services<S>>(
  options: GroupOptions<S>
) => Effect.Effect<Group<S>, BerthError, Berth | Scope.Scope> = groups.make
