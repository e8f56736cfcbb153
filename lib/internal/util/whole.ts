/** Resources that are made in several steps. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"

/**
 * Makes a resource in a scope of its own, which closes with the outer one once the resource is there. An outer scope that closes
 * while the resource is made, as that of a forked fiber may, thus closes no descriptor that a later step still uses: its number could be
 * another file's by then.
 */
export const whole = <A, E, R>(
  make: Effect.Effect<A, E, R | Scope.Scope>
): Effect.Effect<A, E, Exclude<R, Scope.Scope> | Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Scope.make(), (own) =>
      restore(Scope.extend(make, own)).pipe(
        Effect.onError((cause) => Scope.close(own, Exit.failCause(cause))),
        Effect.tap(() => Effect.addFinalizer((exit) => Scope.close(own, exit)))
      )
    )
  )
