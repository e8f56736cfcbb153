/** The caches of steps: volumes of the store, which steps share, wait for, or have for themselves. */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Volume from "../../Volume.ts"
import * as Kept from "../layer/kept.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import { filledVolume } from "../volume/named.ts"
import { copyInto, filesOf } from "./bind.ts"
import type { Seen } from "./evaluate.ts"
import type { Cache, Run } from "./node.ts"

/** The beginning of the names of all their volumes. */
export const PREFIX = "build-cache."

export const MODE = 0o755

const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex")

/** The name of a cache, and what tells it from others of this name: what its folder was at first, unless that is the default. */
const nameOf = ({ gid = 0, mode = MODE, name, uid = 0 }: Cache, base?: unknown): string =>
  uid === 0 && gid === 0 && mode === MODE && base === undefined
    ? name
    : `${name}.${digestOf(JSON.stringify([uid, gid, mode, base])).slice(0, 8)}`

/** What a key has of a step's caches, besides their first files. How they are shared changes nothing of what the step makes. */
export const placesOf = ({ caches }: Run) =>
  caches.map((cache) => [cache.target, nameOf(cache), cache.readOnly ?? false])

/** The name of its volume; `number` tells those of a private cache apart. */
export const volumeOf = (berth: Berth, cache: Cache, seen: Seen, number = 0): string => {
  const { base, sharing } = cache
  const files = base === undefined ? undefined : [base.path, filesOf(berth, seen.get(base.from)!)]
  return `${PREFIX}${nameOf(cache, files)}${sharing === "private" ? `.private-${number}` : ""}`
}

/** Opens the volume of a cache, which has the files of its base at first. */
export const opened = (
  berth: Berth,
  node: Run,
  { base, gid, mode, uid }: Cache,
  volume: string,
  seen: Seen
): Effect.Effect<Volume.Volume, BerthError, Berth | Scope.Scope> => {
  const open = Volume.make({ name: volume, mode: mode ?? MODE, uid, gid })
  if (base === undefined) return open
  const { image } = seen.get(base.from)!
  const filled = filledVolume(berth, volume, (folder) =>
    copyInto(berth, node, { base, gid, mode, uid }, image, folder)
  )
  // A step that begins meanwhile waits for the files.
  return Effect.zipRight(Kept.exclusive(berth, lockOf(berth, `${volume}.first`), filled), open)
}

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
  nth: (number: number) => string,
  use: (volume: string) => Effect.Effect<A, BerthError, Berth>,
  number = 0
): Effect.Effect<A, BerthError, Berth> =>
  Effect.suspend(() => {
    const volume = nth(number)
    return Effect.flatMap(
      Kept.tryExclusive(berth, lockOf(berth, volume), use(volume)),
      Option.match({ onNone: () => alone(berth, nth, use, number + 1), onSome: Effect.succeed })
    )
  })

/** Runs an effect while the step has its caches, with the names of their volumes. */
export const holding = <A>(
  berth: Berth,
  { caches }: Run,
  seen: Seen,
  use: (volumes: ReadonlyArray<string>) => Effect.Effect<A, BerthError, Berth>
): Effect.Effect<A, BerthError, Berth> => {
  const withPrivate = (volumes: ReadonlyArray<string>): Effect.Effect<A, BerthError, Berth> => {
    const cache = caches[volumes.length]
    if (cache === undefined) return use(volumes)
    return cache.sharing === "private"
      ? alone(
          berth,
          (number) => volumeOf(berth, cache, seen, number),
          (volume) => withPrivate([...volumes, volume])
        )
      : withPrivate([...volumes, volumeOf(berth, cache, seen)])
  }
  // The order is the same for all steps, so that no two wait for each other.
  const locked = () =>
    [
      ...new Set(
        caches.filter(({ sharing }) => sharing === "locked").map((cache) => volumeOf(berth, cache, seen))
      )
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
