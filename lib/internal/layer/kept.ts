/**
 * Kept layers: the writable layers of containers, each in a folder that came into the store by one rename. The folder has the
 * layer (`upper`) and a record of its key and of the layers below it. It is named after both, so a key has another layer for another
 * image. A layer without a key lives as long as something uses it.
 */
import { execFile } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { utimesSync } from "node:fs"
import * as fs from "node:fs/promises"
import { basename } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import { tryFileLock, withFileLock } from "../disk/fileLock.ts"
import { io, isFolder, oneAtATime, readBounded, storageDetail } from "../disk/files.ts"
import * as Holds from "../store/leases.ts"
import * as digests from "../util/digest.ts"
import { removeTree } from "./sweep.ts"

/** Without a use for so long, a collection removes the layer of a key. */
const UNUSED_DAYS_MAX = 7

const RECORD_BYTES_MAX = 1024 * 1024

/** In `alias.json` it is that of a key whose layer another folder has, `same`. */
const Record = Schema.parseJson(
  Schema.Struct({
    key: Schema.NullOr(Schema.String),
    layers: Schema.Array(Schema.String),
    same: Schema.optional(Schema.String)
  })
)

export const parentFolder = (berth: Berth): string => `${berth.layers}/kept`

export const layerIn = (folder: string): string => `${folder}/upper`

/** Layers of the store by their paths below its folder of layers, so that the store can move. */
export const relative = (berth: Berth, layers: ReadonlyArray<string>): ReadonlyArray<string> =>
  layers.map((layer) => (layer.startsWith(`${berth.layers}/`) ? layer.slice(berth.layers.length + 1) : layer))

/** The name of the folder of the layer with this key on top of these, which are as `relative` gives them. */
export const nameOf = (key: string, layers: ReadonlyArray<string>): string =>
  createHash("sha256")
    .update(JSON.stringify([key, layers]))
    .digest("hex")

/** The folder of the layer with this key on top of an image; without a key, of one that nothing else names. */
export const folderOf = (berth: Berth, image: Image, key: string | undefined): string =>
  `${parentFolder(berth)}/${key === undefined ? randomBytes(32).toString("hex") : nameOf(key, relative(berth, image.layers))}`

/** What tells layers that are folders of the host from other ones at the same paths. Layers of the store are named after their content. */
export const identityOf = (berth: Berth, image: Image): Effect.Effect<string, ImageError> => {
  const folders = image.layers.filter((layer) => !layer.startsWith(`${berth.layers}/`))
  return Effect.map(
    Effect.forEach(folders, (folder) =>
      attempt(folder, async () => {
        const { ctimeNs, dev, ino } = await fs.stat(folder, { bigint: true })
        return [dev, ino, ctimeNs].join(":")
      })
    ),
    (identities) => identities.join(" ")
  )
}

const attempt = <A>(folder: string, evaluate: () => Promise<A>): Effect.Effect<A, ImageError> =>
  Effect.tryPromise({
    try: evaluate,
    catch: (cause) => {
      const { code = "" } = cause as NodeJS.ErrnoException
      return new ImageError({
        reason: "Storage",
        subject: folder,
        detail: storageDetail(code, String(cause), folder),
        cause
      })
    }
  })

const readRecord = (berth: Berth, folder: string, name: string) =>
  Effect.map(
    readBounded(berth.fileSystem, `${folder}/${name}`, folder, RECORD_BYTES_MAX),
    Option.flatMap((found) => Schema.decodeUnknownOption(Record)(new TextDecoder().decode(found)))
  )

/** What is recorded of the key of a folder. */
export const recorded = (berth: Berth, folder: string) =>
  Effect.flatMap(readRecord(berth, folder, "record.json"), (own) =>
    Option.isSome(own) ? Effect.succeed(own) : readRecord(berth, folder, "alias.json")
  )

/** Notes a use of a folder: at once, as a thread of the runtime takes longer for it. */
const touch = (folder: string): Effect.Effect<void, ImageError> =>
  attempt(folder, async () => {
    const now = new Date()
    utimesSync(folder, now, now)
  })

const isThere = (berth: Berth, folder: string): Effect.Effect<boolean, ImageError> =>
  Effect.gen(function* () {
    yield* Holds.hold(berth.holds, [folder])
    if (!(yield* io(folder)(isFolder(berth.fileSystem, layerIn(folder))))) return false
    yield* touch(folder)
    return true
  })

/**
 * The folder that has the layer of a key's folder: itself, or that of an equal layer. This keeps it there until the enclosing `keeping`
 * ends, and counts as its use.
 */
export const use = (berth: Berth, folder: string): Effect.Effect<Option.Option<string>, ImageError> =>
  Effect.gen(function* () {
    if (yield* isThere(berth, folder)) return Option.some(folder)
    const alias = yield* readRecord(berth, folder, "alias.json")
    if (Option.isNone(alias)) return Option.none()
    const same = `${parentFolder(berth)}/${alias.value.same ?? ""}`
    if (digests.isHex(basename(same)) && (yield* isThere(berth, same))) {
      yield* touch(folder)
      return Option.some(same)
    }
    // A collection has removed the other layer. A layer that has this name by now stays.
    yield* Effect.promise(() =>
      fs
        .rm(`${folder}/alias.json`)
        .then(() => fs.rmdir(folder))
        .catch(() => {})
    )
    return Option.none()
  })

/** Has a key lead to the layer of another folder on top of the same image. If it leads to a layer already, that stays. */
export const alias = (
  berth: Berth,
  image: Image,
  key: string,
  folder: string
): Effect.Effect<void, ImageError> => {
  const target = folderOf(berth, image, key)
  const prepared = `${berth.supervisor.folder}/alias-${randomBytes(8).toString("hex")}`
  const record = { key, layers: relative(berth, image.layers), same: basename(folder) }
  return attempt(target, async () => {
    await fs.mkdir(prepared, { mode: 0o700 })
    await fs.writeFile(`${prepared}/alias.json`, JSON.stringify(record), { mode: 0o600 })
    await fs.rename(prepared, target).catch(async (error: NodeJS.ErrnoException) => {
      await fs.rm(prepared, { recursive: true, force: true })
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error
    })
  })
}

/** Writes the file system of a folder to disk: the overlay of a layer was `volatile`, and wrote nothing by itself. */
const sync = (folder: string): Effect.Effect<void, ImageError> =>
  Effect.async((resume) => {
    execFile("sync", ["-f", folder], (cause, _, stderr) => {
      const detail = `sync -f: ${stderr.trim() || cause?.message}`
      resume(
        cause === null ? Effect.void : new ImageError({ reason: "Storage", subject: folder, detail, cause })
      )
    })
  })

/**
 * Puts a prepared folder with a layer into the store; nothing writes to it any more. If another process was first, its layer stays,
 * and the prepared folder is left to the caller. Only a layer with a key, which may be found after a crash, has to be on disk.
 */
export const place = (
  berth: Berth,
  prepared: string,
  folder: string,
  image: Image,
  key: string | undefined
): Effect.Effect<void, ImageError> =>
  Effect.gen(function* () {
    const record = { key: key ?? null, layers: relative(berth, image.layers) }
    yield* attempt(folder, async () => {
      await fs.writeFile(`${prepared}/record.json`, JSON.stringify(record), { mode: 0o600 })
      await fs.mkdir(parentFolder(berth), { recursive: true, mode: 0o700 })
    })
    if (key !== undefined) yield* sync(prepared)
    yield* Holds.hold(berth.holds, [folder])
    yield* attempt(folder, () =>
      fs.rename(prepared, folder).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error
      })
    )
  })

/** The file whose lock `exclusive` holds. */
export const lockOf = (folder: string): string => `${folder}.lock`

const makeParent = (berth: Berth, folder: string): Effect.Effect<unknown, ImageError> =>
  attempt(folder, () => fs.mkdir(parentFolder(berth), { recursive: true, mode: 0o700 }))

const unlocked = (berth: Berth, path: string) => (): Effect.Effect<void> =>
  Effect.ignore(berth.fileSystem.remove(path, { force: true }))

/** Runs `use` for one process at a time, for those that would make the same layer. */
export const exclusive = <A, E, R>(
  berth: Berth,
  folder: string,
  use: Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> => {
  const path = lockOf(folder)
  return Effect.zipRight(
    makeParent(berth, folder),
    withFileLock(berth.fileSystem, path, () => use, unlocked(berth, path))
  ).pipe(oneAtATime(berth, path))
}

/** Runs an effect as `exclusive` does, or gives none if something else has the lock. */
export const tryExclusive = <A, E, R>(
  berth: Berth,
  folder: string,
  use: Effect.Effect<A, E, R>
): Effect.Effect<Option.Option<A>, E | ImageError, R> => {
  const path = lockOf(folder)
  return Effect.zipRight(
    makeParent(berth, folder),
    tryFileLock(berth.fileSystem, path, () => use, unlocked(berth, path))
  )
}

const namesIn = (berth: Berth): Effect.Effect<ReadonlyArray<string>> =>
  Effect.orElseSucceed(berth.fileSystem.readDirectory(parentFolder(berth)), () => [])

/** A kept layer, with the layers that it needs if a collection has to keep it for its key. */
export interface Found {
  readonly folder: string
  readonly named: ReadonlyArray<string> | undefined
  /** The time of its last use; 0 if nothing names it. */
  readonly usedMillis: number
}

export const list = (berth: Berth): Effect.Effect<ReadonlyArray<Found>, ImageError> =>
  Effect.gen(function* () {
    const folders = (yield* namesIn(berth))
      .filter((name) => digests.isHex(name))
      .map((name) => `${parentFolder(berth)}/${name}`)
    return yield* Effect.forEach(folders, (folder) =>
      Effect.gen(function* () {
        const unnamed = { folder, named: undefined, usedMillis: 0 }
        const record = yield* recorded(berth, folder)
        // Without a record that can be read, no key leads to it.
        if (Option.isNone(record) || record.value.key === null) return unnamed
        const used = yield* attempt(folder, async () => (await fs.stat(folder)).mtimeMs)
        if (Date.now() - used > UNUSED_DAYS_MAX * 24 * 3600 * 1000) return unnamed
        const below = record.value.layers.map((layer) =>
          layer.startsWith("/") ? layer : `${berth.layers}/${layer}`.replace(/\/upper$/, "")
        )
        const { same } = record.value
        const named = [...below, folder, ...(same === undefined ? [] : [`${parentFolder(berth)}/${same}`])]
        return { folder, named, usedMillis: used }
      })
    )
  })

/** Removes a layer without a key, unless a process uses it, or a layer with a key is on top of it. */
export const drop = (berth: Berth, folder: string): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const discarded = `${parentFolder(berth)}/.${basename(folder)}`
    yield* Holds.exclusive(
      berth.holds,
      Effect.gen(function* () {
        const used = yield* Holds.collect(berth.holds, berth.supervisor.plans, false)
        const named = (yield* list(berth)).flatMap((found) => found.named ?? [])
        if (!used.has(folder) && !named.includes(folder))
          yield* attempt(folder, () => fs.rename(folder, discarded))
      })
    )
    yield* removeTree(berth, discarded)
  })

/** Removes what collections have discarded and dead processes have locked. */
export const sweep = (berth: Berth): Effect.Effect<void> =>
  Effect.flatMap(namesIn(berth), (names) =>
    Effect.forEach(
      names,
      (name) => {
        const path = `${parentFolder(berth)}/${name}`
        if (name.startsWith(".")) return Effect.ignore(removeTree(berth, path))
        const unlock = Effect.ignore(berth.fileSystem.remove(path, { force: true }))
        return name.endsWith(".lock")
          ? Effect.ignore(
              tryFileLock(
                berth.fileSystem,
                path,
                () => Effect.void,
                () => unlock
              )
            )
          : Effect.void
      },
      { discard: true }
    )
  )
