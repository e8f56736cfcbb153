/** Operations on any process: signals, waiting, its log, its terminal. */
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { ExitStatus, LogEntry, LogsOptions, Process, StopOptions, TerminalSize } from "../../Process.ts"
import { native } from "../system/addon.ts"
import { isContainer, isProcess } from "../typeIds.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalNumber } from "../util/signals.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import { duration } from "../util/validate.ts"
import { letEnd, thaw } from "./pause.ts"

const SIGKILL = 9

export const signal: {
  (signal: string | number): (process: Process) => Effect.Effect<void, BerthError>
  (process: Process, signal: string | number): Effect.Effect<void, BerthError>
} = dual(2, (process: Process, which: string | number) =>
  Effect.suspend(() => {
    const number = signalNumber(which)
    if (number === undefined) {
      const expected = "a signal of signal(7), by name or number"
      return Effect.fail(new InvalidOption({ option: "signal", value: JSON.stringify(which), expected }))
    }
    const { elsewhere, pidfd } = process.state
    if (elsewhere !== undefined) return elsewhere.signal(number)
    native().signal(pidfd, number)
    return number === SIGKILL ? letEnd(process) : Effect.void
  }).pipe(spanIfObserved("berth.Container.signal", { "container.id": process.id, "berth.signal": which }))
)

export const resize: {
  (size: TerminalSize): (process: Process) => Effect.Effect<void>
  (process: Process, size: TerminalSize): Effect.Effect<void>
} = dual(2, (process: Process, size: TerminalSize) =>
  Effect.sync(() => process.state.terminal?.resize(size.rows, size.columns))
)

export const wait = (process: Process): Effect.Effect<ExitStatus, BerthError> =>
  Effect.withSpan(process.exit, "berth.Container.wait", { attributes: { "container.id": process.id } })

/** The stop signal of the container's image. */
const stopSignalOf = (process: Process): string =>
  (isContainer(process) ? process.state.base.image.config.stopSignal : undefined) ?? "SIGTERM"

export const stop: {
  (options?: StopOptions): (process: Process) => Effect.Effect<ExitStatus, BerthError>
  (process: Process, options?: StopOptions): Effect.Effect<ExitStatus, BerthError>
} = dual(
  (args) => isProcess(args[0]),
  (process: Process, options: StopOptions = {}): Effect.Effect<ExitStatus, BerthError> =>
    Effect.flatMap(
      attempt(() => duration("grace", options.grace ?? "10 seconds")),
      (grace) => process.state.elsewhere?.stop({ ...options, grace }) ?? stopIn(process, options, grace)
    ).pipe(Effect.withSpan("berth.Container.stop", { attributes: { "container.id": process.id } }))
)

const stopIn = (
  process: Process,
  options: StopOptions,
  grace: Duration.Duration
): Effect.Effect<ExitStatus, BerthError> =>
  signal(process, options.signal ?? stopSignalOf(process)).pipe(
    // A paused process receives the signal when it is resumed.
    Effect.zipRight(thaw(process)),
    Effect.zipRight(
      // Interruptible, so that the wait ends after the grace period even in a finalizer.
      Effect.timeoutTo(Effect.interruptible(process.exit), {
        duration: grace,
        onSuccess: (status) => Effect.succeed(status),
        onTimeout: () => Effect.zipRight(signal(process, "SIGKILL"), process.exit)
      })
    ),
    Effect.flatten
  )

export const logs = (process: Process, options: LogsOptions = {}): Stream.Stream<LogEntry, BerthError> =>
  Stream.unwrap(
    Effect.suspend(() => {
      const { ended, log } = process.state
      const all = log()
      const isOver = options.follow !== true && Effect.runSync(Deferred.isDone(ended))
      return Effect.as(isOver ? all.whole : Effect.void, all.stream(options))
    })
  ).pipe(Stream.withSpan("berth.Container.logs", { attributes: { "container.id": process.id } }))
