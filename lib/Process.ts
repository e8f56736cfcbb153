/**
 * A running process: the first process of a container, or one that `Container.execStream` starts beside it. A `Container`
 * is a `Process`, so every function here takes a container as well.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { BerthError } from "./BerthError.ts"
import * as attaching from "./internal/container/attach.ts"
import * as internal from "./internal/container/control.ts"
import type { ProcessState } from "./internal/container/handle.ts"
import * as typeIds from "./internal/typeIds.ts"
import type { Plan } from "./Plan.ts"
import type * as Security from "./Security.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = typeIds.ProcessTypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A running process. It prints as one line: `Process(9f3c02d1b7aa, pid 1234, running)`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Process extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The id of the container in which the process runs: 12 hexadecimal digits. */
  readonly id: string
  /** The pid on the host. */
  readonly pid: number
  /** Waits for the end of the process and returns its exit status. */
  readonly exit: Effect.Effect<ExitStatus, BerthError>
  /**
   * The process's output, from the first byte; each byte is delivered once. While the output has a reader, the process waits
   * for it. Without one, the process never waits, and Berth keeps the newest 1 MiB: a reader that comes after more than that
   * has been dropped fails with `ContainerError` (`OutputDropped`), and a second read delivers the rest. With
   * `stdout: "pipe"` nothing is dropped: the process waits for a reader once the pipe is full (256 KiB).
   */
  readonly stdout: Stream.Stream<Uint8Array, BerthError>
  readonly stderr: Stream.Stream<Uint8Array, BerthError>
  /**
   * The process's input, with `stdin: "pipe"`; it ends when the sink ends. Otherwise the sink fails with `InvalidOption`.
   */
  readonly stdin: Sink.Sink<void, Uint8Array, never, BerthError>
  /** The operations by which the supervisor started it. */
  readonly plan: Plan
  /** @internal */
  readonly state: ProcessState
}

/**
 * How a process runs. Omitted options have the values of the image or, for a process that is started beside a
 * container's first one, the values of the container.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProcessOptions extends Security.Options {
  /** Variables that are added to the default environment. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** An absolute path inside the container. Default: the image's working directory, else `/`. */
  readonly cwd?: string | undefined
  /** `user[:group]`: names in the container's own `/etc/passwd` and `/etc/group`, or numbers. */
  readonly user?: string | undefined
  /** Default 0o022. */
  readonly umask?: number | undefined
  /**
   * The AppArmor profile that confines the process. It must be loaded: see `Security.appArmor`. Default: no profile,
   * and for an exec the container's profile. Fails with `Unsupported` if the kernel has no AppArmor.
   */
  readonly appArmor?: string | undefined
  /**
   * Whether the standard streams are a pseudo-terminal, pty(7). `true` gives it the size of this program's own terminal, or
   * 24 rows and 80 columns. All output is then on `stdout`, and `stdin` takes the keys: `"inherit"` and `"null"` are refused.
   */
  readonly terminal?: boolean | TerminalSize | undefined
  /**
   * `"null"`: the input ends at once. `"pipe"`: the input comes from the `stdin` sink. `"inherit"`: the process reads this
   * program's own input. Default `"null"`.
   */
  readonly stdin?: "null" | "pipe" | "inherit" | undefined
  /**
   * `"log"`: the process runs on without a reader; Berth keeps the newest 1 MiB for `logs`, for errors and for a reader of
   * the stream of the same name. `"pipe"`: the process waits until the stream is read, and nothing is dropped. `"inherit"`:
   * the output goes to this program's own output. `"null"`: it is dropped. Default `"log"`.
   */
  readonly stdout?: "log" | "pipe" | "inherit" | "null" | undefined
  readonly stderr?: "log" | "pipe" | "inherit" | "null" | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface TerminalSize {
  readonly rows: number
  readonly columns: number
}

/**
 * How a process ended.
 *
 * @since 0.1.0
 * @category models
 */
export interface ExitStatus {
  /** The argument of its exit(3), or 128 plus the number of the signal that ended it, as in a shell. */
  readonly exitCode: number
  /** The signal that ended it: `SIGKILL`. */
  readonly signal: string | undefined
  /** CPU time of the process and of the children that it waited for, in microseconds. */
  readonly userMicros: number
  readonly systemMicros: number
  /** The largest resident set of any of these processes, in bytes. */
  readonly maxRssBytes: number
  /** Set if the OOM killer ended it: the memory limit of its cgroup and the peak use, in bytes. */
  readonly outOfMemory: { readonly limit: number | undefined; readonly peak: number | undefined } | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface BufferOptions {
  /** What the process reads, and then the end. Default: the end at once. */
  readonly input?: string | Uint8Array | Stream.Stream<Uint8Array, BerthError> | undefined
  /** The limit of stdout, and of stderr, in bytes. Default 16 MiB. */
  readonly maxOutputBytes?: number | undefined
  /**
   * What more output does. `"fail"`: it ends the process, and the call fails with `ContainerError` (`OutputTooLong`), which has
   * the output up to the limit. `"truncate"`: the process goes on, and the rest of its output is dropped. Default `"fail"`.
   */
  readonly onOverflow?: "fail" | "truncate" | undefined
}

/**
 * How a process ended, and its whole output.
 *
 * @since 0.1.0
 * @category models
 */
export interface Result extends ExitStatus {
  /** Decoded as UTF-8; invalid bytes become U+FFFD. */
  readonly stdout: string
  readonly stderr: string
  /** Whether one of them is cut, with `onOverflow: "truncate"`. */
  readonly truncated: boolean
}

/**
 * @since 0.1.0
 * @category models
 */
export interface StopOptions {
  /** Default: the StopSignal of the image for a container, else SIGTERM. */
  readonly signal?: string | number | undefined
  /** The time before the process is killed. Default 10 seconds. */
  readonly grace?: Duration.DurationInput | undefined
}

/**
 * A line of a log.
 *
 * @since 0.1.0
 * @category models
 */
export interface LogEntry {
  /** The time at which Berth read it, in milliseconds since 1970. */
  readonly time: number
  readonly stream: "stdout" | "stderr"
  /** Decoded as UTF-8, without the line's end. A line of more than 16384 characters is split into several entries. */
  readonly line: string
}

/**
 * @since 0.1.0
 * @category models
 */
export interface LogsOptions {
  /** Whether the stream continues until the process has ended. Default false: it has the lines so far. */
  readonly follow?: boolean | undefined
  /** Leaves out lines from before this time. */
  readonly since?: Date | number | undefined
  /** The number of the newest lines so far to include. Default: all. */
  readonly tail?: number | undefined
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isProcess: (u: unknown) => u is Process = typeIds.isProcess

/**
 * Sends a signal, by name or number. Nothing happens if the process has ended. SIGKILL also ends a paused process.
 *
 * A container's first process is the first one of its pid namespace: it only receives the signals that it handles, SIGKILL
 * and SIGSTOP (pid_namespaces(7)).
 *
 * @since 0.1.0
 * @category lifetime
 */
export const signal: {
  (signal: string | number): (process: Process) => Effect.Effect<void, BerthError>
  (process: Process, signal: string | number): Effect.Effect<void, BerthError>
} = internal.signal

/**
 * Asks the process to stop, kills it after the grace period, and returns its exit status. A paused container is
 * resumed.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const stop: {
  (options?: StopOptions): (process: Process) => Effect.Effect<ExitStatus, BerthError>
  (process: Process, options?: StopOptions): Effect.Effect<ExitStatus, BerthError>
} = internal.stop

/**
 * Waits until the process has ended; the same as its `exit`.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const wait: (process: Process) => Effect.Effect<ExitStatus, BerthError> = internal.wait

/**
 * Both outputs of a process, line by line, each line with its time. The first call has what Berth keeps: the newest 1 MiB
 * of each output. The log keeps the newest lines in memory: 3 to 4 MiB of text, where each line counts as 100 bytes more
 * than its length. With `StartOptions.logs` it is on disk, from the beginning, within the limits of that option. A line of
 * more than 16 KiB is split. From the first call on, the process does not wait for a reader of a `"pipe"` output either.
 *
 * `stdout` and `stderr` deliver the same bytes: a log and a reader take nothing from each other. While an output has a
 * reader, the process waits for it, and the log has its lines when the reader has its bytes.
 *
 * The log does not wait for a slow reader either: with `follow`, a reader misses the lines that are dropped from memory
 * before it reads them.
 *
 * @since 0.1.0
 * @category output
 */
export const logs: (process: Process, options?: LogsOptions) => Stream.Stream<LogEntry, BerthError> =
  internal.logs

/**
 * Sets the size of the process's terminal; its foreground process gets SIGWINCH. Nothing happens if it has no terminal.
 *
 * @since 0.1.0
 * @category terminals
 */
export const resize: {
  (size: TerminalSize): (process: Process) => Effect.Effect<void>
  (process: Process, size: TerminalSize): Effect.Effect<void>
} = internal.resize

/**
 * Connects this program's terminal, or its standard streams if they are not a terminal, with those of the process until
 * it ends: keys go in, Ctrl-C included, output comes out, and a new size is passed on. Start the process with
 * `terminal: true` and `stdin: "pipe"`.
 *
 * @since 0.1.0
 * @category terminals
 */
export const attach: (process: Process) => Effect.Effect<ExitStatus, BerthError> = attaching.attach
