/**
 * What containers are asked and what they tell. `Container` exports these types.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type { ImageConfig } from "./Image.ts"

/**
 * A line of a container's log.
 *
 * @since 0.1.0
 * @category models
 */
export interface LogEntry {
  /** When it was read, in milliseconds since 1970. */
  readonly time: number
  readonly stream: "stdout" | "stderr"
  /** As UTF-8, without its end; a line of more than 16384 characters comes in several entries. */
  readonly line: string
}

/**
 * A log on disk.
 *
 * @since 0.1.0
 * @category models
 */
export interface LogFiles {
  /** A folder on the host for the log's files alone; made if it is missing, and left when the container is gone. */
  readonly folder: string
  /** How large a file gets before the next is begun, in bytes. Default 10 MiB. */
  readonly maxBytes?: number | undefined
  /** How many files are kept: with `maxBytes`, they bound what a container can fill of the disk. Default 3. */
  readonly maxFiles?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface LogsOptions {
  /** Whether it goes on until the container has ended. Default false: what is there. */
  readonly follow?: boolean | undefined
  /** Only lines that came at this time or later. */
  readonly since?: Date | number | undefined
  /** Only so many of the last lines that are there. Default: all. */
  readonly tail?: number | undefined
}

/**
 * How a process ended.
 *
 * @since 0.1.0
 * @category models
 */
export interface ExitStatus {
  /** What it gave to exit(3), or 128 and the signal's number, as a shell has it. */
  readonly exitCode: number
  /** The signal that ended it: `SIGKILL`. */
  readonly signal: string | undefined
  /** CPU time of it and the children that it waited for, in microseconds. */
  readonly userMicros: number
  readonly systemMicros: number
  /** The largest resident set of any of them, in bytes. */
  readonly maxRssBytes: number
  /** Where the kernel killed it for want of memory: the limit of its cgroup and the most that was in use, in bytes. */
  readonly outOfMemory: { readonly limit: number | undefined; readonly peak: number | undefined } | undefined
}

/**
 * How a process ended, and all that it wrote.
 *
 * @since 0.1.0
 * @category models
 */
export interface Result extends ExitStatus {
  /** As UTF-8; bytes that are not become U+FFFD. */
  readonly stdout: string
  readonly stderr: string
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
 * @since 0.1.0
 * @category models
 */
export interface StopOptions {
  /** Default: the image's StopSignal, else SIGTERM. */
  readonly signal?: string | number | undefined
  /** How long it has before it is killed. Default 10 seconds. */
  readonly grace?: Duration.DurationInput | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CommitOptions {
  /** The image's name in the store, as `Image.pull` would write it; its digest unless given. */
  readonly tag?: string | undefined
  readonly author?: string | undefined
  /** What the image's history says of the new layer. */
  readonly comment?: string | undefined
  /** Default: now. The same files, options and time make the same image. */
  readonly created?: Date | undefined
  /** How to run it. `environment` and `labels` are added to the image's; what is left out is as the image has it. */
  readonly config?: Partial<Omit<ImageConfig, "architecture" | "os">> | undefined
}

/**
 * A process of a container.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProcessInfo {
  /** As the host numbers it, and as the container does. */
  readonly pid: number
  readonly pidInside: number
  /** Its parent, as the host numbers it. */
  readonly parent: number
  /** Its user's name in the container, or the number where it has none. */
  readonly user: string
  /** With its arguments, 4096 bytes of them at most; in brackets where it has none. */
  readonly command: ReadonlyArray<string>
  /** A letter of proc_pid_stat(5): `R` runs, `S` sleeps, `D` waits for a disk, `T` is stopped. */
  readonly state: string
  readonly threads: number
  /** CPU time, in microseconds, in steps of 10 ms. */
  readonly userMicros: number
  readonly systemMicros: number
  /** Its resident set, in bytes. */
  readonly memoryBytes: number
}
