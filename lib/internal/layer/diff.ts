/**
 * The writable layer of an overlay as a layer of an image (OCI image-spec, layer.md): a tar in which whiteouts are files
 * of special names. The same tree makes the same bytes. Names are bytes throughout, as they need not be UTF-8.
 */
import * as fs from "node:fs"
import * as process from "node:process"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { DiffOptions } from "../../ImageLayer.ts"
import { failedAs } from "../files/fileFailure.ts"
import { isKept, xattrsOf } from "../files/metadata.ts"
import * as asRoot from "../files/namespaceRoot.ts"
import * as inRoot from "../files/rooted.ts"
import * as walking from "../files/walk.ts"
import { type Ids, inside, own } from "../ids/idMaps.ts"
import {
  native,
  O_NOFOLLOW,
  O_PATH,
  RESOLVE_BENEATH,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS
} from "../system/addon.ts"
import * as tarStream from "../tar/containerTar.ts"
import * as tar from "../tar/format.ts"
import { concat } from "../util/bytes.ts"
import { ENOENT, EXDEV } from "../util/errno.ts"

export const SINGLE: number = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

const encoder = new TextEncoder()
const utf8 = new TextDecoder()
const NOTHING: Uint8Array = new Uint8Array(0)
const SLASH = encoder.encode("/")
const WHITEOUT = encoder.encode(".wh.")
const OPAQUE = encoder.encode(".wh..wh..opq")

export interface Walk {
  readonly rootless: boolean
  /** Of openat2(2), for one name in a folder: SINGLE, or more than that. */
  readonly resolve: number
  /** Whose ids the layer is to have. */
  readonly ids: Ids
  readonly holes: tarStream.Holes
  readonly signal: AbortSignal
  /** The first name of a file that has several, by its device and inode; undefined where each is one of its own. */
  readonly links: Map<string, Uint8Array> | undefined
}

const unsupported = (path: Uint8Array, detail: string): never => {
  throw new ImageError({ reason: "Unsupported", subject: utf8.decode(path), detail })
}

export const join = (folder: Uint8Array, name: Uint8Array): Uint8Array =>
  folder.length === 0 ? name : concat([folder, SLASH, name])

const startsWith = (name: Uint8Array, prefix: Uint8Array): boolean =>
  name.length >= prefix.length && prefix.every((byte, k) => name[k] === byte)

/** The names in a folder, by the order of their bytes. */
export const namesIn = async (
  folder: number,
  path: Uint8Array,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> =>
  walking.sorted(await walking.namesOf(folder, utf8.decode(path), signal), signal)

interface Attributes {
  readonly kept: tar.Member["xattrs"]
  readonly opaque: boolean
}

/** The extended attributes that are the file's own, and what those of overlayfs say. */
const attributesOf = (walk: Walk, fd: number, path: Uint8Array): Attributes => {
  const overlay = walk.rootless ? "user.overlay." : "trusted.overlay."
  const isOpaque = (name: string): boolean => name === `${overlay}opaque`
  const found = xattrsOf(fd, utf8.decode(path), (name) => {
    if (/[=\ufffd]/.test(name)) unsupported(path, `has the attribute ${name}, a name that a tar cannot hold`)
    if (name === `${overlay}redirect` || name === `${overlay}metacopy` || name === `${overlay}whiteout`)
      unsupported(
        path,
        `is only a part of a file (${name}): mount the overlay with redirect_dir=off,metacopy=off`
      )
    return isOpaque(name) || (isKept(name) && name !== "security.selinux")
  })
  return {
    kept: found.filter(([name]) => !isOpaque(name)).sort(([a], [b]) => (a < b ? -1 : 1)),
    opaque: found.some(([name, value]) => isOpaque(name) && value[0] === "y".charCodeAt(0))
  }
}

const kindOf = (status: fs.Stats): tar.Kind | undefined =>
  status.isCharacterDevice() ? "character" : status.isBlockDevice() ? "block" : tarStream.kindOf(status)

// The kernel's 12 and 20 bits, as glibc has them in one number.
const deviceOf = (rdev: number): readonly [number, number] => [
  (rdev >>> 8) & 0xfff,
  (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)
]

/** A member that says something by its names alone: a link, or a file that is a mark. */
export const bare = (kind: "file" | "link", name: Uint8Array, link: Uint8Array): Uint8Array =>
  tar.encode({
    kind,
    name,
    link,
    size: 0,
    mode: 0,
    uid: 0,
    gid: 0,
    seconds: 0,
    nanoseconds: 0,
    xattrs: []
  })

const empty = (name: Uint8Array): Uint8Array => bare("file", name, NOTHING)

/** What says that there is nothing of this name any more. */
export const whiteout = (above: Uint8Array, name: Uint8Array): Uint8Array =>
  empty(join(above, concat([WHITEOUT, name])))

/** These names of an opened folder, with all that is in them. */
export async function* below(
  walk: Walk,
  top: number,
  names: ReadonlyArray<Uint8Array>,
  above: Uint8Array
): AsyncGenerator<Uint8Array> {
  const { signal } = walk
  const inFolder = (fd: number, path: Uint8Array) => namesIn(fd, path, signal)
  for await (const visit of walking.walk({ top, state: above, names, namesIn: inFolder, signal }))
    yield* entry(walk, visit)
}

async function* entry(
  walk: Walk,
  { enter, folder, name, state: above }: walking.Visit<Uint8Array, Uint8Array>
): AsyncGenerator<Uint8Array> {
  const path = join(above, name)
  if (startsWith(name, WHITEOUT))
    unsupported(path, "has a name that stands for a removed file in a layer: rename it first")
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, walk.resolve, 0)
  // A container that runs may have removed it by now; and what is mounted is no part of a layer.
  if (fd === -ENOENT || fd === -EXDEV) return
  if (fd < 0) return inRoot.fail(-fd, "open", utf8.decode(path))
  let isEntered = false
  try {
    const status = fs.statSync(inRoot.via(fd))
    const isWhiteout = status.isCharacterDevice() && status.rdev === 0
    // A tar has no sockets, and what was in the place of one is not to come back.
    if (isWhiteout || status.isSocket()) return yield whiteout(above, name)
    yield* member(walk, fd, status, path)
    if (!status.isDirectory()) return
    enter(fd, path)
    isEntered = true
  } finally {
    if (!isEntered) native().close(fd)
  }
}

/** A folder with all that is in it. */
export async function* whole(walk: Walk, folder: number): AsyncGenerator<Uint8Array> {
  yield* member(walk, folder, fs.statSync(inRoot.via(folder)), NOTHING)
  yield* below(walk, folder, await namesIn(folder, NOTHING, walk.signal), NOTHING)
}

/** A file, or a folder without what is in it. */
export async function* member(
  walk: Walk,
  fd: number,
  status: fs.Stats,
  path: Uint8Array
): AsyncGenerator<Uint8Array> {
  const kind = kindOf(status)
  if (kind === undefined) return
  tarStream.checkName(utf8.decode(path))
  const [seconds, nanoseconds] = native().modified(fd)
  const fields = {
    mode: status.mode & 0o7777,
    uid: inside(walk.ids.uids, status.uid),
    gid: inside(walk.ids.gids, status.gid),
    seconds,
    nanoseconds,
    name: path.length === 0 ? "." : path
  }
  const key = status.nlink > 1 && kind !== "folder" ? inRoot.identity(fd) : undefined
  const first = key === undefined ? undefined : walk.links?.get(key)
  if (first !== undefined) {
    yield tar.encode({ ...fields, kind: "link", size: 0, link: first, xattrs: [] })
    return
  }
  if (key !== undefined) walk.links?.set(key, path)
  const { kept, opaque } = attributesOf(walk, fd, path)
  yield tar.encode({
    ...fields,
    kind,
    size: kind === "file" ? status.size : 0,
    link: kind === "symlink" ? inRoot.linkTarget(fd, utf8.decode(path)) : NOTHING,
    xattrs: kept,
    device: kind === "character" || kind === "block" ? deviceOf(status.rdev) : undefined
  })
  if (kind === "file") yield* tarStream.fileContents(walk, fd, status.size, utf8.decode(path))
  if (opaque && walk.links !== undefined) yield empty(join(path, OPAQUE))
}

/** Whose the files are, and so what is kept of them. */
export type Owner = Pick<Walk, "rootless" | "ids">

/** One file under a name of its own, or a folder without what is in it; closes the descriptor. Throws. */
export async function* only(
  fd: number,
  path: Uint8Array,
  { ids, rootless }: Owner,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  try {
    await inRoot.turn(signal)
    yield* member(
      { rootless, ids, resolve: SINGLE, holes: tarStream.holesOf(), signal, links: undefined },
      fd,
      fs.statSync(inRoot.via(fd)),
      path
    )
  } finally {
    native().close(fd)
  }
}

const BATCH_BYTES = 64 * 1024

/** In larger parts, as each one costs its consumer something. */
export async function* batched(parts: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let batch: Array<Uint8Array> = []
  let size = 0
  for await (const part of parts) {
    batch.push(part)
    size += part.length
    if (size < BATCH_BYTES) continue
    yield concat(batch)
    batch = []
    size = 0
  }
  if (size > 0) yield concat(batch)
}

/** The layer of an opened folder; throws. */
export const archive = (
  upper: number,
  { ids, rootless }: Owner,
  holes: tarStream.Holes,
  signal: AbortSignal
): AsyncIterable<Uint8Array> =>
  batched(
    (async function* () {
      const walk: Walk = { rootless, resolve: SINGLE, ids, holes, signal, links: new Map() }
      yield* whole(walk, upper)
      yield tar.end
    })()
  )

/** What an archive throws. */
export const failed = (upper: string): ((error: unknown) => BerthError) => failedAs(`layer of ${upper}`)

async function* archiveOf(
  { maxHoleBytes, upper }: DiffOptions,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const holes = tarStream.holesOf(maxHoleBytes)
  const fd = inRoot.openHost(upper, inRoot.O_FOLDER)
  try {
    yield* archive(fd, { rootless: process.geteuid?.() !== 0, ids: own() }, holes, signal)
  } finally {
    native().close(fd)
  }
}

export const diff = (options: DiffOptions): Stream.Stream<Uint8Array, BerthError> =>
  Stream.suspend(() => {
    const controller = new AbortController()
    return Stream.fromAsyncIterable(archiveOf(options, controller.signal), failed(options.upper)).pipe(
      Stream.ensuring(Effect.sync(() => controller.abort()))
    )
  })
