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
import type * as Cgroup from "./Cgroup.ts"
import type * as Compose from "./Compose.ts"
import type * as Container from "./Container.ts"
import type * as Doctor from "./Doctor.ts"
import type * as BerthFixture from "./Fixture.ts"
import type * as Image from "./Image.ts"
import { composeWith, groupWith } from "./internal/promise/group.ts"
import { make as makeImages } from "./internal/promise/images.ts"
import type { Images } from "./internal/promise/imageTypes.ts"
import type {
  BoxNetwork,
  ClosableNetwork,
  ClosablePod,
  OpenNetwork
} from "./internal/promise/networkTypes.ts"
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
import type * as WaitFor from "./WaitFor.ts"

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
 * The input of a command. A stream of Node and a ReadableStream are async iterables. Another command of the same statement
 * gives its stdout: see `Command.pipe`.
 *
 * @since 0.1.0
 * @category models
 */
export type Input = string | Uint8Array | Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>

/**
 * A value in a command's `${}`: one argument or a part of one, or an array with an argument for each element.
 *
 * @since 0.1.0
 * @category models
 */
export type Value = string | number | ReadonlyArray<string | number>

/**
 * The options of commands inside a container.
 *
 * @since 0.1.0
 * @category models
 */
export interface InsideOptions
  extends Omit<Container.ExecOptions, "input" | "stdin" | "stdout" | "stderr" | "terminal">,
    Abortable {
  /** The command's input, followed by the end of file. Default: no input. */
  readonly input?: Input | undefined
  /** Whether the command's output also appears on this program's stdout and stderr. Default false. */
  readonly verbose?: boolean | undefined
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
 * A command inside a container. Awaited, it gives its whole output, and rejects with `NonZeroExit` for any exit code but 0.
 * Iterated, it gives the lines of stdout as they arrive, waits for a slow reader, and throws that error at the end; leaving the
 * loop early ends the command.
 *
 * It begins after its statement: call `nothrow`, `quiet`, `stdin`, `timeout` and `bytes` in that statement; later they throw
 * `InvalidOption`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Command extends Promise<Container.Result>, AsyncIterable<string> {
  /** Resolves whatever the exit code: see `exitCode`. */
  readonly nothrow: () => Command
  /** Hides its output even with the option `verbose`. */
  readonly quiet: () => Command
  /** Sets its input, as the option `input`. */
  readonly stdin: (input: Input) => Command
  /**
   * Gives its stdout to another command of the same statement, and returns that command, which rejects if this one fails:
   * `` box.$`dmesg`.pipe(box.$`grep usb`) ``. This command ends with the other one.
   */
  readonly pipe: (reader: Command) => Command
  /**
   * Kills it after a time, in milliseconds or as `"5 seconds"`. It then rejects with `WaitFailed`, which has the output
   * so far.
   */
  readonly timeout: (duration: Duration.DurationInput) => Command
  /** Its stdout, byte for byte. Call it in the command's own statement. */
  readonly bytes: () => Promise<Uint8Array>
  /** Its stdout, as text. */
  readonly text: () => Promise<string>
  /** The lines of its stdout. */
  readonly lines: () => Promise<Array<string>>
  /** Its stdout, parsed as JSON. */
  readonly json: <A = unknown>() => Promise<A>
  /** Sends a signal, by name or number, to it and to its children. Default SIGTERM. Does not wait for their end. */
  readonly kill: (signal?: string | number) => Promise<void>
}

/**
 * Runs commands inside a container with certain defaults.
 *
 * @since 0.1.0
 * @category models
 */
export interface Inside {
  /**
   * Runs a command. The text is split into words with the quoting rules of a shell, but no shell runs: a value in `${}` is one
   * word, or a part of one, whatever characters it has, and an array is a word for each element.
   */
  readonly $: (text: TemplateStringsArray, ...values: ReadonlyArray<Value>) => Command
  /** Runs a command and gives its output, whatever its exit code. */
  readonly exec: (command: ReadonlyArray<string>, options?: InsideOptions) => Promise<Container.Result>
  /** The same with other defaults: `` box.with({ cwd: "/srv", env: { DEBUG: "1" } }).$`npm test` ``. */
  readonly with: (options: InsideOptions) => Inside
}

/**
 * The status of a file in a container: stat(2).
 *
 * @since 0.1.0
 * @category models
 */
export interface FileStatus {
  /** `File`, `Directory`, `SymbolicLink`, or another type of `@effect/platform`. */
  readonly type: string
  /** In bytes. */
  readonly size: number
  /** With the bits of its type. */
  readonly mode: number
  /** Its owner and group, as ids of the container. */
  readonly uid: number | undefined
  readonly gid: number | undefined
  readonly modified: Date | undefined
}

/**
 * The files of a container, which may run, be paused or have ended; `Container.fileSystem` has the limits. A failure is
 * `OperationFailed` with the `code` of the system call.
 *
 * @since 0.1.0
 * @category models
 */
export interface Files {
  readonly readFile: (path: string, options?: Abortable) => Promise<Uint8Array>
  /** Decoded as UTF-8. */
  readonly readText: (path: string, options?: Abortable) => Promise<string>
  /** Makes the file, or replaces its contents. `mode` is for a new file; default 0o666 without the umask. */
  readonly writeFile: (
    path: string,
    data: string | Uint8Array,
    options?: { readonly mode?: number | undefined } & Abortable
  ) => Promise<void>
  /** `recursive` also makes the folders on the way, and accepts one that exists. */
  readonly makeFolder: (
    path: string,
    options?: { readonly recursive?: boolean | undefined } & Abortable
  ) => Promise<void>
  /** The names in a folder. */
  readonly list: (path: string, options?: Abortable) => Promise<ReadonlyArray<string>>
  /** `recursive` removes a folder with its contents; `force` accepts a path that does not exist. */
  readonly remove: (
    path: string,
    options?: { readonly recursive?: boolean | undefined; readonly force?: boolean | undefined } & Abortable
  ) => Promise<void>
  readonly rename: (from: string, to: string, options?: Abortable) => Promise<void>
  readonly exists: (path: string, options?: Abortable) => Promise<boolean>
  readonly stat: (path: string, options?: Abortable) => Promise<FileStatus>
}

type Wait<Options> = Omit<Options, "schedule"> & Abortable

/**
 * Conditions to wait for, as the functions of the same names in `WaitFor`. A promise rejects with `WaitFailed` if the container ends
 * first or the time is over (`timeout`, default 30 seconds). `Promise.all` and `Promise.any` combine them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Conditions {
  readonly log: (pattern: string | RegExp, options?: Wait<WaitFor.LogOptions>) => Promise<Container.LogEntry>
  readonly port: (port: number, options?: Wait<WaitFor.PollOptions>) => Promise<void>
  readonly http: (options: Wait<WaitFor.HttpOptions>) => Promise<void>
  readonly command: (command: ReadonlyArray<string>, options?: Wait<WaitFor.CommandOptions>) => Promise<void>
  readonly healthCheck: (options?: Wait<WaitFor.HealthCheckOptions>) => Promise<void>
}

/**
 * A container, which is removed when the box is closed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Box extends Inside, BoxNetwork, AsyncDisposable {
  readonly id: string
  /** The pid of its first process on the host. */
  readonly pid: number
  /**
   * Its output from the first byte; each byte is read once. Berth keeps the newest 1 MiB for a late reader; `Process.stdout` says
   * what `stdout: "pipe"` changes.
   */
  readonly stdout: AsyncIterable<Uint8Array>
  readonly stderr: AsyncIterable<Uint8Array>
  readonly files: Files
  /** Waits until the container is ready: `box.waitFor.port(8080)`. */
  readonly waitFor: Conditions
  /** The lines of both, each with its time: see `Container.logs`. */
  readonly logs: (options?: Container.LogsOptions) => AsyncIterable<Container.LogEntry>
  /** Writes all of this to its stdin, and then the end. Needs a start with `stdin: "pipe"`. */
  readonly stdin: (input: Input, options?: Abortable) => Promise<void>
  /** Connects this program's terminal with the container's until it ends: see `Container.attach`. */
  readonly attach: (options?: Abortable) => Promise<Container.ExitStatus>
  /** Sets the size of its terminal. */
  readonly resize: (size: Container.TerminalSize) => Promise<void>
  /** Copies a file or a tree of the host into the container: see `Container.copyIn`. */
  readonly copyIn: (hostPath: string, path: string, options?: Abortable) => Promise<void>
  /** Copies a file or a tree of the container to the host: see `Container.copyOut`. */
  readonly copyOut: (
    path: string,
    hostPath: string,
    options?: Container.CopyOutOptions & Abortable
  ) => Promise<void>
  /** Extracts an uncompressed tar archive into a folder of the container: see `Container.tarIn`. */
  readonly tarIn: (path: string, archive: Input, options?: Abortable) => Promise<void>
  /** A file or a tree of the container as a tar archive: see `Container.tarOut`. */
  readonly tarOut: (path: string, options?: Container.ArchiveOptions) => AsyncIterable<Uint8Array>
  /** Waits for its end. */
  readonly wait: (options?: Abortable) => Promise<Container.ExitStatus>
  /** Sends a signal to its first process, by name or number. Default SIGTERM. */
  readonly kill: (signal?: string | number) => Promise<void>
  /** Stops all its processes until `resume`: see `Container.pause`. */
  readonly pause: () => Promise<void>
  readonly resume: () => Promise<void>
  /** Its processes. */
  readonly top: () => Promise<ReadonlyArray<Container.ProcessInfo>>
  /** Its use of memory, CPU and more. Needs a start with `limits`. */
  readonly stats: () => Promise<Cgroup.Stats>
  /** Changes its limits while it runs. */
  readonly update: (limits: Cgroup.Limits) => Promise<void>
  /** Sends its stop signal, and kills it after the grace period. */
  readonly stop: (options?: Container.StopOptions & Abortable) => Promise<Container.ExitStatus>
  /** Makes an image of its image and its changes: see `Container.commit`. */
  readonly commit: (options?: Container.CommitOptions & Abortable) => Promise<Image.Image>
  /** Makes its writable layer a layer of the store, once it has ended; its files are gone then: see `Container.keep`. */
  readonly keep: (options?: Container.KeepOptions) => Promise<Image.Image>
  /** Copies its writable layer to a layer of the store, while it stands still: see `Container.snapshot`. */
  readonly snapshot: (options?: Container.SnapshotOptions & Abortable) => Promise<Image.Image>
  /** Starts boxes from a snapshot of it, with its options or with these: see `Container.fork`. */
  readonly fork: (options?: ForkOptions) => Promise<ReadonlyArray<Box>>
  /** Kills and removes it; the same as the end of `await using`. A second call does nothing. */
  readonly close: () => Promise<void>
}

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
