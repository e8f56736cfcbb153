/** The part of `Store.gc` that knows builds: the layers and caches that are beyond a size to keep. */
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Collected } from "../../Store.ts"
import { diskUsage } from "../disk/usage.ts"
import { gc as collect } from "../gc/collect.ts"
import * as Kept from "../layer/kept.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import * as volumes from "../volume/named.ts"
import { PREFIX } from "./caches.ts"

interface Beyond {
  /** Folders of kept layers. */
  readonly layers: ReadonlySet<string>
  /** Names of volumes. */
  readonly caches: ReadonlyArray<{ readonly name: string; readonly bytes: number }>
}

const sum = (all: ReadonlyArray<{ readonly bytes: number }>): number =>
  all.reduce((total, { bytes }) => total + bytes, 0)

/**
 * What is beyond the size: the layers of keys, the longest unused first, and then caches, the largest first. A layer stays if another one
 * that stays is on top of it.
 */
const beyond = (berth: Berth, max: number): Effect.Effect<Beyond, BerthError> =>
  Effect.gen(function* () {
    const kept = (yield* Kept.list(berth)).filter(({ named }) => named !== undefined)
    const layers = yield* Effect.forEach(kept, (found) =>
      Effect.map(diskUsage(found.folder), (bytes) => ({ ...found, bytes }))
    )
    const names = (yield* attempt(() => volumes.stored(berth)))
      .map(({ name }) => name)
      .filter((name) => name.startsWith(PREFIX))
    const caches = yield* Effect.forEach(names, (name) =>
      Effect.map(diskUsage(volumes.pathOf(berth, name)), (bytes) => ({ name, bytes }))
    )
    let total = sum(layers) + sum(caches)
    const isTooMuch = ({ bytes }: { readonly bytes: number }): boolean => {
      if (total <= max) return false
      total -= bytes
      return true
    }
    return {
      layers: new Set(
        layers
          .toSorted((a, b) => a.usedMillis - b.usedMillis)
          .filter(isTooMuch)
          .map(({ folder }) => folder)
      ),
      caches: caches.toSorted((a, b) => b.bytes - a.bytes).filter(isTooMuch)
    }
  })

export const gc = (
  berth: Berth,
  dryRun: boolean,
  keep: number | string
): Effect.Effect<Collected, BerthError> =>
  Effect.gen(function* () {
    const { caches, layers } = yield* beyond(berth, yield* attempt(() => check.bytes("keep", keep)))
    const collected = yield* collect(berth, dryRun, layers)
    const removed = dryRun
      ? caches
      : yield* Effect.filter(caches, ({ name }) =>
          // A cache that is in use stays.
          Effect.match(volumes.remove(berth, name), { onFailure: () => false, onSuccess: () => true })
        )
    return { ...collected, bytes: collected.bytes + sum(removed) }
  })
