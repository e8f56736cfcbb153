/** A unit of the supervisor as a scoped resource. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, NotReleased } from "../../BerthError.ts"
import type * as Plan from "../../Plan.ts"
import type { Unit } from "./connection.ts"

/**
 * Releases a unit. That cannot fail: if something is left, a warning names the resource, and the next Berth that starts
 * removes it.
 */
export const releaseUnit = (name: string, unit: Unit): Effect.Effect<void> =>
  Effect.flatMap(unit.release, (leftover) =>
    leftover === undefined ? Effect.void : Effect.logWarning(new NotReleased({ resource: name, ...leftover }))
  )

/** Starts a unit and releases it when the scope closes. */
export const scopedUnit = (
  berth: Pick<Berth, "supervisor">,
  id: number,
  name: string,
  plan: Plan.Plan,
  descriptors: Readonly<Record<string, number>>
): Effect.Effect<Unit, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((interruptible) =>
    Effect.tap(berth.supervisor.start(id, plan, descriptors, interruptible), (unit) =>
      Effect.addFinalizer(() => releaseUnit(name, unit))
    )
  )
