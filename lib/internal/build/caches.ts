/** The caches of steps: volumes of the store, which steps share, wait for, or have for themselves. */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Kept from "../layer/kept.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import type { Cache, Run } from "./node.ts"

/** The beginning of the names of all their volumes. */
export const PREFIX = "build-cache."

export const MODE = 0o755

const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex")

/** What tells a cache from others: its name, and the owner and mode of its folder unless they are the default ones. */
export const nameOf = ({ gid = 0, mode = MODE, name, uid = 0 }: Cache): string =>
  uid === 0 && gid === 0 && mode === MODE
    ? name
    : `${name}.${digestOf(JSON.stringify([uid, gid, mode])).slice(0, 8)}`

/** What a key has of a step's caches. How they are shared changes nothing of what the step makes. */
export const placesOf = ({ caches }: Run) =>
  caches.map((cache) => [cache.target, nameOf(cache), cache.readOnly ?? false])

/** The name of its volume; `number` tells those of a private cache apart. */
export const volumeOf = (cache: Cache, number = 0): string =>
  `${PREFIX}${nameOf(cache)}${cache.sharing === "private" ? `.private-${number}` : ""}`

const SHARINGS: ReadonlyArray<unknown> = [undefined, "shared", "private", "locked"]

const checked = ({ sharing }: Cache): void => {
  if (!SHARINGS.includes(sharing)) check.invalid("cache.sharing", sharing, '"shared", "private" or "locked"')
}

/** Where the lock of a volume is. */
const lockOf = (berth: Berth, volume: string): string =>
  `${Kept.parentFolder(berth)}/cache-${digestOf(volume)}`

/** The first volume of a private cache that no other step has. */
const alone = <A>(
  berth: Berth,
  cache: Cache,
  use: (volume: string) => Effect.Effect<A, BerthError, Berth>,
  number = 0
): Effect.Effect<A, BerthError, Berth> =>
  Effect.suspend(() => {
    const volume = volumeOf(cache, number)
    return Effect.flatMap(
      Kept.tryExclusive(berth, lockOf(berth, volume), use(volume)),
      Option.match({ onNone: () => alone(berth, cache, use, number + 1), onSome: Effect.succeed })
    )
  })

/** Runs an effect while the step has its caches, with the names of their volumes. */
export const holding = <A>(
  berth: Berth,
  { caches }: Run,
  use: (volumes: ReadonlyArray<string>) => Effect.Effect<A, BerthError, Berth>
): Effect.Effect<A, BerthError, Berth> => {
  const withPrivate = (volumes: ReadonlyArray<string>): Effect.Effect<A, BerthError, Berth> => {
    const cache = caches[volumes.length]
    if (cache === undefined) return use(volumes)
    return cache.sharing === "private"
      ? alone(berth, cache, (volume) => withPrivate([...volumes, volume]))
      : withPrivate([...volumes, volumeOf(cache)])
  }
  // The order is the same for all steps, so that no two wait for each other.
  const locked = () =>
    [
      ...new Set(caches.filter(({ sharing }) => sharing === "locked").map((cache) => volumeOf(cache)))
    ].toSorted()
  return Effect.flatMap(
    attempt(() => {
      caches.forEach(checked)
      return locked()
    }),
    (names) =>
      names.reduceRight((inside, name) => Kept.exclusive(berth, lockOf(berth, name), inside), withPrivate([]))
  )
}
