/** What an effect logs. */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"

/** Runs an effect whose messages go to the array that it is given, and are not printed. */
export const logging = <A, E, R>(body: (logged: ReadonlyArray<unknown>) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const logged: Array<unknown> = []
    const logger = Logger.make(({ message }) => {
      logged.push(...(message as ReadonlyArray<unknown>))
    })
    return Effect.provide(body(logged), Logger.replace(Logger.defaultLogger, logger))
  })
