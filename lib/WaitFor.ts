/**
 * Readiness conditions: effects that succeed once a container is ready. They compose like all effects. Each fails at
 * once if the container ends, and with the last lines of its output if the timeout is over.
 *
 * A container that was started with `stdout: "pipe"` and has no reader waits once the pipe is full (256 KiB), and then never
 * becomes ready: read its output, or wait for its log.
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
 * The timeout of a condition.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /** The longest wait, `"infinity"` for no limit. Default 30 seconds. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * The timeout and the intervals of a condition.
 *
 * @since 0.1.0
 * @category models
 */
export interface PollOptions extends Options {
  /** When to check again; the wait fails at its end. Default: after 10 ms, at growing intervals up to 250 ms. */
  readonly schedule?: Schedule.Schedule<unknown> | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface LogOptions extends Options {
  /** The output to read. Default: both. */
  readonly stream?: "stdout" | "stderr" | undefined
  /** The number of matching lines; some programs report readiness, restart, and report it again. Default 1. */
  readonly times?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HttpOptions extends PollOptions {
  /** The port on the container's loopback. */
  readonly port: number
  /** The path of the request. Default `/`. */
  readonly path?: string | undefined
  /** The `Host` header of the request. Default `localhost`. */
  readonly host?: string | undefined
  /** The expected status. Default: any from 200 to 399. */
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
 * A health check with Docker's defaults. An image's `Image.Healthcheck` can be used as one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Healthcheck {
  /** `["CMD", ...arguments]`, or `["CMD-SHELL", command]`. */
  readonly test: ReadonlyArray<string>
  /** The minimum time between two failures that count. Default 30 seconds. */
  readonly interval?: Duration.DurationInput | undefined
  /** The time after which a check counts as failed. Default 30 seconds. */
  readonly timeout?: Duration.DurationInput | undefined
  /** The time from the start in which failures do not count. Default 0. */
  readonly startPeriod?: Duration.DurationInput | undefined
  /** The time between two checks until the first success. Default: as in `PollOptions.schedule`. */
  readonly startInterval?: Duration.DurationInput | undefined
  /** The number of consecutive failures that make the container unhealthy. Default 3. */
  readonly retries?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HealthCheckOptions extends PollOptions {
  /** Replaces the image's health check: `{ test: ["CMD", "pg_isready"], interval: "5 seconds" }`. */
  readonly healthcheck?: Healthcheck | undefined
}

/**
 * Waits for a line in a process's log, from its beginning on, that contains this text or matches this expression.
 * Returns the line. It examines the lines that Berth has kept, see `Container.logs`, and each new one; a line of more than
 * 16 KiB is matched in parts of that length. An expression that backtracks takes its time for each part.
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
 * Waits until a process listens on a TCP port in the container's network namespace, on any of its addresses. Berth
 * reads the namespace's table of sockets: it runs nothing and makes no connection. In the host's network, another
 * program that listens on the port counts as well.
 *
 * Fails with `WaitFailed`, and with `InvalidOption` for an invalid port.
 *
 * @since 0.1.0
 * @category conditions
 */
export const port: {
  (port: number, options?: PollOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, port: number, options?: PollOptions): Effect.Effect<void, BerthError>
} = internal.port

/**
 * Waits until a web server inside the container answers a GET with this status, or with any from 200 to 399. The
 * request is made over a connection inside the container's network namespace: no port of the host is used.
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
 * Fails with `WaitFailed`, which has the output of the last attempt, and as `Container.exec` does: at once if the
 * command does not exist.
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
 * Waits until the container is healthy by its image's health check. The first check runs at once, and the next ones soon,
 * however long the image's interval is: after 10 ms, and ever later up to 250 ms, or every `startInterval` if there is
 * one. A failure counts if the interval has passed since the last one that counted; as many as the image allows, not
 * counting the start period, fail with `WaitFailed` and the reason `Unhealthy`. There is no other limit unless `timeout` is
 * given.
 *
 * Fails with `InvalidOption` if the image has no health check, or for a duration that cannot be parsed.
 *
 * @since 0.1.0
 * @category conditions
 */
export const healthCheck: {
  (options?: HealthCheckOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, options?: HealthCheckOptions): Effect.Effect<void, BerthError>
} = internal.healthCheck

/**
 * Waits for all conditions at once, and fails with the first one that fails.
 *
 * @since 0.1.0
 * @category combinators
 */
export const all: <E, R>(
  conditions: ReadonlyArray<Effect.Effect<unknown, E, R>>
) => Effect.Effect<void, E, R> = internal.all

/**
 * Waits for the first condition that succeeds, and fails if all fail. There must be at least one.
 *
 * @since 0.1.0
 * @category combinators
 */
export const any: <E, R>(
  conditions: readonly [Effect.Effect<unknown, E, R>, ...ReadonlyArray<Effect.Effect<unknown, E, R>>]
) => Effect.Effect<void, E, R> = internal.any
