/**
 * Leases: the blobs and layers in use, which a collection must not remove. These are the blobs and layers that running
 * pulls and unpacks need, and the layers of containers. Each Berth records them in a file in its supervisor's state
 * folder; the record is valid while the supervisor holds the folder's lock, so a crash ends it. A shared lock is needed
 * to add lines, an exclusive one to collect. So a held blob that exists stays; a held blob that does not exist was
 * collected before, and is fetched again.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { ImageError } from "../../BerthError.ts"
import type * as Plan from "../../Plan.ts"
import * as fileLock from "../disk/fileLock.ts"
import type { Guard } from "../supervisor/connection.ts"
import { EAGAIN } from "../util/errno.ts"
import { isFolder } from "../util/readFile.ts"

/** The leases of one Berth: digests of blobs, and layers by their absolute folders. */
export interface Holds {
  /** Berth's folder. */
  readonly folder: string
  /** The folder of the unpacked layers. */
  readonly layers: string
  /** The supervisor's state folder. */
  readonly state: string
  /** The entries in the file: everything in use, and everything used since the file was last rewritten. */
  readonly written: Set<string>
  /** The entries that running operations need, each with the number of operations. */
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

/** `sha256:...` for a blob; `sha256/...`, `folders/...` or `kept/...` for a layer, independent of the path to Berth's folder. */
const lineOf = (holds: Holds, item: string): string =>
  `${item.startsWith("/") ? item.slice(layersOf(holds).length) : item}\n`

const thrown = (subject: string, cause: unknown): ImageError =>
  new ImageError({ reason: "Storage", subject, detail: String(cause), cause })

/** The lock is on the folder of the supervisors' states, which every Berth has. */
const underLock = (holds: Holds, kind: fileLock.Kind) => fileLock.withFolderLock(`${holds.folder}/run`, kind)

/** Runs a collection: meanwhile, no operation can add a lease. */
export const exclusive = <A, E, R>(
  holds: Holds,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> => underLock(holds, "exclusive")(effect)

/** Adds the missing entries to the file, unless `refuse` objects. */
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
  // A fiber that has outlived the effect may still call this.
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
  // Layers stay in the file: containers will likely start from them, without another write.
  const isOver = (item: string): boolean => !item.startsWith("/") && !counts.has(item)
  if (lease.items.some(isOver)) {
    rewrite(
      lease.holds,
      [...lease.holds.written].filter((item) => !isOver(item))
    )
  }
}

/** Writes the same entries or fewer, which needs no lock. */
const rewrite = (holds: Holds, items: Iterable<string>): void => {
  const kept = [...items]
  const path = `${holds.state}/${fileName}`
  try {
    fs.writeFileSync(`${path}.new`, kept.map((item) => lineOf(holds, item)).join(""), { mode: 0o600 })
    fs.renameSync(`${path}.new`, path)
  } catch {
    // The old file has more entries, which is harmless; and if the supervisor has ended, no file is needed.
    return
  }
  holds.written.clear()
  for (const item of kept) holds.written.add(item)
}

/** The effect's leases last until it ends, or until the enclosing `keeping` ends. */
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

/** From here to the end of `keeping`, existing blobs (digests) and layers (folders) stay. */
export const hold = (holds: Holds, items: ReadonlyArray<string>): Effect.Effect<void, ImageError> =>
  Effect.flatMap(FiberRef.get(current), (lease) => {
    const counted = Effect.sync(() => {
      if (lease?.holds === holds) count(lease, items)
      return items.every((item) => holds.written.has(item))
    })
    // Counted first: a concurrent collection of this process then records it itself.
    return Effect.flatMap(counted, (known) => (known ? Effect.void : write(holds, items, () => undefined)))
  })

/** The layers that a plan mounts. */
const layersIn = (holds: Holds, plan: Plan.Plan): ReadonlyArray<string> => {
  const prefix = layersOf(holds)
  const found: Array<string> = []
  const add = (path: string): void => {
    if (!path.startsWith(prefix)) return
    const [kind, name] = path.slice(prefix.length).split("/")
    if (name !== undefined) found.push(`${prefix}${kind}/${name}`)
  }
  for (const operation of plan.operations) {
    if (operation.op === "overlay" || operation.op === "overlay-memory") operation.lower.forEach(add)
    else if (operation.op === "bind") add(operation.source)
  }
  return found
}

/** An unreadable file may contain leases: only a missing file means that nothing is in use. */
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
 * The entries to record before a plan may run: usually none, as the file has every layer that was used before. The
 * check is in the same turn of the event loop in which the plan is counted as running.
 */
export const guard = (holds: Holds): Guard => ({
  missing: (plan) => layersIn(holds, plan).filter((layer) => !holds.written.has(layer)),
  hold: (layers) => write(holds, layers, () => gone(layers))
})

/** Whether the supervisor of a state folder is alive. */
export const isAlive = (state: string): boolean => {
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
 * Everything in use, by this Berth and others. The caller has the exclusive lock. With `forget`, entries that this
 * Berth does not use any more are removed from its file.
 */
export const collect = (
  holds: Holds,
  plans: () => ReadonlyArray<Plan.Plan>,
  forget: boolean
): Effect.Effect<ReadonlySet<string>, ImageError> =>
  Effect.try({
    // In one turn of the event loop: later plans and leases must be recorded first, which waits for the lock.
    try: () => {
      const own = new Set([...holds.counts.keys(), ...plans().flatMap((plan) => layersIn(holds, plan))])
      if (forget) rewrite(holds, own)
      // If the write failed, the file has all its old entries.
      const used = new Set(forget ? holds.written : own)
      for (const name of fs.readdirSync(`${holds.folder}/run`)) {
        const state = `${holds.folder}/run/${name}`
        if (name.startsWith(".") || state === holds.state || !isAlive(state)) continue
        for (const line of readLines(`${state}/${fileName}`)) {
          if (/^sha(256|512):[0-9a-f]+$/.test(line)) used.add(line)
          else if (/^(sha256|folders|kept)\/[0-9a-f]{64}$/.test(line)) used.add(layersOf(holds) + line)
        }
      }
      return used
    },
    catch: (cause) => thrown(`${holds.folder}/run`, cause)
  })
