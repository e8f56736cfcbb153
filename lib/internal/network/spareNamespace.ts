/**
 * The namespace of the next network, made in advance: it takes a large part of a start with a network of its own, and does not depend on
 * the network. The supervisor does the same for the next container (native/supervisor/network.h).
 */
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import { makeNamespace, type NetworkNamespace, usualRange } from "./router.ts"

/** So many milliseconds after a network the next one is made: a program most often starts a container in between. */
const DELAY_MS = 20

/** So many networks a Berth has made before one is made in advance: a program with one network needs no second. */
const MADE_BEFORE = 2

interface Spare {
  readonly namespace: NetworkNamespace
  readonly scope: Scope.CloseableScope
}

/** Gives the namespace of a network with the usual range: the one that was made in advance, or else a new one. */
export const makeSpares = (
  at: Pick<Berth, "supervisor">
): Effect.Effect<Effect.Effect<NetworkNamespace, BerthError, Scope.Scope>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    let taken = 0
    let spare: Spare | undefined
    let timer: NodeJS.Timeout | undefined
    const make = Effect.suspend(() => makeNamespace(at, usualRange()))
    // If this fails, the next network makes its own namespace, and reports the error.
    const fill = Effect.uninterruptibleMask((interruptible) =>
      Effect.flatMap(Scope.fork(scope, ExecutionStrategy.sequential), (own) =>
        interruptible(Scope.extend(make, own)).pipe(
          Effect.tap((namespace) => Effect.sync(() => (spare = { namespace, scope: own }))),
          Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
        )
      )
    )
    const fillLater = (): void => {
      if (++taken < MADE_BEFORE || timer !== undefined) return
      timer = setTimeout(() => {
        timer = undefined
        if (spare === undefined) Effect.runFork(Effect.ignore(fill), { scope })
      }, DELAY_MS)
      timer.unref()
    }
    yield* Effect.addFinalizer(() => Effect.sync(() => clearTimeout(timer)))
    return Effect.uninterruptibleMask((interruptible) =>
      Effect.suspend(() => {
        const ready = spare
        spare = undefined
        fillLater()
        return ready === undefined
          ? interruptible(make)
          : Effect.as(
              Effect.addFinalizer((exit) => Scope.close(ready.scope, exit)),
              ready.namespace
            )
      })
    )
  })
