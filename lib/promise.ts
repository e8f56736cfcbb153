/**
 * Berth for programs that do not use Effect: promises, `await using`, `AbortSignal` and async iterables. A failure rejects
 * with a tagged error, an `instanceof BerthError`. In npm's package this is one module without dependencies on Effect; as source it
 * needs `@effect/platform-node`.
 *
 * A program has one supervisor. The first call starts it. Once the last box is closed and no call runs, it stays for a second,
 * so that a program that runs one container after the other starts it once: see `CallOptions.linger`. It does not keep the program
 * alive, and nothing is left when the program ends.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Berth from "./Berth.ts"
import * as Errors from "./BerthError.ts"
import type * as Compose from "./Compose.ts"
import type * as Container from "./Container.ts"
import type * as Doctor from "./Doctor.ts"
import type * as BerthFixture from "./Fixture.ts"
import type * as Image from "./Image.ts"
import type { Box, InsideOptions } from "./internal/promise/boxTypes.ts"
import { composeWith, groupWith } from "./internal/promise/group.ts"
import { make as makeImages } from "./internal/promise/images.ts"
import type { Images } from "./internal/promise/imageTypes.ts"
import type { ClosableNetwork, ClosablePod, OpenNetwork } from "./internal/promise/networkTypes.ts"
import { Shared, shared } from "./internal/promise/runtime.ts"
import {
  networkWith,
  podWith,
  runWith,
  startWith,
  volumesWith,
  volumeWith
} from "./internal/promise/start.ts"
import { restarted } from "./internal/promise/supervised.ts"
import type * as Namespace from "./Namespace.ts"
import type * as Network from "./Network.ts"
import type { Fixture, Server } from "./promiseFixtures.ts"
import type * as Volume from "./Volume.ts"

export type * from "./internal/promise/boxTypes.ts"
export type * from "./internal/promise/imageTypes.ts"
export type * from "./internal/promise/networkTypes.ts"

/**
 * Any error of Berth: `error instanceof BerthError` tells it from other errors, and `error._tag` says which one it is.
 *
 * @since 0.1.0
 * @category errors
 */
export type BerthError = Errors.BerthError

/**
 * @since 0.1.0
 * @category errors
 */
export const BerthError: (abstract new () => Errors.BerthError) & {
  readonly [Symbol.hasInstance]: (u: unknown) => u is Errors.BerthError
} = (() => {
  // Each error has a class of its own, made by Effect; this class only recognizes them.
  abstract class BerthError extends Error {
    static override [Symbol.hasInstance](u: unknown): u is Errors.BerthError {
      return Errors.isBerthError(u)
    }
  }
  return BerthError as never
})()

/**
 * The option to abort a call. The promise then rejects with the signal's reason, by default an `AbortError`, after
 * everything that the call started has ended.
 *
 * @since 0.1.0
 * @category models
 */
export interface Abortable {
  readonly signal?: AbortSignal | undefined
}

/**
 * The options of each function that needs a supervisor.
 *
 * @since 0.2.0
 * @category models
 */
export interface CallOptions extends Abortable {
  /**
   * The time that the program's supervisor stays once nothing needs it, in milliseconds or as `"5 seconds"`. Default: one
   * second. The call or the box that ends last decides. With 0, the supervisor has ended when the promise settles, or the box
   * is closed; Deno's test sanitizers need that. A supervisor that stays has no container and does not keep the program alive:
   * a program with nothing else to do ends it and exits. It serves another call only if Berth's folder and the user of the
   * program are still the same. Sessions of `open` ignore `linger`: their supervisors end with them.
   */
  readonly linger?: Duration.DurationInput | undefined
}

/**
 * When `start` and `run` ask the registry for an image that is given by its name.
 *
 * @since 0.1.0
 * @category models
 */
export interface PullPolicy {
  /**
   * `"missing"`: only if the store lacks the image; `"always"`: each time, which notices that a tag has moved; `"never"`.
   * Default: `"missing"`.
   */
  readonly pull?: Image.GetOptions["pull"]
}

/**
 * The options of `Container.start`; `namespaces` also takes another box: `{ namespaces: { network: box } }`.
 *
 * @since 0.1.0
 * @category models
 */
export interface StartOptions extends Omit<Container.StartOptions, "namespaces">, PullPolicy {
  readonly namespaces?:
    | Partial<Record<Exclude<Namespace.Kind, "mount">, "new" | "host" | Box | NamespaceSource>>
    | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface ForkOptions extends Omit<StartOptions, "pull">, CallOptions {
  /** The number of forks, 1 to 1000. Default: 1. */
  readonly count?: number | undefined
}

/**
 * Something that exists until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface Closable extends AsyncDisposable {
  /** The same as the end of `await using`. */
  readonly close: () => Promise<void>
}

/**
 * A volume that is held until it is closed: closing it removes the volume, or lets go of it if it has a name.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosableVolume extends Volume.Volume, Closable {}

/**
 * A service of an image in a group: see `Fixture.ImageService`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ImageService<Others extends PropertyKey = string>
  extends Omit<BerthFixture.ImageService<Others>, "image" | "ready" | "restart" | "namespaces">,
    Pick<StartOptions, "namespaces" | "pull"> {
  /** As the first argument of `start`. */
  readonly image: string | Image.Image
  /** The text of a log line or an expression for it, or a function that waits until it is ready. */
  readonly ready?: string | RegExp | ((box: Box) => unknown) | undefined
  /** As the option of `supervised`. Default: it is not started again. */
  readonly restart?: SupervisedOptions["restart"] | undefined
}

/**
 * A fork of a fixture of `berth/promise/fixtures` in a group: see `Fixture.FixtureService`.
 *
 * @since 0.2.0
 * @category models
 */
export interface FixtureService<Others extends PropertyKey = string>
  extends Omit<BerthFixture.FixtureService<Others>, "fixture"> {
  readonly fixture: Fixture<unknown>
}

/**
 * The services of a group: see `Fixture.Services`.
 *
 * @since 0.2.0
 * @category models
 */
export type Services<S> = {
  readonly [Name in keyof S]: ImageService<Exclude<keyof S, Name>> | FixtureService<Exclude<keyof S, Name>>
}

/**
 * Services that run until the group is closed: see `Fixture.Group`. Closing the box of a service ends its
 * container alone.
 *
 * @since 0.2.0
 * @category models
 */
export interface Group<S> extends Closable {
  readonly services: {
    readonly [Name in keyof S]: S[Name] extends { readonly fixture: Fixture<infer A> } ? Server<A> : Box
  }
  readonly networks: Readonly<Record<string, OpenNetwork>>
}

/**
 * A holder of namespaces that a container can share, besides a box.
 *
 * @since 0.1.0
 * @category models
 */
export type NamespaceSource = Namespace.Namespace | Container.Container

/**
 * The options of `supervised`.
 *
 * @since 0.1.0
 * @category models
 */
export interface SupervisedOptions extends StartOptions, CallOptions {
  /**
   * The delay until the next container starts, or `false` to stop. It receives the exit status of the last container, and the number of
   * containers that have run.
   */
  readonly restart: (status: Container.ExitStatus, times: number) => Duration.DurationInput | false
  /** Called with each container while it runs. Its error ends the container, and `supervised` rejects with it. */
  readonly onStart?: ((box: Box) => unknown) | undefined
}

/**
 * The options of `run`.
 *
 * @since 0.1.0
 * @category models
 */
export interface RunOptions
  extends StartOptions,
    Omit<Container.BufferOptions, "input">,
    Pick<InsideOptions, "input">,
    CallOptions {}

/**
 * A supervisor of one's own, and the functions that use it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Session extends AsyncDisposable {
  readonly network: typeof network
  readonly volume: typeof volume
  readonly volumes: typeof volumes
  readonly pod: typeof pod
  readonly group: typeof group
  readonly compose: typeof compose
  readonly start: typeof start
  readonly run: typeof run
  readonly supervised: typeof supervised
  readonly images: Images
  /** The same as the end of `await using`. */
  readonly close: () => Promise<void>
}

/**
 * Starts a container from the machine's own root (`"host"`), a folder (an absolute path), an OCI layout (`"oci:PATH"`,
 * `"oci:PATH:TAG"` or `"oci:PATH@DIGEST"`; PATH ends at the folder of a layout, and may have colons), or an image by its name
 * in the store or in its registry. The container is removed when the box is closed, or when the program ends.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * await using box = await start("host", { command: ["sleep", "infinity"] })
 * const name = await box.$`uname -n`.text()
 */
export const start: (image: string | Image.Image, options?: StartOptions & CallOptions) => Promise<Box> =
  startWith(shared)

/**
 * Makes a network of containers, which exists until it is closed: see `Network.make`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * await using own = await network()
 * await using db = await start("db:1", { network: own, name: "db" })
 */
export const network: (options?: Network.NetworkOptions & CallOptions) => Promise<ClosableNetwork> =
  networkWith(shared)

/**
 * Makes a pod, whose containers share a network namespace, which exists until it is closed: see `Network.pod`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * await using web = await pod({ ports: ["8080:80"] })
 * await using server = await start("server:1", { network: web })
 */
export const pod: (options?: Network.PodOptions & CallOptions) => Promise<ClosablePod> = podWith(shared)

/**
 * Starts services that belong together, on networks where they find each other by their names: see `Fixture.group`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * await using app = await group({
 *   services: {
 *     db: { fixture: postgres({ version: "17" }) },
 *     api: { image: "api:1", dependsOn: { db: "healthy" }, ready: "listening" }
 *   }
 * })
 * const response = await app.services.api.fetch("http://api:8080/")
 */
export const group: <const S extends Services<S>>(
  options: BerthFixture.GroupOptions<S> & CallOptions
) => Promise<Group<S>> = groupWith(shared)

/**
 * Brings up the services of a compose file, by its path or as `{ text }`: see `Compose.up`, and the module `Compose` for what is
 * supported.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * await using app = await compose("compose.yaml", { profiles: ["test"] })
 * const response = await app.services.api!.fetch("http://api:8080/")
 */
export const compose: (
  source: string | Compose.Text | Compose.Project,
  options?: Compose.Options & CallOptions
) => Promise<Group<Readonly<Record<string, ImageService>>>> = composeWith(shared)

/**
 * Makes a volume, or opens the one of that name: see `Volume.make`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * await using data = await volume({ size: "1GiB" })
 * await run("db:1", { mounts: [{ type: "volume", volume: data, target: "/data" }] })
 */
export const volume: (options?: Volume.Options & CallOptions) => Promise<ClosableVolume> = volumeWith(shared)

/**
 * The volumes in the default folder: see `Volume.list` and `Volume.remove`.
 *
 * @since 0.2.0
 * @category volumes
 */
export const volumes: {
  readonly list: (options?: CallOptions) => Promise<ReadonlyArray<Volume.Stored>>
  readonly remove: (name: string, options?: CallOptions) => Promise<void>
} = volumesWith(shared)

/**
 * Starts a container, waits for its end and gives its output. A command that fails is no error: see `exitCode`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const run: (image: string | Image.Image, options?: RunOptions) => Promise<Container.Result> =
  runWith(shared)

/**
 * Starts a container, and another one whenever it ends, until `restart` gives `false`. Gives the exit status of the last one.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * // up to five times, a second apart, unless it ends well
 * await supervised("host", {
 *   command: ["serve"],
 *   restart: ({ exitCode }, times) => (exitCode !== 0 && times < 5 ? "1 second" : false)
 * })
 */
export const supervised: (
  image: string | Image.Image,
  options: SupervisedOptions
) => Promise<Container.ExitStatus> = restarted(shared, start)

/**
 * Images, with the store in the default folder.
 *
 * @since 0.1.0
 * @category images
 * @example
 * await images.push(await images.load("mine.tar").then(([image]) => image), "127.0.0.1:5000/mine:1")
 */
export const images: Images = makeImages(shared)

/**
 * Starts a supervisor of one's own, in the folder of the options. It ends once the session and all its boxes are closed.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * await using berth = await open()
 * for (const file of files) await berth.run("host", { command: ["wc", file] })
 */
export const open = async (options: Berth.Options & Abortable = {}): Promise<Session> => {
  const own = new Shared(options, { lingers: false })
  const release = own.hold(0)
  try {
    await own.run(Effect.void, options)
  } catch (error) {
    await release()
    throw error
  }
  const start = startWith(own)
  return {
    network: networkWith(own),
    volume: volumeWith(own),
    volumes: volumesWith(own),
    pod: podWith(own),
    group: groupWith(own),
    compose: composeWith(own),
    start,
    run: runWith(own),
    supervised: restarted(own, start),
    images: makeImages(own),
    close: release,
    [Symbol.asyncDispose]: release
  }
}

/**
 * Reports the features of this machine that Berth can use, and how to get the missing ones: `console.log(String(await doctor()))`.
 *
 * @since 0.1.0
 * @category diagnosis
 */
export const doctor = (): Promise<Doctor.Report> => Effect.runPromise(Berth.doctor)
