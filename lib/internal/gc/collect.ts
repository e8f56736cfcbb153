/** The bodies of `Store.gc` and `Store.usage`: they find what no name reaches and no process uses. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Berth } from "../../Berth.ts"
import { type ImageError, RegistryError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import type { Collected, Usage } from "../../Store.ts"
import { io, isNotFound, oneAtATime } from "../disk/files.ts"
import { diskUsage } from "../disk/usage.ts"
import * as Kept from "../layer/kept.ts"
import * as Implicit from "../layer/missingFolders.ts"
import * as LayerStack from "../layer/stack.ts"
import * as Sweep from "../layer/sweep.ts"
import * as ImageLayer from "../layer/unpack.ts"
import * as Layout from "../oci/layout.ts"
import * as Holds from "../store/leases.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"
import { type Reached, reach } from "./reachable.ts"

const namesIn = (berth: Berth, folder: string): Effect.Effect<ReadonlyArray<string>, ImageError> =>
  berth.fileSystem.readDirectory(folder).pipe(
    Effect.catchIf(isNotFound, () => Effect.succeed([])),
    io(folder)
  )

/** Every blob of the store with its size. Files whose names are not digests belong to other programs. */
const blobsIn = (berth: Berth): Effect.Effect<ReadonlyMap<Digest, number>, ImageError> =>
  Effect.gen(function* () {
    const sizes = new Map<Digest, number>()
    for (const algorithm of digests.algorithms) {
      for (const hex of yield* namesIn(berth, `${Store.folder(berth)}/blobs/${algorithm}`)) {
        if (!digests.isHex(hex, algorithm)) continue
        const digest = digests.of(algorithm, hex)
        const path = Layout.blobPath(Store.folder(berth), digest)
        // Other tools that write here do not take Berth's lock.
        const info = yield* Effect.option(berth.fileSystem.stat(path))
        if (Option.isSome(info) && info.value.type === "File") sizes.set(digest, Number(info.value.size))
      }
    }
    return sizes
  })

/** The folders of an image's layers, lowest first, and of their corrections. */
const layersOf = (
  berth: Berth,
  diffIds: ReadonlyArray<Digest>,
  there: ReadonlySet<string>
): Effect.Effect<ReadonlyArray<string>, ImageError> =>
  Effect.gen(function* () {
    const layers = Implicit.withoutRepeats(diffIds.map((diffId) => ImageLayer.layerFolder(berth, diffId)))
    const corrected = [...there].some((folder) => folder.startsWith(`${Implicit.parentFolder(berth)}/`))
    if (!corrected || !layers.every((folder) => there.has(folder))) return layers
    return yield* LayerStack.wanted(berth, layers)
  })

interface Entry extends Pick<Reached, "digest" | "names" | "blobs"> {
  readonly layers: ReadonlySet<string>
}

/** The blobs and layers of the store, and those that can be removed. */
interface Survey {
  readonly blobs: ReadonlyMap<Digest, number>
  /** Absolute paths of folders. */
  readonly layers: ReadonlySet<string>
  readonly entries: ReadonlyArray<Entry>
  /** Neither reached by a name nor used by a process. */
  readonly doomed: { readonly blobs: ReadonlyArray<Digest>; readonly layers: ReadonlyArray<string> }
}

/** The caller has the exclusive lock. */
const survey = (
  berth: Berth,
  forget: boolean,
  unwanted: ReadonlySet<string> = new Set()
): Effect.Effect<Survey, ImageError> =>
  Effect.gen(function* () {
    const used = yield* Holds.collect(berth.holds, berth.supervisor.plans, forget)
    const reached = yield* reach(berth)
    const blobs = yield* blobsIn(berth)
    const layers = new Set<string>()
    for (const parent of [Sweep.siblingsFolder(berth), Implicit.parentFolder(berth)]) {
      for (const name of yield* namesIn(berth, parent))
        if (digests.isHex(name)) layers.add(`${parent}/${name}`)
    }
    const entries = yield* Effect.forEach(reached, ({ blobs, digest, images, names }) =>
      Effect.map(
        Effect.forEach(images, (diffIds) => layersOf(berth, diffIds, layers)),
        (lists): Entry => ({ digest, names, blobs, layers: new Set(lists.flat()) })
      )
    )
    const kept = yield* Kept.list(berth)
    for (const { folder } of kept) layers.add(folder)
    const named = new Set(kept.flatMap(({ folder, named }) => (unwanted.has(folder) ? [] : (named ?? []))))
    const isDoomed = (item: string): boolean =>
      !used.has(item) &&
      !named.has(item) &&
      !entries.some((entry) => entry.blobs.has(item) || entry.layers.has(item))
    const doomed = { blobs: [...blobs.keys()].filter(isDoomed), layers: [...layers].filter(isDoomed) }
    return { blobs, layers, entries, doomed }
  })

const sum = (numbers: Iterable<number>): number => [...numbers].reduce((total, number) => total + number, 0)

const measured = (layers: Iterable<string>): Effect.Effect<ReadonlyMap<string, number>> =>
  Effect.map(
    Effect.forEach(layers, (layer) => Effect.map(diskUsage(layer), (bytes) => [layer, bytes] as const)),
    (sizes) => new Map(sizes)
  )

const collected = ({ blobs, doomed }: Survey, layers: ReadonlyMap<string, number>): Collected => ({
  blobs: doomed.blobs.length,
  layers: doomed.layers.length,
  bytes:
    sum(doomed.blobs.map((digest) => blobs.get(digest)!)) + sum(doomed.layers.map((l) => layers.get(l) ?? 0))
})

/** Renames a layer so that nothing refers to it; returns its new path. */
const discard = (berth: Berth, folder: string): Effect.Effect<string, ImageError> => {
  const discarded = Implicit.temporaryOf(folder)
  const { fileSystem } = berth
  return io(folder)(
    Effect.as(
      Effect.zipRight(
        fileSystem.rename(folder, discarded),
        fileSystem.remove(`${folder}.implicit`, { force: true })
      ),
      discarded
    )
  )
}

const removeBlobs = (berth: Berth, blobs: ReadonlyArray<Digest>): Effect.Effect<void, ImageError> =>
  Effect.forEach(
    blobs,
    (digest) =>
      io(
        digest,
        Store.folder(berth)
      )(berth.fileSystem.remove(Layout.blobPath(Store.folder(berth), digest), { force: true })),
    { discard: true }
  )

/** Renames the layers here; their files are removed later, when no other process waits. */
const discardAll = (
  berth: Berth,
  { doomed }: Survey
): Effect.Effect<ReadonlyArray<readonly [layer: string, discarded: string]>, ImageError> =>
  Effect.gen(function* () {
    yield* removeBlobs(berth, doomed.blobs)
    return yield* Effect.forEach(doomed.layers, (layer) =>
      Effect.map(discard(berth, layer), (discarded) => [layer, discarded] as const)
    )
  })

/** Corrections that dead processes have not finished, or not discarded: no process uses their names. */
const unfinished = (berth: Berth): Effect.Effect<ReadonlyArray<string>, ImageError> =>
  Effect.gen(function* () {
    const parent = Implicit.parentFolder(berth)
    const used = yield* Holds.collect(berth.holds, berth.supervisor.plans, false)
    return (yield* namesIn(berth, parent))
      .filter((name) => {
        const target = /^\.([0-9a-f]{64})\./.exec(name)?.[1]
        return target !== undefined && !used.has(`${parent}/${target}`)
      })
      .map((name) => `${parent}/${name}`)
  })

/** Kept layers that are `unwanted` are removed unless something needs them. */
export const gc = (
  berth: Berth,
  dryRun: boolean,
  unwanted?: ReadonlySet<string>
): Effect.Effect<Collected, ImageError> =>
  Effect.gen(function* () {
    const { discarded, found, left } = yield* Holds.exclusive(
      berth.holds,
      Effect.gen(function* () {
        const found = yield* survey(berth, !dryRun, unwanted)
        const discarded = dryRun
          ? found.doomed.layers.map((layer) => [layer, layer] as const)
          : yield* discardAll(berth, found)
        return { found, discarded, left: dryRun ? [] : yield* unfinished(berth) }
      })
    )
    const bytes = yield* measured(discarded.map(([, path]) => path))
    if (!dryRun) {
      yield* Effect.forEach(left, (path) => Effect.ignore(Sweep.removeTree(berth, path)))
      yield* Sweep.sweep(berth)
      yield* Kept.sweep(berth)
      yield* Store.sweep(berth)
    }
    return collected(found, new Map(discarded.map(([layer, path]) => [layer, bytes.get(path)!])))
  }).pipe(
    oneAtATime(berth, `${berth.folder}/gc`),
    Effect.withSpan("berth.Store.gc", { attributes: { "berth.dry_run": dryRun } })
  )

/** Removes those of these blobs that no name reaches and no process uses. */
const collectOnly = (berth: Berth, blobs: ReadonlySet<Digest>): Effect.Effect<void, ImageError> =>
  Holds.exclusive(
    berth.holds,
    Effect.flatMap(survey(berth, true), ({ doomed }) =>
      removeBlobs(
        berth,
        doomed.blobs.filter((digest) => blobs.has(digest))
      )
    )
  ).pipe(oneAtATime(berth, `${berth.folder}/gc`))

/** Whether another try may continue from what has been fetched. */
const mayGoOn = (error: unknown): boolean =>
  error instanceof RegistryError && ["Unreachable", "TooManyRequests", "Protocol"].includes(error.reason)

/**
 * If the effect fails, the blobs that it added are removed, unless others need them by now. What was fetched before a
 * connection broke, or before an interruption, stays: the next try continues from there.
 */
export const orUndone = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Berth> =>
  Effect.suspend(() => {
    const added = new Set<Digest>()
    return Effect.tapError(Effect.locally(effect, Store.added, added), (error) =>
      mayGoOn(error) || added.size === 0
        ? Effect.void
        : Effect.flatMap(Berth, (berth) => Effect.ignore(collectOnly(berth, added)))
    )
  })

export const usage: (berth: Berth) => Effect.Effect<Usage, ImageError> = Effect.fn("berth.Store.usage")(
  function* (berth) {
    const found = yield* Holds.exclusive(berth.holds, survey(berth, false))
    const layers = yield* measured(found.layers)
    const { blobs, entries } = found
    const bytesOf = (item: string): number => blobs.get(item as Digest) ?? layers.get(item) ?? 0
    const itemsOf = (entry: Entry): ReadonlyArray<string> => [...entry.blobs, ...entry.layers]
    const users = new Map<string, number>()
    for (const item of entries.flatMap(itemsOf)) users.set(item, (users.get(item) ?? 0) + 1)
    return {
      blobs: sum(blobs.values()),
      layers: sum(layers.values()),
      reclaimable: collected(found, layers),
      images: entries.map((entry) => {
        const items = itemsOf(entry)
        const own = items.filter((item) => users.get(item) === 1)
        const ownBytes = sum(own.map(bytesOf))
        return {
          digest: entry.digest,
          names: entry.names,
          own: ownBytes,
          shared: sum(items.map(bytesOf)) - ownBytes
        }
      })
    }
  }
)
