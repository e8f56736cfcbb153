/** What is beside the unpacked layers: unfinished folders, locks and sidecars; and how they are removed. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { tryFileLock } from "../disk/fileLock.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"

/** The folder of layers, by diff id. */
export const siblingsFolder = (berth: Berth): string => `${berth.layers}/sha256`
export const lockPath = (berth: Berth, hex: string) => `${siblingsFolder(berth)}/${hex}.lock`

export const removeLock = (berth: Berth, hex: string): Effect.Effect<void> =>
  Effect.ignore(berth.fileSystem.remove(lockPath(berth, hex), { force: true }))

/**
 * Removes the unfinished folders of one layer. The caller has the lock of the layer, so any other owner is dead. Its
 * unpacker may still write until it dies.
 */
export const removeTemporaries = (berth: Berth, hex: string): Effect.Effect<void> => {
  const unfinished = Effect.map(berth.fileSystem.readDirectory(siblingsFolder(berth)), (names) =>
    names.filter((name) => name.startsWith(`.${hex}.`))
  )
  return unfinished.pipe(
    Effect.tap((names) =>
      Effect.forEach(names, (name) => removeTree(berth, `${siblingsFolder(berth)}/${name}`), {
        discard: true
      })
    ),
    Effect.repeat({
      until: (names) => names.length === 0,
      schedule: Schedule.upTo(Schedule.spaced("10 millis"), "2 seconds")
    }),
    Effect.ignore
  )
}

/** Removes the sidecar of a layer that does not exist. The caller has the lock of the layer. */
const removeImplicit = (berth: Berth, hex: string): Effect.Effect<void> => {
  const folder = `${siblingsFolder(berth)}/${hex}`
  return Effect.flatMap(berth.fileSystem.exists(folder), (there) =>
    there ? Effect.void : berth.fileSystem.remove(`${folder}.implicit`, { force: true })
  ).pipe(Effect.ignore)
}

/** Removes a folder with all its contents, by the supervisor: without root, files can have several ids. */
export const removeTree = (berth: Berth, path: string): Effect.Effect<void, BerthError> =>
  Effect.scoped(scopedUnit(berth, berth.supervisor.nextId(), path, Plan.make([{ op: "discard", path }]), {}))

/** Removes unfinished and discarded layers of dead processes, except `own`, whose lock the caller has. */
export const sweep = (berth: Berth, own?: string): Effect.Effect<void> =>
  Effect.flatMap(berth.fileSystem.readDirectory(siblingsFolder(berth)), (names) => {
    const there = new Set(names)
    const others = new Set(
      names.flatMap((name) => {
        const match = /^\.([0-9a-f]{64})\.|^([0-9a-f]{64})\.(lock|implicit)$/.exec(name)
        const hex = match?.[1] ?? match?.[2]
        return hex === undefined || (match?.[3] === "implicit" && there.has(hex)) ? [] : hex
      })
    )
    if (own !== undefined) others.delete(own)
    return Effect.forEach(
      others,
      (hex) =>
        Effect.ignore(
          tryFileLock(
            berth.fileSystem,
            lockPath(berth, hex),
            () => Effect.all([removeTemporaries(berth, hex), removeImplicit(berth, hex)]),
            () => removeLock(berth, hex)
          )
        ),
      { discard: true }
    )
  }).pipe(Effect.ignore)
