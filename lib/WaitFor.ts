/**
 * Readiness, as effects that succeed once a container is ready for what is wanted of it. They compose like all others,
 * and each fails at once where the container ends, and with its last lines where its time is over.
 *
 * A container that was started with `stdout: "pipe"` waits for a reader once the pipe is full (256 KiB), and is then never
 * ready: read it, or wait for its log.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type { BerthError } from "./BerthError.ts"
import type { Container, ExecOptions, LogEntry } from "./Container.ts"
import * as internal from "./internal/container/waitFor.ts"
import type { Process } from "./Process.ts"

/**
 * For how long is waited.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /** How long it may take, `"infinity"` for no bound. Default 30 seconds. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * How often is looked.
 *
 * @since 0.1.0
 * @category models
 */
export interface PollOptions extends Options {
  /** When to look again; where it ends, the wait has failed. Default: after 10 ms, and ever later up to 250 ms. */
  readonly schedule?: Schedule.Schedule<unknown> | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface LogOptions extends Options {
  /** The output that it has to be on. Default: either. */
  readonly stream?: "stdout" | "stderr" | undefined
  /** In how many lines it has to be; some programs say that they are ready, start again, and say so again. Default 1. */
  readonly times?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HttpOptions extends PollOptions {
  /** On the container's loopback. */
  readonly port: number
  /** Default `/`. */
  readonly path?: string | undefined
  /** What the request names as its host. Default `localhost`. */
  readonly host?: string | undefined
  /** The status that is wanted. Default: any from 200 to 399. */
  readonly status?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CommandOptions
  extends PollOptions,
    Pick<ExecOptions, "env" | "cwd" | "user" | "capabilities" | "rlimits" | "umask"> {}

/**
 * How a container is asked whether it is well, with Docker's defaults: an `Image.Healthcheck` is one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Healthcheck {
  /** `["CMD", ...arguments]`, or `["CMD-SHELL", command]`. */
  readonly test: ReadonlyArray<string>
  /** How far apart the failures are that count. Default 30 seconds. */
  readonly interval?: Duration.DurationInput | undefined
  /** After so long a check has failed. Default 30 seconds. */
  readonly timeout?: Duration.DurationInput | undefined
  /** For so long failures do not count. Default 0. */
  readonly startPeriod?: Duration.DurationInput | undefined
  /** How far apart the checks are until the first success. Default: as in `PollOptions.schedule`. */
  readonly startInterval?: Duration.DurationInput | undefined
  /** So many failures in a row make the container unhealthy. Default 3. */
  readonly retries?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HealthCheckOptions extends PollOptions {
  /** In place of the image's: `{ test: ["CMD", "pg_isready"], interval: "5 seconds" }`. */
  readonly healthcheck?: Healthcheck | undefined
}

/**
 * Waits for a line of a process's log, from its beginning on, that has this text or matches this expression. Gives
 * the line. It looks at the lines that Berth has kept, see `Container.logs`, and at each that comes; one of more than 16 KiB
 * is looked at in parts of that length. An expression that backtracks takes its time for each.
 *
 * Fails with `WaitFailed`, as `Container.logs` does, and with `InvalidOption` where the output is not kept.
 *
 * @since 0.1.0
 * @category conditions
 */
export const log: {
  (pattern: string | RegExp, options?: LogOptions): (process: Process) => Effect.Effect<LogEntry, BerthError>
  (process: Process, pattern: string | RegExp, options?: LogOptions): Effect.Effect<LogEntry, BerthError>
} = internal.log

/**
 * Waits until something listens on a TCP port in the container's network namespace, on any of its addresses. It is seen
 * from outside, in the namespace's table of sockets: nothing is run, and nobody is connected to. In the host's network,
 * another program that listens there counts as well.
 *
 * Fails with `WaitFailed`, and with `InvalidOption` for what is no port.
 *
 * @since 0.1.0
 * @category conditions
 */
export const port: {
  (port: number, options?: PollOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, port: number, options?: PollOptions): Effect.Effect<void, BerthError>
} = internal.port

/**
 * Waits until a web server inside the container answers a GET with this status, or with any from 200 to 399. The request
 * is made over a connection inside the container's network namespace: no port of the host is used.
 *
 * Fails with `WaitFailed`, which has the last status, and with `InvalidOption`.
 *
 * @since 0.1.0
 * @category conditions
 */
export const http: {
  (options: HttpOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, options: HttpOptions): Effect.Effect<void, BerthError>
} = internal.http

/**
 * Waits until a command inside the container ends with exit code 0.
 *
 * Fails with `WaitFailed`, which has what the last attempt said, and as `Container.exec` does: at once where the command
 * is not there.
 *
 * @since 0.1.0
 * @category conditions
 */
export const command: {
  (
    command: ReadonlyArray<string>,
    options?: CommandOptions
  ): (container: Container) => Effect.Effect<void, BerthError>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: CommandOptions
  ): Effect.Effect<void, BerthError>
} = internal.command

/**
 * Waits until the container is healthy by its image's own health check. The check runs at once, and soon again until it
 * succeeds, however long the image's interval is: after 10 ms, and ever later up to 250 ms, or every `startInterval` where
 * there is one. A failure counts where the interval has passed since the last one that counted; as many as the image
 * allows, the start period left out, are `WaitFailed` with the reason `Unhealthy`. There is no other bound unless `timeout` is
 * given.
 *
 * Fails with `InvalidOption` where the image has no health check, or for a duration that cannot be parsed.
 *
 * @since 0.1.0
 * @category conditions
 */
export const healthCheck: {
  (options?: HealthCheckOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, options?: HealthCheckOptions): Effect.Effect<void, BerthError>
} = internal.healthCheck

/**
 * Waits for all of these at once, and fails with the first that does.
 *
 * @since 0.1.0
 * @category combinators
 */
export const all: <E, R>(
  conditions: ReadonlyArray<Effect.Effect<unknown, E, R>>
) => Effect.Effect<void, E, R> = internal.all

/**
 * Waits for the first of these, and fails where all do. There has to be one.
 *
 * @since 0.1.0
 * @category combinators
 */
export const any: <E, R>(
  conditions: readonly [Effect.Effect<unknown, E, R>, ...ReadonlyArray<Effect.Effect<unknown, E, R>>]
) => Effect.Effect<void, E, R> = internal.any
