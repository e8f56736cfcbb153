/**
 * Makes the layer of a container whose writable layer cannot be opened because it is in memory: it compares the root
 * with the merged layers below it. A file with changed contents or metadata is a copy with its own change time
 * (st_ctime, inode(7)), which no process can set; the folders above it are copies as well, so all other folders can be
 * skipped.
 */
import * as fs from "node:fs"
import * as asRoot from "../files/namespaceRoot.ts"
import * as inRoot from "../files/rooted.ts"
import * as walking from "../files/walk.ts"
import { native, O_NOFOLLOW, O_PATH, RESOLVE_NO_XDEV } from "../system/addon.ts"
import * as tar from "../tar/format.ts"
import { type Holes, join, member, NOTHING, type Writing } from "../tar/members.ts"
import { ENOENT, ENOTDIR, EXDEV } from "../util/errno.ts"
import * as layerDiff from "./diff.ts"

/** The names of both folders, ordered by their bytes. */
const union = async (
  now: number,
  was: number,
  path: Uint8Array,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> => {
  const text = new TextDecoder().decode(path)
  const both = [...(await walking.namesOf(now, text, signal)), ...(await walking.namesOf(was, text, signal))]
  const names = await walking.sorted(both, signal)
  return names.filter((name, k) => k === 0 || Buffer.compare(names[k - 1]!, name) !== 0)
}

/** Opens an entry of a folder: undefined if it is missing, or a mount. */
const open = (folder: number, name: Uint8Array): number | undefined => {
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, inRoot.SINGLE | RESOLVE_NO_XDEV, 0)
  if (fd === -ENOENT || fd === -EXDEV || fd === -ENOTDIR) return undefined
  return fd < 0 ? inRoot.fail(-fd, "open", new TextDecoder().decode(name)) : fd
}

const isMount = (folder: number, name: Uint8Array): boolean => {
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, inRoot.SINGLE | RESOLVE_NO_XDEV, 0)
  if (fd >= 0) native().close(fd)
  return fd === -EXDEV
}

const isSame = (now: fs.Stats, was: fs.Stats): boolean =>
  now.ctimeMs === was.ctimeMs && now.mtimeMs === was.mtimeMs && now.mode === was.mode && now.size === was.size

async function* changes(walk: Writing, now: number, was: number): AsyncGenerator<Uint8Array> {
  const { signal } = walk
  const lower = new walking.Descent(was)
  const namesIn = (fd: number, path: Uint8Array) => union(fd, lower.fd, path, signal)
  try {
    const names = await namesIn(now, NOTHING)
    for await (const visit of walking.walk({ top: now, state: NOTHING, names, namesIn, signal })) {
      const before = open(lower.fd, visit.name)
      if (before === undefined) yield* layerDiff.below(walk, visit.folder, [visit.name], visit.state)
      else yield* change(walk, visit, before, lower)
    }
  } finally {
    lower.close()
  }
}

/** Closes `before`, or enters it as well. */
async function* change(
  walk: Writing,
  { enter, folder, name, state: above }: walking.Visit<Uint8Array, Uint8Array>,
  before: number,
  lower: walking.Descent
): AsyncGenerator<Uint8Array> {
  let after: number | undefined
  let isEntered = false
  try {
    after = open(folder, name)
    if (after === undefined) {
      if (!isMount(folder, name)) yield layerDiff.whiteout(above, name)
      return
    }
    const [now, was] = [after, before].map((fd) => fs.statSync(inRoot.via(fd))) as [fs.Stats, fs.Stats]
    if (isSame(now, was)) return
    if (!now.isDirectory() || !was.isDirectory()) return yield* layerDiff.below(walk, folder, [name], above)
    const path = join(above, name)
    yield* member({ ...walk, links: undefined }, after, now, path)
    enter(after, path, () => lower.up())
    isEntered = true
    lower.down(before)
  } finally {
    if (!isEntered) {
      native().close(before)
      if (after !== undefined) native().close(after)
    }
  }
}

/** The layer of a root, compared with the layers below it if there are any; throws. */
export const archive = (
  root: number,
  lower: number | undefined,
  owner: layerDiff.Owner,
  holes: Holes,
  signal: AbortSignal
): AsyncIterable<Uint8Array> =>
  layerDiff.batched(
    (async function* () {
      const walk = layerDiff.writingOf(owner, holes, signal, inRoot.SINGLE | RESOLVE_NO_XDEV)
      if (lower === undefined) yield* layerDiff.whole(walk, root)
      else {
        const status = fs.statSync(inRoot.via(root))
        yield* member({ ...walk, links: undefined }, root, status, NOTHING)
        yield* changes(walk, root, lower)
      }
      yield tar.end
    })()
  )
