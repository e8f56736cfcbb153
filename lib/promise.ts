/**
 * Berth for programs that do not use Effect: promises, `await using`, `AbortSignal` and async iterables. What fails
 * rejects with a tagged error, an `instanceof BerthError`. In npm's package it is one
 * module that needs no other; as source it needs `@effect/platform-node`.
 *
 * There is one supervisor for the program. It is started for the first that needs it. When the last box has been disposed
 * of and nothing runs, it stays for a second, so that a program that runs one container after the other starts it once:
 * see `CallOptions.linger`. It does not keep the program alive, and nothing is left when the program ends.
 *
 * @since 0.1.0
 */
import type * as net from "node:net"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Berth from "./Berth.ts"
import * as Errors from "./BerthError.ts"
import type * as Cgroup from "./Cgroup.ts"
import type * as Container from "./Container.ts"
import type * as Doctor from "./Doctor.ts"
import type * as Image from "./Image.ts"
import type { Limits } from "./ImageLayer.ts"
import { make as makeImages } from "./internal/promise/images.ts"
import { Shared } from "./internal/promise/runtime.ts"
import { networkWith, runWith, startWith } from "./internal/promise/start.ts"
import { restarted } from "./internal/promise/supervised.ts"
import type * as Namespace from "./Namespace.ts"
import type * as Network from "./Network.ts"
import type { Progress } from "./Progress.ts"
import type * as Store from "./Store.ts"
import type * as WaitFor from "./WaitFor.ts"

/**
 * Any error of Berth: `error instanceof BerthError` tells them from all others, and `error._tag` from each other.
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
  // Each error has a class of its own, which Effect makes: this one only knows them.
  abstract class BerthError extends Error {
    static override [Symbol.hasInstance](u: unknown): u is Errors.BerthError {
      return Errors.isBerthError(u)
    }
  }
  return BerthError as never
})()

/**
 * What can be aborted: the promise then rejects with the signal's reason, an `AbortError` unless another was given, and
 * what had been started is gone.
 *
 * @since 0.1.0
 * @category models
 */
export interface Abortable {
  readonly signal?: AbortSignal | undefined
}

/**
 * What each function takes that needs a supervisor.
 *
 * @since 0.2.0
 * @category models
 */
export interface CallOptions extends Abortable {
  /**
   * How long the program's supervisor stays when nothing needs it any more, in milliseconds or as `"5 seconds"`. Default: one
   * second. The call or the box that ends last decides. With 0, the supervisor has ended when the promise settles, or the box
   * is closed; Deno's test sanitizers need that. A supervisor that stays has no container and does not keep the program alive:
   * a program with nothing else to do ends it and exits. It serves another call only if Berth's folder and the user of the
   * program are still the same. Sessions of `open` ignore `linger`: their supervisors end with them.
   */
  readonly linger?: Duration.DurationInput | undefined
}

/**
 * When `start` and `run` ask the registry of an image that is given by its name, and by nothing else.
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
 * How a container is started: as `Container.start` has it, and with the namespaces of another box, too:
 * `{ namespaces: { network: box } }`.
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
 * A network, which is there until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosableNetwork extends Network.Network, AsyncDisposable {
  /** The same as the end of `await using`. */
  readonly close: () => Promise<void>
}

/**
 * What else has namespaces that a container can share.
 *
 * @since 0.1.0
 * @category models
 */
export type NamespaceSource = Namespace.Namespace | Container.Container

/**
 * How a container is started again when it has ended.
 *
 * @since 0.1.0
 * @category models
 */
export interface SupervisedOptions extends StartOptions, CallOptions {
  /**
   * After how long the next container starts, or `false` for no other. It gets how the last one ended, and how many have run.
   */
  readonly restart: (status: Container.ExitStatus, times: number) => Duration.DurationInput | false
  /** What is done with each container while it runs; an error ends the container, and is what `supervised` rejects with. */
  readonly onStart?: ((box: Box) => unknown) | undefined
}

/**
 * What a command can be given to read. A stream of Node, or a ReadableStream, is an async iterable. Another command, of the same
 * statement, is read byte by byte: see `Command.pipe`.
 *
 * @since 0.1.0
 * @category models
 */
export type Input = string | Uint8Array | Iterable<string | Uint8Array> | AsyncIterable<string | Uint8Array>

/**
 * What can stand in a command's `${}`: one argument or a part of one, or an array with an argument for each element.
 *
 * @since 0.1.0
 * @category models
 */
export type Value = string | number | ReadonlyArray<string | number>

/**
 * How commands run inside.
 *
 * @since 0.1.0
 * @category models
 */
export interface InsideOptions
  extends Omit<Container.ExecOptions, "input" | "stdin" | "stdout" | "stderr" | "terminal">,
    Abortable {
  /** What a command reads, and then the end. Default: the end at once. */
  readonly input?: Input | undefined
  /** Whether what a command writes is also shown, on this program's own stdout and stderr. Default false. */
  readonly verbose?: boolean | undefined
}

/**
 * How `run` runs a container.
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
 * A command that runs inside. Awaited, it gives all that it wrote, and rejects with `NonZeroExit` where its exit code is
 * another than 0. Iterated, it gives the lines of stdout as they come and no faster than they are taken, and throws that
 * at the end; whoever leaves the loop early ends the command.
 *
 * It begins after the statement that it is in: `nothrow`, `quiet`, `stdin`, `timeout` and `bytes` are called there, and throw
 * `InvalidOption` later.
 *
 * @since 0.1.0
 * @category models
 */
export interface Command extends Promise<Container.Result>, AsyncIterable<string> {
  /** Any exit code is fine: see `exitCode`. */
  readonly nothrow: () => Command
  /** What it writes is not shown, though the box be `verbose`. */
  readonly quiet: () => Command
  /** What it reads, as the option `input`. */
  readonly stdin: (input: Input) => Command
  /**
   * Gives its stdout to another command of the same statement, and returns that one, which rejects where this one fails:
   * `` box.$`dmesg`.pipe(box.$`grep usb`) ``. This command ends when the other one does.
   */
  readonly pipe: (reader: Command) => Command
  /**
   * How long it has, in milliseconds or as `"5 seconds"`; it is then killed, and rejects with `WaitFailed`,
   * which has the output so far.
   */
  readonly timeout: (duration: Duration.DurationInput) => Command
  /** Its stdout, byte for byte. It is called in the command's own statement. */
  readonly bytes: () => Promise<Uint8Array>
  /** Its stdout, as text. */
  readonly text: () => Promise<string>
  /** The lines of its stdout. */
  readonly lines: () => Promise<Array<string>>
  /** Its stdout, parsed. */
  readonly json: <A = unknown>() => Promise<A>
  /** Sends a signal to it and to its children, by name or number. Default SIGTERM. Does not wait for what comes of it. */
  readonly kill: (signal?: string | number) => Promise<void>
}

/**
 * Commands inside a container, run in a certain way.
 *
 * @since 0.1.0
 * @category models
 */
export interface Inside {
  /**
   * Runs a command. The text is split into words as a shell would, quotes included, but there is no shell: a value in
   * `${}` is, or is part of, one word whatever it holds, and an array is a word for each of its elements.
   */
  readonly $: (text: TemplateStringsArray, ...values: ReadonlyArray<Value>) => Command
  /** Runs a command and gives what it wrote, whatever its exit code. */
  readonly exec: (command: ReadonlyArray<string>, options?: InsideOptions) => Promise<Container.Result>
  /** The same with other defaults: `` box.with({ cwd: "/srv", env: { DEBUG: "1" } }).$`npm test` ``. */
  readonly with: (options: InsideOptions) => Inside
}

/**
 * What a path of a container leads to.
 *
 * @since 0.1.0
 * @category models
 */
export interface FileStatus {
  /** `File`, `Directory`, `SymbolicLink`, or another type of `@effect/platform`. */
  readonly type: string
  /** In bytes. */
  readonly size: number
  /** With the bits of its type, as in stat(2). */
  readonly mode: number
  /** Its owner and group, as the container numbers them. */
  readonly uid: number | undefined
  readonly gid: number | undefined
  readonly modified: Date | undefined
}

/**
 * The files of a container, whether it runs, is paused or has ended; `Container.fileSystem` says what is refused. A failure is
 * `OperationFailed`, with the `code` of the system call.
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
 * Conditions to wait for, each as its namesake in `WaitFor`: a promise rejects with `WaitFailed` where the container ends before,
 * or the time is over (`timeout`, default 30 seconds). `Promise.all` and `Promise.any` combine them.
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
 * A running container. It is gone when it is disposed of.
 *
 * @since 0.1.0
 * @category models
 */
export interface Box extends Inside, AsyncDisposable {
  readonly id: string
  /** Its first process, as the host sees it. */
  readonly pid: number
  /**
   * What it writes, from byte zero; each byte is given once. Berth keeps the newest 1 MiB for a reader that comes late, and what
   * `stdout: "pipe"` changes about that is in `Process.stdout`.
   */
  readonly stdout: AsyncIterable<Uint8Array>
  readonly stderr: AsyncIterable<Uint8Array>
  readonly files: Files
  /** Waits until the container is ready: `box.waitFor.port(8080)`. */
  readonly waitFor: Conditions
  /** Both, line by line with the time of their coming: see `Container.logs`. */
  readonly logs: (options?: Container.LogsOptions) => AsyncIterable<Container.LogEntry>
  /** Gives it all of this to read, and then the end. It has to be started with `stdin: "pipe"`. */
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
  /** A socket of `node:net` to a server in the container, for a client that takes one: see `Container.netSocket`. */
  readonly netSocket: (address: Network.Address) => net.Socket
  /** `fetch` to a server in the container: see `Container.fetch`. A response can be read until the box closes. */
  readonly fetch: (url: string | URL, init?: RequestInit) => Promise<Response>
  /** Has a port of the host lead into the container until the box closes: see `Container.publish`. */
  readonly publish: (port: number | Network.PublishOptions) => Promise<Network.PublishedPort>
  /** Waits for its end. */
  readonly wait: (options?: Abortable) => Promise<Container.ExitStatus>
  /** Sends a signal to its first process, by name or number. Default SIGTERM. */
  readonly kill: (signal?: string | number) => Promise<void>
  /** Has everything in it stand still, and go on: see `Container.pause`. */
  readonly pause: () => Promise<void>
  readonly resume: () => Promise<void>
  /** The processes in it. */
  readonly top: () => Promise<ReadonlyArray<Container.ProcessInfo>>
  /** What it uses, where it was started with `limits`. */
  readonly stats: () => Promise<Cgroup.Stats>
  /** Changes its limits while it runs. */
  readonly update: (limits: Cgroup.Limits) => Promise<void>
  /** Asks it to stop, and kills it when the grace is over. */
  readonly stop: (options?: Container.StopOptions & Abortable) => Promise<Container.ExitStatus>
  /** Makes an image of what it was started from and what it has written since: see `Container.commit`. */
  readonly commit: (options?: Container.CommitOptions & Abortable) => Promise<Image.Image>
  /** Ends it, with everything in it; the same as the end of `await using`. It can be repeated. */
  readonly close: () => Promise<void>
}

/**
 * A pull or a push under way. Awaited, it gives what came of it; iterated, it gives the steps of each layer, and whoever
 * leaves the loop early stops it. Bars are drawn on a terminal only where nobody iterates, nor says otherwise by `progress`.
 *
 * @since 0.1.0
 * @category models
 * @example
 * const pulling = images.pull("alpine:3")
 * for await (const { digest, phase } of pulling) console.log(digest, phase)
 * const image = await pulling
 */
export interface Transfer<A> extends Promise<A>, AsyncIterable<Progress> {}

/**
 * Images, in the store and on their way there and back. Each does as its namesake in `Image` and `Store`, and takes a
 * signal. `get` pulls what the store lacks, `pull` asks the registry each time, `fromStore` never.
 *
 * @since 0.1.0
 * @category models
 */
export interface Images {
  readonly get: (name: string, options?: Image.GetOptions & CallOptions) => Transfer<Image.Image>
  readonly pull: (reference: string, options?: Image.PullOptions & CallOptions) => Transfer<Image.Image>
  readonly fromStore: (
    name: string,
    options?: Image.NamedOptions & Limits & CallOptions
  ) => Promise<Image.Image>
  /** Gives the descriptor of the manifest. */
  readonly push: (
    image: Image.Image | string,
    reference: string,
    options?: Image.PushOptions & CallOptions
  ) => Transfer<Store.Descriptor>
  /** Of a file, or of its bytes. */
  readonly load: (
    archive: string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    options?: Image.LoadOptions & CallOptions
  ) => Promise<readonly [Image.Image, ...Array<Image.Image>]>
  readonly save: (
    image: Image.Image | string,
    path: string,
    options: Image.SaveOptions & CallOptions
  ) => Promise<void>
  readonly import: (path: string, options?: Image.ImportOptions & CallOptions) => Promise<Image.Image>
  readonly list: (options?: CallOptions) => Promise<ReadonlyArray<Image.NamedImage>>
  readonly inspect: (name: string, options?: Image.NamedOptions & CallOptions) => Promise<Image.Inspected>
  readonly history: (
    name: string,
    options?: Image.NamedOptions & CallOptions
  ) => Promise<ReadonlyArray<Image.HistoryEntry>>
  readonly tag: (name: string, newName: string, options?: CallOptions) => Promise<void>
  readonly remove: (name: string, options?: CallOptions) => Promise<void>
  readonly gc: (options?: { readonly dryRun?: boolean | undefined } & CallOptions) => Promise<Store.Collected>
}

/**
 * A supervisor that is kept, and what it starts.
 *
 * @since 0.1.0
 * @category models
 */
export interface Session extends AsyncDisposable {
  readonly network: typeof network
  readonly start: typeof start
  readonly run: typeof run
  readonly supervised: typeof supervised
  readonly images: Images
  /** The same as the end of `await using`. */
  readonly close: () => Promise<void>
}

const shared = new Shared({}, { lingers: true })

/**
 * Starts a container: of the machine's own root (`"host"`), a folder (an absolute path), an OCI layout (`"oci:PATH"`,
 * `"oci:PATH:TAG"` or `"oci:PATH@DIGEST"`; PATH ends where a layout's folder is, and may have colons), or the image of a
 * name, which the store has or its registry gives. It is gone when it is disposed of, or when the program ends.
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
 * Makes a network of containers, until it is closed: see `Network.make`.
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
 * Starts a container, waits for its end and gives all that it wrote. A command that fails is no error: see `exitCode`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const run: (image: string | Image.Image, options?: RunOptions) => Promise<Container.Result> =
  runWith(shared)

/**
 * Starts a container, and another one whenever it has ended, for as long as `restart` says so. Gives how the last one ended.
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
 * Images, in the store of the folder that is the default.
 *
 * @since 0.1.0
 * @category images
 * @example
 * await images.push(await images.load("mine.tar").then(([image]) => image), "127.0.0.1:5000/mine:1")
 */
export const images: Images = makeImages(shared)

/**
 * A supervisor of one's own, with its own folder where that is given; it is there until this and all of its boxes have
 * been disposed of.
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
    start,
    run: runWith(own),
    supervised: restarted(own, start),
    images: makeImages(own),
    close: release,
    [Symbol.asyncDispose]: release
  }
}

/**
 * What Berth can use on this machine, and the fix for what is missing: `console.log(String(await doctor()))`.
 *
 * @since 0.1.0
 * @category diagnosis
 */
export const doctor = (): Promise<Doctor.Report> => Effect.runPromise(Berth.doctor)
