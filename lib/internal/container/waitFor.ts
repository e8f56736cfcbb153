/** Conditions of a container: polled until they are true, the container ends, or the timeout is over. */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidOption, WaitFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { ExitStatus, LogEntry, Process, ProcessOptions } from "../../Process.ts"
import type {
  CommandOptions,
  HealthCheckOptions,
  Healthcheck,
  HttpOptions,
  LogOptions,
  Options,
  PollOptions
} from "../../WaitFor.ts"
import { open } from "../network/connection.ts"
import { native } from "../system/addon.ts"
import { isProcess } from "../typeIds.ts"
import { concat } from "../util/bytes.ts"
import { printWords } from "../util/commandTemplate.ts"
import { ECONNRESET } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { readBounded } from "../util/readFile.ts"
import { lastLines } from "../util/text.ts"
import * as check from "../util/validate.ts"
import { logs } from "./control.ts"
import { exec } from "./lifecycle.ts"

const TIMEOUT = "30 seconds"
const LAST_LINES = 20
const ENDING = "200 millis"

const often: Schedule.Schedule<unknown> = Schedule.union(
  Schedule.exponential("10 millis", 1.2),
  Schedule.spaced("250 millis")
)

const isSubjectFirst = (args: IArguments): boolean => isProcess(args[0])

const memoryOf = ({ limit }: NonNullable<ExitStatus["outOfMemory"]>): string =>
  limit === undefined
    ? "the machine has no memory left"
    : `it needs more than its limit of ${limit} bytes, limits.memory`

export const stateOf = ({ exitCode, outOfMemory, signal }: ExitStatus): string =>
  outOfMemory !== undefined
    ? `was ended by the OOM killer: ${memoryOf(outOfMemory)}`
    : signal !== undefined
      ? `was ended by ${signal}`
      : `has ended with exit code ${exitCode}`

/** A wait: its condition and its beginning. The condition's text may have more details at the end. */
interface Wait {
  readonly process: Process
  readonly condition: () => string
  readonly begun: number
}

const begin = (process: Process, condition: () => string): Wait => ({
  process,
  condition,
  begun: performance.now()
})

const failed = (wait: Wait, reason: WaitFailed["reason"], state: string): Effect.Effect<never, WaitFailed> =>
  Effect.suspend(() =>
    Effect.fail(
      new WaitFailed({
        reason,
        condition: wait.condition(),
        container: wait.process.id,
        state,
        millis: performance.now() - wait.begun,
        log: [...wait.process.state.log().tail(LAST_LINES)]
      })
    )
  )

/** Waits until the log has the whole output of the process, which may arrive after its exit status. */
export const logEnd = (process: Process): Effect.Effect<void> =>
  Effect.ignore(Effect.timeoutOption(Stream.runDrain(logs(process, { follow: true })), "1 second"))

const hasEnded = (wait: Wait): Effect.Effect<never, BerthError> =>
  Effect.flatMap(wait.process.exit, (status) =>
    Effect.zipRight(logEnd(wait.process), failed(wait, "Ended", stateOf(status)))
  )

const timedOut = (wait: Wait): Effect.Effect<never, WaitFailed> => failed(wait, "TimedOut", "is running")

// A race, because Effect.timeout within a concurrent Effect.all is only interrupted at its end (3.22).
const bounded = <A>(
  name: string,
  wait: Wait,
  { timeout = TIMEOUT }: Options,
  effect: Effect.Effect<A, BerthError>
): Effect.Effect<A, BerthError> =>
  Effect.flatMap(
    attempt(() => check.duration("timeout", timeout)),
    (time) => Effect.raceFirst(effect, Effect.delay(timedOut(wait), time))
  ).pipe(
    Effect.withSpan(`berth.WaitFor.${name}`, {
      attributes: { "container.id": wait.process.id },
      captureStackTrace: false
    })
  )

/** Polls until the condition is true; `hasEnded` reports the end of the container. */
const poll = (
  name: string,
  wait: Wait,
  options: PollOptions,
  look: Effect.Effect<boolean, BerthError>
): Effect.Effect<void, BerthError> => {
  let isSo = false
  const noted = look.pipe(
    Effect.map((is) => {
      isSo = is
      return is
    }),
    Effect.catchAll((error): Effect.Effect<never, BerthError> => {
      if (error._tag === "ContainerError" && error.reason === "NotRunning") return Effect.never
      // An ending container causes various errors, and its exit status is more useful.
      return error._tag === "OperationFailed" ? Effect.delay(Effect.fail(error), ENDING) : Effect.fail(error)
    })
  )
  const looked = Effect.repeat(noted, { until: (is) => is, schedule: options.schedule ?? often })
  return bounded(
    name,
    wait,
    options,
    Effect.raceFirst(
      // The end of the schedule also ends the wait.
      Effect.flatMap(looked, () => (isSo ? Effect.void : timedOut(wait))),
      hasEnded(wait)
    )
  )
}

// Log

const matcher = (pattern: string | RegExp): ((line: string) => boolean) => {
  if (typeof pattern === "string") return (line) => line.includes(pattern)
  // Without the flags that make an expression stateful.
  const expression = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ""))
  return (line) => expression.test(line)
}

export const log: {
  (pattern: string | RegExp, options?: LogOptions): (process: Process) => Effect.Effect<LogEntry, BerthError>
  (process: Process, pattern: string | RegExp, options?: LogOptions): Effect.Effect<LogEntry, BerthError>
} = dual(
  isSubjectFirst,
  (
    process: Process,
    pattern: string | RegExp,
    options: LogOptions = {}
  ): Effect.Effect<LogEntry, BerthError> =>
    Effect.suspend(() => {
      const { stream, times = 1 } = options
      const { stderr, stdout } = process.state
      if (!Number.isInteger(times) || times < 1)
        return Effect.fail(
          new InvalidOption({ option: "times", value: String(times), expected: "a whole number, from 1 on" })
        )
      if (
        (stream === "stderr" ? undefined : stdout) === undefined &&
        (stream === "stdout" ? undefined : stderr) === undefined
      )
        return Effect.fail(
          new InvalidOption({
            option: stream ?? "stdout",
            value: "an output without a log",
            expected: 'a process that was started with "log" or "pipe" for it; a terminal has stdout alone'
          })
        )
      const wait = begin(process, () => `line with ${pattern}`)
      const matches = matcher(pattern)
      const found = process.state
        .log()
        .find((entry) => (stream === undefined || entry.stream === stream) && matches(entry.line), times)
      // The last output counts as well, so the wait ends with the log.
      const first = Effect.flatMap(found, (entry) =>
        Option.isSome(entry) ? Effect.succeed(entry.value) : hasEnded(wait)
      )
      return bounded("log", wait, options, first)
    })
)

// Port

// The limit of bytes: 150 for each socket, of which a container may have any number.
const SOCKETS_BYTES_MAX = 16 * 1024 * 1024
/** A line of a socket that does not listen: the kernel lists listening sockets first. */
const OTHER = /: [0-9A-F]+:[0-9A-F]{4} [0-9A-F]+:[0-9A-F]{4} (?!0A)[0-9A-F]{2} /

/**
 * Whether a socket of the process's network namespace listens on the port: state 0A of /proc/PID/net/tcp, proc_net(5).
 * It must be polled, because the kernel does not report new listening sockets: sock_diag(7) only has groups for
 * destroyed sockets.
 */
const isListening = async (pid: number, port: number): Promise<boolean> => {
  const hex = port.toString(16).toUpperCase().padStart(4, "0")
  const line = new RegExp(`^ *\\d+: [0-9A-F]+:${hex} [0-9A-F]+:0000 0A `, "m")
  for (const name of ["tcp", "tcp6"]) {
    const sockets = await readBounded(`/proc/${pid}/net/${name}`, SOCKETS_BYTES_MAX, (part) =>
      OTHER.test(part.toString("latin1"))
    )
    if (line.test(sockets.toString("latin1"))) return true
  }
  return false
}

export const port: {
  (port: number, options?: PollOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, port: number, options?: PollOptions): Effect.Effect<void, BerthError>
} = dual(isSubjectFirst, (container: Container, number: number, options: PollOptions = {}) =>
  Effect.suspend(() => {
    if (!Number.isInteger(number) || number < 1 || number > 65535) {
      const expected = "a port, from 1 to 65535"
      return Effect.fail(new InvalidOption({ option: "port", value: String(number), expected }))
    }
    const { elsewhere, ended, pidfd } = container.state
    if (elsewhere !== undefined) return elsewhere.waitForPort(number, options)
    const wait = begin(container, () => `listener on port ${number}`)
    // The pid belonged to the container all the time if the container still runs.
    const look = Effect.map(
      Effect.zip(
        Effect.promise(() => isListening(container.pid, number)),
        Deferred.isDone(ended)
      ),
      ([listening, isOver]) => listening && !isOver && native().signal(pidfd, 0) >= 0
    )
    return poll("port", wait, options, look)
  })
)

// HTTP

/** The part of an answer with its status: "HTTP/1.1 200". */
const STATUS_BYTES = 12

/** The status of one request; undefined if no process listens, or the answer is not HTTP. */
const statusOf = (
  container: Container,
  options: HttpOptions
): Effect.Effect<number | undefined, BerthError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const socket = yield* open(container, options.port)
      const host = `${options.host ?? "localhost"}:${options.port}`
      const head = `GET ${options.path ?? "/"} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`
      yield* socket.write(new TextEncoder().encode(head))
      const bytes = yield* Stream.runFoldWhile(
        socket.stream,
        new Uint8Array(0) as Uint8Array,
        (read) => read.length < STATUS_BYTES,
        (read, more) => concat([read, more.subarray(0, STATUS_BYTES)])
      )
      const status = /^HTTP\/1\.[01] (\d{3})/.exec(new TextDecoder("latin1").decode(bytes))?.[1]
      return status === undefined ? undefined : Number(status)
    })
  ).pipe(
    // A server that does not listen yet, or that hangs up, is not ready.
    Effect.catchTags({
      NetworkError: () => Effect.succeed(undefined),
      OperationFailed: (error) =>
        error.errno === ECONNRESET ? Effect.succeed(undefined) : Effect.fail(error)
    })
  )

export const http: {
  (options: HttpOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, options: HttpOptions): Effect.Effect<void, BerthError>
} = dual(isSubjectFirst, (container: Container, options: HttpOptions) =>
  Effect.suspend(() => {
    const { path = "/", port: number, status } = options
    if (!Number.isInteger(number) || number < 1 || number > 65535) {
      const expected = "a port, from 1 to 65535"
      return Effect.fail(new InvalidOption({ option: "port", value: String(number), expected }))
    }
    if (!/^\/[!-~]*$/.test(path) || !/^[!-~]*$/.test(options.host ?? "")) {
      const expected = "a path that begins with / and a host, without spaces"
      return Effect.fail(new InvalidOption({ option: "path", value: JSON.stringify(path), expected }))
    }
    let last = ""
    const wait = begin(container, () => `http://localhost:${number}${path}${last}`)
    const look = Effect.map(statusOf(container, options), (answer) => {
      last = answer === undefined ? "" : ` (last time ${answer})`
      return (
        answer !== undefined && (status === undefined ? answer >= 200 && answer < 400 : answer === status)
      )
    })
    return poll("http", wait, options, look)
  })
)

// Command

/** The output of a failed attempt, in a few words. */
const lastWords = (text: string): string => {
  const line = lastLines(text, 1)[0]!.slice(0, 200)
  return line === "" ? "" : `: ${line}`
}

interface Attempt {
  readonly wait: Wait
  readonly look: Effect.Effect<boolean, BerthError>
}

const attemptOf = (
  container: Container,
  command: ReadonlyArray<string>,
  condition: string,
  options: ProcessOptions
): Attempt => {
  let last = ""
  return {
    wait: begin(container, () => `${condition}${last === "" ? "" : ` (last time ${last})`}`),
    look: Effect.map(exec(container, command, options), ({ exitCode, stderr, stdout }) => {
      last = `exit code ${exitCode}${lastWords(stderr) || lastWords(stdout)}`
      return exitCode === 0
    })
  }
}

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
} = dual(isSubjectFirst, (container: Container, words: ReadonlyArray<string>, options: CommandOptions = {}) =>
  Effect.suspend(() => {
    const { schedule, timeout, ...rest } = options
    const { wait, look } = attemptOf(container, words, `exit code 0 of ${printWords(words)}`, rest)
    return poll("command", wait, { schedule, timeout }, look)
  })
)

// Health check

// Docker's defaults for fields that the image omits: 30 seconds, 30 seconds, 0 and 3.
const RETRIES = 3

/** The health check's durations; undefined and zero are as if left out. Throws. */
const durationsOf = (healthcheck: Healthcheck) => {
  const given = (name: "interval" | "timeout" | "startPeriod" | "startInterval") => {
    const value = healthcheck[name]
    const duration = value === undefined ? Duration.zero : check.duration(`healthcheck.${name}`, value)
    return Duration.equals(duration, Duration.zero) ? undefined : duration
  }
  return {
    interval: given("interval") ?? Duration.seconds(30),
    timeout: given("timeout") ?? Duration.seconds(30),
    startPeriod: given("startPeriod") ?? Duration.zero,
    startInterval: given("startInterval")
  }
}

const commandOf = ({ test }: Healthcheck): ReadonlyArray<string> | undefined => {
  const [kind, ...rest] = test
  if (kind === "CMD" && rest.length > 0) return rest
  return kind === "CMD-SHELL" && rest.length === 1 ? ["/bin/sh", "-c", rest[0]!] : undefined
}

const checked = (
  container: Container,
  healthcheck: Healthcheck,
  words: ReadonlyArray<string>,
  options: HealthCheckOptions
): Effect.Effect<void, BerthError> =>
  Effect.flatMap(
    attempt(() => durationsOf(healthcheck)),
    ({ interval, startInterval, startPeriod, timeout }) => {
      const { look, wait } = attemptOf(container, words, `health check ${printWords(words)}`, {})
      const begins = Duration.toMillis(startPeriod)
      let failures = 0
      // The check is asked more often than the image says, which must not use up its retries sooner.
      let counts = wait.begun + begins
      const probe = look.pipe(
        Effect.catchTag("CommandFailed", () => Effect.succeed(false)),
        Effect.raceFirst(Effect.delay(Effect.succeed(false), timeout)),
        Effect.flatMap((healthy) => {
          if (healthy) return Effect.succeed(true)
          const now = performance.now()
          if (now >= counts) {
            failures++
            counts = now + Duration.toMillis(interval)
          }
          return failures >= (healthcheck.retries || RETRIES)
            ? failed(wait, "Unhealthy", "is running")
            : Effect.succeed(false)
        })
      )
      const asked = startInterval === undefined ? often : Schedule.spaced(startInterval)
      return poll(
        "healthCheck",
        wait,
        {
          schedule: options.schedule ?? Schedule.union(asked, Schedule.spaced(interval)),
          timeout: options.timeout ?? Duration.infinity
        },
        probe
      )
    }
  )

export const healthCheck: {
  (options?: HealthCheckOptions): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, options?: HealthCheckOptions): Effect.Effect<void, BerthError>
} = dual(isSubjectFirst, (container: Container, options: HealthCheckOptions = {}) =>
  Effect.suspend(() => {
    const healthcheck = options.healthcheck ?? container.state.base.image.config.healthcheck
    const words = healthcheck === undefined ? undefined : commandOf(healthcheck)
    if (healthcheck === undefined || words === undefined)
      return Effect.fail(
        new InvalidOption({
          option: "healthcheck",
          value: JSON.stringify(healthcheck?.test) ?? "none",
          expected: 'an image with a health check, ["CMD", ...] or ["CMD-SHELL", command], or one given here'
        })
      )
    return checked(container, healthcheck, words, options)
  })
)

// Several

export const all = <E, R>(
  conditions: ReadonlyArray<Effect.Effect<unknown, E, R>>
): Effect.Effect<void, E, R> => Effect.all(conditions, { concurrency: "unbounded", discard: true })

export const any = <E, R>(
  conditions: readonly [Effect.Effect<unknown, E, R>, ...ReadonlyArray<Effect.Effect<unknown, E, R>>]
): Effect.Effect<void, E, R> => Effect.asVoid(Effect.raceAll(conditions))
