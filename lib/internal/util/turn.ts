/**
 * Turns of the event loop. What a container gives (output, changes of files, system calls to be answered) comes as fast as it
 * likes, and is never let keep the program's timers and sockets from their turn.
 */
import * as Effect from "effect/Effect"

/** So long, in milliseconds, a turn may take before others have theirs. */
const TURN_MS = 4

// Of this thread's event loop, which all Berths on it share: one turn is one turn for all of them.
let begun = false
let ends = 0

const over = (): void => {
  begun = false
}

/** Whether this turn has taken as long as it may: what is left to do is for `next`. It counts from the first question. */
export const isOver = (): boolean => {
  if (begun) return performance.now() >= ends
  begun = true
  ends = performance.now() + TURN_MS
  setImmediate(over)
  return false
}

/** Calls `resume` in the next turn; gives what cancels that. */
export const next = (resume: () => void): (() => void) => {
  const immediate = setImmediate(resume)
  return () => clearImmediate(immediate)
}

/** Goes on in the next turn where this one is over. */
export const letOthersRun: Effect.Effect<void> = Effect.suspend(() =>
  isOver() ? Effect.async<void>((resume) => Effect.sync(next(() => resume(Effect.void)))) : Effect.void
)
