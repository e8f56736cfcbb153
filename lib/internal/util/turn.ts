/**
 * Turns of the event loop. A container's data (output, changes of files, system calls to be answered) arrives at any
 * rate, and must not delay the program's timers and sockets.
 */
import * as Effect from "effect/Effect"

/** The length of a turn in milliseconds, after which other work runs. */
const TURN_MS = 4

// The state of this thread's event loop, shared by all Berths on it: a turn is the same for all of them.
let begun = false
let ends = 0

const over = (): void => {
  begun = false
}

/** Whether this turn is over: the remaining work must wait for `next`. The turn begins with the first call. */
export const isOver = (): boolean => {
  if (begun) return performance.now() >= ends
  begun = true
  ends = performance.now() + TURN_MS
  setImmediate(over)
  return false
}

/** Calls `resume` in the next turn; returns a function that cancels the call. */
export const next = (resume: () => void): (() => void) => {
  const immediate = setImmediate(resume)
  return () => clearImmediate(immediate)
}

/** Continues in the next turn if this one is over. */
export const letOthersRun: Effect.Effect<void> = Effect.suspend(() =>
  isOver() ? Effect.async<void>((resume) => Effect.sync(next(() => resume(Effect.void)))) : Effect.void
)
