/** What starts when it is first asked for, and ends with a scope. */
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"

/** Gives an effect that starts it once. It starts again if it has ended meanwhile, by `isThere`, or if a start has failed. */
export const startOnce = <A, E>(
  start: Effect.Effect<A, E, Scope.Scope>,
  isThere: (started: A) => boolean = () => true
): Effect.Effect<Effect.Effect<A, E>, never, Scope.Scope> =>
  Effect.map(Effect.scope, (scope) => {
    const starting = Effect.unsafeMakeSemaphore(1)
    let started: A | undefined
    let end: Effect.Effect<void> = Effect.void
    const begin = Effect.uninterruptible(
      Effect.flatMap(Scope.fork(scope, ExecutionStrategy.sequential), (own) =>
        start.pipe(
          Scope.extend(own),
          Effect.tap((value) =>
            Effect.sync(() => {
              started = value
              end = Scope.close(own, Exit.void)
            })
          ),
          Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
        )
      )
    )
    const find = (otherwise: Effect.Effect<A, E>) =>
      Effect.suspend(() => (started !== undefined && isThere(started) ? Effect.succeed(started) : otherwise))
    const again = Effect.suspend(() => {
      const before = end
      started = undefined
      end = Effect.void
      return Effect.zipRight(before, begin)
    })
    return find(starting.withPermits(1)(find(again)))
  })
