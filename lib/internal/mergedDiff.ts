/**
 * The layer of a container whose writable layer nobody can open, as it is in memory: what its root shows, compared with
 * what the layers below show without it. A file that was written, or whose metadata was, is a copy with a time of change
 * (st_ctime, inode(7)) of its own, which nobody can set; and the folders above it are copies as well, so that all others
 * need not be looked into.
 */
import * as fs from "node:fs"
import * as asRoot from "./asRoot.ts"
import { ENOENT, ENOTDIR, EXDEV } from "./errno.ts"
import * as inRoot from "./inRoot.ts"
import * as layerDiff from "./layerDiff.ts"
import { native, O_NOFOLLOW, O_PATH, RESOLVE_NO_XDEV } from "./native.ts"
import * as tar from "./tar.ts"
import type { Holes } from "./tarStream.ts"

const NOTHING = new Uint8Array(0)

/** The names of both, by the order of their bytes. */
const union = (
  one: ReadonlyArray<Uint8Array>,
  other: ReadonlyArray<Uint8Array>
): ReadonlyArray<Uint8Array> => {
  const byText = new Map([...one, ...other].map((name) => [Buffer.from(name).toString("latin1"), name]))
  return [...byText.values()].sort(Buffer.compare)
}

/** What a folder has under a name: undefined where that is nothing, or a mount. */
const open = (folder: number, name: Uint8Array): number | undefined => {
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, layerDiff.SINGLE | RESOLVE_NO_XDEV, 0)
  if (fd === -ENOENT || fd === -EXDEV || fd === -ENOTDIR) return undefined
  return fd < 0 ? inRoot.fail(-fd, "open", new TextDecoder().decode(name)) : fd
}

const isMount = (folder: number, name: Uint8Array): boolean => {
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, layerDiff.SINGLE | RESOLVE_NO_XDEV, 0)
  if (fd >= 0) native().close(fd)
  return fd === -EXDEV
}

const isSame = (now: fs.Stats, was: fs.Stats): boolean =>
  now.ctimeMs === was.ctimeMs && now.mtimeMs === was.mtimeMs && now.mode === was.mode && now.size === was.size

async function* changes(
  walk: layerDiff.Walk,
  now: number,
  was: number,
  path: Uint8Array
): AsyncGenerator<Uint8Array> {
  for (const name of union(layerDiff.namesOf(now, path), layerDiff.namesOf(was, path))) {
    await inRoot.turn(walk.signal)
    const before = open(was, name)
    if (before === undefined) {
      yield* layerDiff.entry(walk, now, name, path)
      continue
    }
    const after = open(now, name)
    try {
      if (after !== undefined) yield* change(walk, now, after, before, name, path)
      else if (!isMount(now, name)) yield layerDiff.whiteout(path, name)
    } finally {
      native().close(before)
      if (after !== undefined) native().close(after)
    }
  }
}

async function* change(
  walk: layerDiff.Walk,
  folder: number,
  after: number,
  before: number,
  name: Uint8Array,
  above: Uint8Array
): AsyncGenerator<Uint8Array> {
  const [now, was] = [after, before].map((fd) => fs.statSync(inRoot.via(fd))) as [fs.Stats, fs.Stats]
  if (isSame(now, was)) return
  if (!now.isDirectory() || !was.isDirectory()) {
    yield* layerDiff.entry(walk, folder, name, above)
    return
  }
  const path = layerDiff.join(above, name)
  yield* layerDiff.member({ ...walk, links: undefined }, after, now, path)
  yield* changes(walk, after, before, path)
}

/** The layer of a root, compared with that of the layers below it, or with none; throws. */
export const archive = (
  root: number,
  lower: number | undefined,
  { ids, rootless }: layerDiff.Owner,
  holes: Holes,
  signal: AbortSignal
): AsyncIterable<Uint8Array> =>
  layerDiff.batched(
    (async function* () {
      const resolve = layerDiff.SINGLE | RESOLVE_NO_XDEV
      const walk: layerDiff.Walk = { rootless, ids, resolve, holes, signal, links: new Map() }
      const status = fs.statSync(inRoot.via(root))
      if (lower === undefined) yield* layerDiff.member(walk, root, status, NOTHING)
      else {
        yield* layerDiff.member({ ...walk, links: undefined }, root, status, NOTHING)
        yield* changes(walk, root, lower, NOTHING)
      }
      yield tar.end
    })()
  )
