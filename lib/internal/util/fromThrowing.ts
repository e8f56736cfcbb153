import * as Effect from "effect/Effect"
import { type BerthError, isBerthError, OperationFailed } from "../../BerthError.ts"
import { EMFILE, ENFILE } from "./errno.ts"

/** Any call of node:fs may meet the limit of open files, whatever it is for. */
const limitOf = (error: unknown): OperationFailed | undefined => {
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
 * A synchronous body that throws Berth's errors, as an effect that fails with them. What compiles a plan is written so:
 * it is on the path of every start, where an effect for each of its steps would cost more than the steps.
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
