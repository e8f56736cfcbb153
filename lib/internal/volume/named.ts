/**
 * Named volumes: their folders in Berth's own, and who uses them. Each Berth records its uses in its supervisor's state folder; a
 * record is valid while the supervisor holds that folder's lock, so a crash ends it. Whoever makes, uses or removes a named
 * volume has the lock of the folder of all volumes meanwhile.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, VolumeError } from "../../BerthError.ts"
import type { Stored } from "../../Volume.ts"
import { withFolderLock } from "../disk/fileLock.ts"
import { storageDetail } from "../disk/files.ts"
import { removeTree } from "../layer/sweep.ts"
import { isAlive } from "../store/leases.ts"
import { attempt } from "../util/fromThrowing.ts"
import { list, read } from "../util/readFile.ts"
import { invalid } from "../util/validate.ts"
import { format } from "./image.ts"

export type Use = "reads" | "writes" | "copies"

/** The properties of a volume that stay the same. */
export interface Properties {
  readonly size: number | undefined
  /** The name of the volume of which it is a copy. */
  readonly from: string | undefined
}

/** The uses of a volume by one program: what a container or a copy does with it, by its description. */
interface Users {
  readonly pid: number
  readonly uses: Readonly<Record<string, Use>>
}

const PROPERTIES = "volume.json"

export const checkName = (name: string): string =>
  typeof name === "string" && /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/.test(name)
    ? name
    : invalid(
        "name",
        name,
        "letters, digits, '_', '.' and '-', at most 128 of them, the first a letter or digit"
      )

export const folderOf = (berth: Berth): string => `${berth.folder}/volumes`

export const pathOf = (berth: Berth, name: string): string => `${folderOf(berth)}/${name}`

const storage = (subject: string, cause: unknown): ImageError => {
  const { code = "", message } = cause as NodeJS.ErrnoException
  return new ImageError({ reason: "Storage", subject, detail: storageDetail(code, message, subject), cause })
}

const onDisk = <A>(path: string, body: () => A): Effect.Effect<A, ImageError> =>
  Effect.try({ try: body, catch: (cause) => storage(path, cause) })

/** Runs an effect with the lock of all named volumes. */
export const locked =
  (berth: Berth) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | ImageError, R> => {
    const path = folderOf(berth)
    const make = onDisk(path, () => fs.mkdirSync(path, { recursive: true, mode: 0o700 }))
    return Effect.zipRight(make, withFolderLock(path, "exclusive")(effect))
  }

const broken = (name: string, detail: string): VolumeError =>
  new VolumeError({ reason: "Broken", volume: name, detail })

const isProperties = (value: unknown): value is Properties => {
  if (typeof value !== "object" || value === null) return false
  const { from, size } = value as Record<string, unknown>
  return (
    (size === undefined || (Number.isSafeInteger(size) && (size as number) > 0)) &&
    (from === undefined || typeof from === "string")
  )
}

/** The properties of a volume; undefined if it does not exist; throws. */
export const propertiesOf = (berth: Berth, name: string): Properties | undefined => {
  const path = pathOf(berth, name)
  const there = fs.lstatSync(path, { throwIfNoEntry: false })
  if (there === undefined) return undefined
  if (!there.isDirectory()) throw broken(name, `${path} is not a folder: remove it`)
  let value: unknown
  try {
    value = JSON.parse(read(`${path}/${PROPERTIES}`))
  } catch {
    value = undefined
  }
  if (!isProperties(value))
    throw broken(name, `${path}/${PROPERTIES} is missing or damaged: save the files, and remove the volume`)
  return { size: value.size, from: value.from }
}

/** Makes the folder of a volume; it appears complete or not at all. With `fill`, which writes its first files, the caller has no lock. */
export const create = (
  berth: Berth,
  name: string,
  { from, size }: Properties,
  mode: number,
  fill?: (folder: string) => Effect.Effect<void, BerthError>
): Effect.Effect<void, BerthError> => {
  const made = `${berth.supervisor.folder}/made-${berth.supervisor.nextId()}`
  const folders = { data: mode, work: 0o700 }
  return Effect.gen(function* () {
    yield* onDisk(made, () => {
      fs.mkdirSync(made, { mode: 0o700 })
      fs.writeFileSync(`${made}/${PROPERTIES}`, JSON.stringify({ size, from }), { mode: 0o600 })
      if (size !== undefined) return
      fs.mkdirSync(`${made}/files`, { mode: 0o700 })
      for (const [folder, its] of Object.entries(folders)) {
        fs.mkdirSync(`${made}/files/${folder}`)
        fs.chmodSync(`${made}/files/${folder}`, its)
      }
    })
    if (size !== undefined)
      yield* format({ folder: made, path: `${made}/image`, bytes: size, folders, durable: true })
    const place = onDisk(made, () => fs.renameSync(made, pathOf(berth, name)))
    if (fill === undefined) return yield* place
    yield* fill(`${made}/files/data`)
    yield* locked(berth)(place)
  }).pipe(
    Effect.ensuring(
      // Without root, files can have several ids.
      Effect.suspend(() => (fs.existsSync(made) ? Effect.ignore(removeTree(berth, made)) : Effect.void))
    )
  )
}

/** Makes a volume whose first files `fill` writes into a folder, unless there is one of this name; for one caller at a time. */
export const filledVolume = (
  berth: Berth,
  name: string,
  fill: (folder: string) => Effect.Effect<void, BerthError>
): Effect.Effect<void, BerthError> =>
  Effect.flatMap(
    attempt(() => propertiesOf(berth, checkName(name))),
    (there) =>
      there === undefined
        ? create(berth, name, { size: undefined, from: undefined }, 0o700, fill)
        : Effect.void
  )

const recordOf = (state: string, name: string): string => `${state}/volume-${name}.json`

/** Records this Berth's uses of a volume, or that there are none any more. */
export const record = (
  berth: Berth,
  name: string,
  uses: ReadonlyMap<string, Use> | undefined
): Effect.Effect<void, ImageError> => {
  const path = recordOf(berth.supervisor.folder, name)
  return onDisk(path, () => {
    if (uses === undefined) return fs.rmSync(path, { force: true })
    const users: Users = { pid: process.pid, uses: Object.fromEntries(uses) }
    fs.writeFileSync(`${path}.new`, JSON.stringify(users), { mode: 0o600 })
    fs.renameSync(`${path}.new`, path)
  })
}

/** The users of a volume in every living Berth but this one, and in this one as well if `own`. */
const usersOf = (berth: Berth, name: string, own: boolean): ReadonlyArray<Users> => {
  const run = `${berth.folder}/run`
  return list(run)
    .filter((state) => !state.startsWith("."))
    .map((state) => `${run}/${state}`)
    .filter((state) => (state === berth.supervisor.folder ? own : true))
    .filter((state) => fs.existsSync(recordOf(state, name)) && isAlive(state))
    .flatMap((state) => {
      try {
        return [JSON.parse(read(recordOf(state, name))) as Users]
      } catch {
        // It has ended meanwhile.
        return []
      }
    })
}

const describe = ({ pid, uses }: Users): string => {
  const each = Object.entries(uses).map(([user, use]) => `${user} ${use}`)
  return each.length === 0 ? `process ${pid}` : `process ${pid} (${each.join(", ")})`
}

/** The named copies of a volume, which are there while no program runs as well. */
const copiesOf = (berth: Berth, name: string): ReadonlyArray<string> =>
  list(folderOf(berth)).filter((other) => {
    try {
      return propertiesOf(berth, other)?.from === name
    } catch {
      return false
    }
  })

/** What uses the volume outside of this Berth: only what `matters` counts. Named copies use it with "copies". */
export const usesElsewhere = (
  berth: Berth,
  name: string,
  matters: (use: Use) => boolean
): ReadonlyArray<string> => [
  ...usersOf(berth, name, false)
    .filter(({ uses }) => Object.values(uses).some(matters))
    .map(describe),
  ...(matters("copies") ? copiesOf(berth, name).map((copy) => `its copy ${copy}`) : [])
]

/** The other programs that have the volume open. */
export const openElsewhere = (berth: Berth, name: string): ReadonlyArray<string> =>
  usersOf(berth, name, false).map(describe)

/** The volumes in Berth's folder. */
export const stored = (berth: Berth): ReadonlyArray<Stored> =>
  list(folderOf(berth))
    .toSorted()
    .flatMap((name) => {
      const properties = propertiesOf(berth, name)
      return properties === undefined ? [] : [{ name, ...properties }]
    })

/** Takes the folder of a volume away, to a path that is to be removed; the caller has the lock of all volumes. */
const takeAway = (berth: Berth, name: string): Effect.Effect<string, ImageError> => {
  const path = pathOf(berth, name)
  const discarded = `${berth.supervisor.folder}/removed-${berth.supervisor.nextId()}`
  return onDisk(path, () => {
    // A link, or anything else in the place of the folder, has nothing below it.
    if (fs.lstatSync(path).isDirectory()) fs.renameSync(path, discarded)
    else fs.unlinkSync(path)
    return discarded
  })
}

/** Undoes `create`. */
export const discard = (berth: Berth, name: string): Effect.Effect<void, BerthError> =>
  Effect.flatMap(takeAway(berth, name), (path) => removeTree(berth, path))

export const remove = (berth: Berth, name: string): Effect.Effect<void, BerthError> =>
  Effect.suspend((): Effect.Effect<string, VolumeError | ImageError> => {
    if (fs.lstatSync(pathOf(berth, name), { throwIfNoEntry: false }) === undefined)
      return new VolumeError({
        reason: "NotFound",
        volume: name,
        detail: "Berth's folder has no volume of this name: Volume.list gives the names"
      })
    const users = [
      ...usersOf(berth, name, true).map(describe),
      ...copiesOf(berth, name).map((copy) => `its copy ${copy}`)
    ]
    return users.length === 0
      ? takeAway(berth, name)
      : new VolumeError({
          reason: "InUse",
          volume: name,
          detail: `is used by ${users.join(" and by ")}: end these first`
        })
  }).pipe(
    locked(berth),
    // Without the lock, as it may take long.
    Effect.flatMap((path) => removeTree(berth, path)),
    Effect.uninterruptible
  )
