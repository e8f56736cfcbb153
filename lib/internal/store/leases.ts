/**
 * What of the store and of the unpacked layers is in use, so that a collection leaves it alone: the blobs and layers that
 * pulls and unpacks under way rely on, and the layers of containers. Each Berth says it in a file in its supervisor's
 * state folder, which counts while the supervisor holds that folder's lock: a crash ends that. Lines are added under a
 * shared lock, and a collection has the exclusive one. So what is held and there, stays; what is held and not there, was
 * collected before, and is got again.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { ImageError } from "../../BerthError.ts"
import type * as Plan from "../../Plan.ts"
import * as fileLock from "../disk/fileLock.ts"
import type { Guard } from "../supervisor/connection.ts"
import { AT_FDCWD, native, O_DIRECTORY } from "../system/addon.ts"
import { describeErrno, EAGAIN, errnoName } from "../util/errno.ts"
import { isFolder } from "../util/readFile.ts"

/** What one Berth holds: digests of blobs, and layers by their absolute folders. */
export interface Holds {
  /** Berth's folder. */
  readonly folder: string
  /** Where the unpacked layers are. */
  readonly layers: string
  /** The supervisor's state folder. */
  readonly state: string
  /** What the file says: all that is in use, and what was until it was last written anew. */
  readonly written: Set<string>
  /** What operations under way rely on, with how many do. */
  readonly counts: Map<string, number>
}

export const make = (folder: string, layers: string, state: string): Holds => ({
  folder,
  layers,
  state,
  written: new Set(),
  counts: new Map()
})

const fileName = "holds"
const layersOf = (holds: Holds): string => `${holds.layers}/`

/** `sha256:...` for a blob, `sha256/...` or `folders/...` for a layer, whatever path leads to Berth's folder. */
const lineOf = (holds: Holds, item: string): string =>
  `${item.startsWith("/") ? item.slice(layersOf(holds).length) : item}\n`

const storage = (subject: string, detail: string): ImageError =>
  new ImageError({ reason: "Storage", subject, detail })

const thrown = (subject: string, cause: unknown): ImageError =>
  new ImageError({ reason: "Storage", subject, detail: String(cause), cause })

/** The lock is on the folder of the supervisors' states, which every Berth has. */
const underLock =
  (holds: Holds, kind: fileLock.Kind) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | ImageError, R> => {
    const path = `${holds.folder}/run`
    return Effect.acquireUseRelease(
      Effect.suspend(() => {
        const fd = native().openIn(AT_FDCWD, path, O_DIRECTORY, 0, 0)
        return fd < 0 ? storage(path, `open: ${errnoName(-fd)} (${describeErrno(-fd)})`) : Effect.succeed(fd)
      }),
      (fd) => Effect.zipRight(fileLock.lock(fd, path, kind), effect),
      (fd) => Effect.sync(() => native().close(fd))
    )
  }

/** Runs a collection: meanwhile nobody begins to rely on anything that is not held yet. */
export const exclusive = <A, E, R>(
  holds: Holds,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> => underLock(holds, "exclusive")(effect)

/** Adds what the file does not have to it, where `refuse` has nothing against that. */
const write = (
  holds: Holds,
  items: ReadonlyArray<string>,
  refuse: () => ImageError | undefined
): Effect.Effect<void, ImageError> =>
  underLock(
    holds,
    "shared"
  )(
    Effect.suspend(() => {
      const added = items.filter((item) => !holds.written.has(item))
      const error = refuse()
      if (error !== undefined) return error
      try {
        const lines = added.map((item) => lineOf(holds, item)).join("")
        fs.appendFileSync(`${holds.state}/${fileName}`, lines, { mode: 0o600 })
      } catch (cause) {
        return thrown(holds.state, cause)
      }
      for (const item of added) holds.written.add(item)
      return Effect.void
    })
  )

interface Lease {
  readonly holds: Holds
  readonly items: Array<string>
  open: boolean
}

const current: FiberRef.FiberRef<Lease | undefined> = FiberRef.unsafeMake<Lease | undefined>(undefined)

const count = (lease: Lease, items: ReadonlyArray<string>): void => {
  const { counts } = lease.holds
  // A fiber that was left behind may still be at it.
  if (!lease.open) return
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1)
  lease.items.push(...items)
}

const end = (lease: Lease): void => {
  const { counts } = lease.holds
  lease.open = false
  for (const item of lease.items) {
    const left = counts.get(item)! - 1
    if (left === 0) counts.delete(item)
    else counts.set(item, left)
  }
  // Layers stay in the file: containers are likely to be started from them, and then need not be written down.
  const isOver = (item: string): boolean => !item.startsWith("/") && !counts.has(item)
  if (lease.items.some(isOver)) {
    rewrite(
      lease.holds,
      [...lease.holds.written].filter((item) => !isOver(item))
    )
  }
}

/** Says less than before, or the same, which needs no lock. */
const rewrite = (holds: Holds, items: Iterable<string>): void => {
  const kept = [...items]
  const path = `${holds.state}/${fileName}`
  try {
    fs.writeFileSync(`${path}.new`, kept.map((item) => lineOf(holds, item)).join(""), { mode: 0o600 })
    fs.renameSync(`${path}.new`, path)
  } catch {
    // The old file says more, which does no harm; and where the supervisor has ended, none is needed.
    return
  }
  holds.written.clear()
  for (const item of kept) holds.written.add(item)
}

/** What the effect holds is held until it ends, or what it is a part of. */
export const keeping =
  (holds: Holds) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(FiberRef.get(current), (lease) =>
      lease?.holds === holds
        ? effect
        : Effect.acquireUseRelease(
            Effect.sync((): Lease => {
              return { holds, items: [], open: true }
            }),
            (made) => Effect.locally(effect, current, made),
            (made) => Effect.sync(() => end(made))
          )
    )

/** From here to the end of `keeping`, blobs (digests) and layers (folders) that are there stay. */
export const hold = (holds: Holds, items: ReadonlyArray<string>): Effect.Effect<void, ImageError> =>
  Effect.flatMap(FiberRef.get(current), (lease) => {
    const counted = Effect.sync(() => {
      if (lease?.holds === holds) count(lease, items)
      return items.every((item) => holds.written.has(item))
    })
    // Counted first: a collection by this process that comes between writes it down itself.
    return Effect.flatMap(counted, (known) => (known ? Effect.void : write(holds, items, () => undefined)))
  })

/** The layers that a plan mounts. */
const layersIn = (holds: Holds, plan: Plan.Plan): ReadonlyArray<string> => {
  const prefix = layersOf(holds)
  const found: Array<string> = []
  for (const operation of plan.operations) {
    if (operation.op === "overlay" || operation.op === "overlay-memory") {
      for (const folder of operation.lower) if (folder.startsWith(prefix)) found.push(folder)
    } else if (operation.op === "bind" && operation.source.startsWith(prefix)) {
      const [algorithm, name] = operation.source.slice(prefix.length).split("/")
      if (name !== undefined) found.push(`${prefix}${algorithm}/${name}`)
    }
  }
  return found
}

/** What cannot be read may say that something is in use: only where there is nothing to read, nothing is. */
const orIfMissing = <A>(error: unknown, instead: A): A => {
  const { code } = error as { code?: unknown }
  if (code !== "ENOENT" && code !== "ENOTDIR") throw error
  return instead
}

const gone = (layers: ReadonlyArray<string>): ImageError | undefined => {
  const missing = layers.find((layer) => !isFolder(layer))
  return missing === undefined
    ? undefined
    : new ImageError({
        reason: "NotFound",
        subject: missing,
        detail: "a collection removed this layer, as no name in the store needed it: get the image again"
      })
}

/**
 * What has to be written down before a plan may run: most often nothing, as the file names every layer that was used
 * before. It is looked at in the same turn of the event loop in which the plan is counted among those that run.
 */
export const guard = (holds: Holds): Guard => ({
  missing: (plan) => layersIn(holds, plan).filter((layer) => !holds.written.has(layer)),
  hold: (layers) => write(holds, layers, () => gone(layers))
})

/** Whether the supervisor of a state folder lives. */
const isAlive = (state: string): boolean => {
  try {
    const fd = fs.openSync(`${state}/lock`, "r")
    try {
      return fileLock.tryLock(fd, "shared") === EAGAIN
    } finally {
      fs.closeSync(fd)
    }
  } catch (error) {
    return orIfMissing(error, false)
  }
}

const readLines = (path: string): ReadonlyArray<string> => {
  try {
    return fs.readFileSync(path, "utf8").split("\n")
  } catch (error) {
    return orIfMissing(error, [])
  }
}

/**
 * All that is in use, by this Berth and others. For whoever has the exclusive lock. With `forget`, what this Berth used
 * once and does not now is no longer written down.
 */
export const collect = (
  holds: Holds,
  plans: () => ReadonlyArray<Plan.Plan>,
  forget: boolean
): Effect.Effect<ReadonlySet<string>, ImageError> =>
  Effect.try({
    // In one turn of the event loop: what begins to run or to be held later than this is written down first, which waits.
    try: () => {
      const own = new Set([...holds.counts.keys(), ...plans().flatMap((plan) => layersIn(holds, plan))])
      if (forget) rewrite(holds, own)
      // Where that has failed, the file says all that it said.
      const used = new Set(forget ? holds.written : own)
      for (const name of fs.readdirSync(`${holds.folder}/run`)) {
        const state = `${holds.folder}/run/${name}`
        if (name.startsWith(".") || state === holds.state || !isAlive(state)) continue
        for (const line of readLines(`${state}/${fileName}`)) {
          if (/^sha(256|512):[0-9a-f]+$/.test(line)) used.add(line)
          else if (/^(sha256|folders)\/[0-9a-f]{64}$/.test(line)) used.add(layersOf(holds) + line)
        }
      }
      return used
    },
    catch: (cause) => thrown(`${holds.folder}/run`, cause)
  })
