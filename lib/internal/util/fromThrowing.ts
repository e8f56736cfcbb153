import * as Effect from "effect/Effect"
import { type BerthError, isBerthError, OperationFailed } from "../../BerthError.ts"
import { EMFILE, ENFILE } from "./errno.ts"

/** The error of a call that has reached the limit of open files, as any call of node:fs may. */
export const limitOf = (error: unknown): OperationFailed | undefined => {
  const {
    code,
    path = "file",
    syscall = "open"
  } = error as { code?: string; path?: string; syscall?: string }
  const errno = code === "EMFILE" ? EMFILE : code === "ENFILE" ? ENFILE : undefined
  if (errno !== undefined)
    return new OperationFailed({ operation: path, index: -1, syscall, errno, hint: "", cause: error })
}

/**
 * Runs a synchronous body, which may throw errors of Berth, as an effect that fails with them. The code that checks
 * options and compiles a plan throws, because every start runs it: 50 checks take 1 µs as functions that throw and 6 µs
 * as effects of a generator, in a total of 130 µs for a plan. The gain is small, but such code can also be called in
 * callbacks and constructors.
 */
export const attempt = <A>(body: () => A): Effect.Effect<A, BerthError> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(body())
    } catch (error) {
      const failure = isBerthError(error) ? error : limitOf(error)
      return failure === undefined ? Effect.die(error) : Effect.fail(failure)
    }
  })
