/**
 * Folders that contain files of a layer's tar, but have no entry in it. The unpacker makes them with mode 0755, owned
 * by root, because several images share the layer; in an image, this would hide the metadata of a lower layer (`/tmp`
 * has 1777). If it does, a correction on top of the image has these folders with the right metadata, and nothing else.
 */
import { createHash, randomBytes } from "node:crypto"
import type { Stats } from "node:fs"
import * as fs from "node:fs/promises"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { clearWay, io, isFolder } from "../disk/files.ts"
import * as Ids from "../ids/idMaps.ts"
import * as Holds from "../store/leases.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"

/**
 * A folder that the supervisor makes and owns: it removes the folder, with the rights of the unpacker, when the scope
 * closes or this process dies. A renamed folder stays.
 */
export const ownedFolder = (berth: Berth, path: string) =>
  scopedUnit(berth, berth.supervisor.nextId(), path, Plan.make([{ op: "scratch", path, mode: 0o755 }]), {})

interface Metadata {
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtime: number
}

export interface Layer {
  readonly folder: string
  /** Its folders without an entry in the tar; `all` for a completing layer. */
  readonly implicit: ReadonlySet<string> | "all"
}

const metadataOf = (stats: Stats): Metadata => ({
  mode: stats.mode & 0o7777,
  uid: stats.uid,
  gid: stats.gid,
  mtime: stats.mtimeMs
})

/** The entry of a layer at a path, links not followed: a folder, nothing, or an entry that hides the layers below. */
type Found = Stats | "nothing" | "hidden"

interface Place {
  readonly found: Found
  readonly inner: Map<string, Place>
}

/** A layer with a cache of its visited entries: layers can name deep folders repeatedly. */
interface Looked extends Layer {
  readonly top: Place
}

const lookAt = async (path: string): Promise<Found> => {
  try {
    const stats = await fs.lstat(path)
    return stats.isDirectory() ? stats : "hidden"
  } catch (cause) {
    if ((cause as { code?: unknown }).code === "ENOENT") return "nothing"
    throw cause
  }
}

const look = async ({ folder, top }: Looked, parts: ReadonlyArray<string>): Promise<Found> => {
  let current = folder
  let place = top
  for (const part of parts) {
    current = `${current}/${part}`
    const inner = place.inner.get(part) ?? { found: await lookAt(current), inner: new Map() }
    place.inner.set(part, inner)
    place = inner
    if (typeof place.found === "string") break
  }
  return place.found
}

/** The metadata of a folder that an image shows, and the right one; the layers are given highest first. */
const compare = async (
  layers: ReadonlyArray<Looked>,
  path: string
): Promise<{ readonly shown: Metadata | undefined; readonly meant: Metadata | undefined }> => {
  const parts = path.split("/")
  let shown: Metadata | undefined
  for (const layer of layers) {
    const found = await look(layer, parts)
    if (found === "hidden") break
    if (found !== "nothing") {
      shown ??= metadataOf(found)
      if (layer.implicit !== "all" && !layer.implicit.has(path)) return { shown, meant: metadataOf(found) }
    }
  }
  return { shown, meant: shown }
}

const differ = (a: Metadata, b: Metadata) => a.mode !== b.mode || a.uid !== b.uid || a.gid !== b.gid

const pathsOf = ({ implicit }: Layer): ReadonlyArray<string> =>
  implicit === "all" ? [] : [...implicit].filter(isClean)

/** The folders of the correction with their parents, parents first; empty if no correction is needed. */
const design = async (
  given: ReadonlyArray<Layer>
): Promise<ReadonlyArray<readonly [path: string, metadata: Metadata]>> => {
  const layers = given.map((layer): Looked => {
    return { ...layer, top: { found: "nothing", inner: new Map() } }
  })
  const wrong = new Set<string>()
  for (const path of new Set(layers.flatMap(pathsOf))) {
    const { meant, shown } = await compare(layers, path)
    if (shown !== undefined && meant !== undefined && differ(shown, meant)) {
      for (let end = path.length; end > 0; end = path.lastIndexOf("/", end - 1)) {
        const folder = path.slice(0, end)
        // Its parents are in the set as well.
        if (wrong.has(folder)) break
        wrong.add(folder)
      }
    }
  }
  const folders: Array<readonly [string, Metadata]> = []
  for (const path of [...wrong].sort()) {
    const { meant } = await compare(layers, path)
    if (meant !== undefined) {
      folders.push([path, meant])
    }
  }
  return folders.length === 0 ? [] : [["", metadataOf(await fs.lstat(layers[0]!.folder))], ...folders]
}

const build = async (
  target: string,
  folders: ReadonlyArray<readonly [path: string, metadata: Metadata]>
): Promise<void> => {
  for (const [path] of folders) {
    if (path !== "") {
      await fs.mkdir(`${target}/${path}`, { mode: 0o700 })
    }
  }
  for (const [path, { mode, mtime }] of folders.toReversed()) {
    const folder = `${target}/${path}`
    await fs.utimes(folder, mtime / 1000, mtime / 1000)
    await fs.chmod(folder, mode)
  }
}

// A plan has 4096 operations at most.
const OWNERS_MAX = 1000

/** Sets the owners, by the supervisor, which may set every available id. Parents come first, and are its own then. */
const giveAway = (
  berth: Berth,
  target: string,
  folders: ReadonlyArray<readonly [path: string, metadata: Metadata]>
): Effect.Effect<void, BerthError> => {
  if (berth.rootless && berth.ids.uids.length === 1) return Effect.void
  const { gids, uids } = berth.ids
  const operations = folders.map(
    ([path, { gid, uid }]): Plan.Operation => ({
      op: "owner",
      path: `${target}/${path}`,
      uid: Ids.inside(uids, uid),
      gid: Ids.inside(gids, gid)
    })
  )
  return Effect.forEach(
    Chunk.chunksOf(Chunk.fromIterable(operations), OWNERS_MAX),
    (some) => Effect.scoped(scopedUnit(berth, berth.supervisor.nextId(), target, Plan.make([...some]), {})),
    { discard: true }
  )
}

/** Only clean relative paths, as from the unpacker. */
const isClean = (path: string) =>
  path !== "" && path.split("/").every((part) => part !== "" && part !== "." && part !== "..")

/** Overlayfs accepts a folder once. The topmost layer with the folder is effective and hides the same folder below. */
export const withoutRepeats = (layers: ReadonlyArray<string>): ReadonlyArray<string> =>
  layers.filter((folder, i) => layers.lastIndexOf(folder) === i)

/** The folder of these layers. */
export const parentFolder = (berth: Berth): string => `${berth.layers}/folders`

const attempt = <A>(berth: Berth, evaluate: () => Promise<A>) =>
  Effect.tryPromise({
    try: evaluate,
    catch: (cause) =>
      new ImageError({ reason: "Storage", subject: parentFolder(berth), detail: String(cause), cause })
  })

interface Correction {
  readonly target: string
  readonly folders: Awaited<ReturnType<typeof design>>
}

/** The correction for these layers (lowest first), with its path, whether it exists or not; none if none is needed. */
export const wanted = (
  berth: Berth,
  layers: ReadonlyArray<Layer>
): Effect.Effect<Option.Option<Correction>, ImageError> =>
  Effect.gen(function* () {
    if (layers.every((layer) => pathsOf(layer).length === 0)) return Option.none()
    const folders = yield* attempt(berth, () => design(layers.toReversed()))
    if (folders.length === 0) return Option.none()
    const name = createHash("sha256").update(JSON.stringify(folders)).digest("hex")
    return Option.some({ target: `${parentFolder(berth)}/${name}`, folders })
  })

/** A name for an unfinished layer, in the same folder. */
export const temporaryOf = (target: string): string => {
  const slash = target.lastIndexOf("/")
  return `${target.slice(0, slash)}/.${target.slice(slash + 1)}.${randomBytes(8).toString("hex")}`
}

/** Renames a finished layer to its final name, unless another process has done this. */
export const place = (berth: Berth, temporary: string, target: string): Effect.Effect<void, ImageError> =>
  io(target)(
    Effect.zipRight(
      clearWay(berth.fileSystem, target, "Directory"),
      Effect.catchAll(berth.fileSystem.rename(temporary, target), (error) =>
        Effect.flatMap(isFolder(berth.fileSystem, target), (there) =>
          there ? Effect.void : Effect.fail(error)
        )
      )
    )
  )

/** The correction for these layers (lowest first), if one is needed; makes it if it does not exist. */
export const correction = (
  berth: Berth,
  layers: ReadonlyArray<Layer>
): Effect.Effect<Option.Option<string>, BerthError> =>
  Effect.gen(function* () {
    const correction = yield* wanted(berth, layers)
    if (Option.isNone(correction)) return Option.none()
    const { folders, target } = correction.value
    yield* Holds.hold(berth.holds, [target])
    if (yield* io(target)(isFolder(berth.fileSystem, target))) return Option.some(target)
    yield* io(target)(berth.fileSystem.makeDirectory(parentFolder(berth), { recursive: true }))
    const temporary = temporaryOf(target)
    yield* ownedFolder(berth, temporary)
    yield* attempt(berth, () => build(temporary, folders))
    yield* giveAway(berth, temporary, folders)
    yield* place(berth, temporary, target)
    return Option.some(target)
  }).pipe(Effect.scoped)
