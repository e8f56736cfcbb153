import * as Effect from "effect/Effect"
import { type BerthError, isBerthError } from "../BerthError.ts"

/**
 * A synchronous body that throws Berth's errors, as an effect that fails with them. What compiles a plan is written so:
 * it is on the path of every start, where an effect for each of its steps would cost more than the steps.
 */
export const attempt = <A>(body: () => A): Effect.Effect<A, BerthError> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(body())
    } catch (error) {
      return isBerthError(error) ? Effect.fail(error) : Effect.die(error)
    }
  })
