/** What starts when it is first asked for, and ends with a scope. */
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"

/** Gives an effect that starts it once. It starts again if a start has failed. */
export const startOnce = <A, E>(
  start: Effect.Effect<A, E, Scope.Scope>
): Effect.Effect<Effect.Effect<A, E>, never, Scope.Scope> =>
  Effect.map(Effect.scope, (scope) => {
    const starting = Effect.unsafeMakeSemaphore(1)
    let started: A | undefined
    const begin = Effect.uninterruptible(
      Effect.flatMap(Scope.fork(scope, ExecutionStrategy.sequential), (own) =>
        start.pipe(
          Scope.extend(own),
          Effect.tap((value) => Effect.sync(() => (started = value))),
          Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
        )
      )
    )
    const find = (otherwise: Effect.Effect<A, E>) =>
      Effect.suspend(() => (started === undefined ? otherwise : Effect.succeed(started)))
    return find(starting.withPermits(1)(find(begin)))
  })
