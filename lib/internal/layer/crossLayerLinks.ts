/**
 * Hard links of a layer to files that only a lower layer has. The target depends on the layers below, so an image gets
 * one more layer directly above the layer with the link: it has a copy of the file under all its names, hard-linked. It
 * is made once for each chain of layers.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as Plan from "../../Plan.ts"
import { io, isFolder } from "../disk/files.ts"
import * as inRoot from "../files/rooted.ts"
import * as Holds from "../store/leases.ts"
import * as Archive from "../store/tarIndex.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import {
  native,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS
} from "../system/addon.ts"
import * as tar from "../tar/format.ts"
import { NOTHING, streamed } from "../tar/members.ts"
import { concat } from "../util/bytes.ts"
import * as digests from "../util/digest.ts"
import { ELOOP, ENOENT, ENOTDIR } from "../util/errno.ts"
import * as layerDiff from "./diff.ts"
import * as Implicit from "./missingFolders.ts"
import { decodePath, type Link, type Notes } from "./sidecar.ts"
import { DEFAULT_LAYER_BYTES_MAX, unpackInto } from "./unpack.ts"

const encoder = new TextEncoder()
const PATH_MAX = 4096

/** The bytes of a path that the unpacker has percent-encoded. */
const bytesOf = (encoded: string): Uint8Array =>
  concat(
    encoded
      .split(/(%[0-9A-F]{2})/)
      .map((part) =>
        part.startsWith("%") ? Uint8Array.of(Number.parseInt(part.slice(1), 16)) : encoder.encode(part)
      )
  )

const nameOf = (folder: string): string => folder.slice(folder.lastIndexOf("/") + 1)

/** The folder of the layer that completes the last of these, lowest first; it may not exist yet. */
const targetOf = (berth: Berth, chain: ReadonlyArray<string>): string => {
  const name = createHash("sha256")
    .update(JSON.stringify(["links", ...chain.map(nameOf)]))
    .digest("hex")
  return `${Implicit.parentFolder(berth)}/${name}`
}

/** A layer of an image's stack. A completing layer has folders only as parents of its files. */
export interface Placed {
  readonly folder: string
  readonly completes?: {
    readonly below: ReadonlyArray<string>
    readonly own: string
    readonly links: ReadonlyArray<Link>
  }
}

/** The layers, lowest first, each followed by its completing layer if it needs one. */
export const placed = (
  berth: Berth,
  layers: ReadonlyArray<string>,
  notes: ReadonlyArray<Notes>
): ReadonlyArray<Placed> => {
  const stack: Array<Placed> = []
  layers.forEach((own, i) => {
    const below = stack.map(({ folder }) => folder)
    const { links } = notes[i]!
    stack.push({ folder: own })
    if (links.length > 0)
      stack.push({ folder: targetOf(berth, layers.slice(0, i + 1)), completes: { below, own, links } })
  })
  return stack
}

/** The merged, read-only view of layers (lowest first). */
export const merged = (berth: Berth, layers: ReadonlyArray<string>) => {
  const plan = Plan.make([
    {
      op: "overlay",
      lower: layers.toReversed(),
      upper: "",
      work: "",
      options: berth.rootless ? ["userxattr"] : [],
      attributes: 0
    }
  ])
  return Effect.map(
    scopedUnit(berth, berth.supervisor.nextId(), "the layers of an image", plan, {}),
    (unit) => unit.root()
  )
}

const IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS

/** A file and its future names. */
interface Group {
  readonly root: number
  readonly target: Uint8Array
  readonly names: Array<Uint8Array>
}

const corrupt = (own: string, [target, path]: Link, detail: string): never => {
  throw new ImageError({
    reason: "Corrupt",
    subject: digests.of("sha256", nameOf(own)),
    detail: `${decodePath(path)} is a hard link to ${decodePath(target)}, ${detail}`
  })
}

/** Opens the target; links are followed on the way only. Undefined if it does not exist. */
const openTarget = (root: number, target: Uint8Array, resolve = IN_ROOT): number | undefined => {
  const fd = native().openIn(root, target, O_PATH | O_NOFOLLOW, resolve, 0)
  if (fd === -ENOENT || fd === -ENOTDIR || fd === -ELOOP) return undefined
  return fd < 0 ? inRoot.fail(-fd, "openat2", new TextDecoder().decode(target)) : fd
}

const slashes = (path: Uint8Array): ReadonlyArray<number> =>
  [...path.keys()].filter((at) => path[at] === 0x2f)

/** Whether the layer has the parent folder of the link; otherwise a later entry of its tar has replaced it. */
const hasFolder = (root: number, path: Uint8Array): boolean => {
  const last = slashes(path).at(-1)
  if (last === undefined) return true
  const fd = native().openIn(
    root,
    path.subarray(0, last),
    O_PATH | O_DIRECTORY,
    IN_ROOT | RESOLVE_NO_SYMLINKS,
    0
  )
  if (fd >= 0) native().close(fd)
  return fd >= 0
}

/** The path of a descriptor in its root, as bytes, because the text of node:fs loses them in some runtimes. */
const pathOf = (fd: number): Uint8Array =>
  inRoot.using(inRoot.openHost(inRoot.via(fd), O_PATH | O_NOFOLLOW), (link) => {
    const buffer = new Uint8Array(PATH_MAX)
    const length = native().readLink(link, buffer)
    return length < 0 ? inRoot.fail(-length, "readlink", inRoot.via(fd)) : buffer.slice(1, length)
  })

/** A whiteout hides files of the layers below, but a link can have a hidden file as its target. */
const findTarget = (target: Uint8Array, whole: number, lower: number | undefined) => {
  const shown = openTarget(whole, target)
  const root = shown === undefined ? lower : whole
  const fd = shown ?? (lower === undefined ? undefined : openTarget(lower, target))
  if (fd === undefined || root === undefined) return undefined
  return inRoot.using(fd, () => {
    const key = inRoot.identity(fd)
    // The resolved path of the target is one of its names, unless the layer has removed it there.
    const place = pathOf(fd)
    const there = openTarget(whole, place, IN_ROOT | RESOLVE_NO_SYMLINKS)
    const isThere = there !== undefined && inRoot.using(there, inRoot.identity) === key
    const isFolder = fs.statSync(inRoot.via(fd)).isDirectory()
    const names: Array<Uint8Array> = isThere ? [place] : []
    return { root, target, names, isFolder, key }
  })
}

/** The end of a chain of links to other pending links. The result is kept for every link of the chain. */
const endsOf = (own: string, links: ReadonlyArray<Link>): ((link: Link) => string) => {
  const targets = new Map(links.map(([target, path]) => [path, target]))
  const ends = new Map<string, string>()
  return (link) => {
    const passed = new Set<string>()
    let end = link[0]
    for (let next = targets.get(end); next !== undefined; next = targets.get(end)) {
      if (passed.has(end)) corrupt(own, link, "which leads back to it")
      passed.add(end)
      end = ends.get(end) ?? next
    }
    for (const path of passed) ends.set(path, end)
    return end
  }
}

/** Groups the links to the same file, by whatever path. */
const groupsOf = (
  own: string,
  links: ReadonlyArray<Link>,
  whole: number,
  lower: number | undefined
): ReadonlyArray<Group> => {
  const endOf = endsOf(own, links)
  const groups = new Map<string, Group>()
  for (const link of links) {
    const path = bytesOf(link[1])
    if (!hasFolder(whole, path)) continue
    const target = endOf(link)
    const found = findTarget(bytesOf(target), whole, lower)
    if (found === undefined) return corrupt(own, link, "which is in neither its layer nor a layer below")
    if (found.isFolder) corrupt(own, link, "which is a folder")
    const group = groups.get(found.key) ?? found
    group.names.push(path)
    groups.set(found.key, group)
  }
  return [...groups.values()]
}

/** The parent folders of the names, parents first. */
const foldersOf = (groups: ReadonlyArray<Group>): ReadonlyArray<Uint8Array> => {
  const found = new Map<string, Uint8Array>()
  for (const path of groups.flatMap(({ names }) => names))
    for (const at of slashes(path).toReversed()) {
      const folder = path.subarray(0, at)
      const key = Buffer.from(folder).toString("latin1")
      // Its parents are in the map as well.
      if (found.has(key)) break
      found.set(key, folder)
    }
  return [NOTHING, ...[...found.keys()].sort().map((key) => found.get(key)!)]
}

async function* members(
  own: string,
  links: ReadonlyArray<Link>,
  whole: number,
  lower: number | undefined,
  owner: layerDiff.Owner,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const groups = groupsOf(own, links, whole, lower)
  for (const folder of foldersOf(groups)) {
    const fd = native().openIn(whole, folder.length === 0 ? "." : folder, O_PATH | O_DIRECTORY, IN_ROOT, 0)
    if (fd < 0) inRoot.fail(-fd, "openat2", new TextDecoder().decode(folder))
    yield* layerDiff.only(fd, folder, owner, signal)
  }
  for (const { names, root, target } of groups) {
    const [first, ...others] = names as [Uint8Array, ...Array<Uint8Array>]
    yield* layerDiff.only(openTarget(root, target)!, first, owner, signal)
    for (const name of others) yield layerDiff.bare("link", name, first)
  }
  yield tar.end
}

/** Makes the layer if it does not exist. */
export const complete = (
  berth: Berth,
  { completes, folder }: Placed,
  limits: Limits
): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    if (completes === undefined) return
    yield* Holds.hold(berth.holds, [folder])
    if (yield* io(folder)(isFolder(berth.fileSystem, folder))) return
    const { below, links, own } = completes
    const whole = yield* merged(berth, [...below, own])
    const lower = below.length === 0 ? undefined : yield* merged(berth, below)
    const content = streamed(
      (signal) => layerDiff.batched(members(own, links, whole, lower, berth, signal)),
      layerDiff.failed(own)
    )
    yield* io(folder)(berth.fileSystem.makeDirectory(Implicit.parentFolder(berth), { recursive: true }))
    const temporary = Implicit.temporaryOf(folder)
    const subject = digests.of("sha256", nameOf(own))
    yield* Archive.spooled(berth, subject, content, limits.maxBytes ?? DEFAULT_LAYER_BYTES_MAX, (blob) =>
      Effect.zipRight(
        unpackInto(berth, temporary, blob, "none", limits, subject),
        Implicit.place(berth, temporary, folder)
      )
    )
  }).pipe(Effect.scoped)
