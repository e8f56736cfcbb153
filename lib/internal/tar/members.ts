/**
 * The only walk that makes a tar of a tree, both for a container's files and for a layer. Names are bytes throughout,
 * because they need not be UTF-8. All functions throw as `inRoot` does.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import * as copy from "../files/archiveCopy.ts"
import type { Metadata } from "../files/metadata.ts"
import * as asRoot from "../files/namespaceRoot.ts"
import * as inRoot from "../files/rooted.ts"
import { namesOf, type Visit, walk } from "../files/walk.ts"
import { type Ids, inside } from "../ids/idMaps.ts"
import { native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { concat } from "../util/bytes.ts"
import { EFBIG, ENAMETOOLONG } from "../util/errno.ts"
import { bytes as checkBytes } from "../util/validate.ts"
import * as tar from "./format.ts"

export const NOTHING: Uint8Array = new Uint8Array(0)
export const ZEROS: Uint8Array = new Uint8Array(64 * 1024)
const SLASH = new TextEncoder().encode("/")

/** The remaining number of zeros that an archive may have for holes. */
export interface Holes {
  readonly max: number
  left: number
}

/** The default limit: a hole costs the container nothing, but its zeros cost the reader time. */
const HOLE_BYTES_DEFAULT = 16 * 1024 ** 3

/** The limit of the option; throws. */
export const holesOf = (maxHoleBytes: number | string = HOLE_BYTES_DEFAULT): Holes => {
  const max = checkBytes("maxHoleBytes", maxHoleBytes)
  return { max, left: max }
}

/** An archive in progress, and the rules of its kind. */
export interface Writing {
  /** The maps from the host's ids to those in the archive. */
  readonly ids: Ids
  readonly holes: Holes
  readonly signal: AbortSignal
  /** The first name of each file with several names, by its identity. Undefined: each name is a file of its own. */
  readonly links: Map<string, Uint8Array> | undefined
  /** The resolve flags of openat2(2) for one name in a folder. */
  readonly resolve: number
  /** Whether an entry that cannot be opened with this errno is skipped. */
  readonly isLeftOut: (errno: number) => boolean
  /** The bytes written for a file that cannot be a member: none, or a mark. Undefined for a member. */
  readonly instead: (status: fs.Stats, above: Uint8Array, name: Uint8Array) => Uint8Array | undefined
  /** The attributes of a member, and the mark that follows it if `links` is defined. */
  readonly attributes: (
    fd: number,
    path: Uint8Array
  ) => { readonly xattrs: Metadata["xattrs"]; readonly mark: Uint8Array }
  /** A path of the archive, for errors. */
  readonly shown: (path: Uint8Array) => string
}

export const join = (folder: Uint8Array, name: Uint8Array): Uint8Array =>
  folder.length === 0 ? name : concat([folder, SLASH, name])

/** The error of a file whose holes are too large. */
export const tooManyHoles = (path: string, max: number): OperationFailed =>
  new OperationFailed({
    operation: `archive ${path}`,
    index: -1,
    syscall: "read",
    errno: EFBIG,
    hint: `Holes are written as zeros, and with this file they exceed ${max} bytes: raise maxHoleBytes, or leave the file out`
  })

/** The zeros of a hole, in parts, with pauses for other work. */
async function* hole({ holes, signal }: Writing, count: number, path: string): AsyncGenerator<Uint8Array> {
  if (count > holes.left) throw tooManyHoles(path, holes.max)
  holes.left -= count
  for (let left = count; left > 0; left -= ZEROS.length) {
    await inRoot.turn(signal)
    yield ZEROS.subarray(0, Math.min(left, ZEROS.length))
  }
}

/** Exactly `size` bytes, padded to whole blocks, even if the file has changed. */
async function* contents(
  writing: Writing,
  fd: number,
  size: number,
  path: string
): AsyncGenerator<Uint8Array> {
  // More than any archive may have, and than JavaScript's exact numbers.
  if (!Number.isSafeInteger(size)) yield* hole(writing, size, path)
  let at = 0
  for await (const [offset, bytes] of copy.contents(fd, size, writing.signal)) {
    yield* hole(writing, offset - at, path)
    // A consumer may keep a chunk, and the buffer is used again.
    yield bytes.slice()
    at = offset + bytes.length
  }
  yield* hole(writing, size - at, path)
  if (tar.padding(size) > 0) yield ZEROS.subarray(0, tar.padding(size))
}

const kindOf = (status: fs.Stats): tar.Kind | undefined =>
  status.isFile()
    ? "file"
    : status.isDirectory()
      ? "folder"
      : status.isSymbolicLink()
        ? "symlink"
        : status.isFIFO()
          ? "fifo"
          : status.isCharacterDevice()
            ? "character"
            : status.isBlockDevice()
              ? "block"
              : undefined

// The kernel's 12 and 20 bits, combined as in glibc.
const deviceOf = (rdev: number): readonly [number, number] => [
  (rdev >>> 8) & 0xfff,
  (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)
]

/** One entry: a file, or a folder without its contents. */
export async function* member(
  writing: Writing,
  fd: number,
  status: fs.Stats,
  path: Uint8Array
): AsyncGenerator<Uint8Array> {
  const kind = kindOf(status)
  if (kind === undefined) return
  const shown = writing.shown(path)
  // No system could unpack it.
  if (path.length >= inRoot.PATH_MAX) inRoot.fail(ENAMETOOLONG, "archive", shown)
  const [seconds, nanoseconds] = native().modified(fd)
  const fields = {
    mode: status.mode & 0o7777,
    uid: inside(writing.ids.uids, status.uid),
    gid: inside(writing.ids.gids, status.gid),
    seconds,
    nanoseconds,
    name: path.length === 0 ? "." : path
  }
  const key = status.nlink > 1 && kind !== "folder" ? inRoot.identity(fd) : undefined
  const first = key === undefined ? undefined : writing.links?.get(key)
  if (first !== undefined) {
    yield tar.encode({ ...fields, kind: "link", size: 0, link: first, xattrs: [] })
    return
  }
  if (key !== undefined) writing.links?.set(key, path)
  const { mark, xattrs } = writing.attributes(fd, path)
  yield tar.encode({
    ...fields,
    kind,
    size: kind === "file" ? status.size : 0,
    link: kind === "symlink" ? inRoot.linkTarget(fd, shown) : NOTHING,
    xattrs,
    device: kind === "character" || kind === "block" ? deviceOf(status.rdev) : undefined
  })
  if (kind === "file") yield* contents(writing, fd, status.size, shown)
  if (mark.length > 0 && writing.links !== undefined) yield mark
}

/** An opened entry, or what is written instead of it. Returns whether it is a folder, whose contents follow. */
async function* opened(
  writing: Writing,
  fd: number,
  above: Uint8Array,
  name: Uint8Array
): AsyncGenerator<Uint8Array, boolean> {
  const status = fs.statSync(inRoot.via(fd))
  const instead = writing.instead(status, above, name)
  if (instead === undefined) yield* member(writing, fd, status, join(above, name))
  else if (instead.length > 0) yield instead
  return instead === undefined && status.isDirectory()
}

async function* entry(
  writing: Writing,
  { enter, folder, name, state: above }: Visit<Uint8Array, Uint8Array>
): AsyncGenerator<Uint8Array> {
  const path = join(above, name)
  const fd = asRoot.openIn(folder, name, O_PATH | O_NOFOLLOW, writing.resolve, 0)
  if (fd < 0) return writing.isLeftOut(-fd) ? undefined : inRoot.fail(-fd, "open", writing.shown(path))
  let isEntered = false
  try {
    if (!(yield* opened(writing, fd, above, name))) return
    enter(fd, path)
    isEntered = true
  } finally {
    if (!isEntered) native().close(fd)
  }
}

/** The order of the names of a folder: as listed, or sorted. */
export type Names = (folder: number, path: string, signal: AbortSignal) => Promise<ReadonlyArray<Uint8Array>>

/** These names of an opened folder, with all their contents. */
export async function* below(
  writing: Writing,
  top: number,
  names: ReadonlyArray<Uint8Array>,
  above: Uint8Array,
  list: Names = namesOf
): AsyncGenerator<Uint8Array> {
  const { shown, signal } = writing
  const namesIn = (fd: number, path: Uint8Array) => list(fd, shown(path), signal)
  for await (const visit of walk({ top, state: above, names, namesIn, signal })) yield* entry(writing, visit)
}

/** An opened entry under a name of the archive, with all its contents. */
export async function* whole(writing: Writing, fd: number, name: Uint8Array): AsyncGenerator<Uint8Array> {
  if (yield* opened(writing, fd, NOTHING, name))
    yield* below(writing, fd, await namesOf(fd, writing.shown(name), writing.signal), name)
}

/** An archive as a stream. If the consumer stops early, the walk ends. */
export const streamed = (
  parts: (signal: AbortSignal) => AsyncIterable<Uint8Array>,
  failed: (error: unknown) => BerthError
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.suspend(() => {
    const controller = new AbortController()
    try {
      return Stream.fromAsyncIterable(parts(controller.signal), failed).pipe(
        Stream.ensuring(Effect.sync(() => controller.abort()))
      )
    } catch (error) {
      return Stream.fail(failed(error))
    }
  })
