/** The functions of a container in `berth/promise`, as types. */
import type * as Duration from "effect/Duration"
import type * as Cgroup from "../../Cgroup.ts"
import type * as Container from "../../Container.ts"
import type * as Image from "../../Image.ts"
import type { Abortable, ForkOptions } from "../../promise.ts"
import type * as WaitFor from "../../WaitFor.ts"
import type { BoxNetwork } from "./networkTypes.ts"

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
