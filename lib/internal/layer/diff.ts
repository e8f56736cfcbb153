/**
 * Makes a layer of an image from the writable layer of an overlay (OCI image-spec, layer.md): a tar in which whiteouts
 * are files with special names. Equal trees make equal bytes. Names are bytes throughout, because they need not be
 * UTF-8.
 */
import * as fs from "node:fs"
import type * as Stream from "effect/Stream"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { DiffOptions } from "../../ImageLayer.ts"
import { failedAs } from "../files/fileFailure.ts"
import { isKept, xattrsOf } from "../files/metadata.ts"
import * as inRoot from "../files/rooted.ts"
import * as walking from "../files/walk.ts"
import { type Ids, own } from "../ids/idMaps.ts"
import { native } from "../system/addon.ts"
import * as tar from "../tar/format.ts"
import * as members from "../tar/members.ts"
import { concat } from "../util/bytes.ts"
import { ENOENT, EXDEV } from "../util/errno.ts"

const encoder = new TextEncoder()
const utf8 = new TextDecoder()
const WHITEOUT = encoder.encode(".wh.")
const OPAQUE = encoder.encode(".wh..wh..opq")

const unsupported = (path: Uint8Array, detail: string): never => {
  throw new ImageError({ reason: "Unsupported", subject: utf8.decode(path), detail })
}

const startsWith = (name: Uint8Array, prefix: Uint8Array): boolean =>
  name.length >= prefix.length && prefix.every((byte, k) => name[k] === byte)

/** The names in a folder, ordered by their bytes. */
const namesIn = async (
  folder: number,
  path: string,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> => walking.sorted(await walking.namesOf(folder, path, signal), signal)

/** The file's own extended attributes, and the mark of a folder that hides the layers below it. */
const attributesOf = (rootless: boolean, fd: number, path: Uint8Array) => {
  const overlay = rootless ? "user.overlay." : "trusted.overlay."
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
  const opaque = found.some(([name, value]) => isOpaque(name) && value[0] === "y".charCodeAt(0))
  return {
    xattrs: found.filter(([name]) => !isOpaque(name)).sort(([a], [b]) => (a < b ? -1 : 1)),
    mark: opaque ? empty(members.join(path, OPAQUE)) : members.NOTHING
  }
}

/** A member without contents: a hard link, or a file that is a mark. */
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

const empty = (name: Uint8Array): Uint8Array => bare("file", name, members.NOTHING)

/** The mark of a removed name. */
export const whiteout = (above: Uint8Array, name: Uint8Array): Uint8Array =>
  empty(members.join(above, concat([WHITEOUT, name])))

/** The rights of the files' reader, which decide which attributes are kept. */
export interface Owner {
  readonly rootless: boolean
  /** The maps from the host's ids to the layer's. */
  readonly ids: Ids
}

/** The rules of a layer that is being written. */
export const writingOf = (
  { ids, rootless }: Owner,
  holes: members.Holes,
  signal: AbortSignal,
  resolve: number = inRoot.SINGLE
): members.Writing => ({
  ids,
  holes,
  signal,
  links: new Map(),
  resolve,
  // A running container may have removed the entry; and a mount is not part of a layer.
  isLeftOut: (errno) => errno === ENOENT || errno === EXDEV,
  instead: (status, above, name) => {
    if (startsWith(name, WHITEOUT))
      unsupported(
        members.join(above, name),
        "has a name that stands for a removed file in a layer: rename it first"
      )
    const isWhiteout = status.isCharacterDevice() && status.rdev === 0
    // A tar has no sockets, but the file that a socket replaced must stay removed.
    return isWhiteout || status.isSocket() ? whiteout(above, name) : undefined
  },
  attributes: (fd, path) => attributesOf(rootless, fd, path),
  shown: (path) => utf8.decode(path)
})

/** These names of an opened folder, with all their contents. */
export const below = (
  writing: members.Writing,
  top: number,
  names: ReadonlyArray<Uint8Array>,
  above: Uint8Array
): AsyncGenerator<Uint8Array> => members.below(writing, top, names, above, namesIn)

/** A folder with all its contents. */
export async function* whole(writing: members.Writing, folder: number): AsyncGenerator<Uint8Array> {
  const { NOTHING } = members
  yield* members.member(writing, folder, fs.statSync(inRoot.via(folder)), NOTHING)
  yield* below(writing, folder, await namesIn(folder, "", writing.signal), NOTHING)
}

/** One file under a given name, or a folder without its contents; closes the descriptor. Throws. */
export async function* only(
  fd: number,
  path: Uint8Array,
  owner: Owner,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  try {
    await inRoot.turn(signal)
    const writing = { ...writingOf(owner, members.holesOf(), signal), links: undefined }
    yield* members.member(writing, fd, fs.statSync(inRoot.via(fd)), path)
  } finally {
    native().close(fd)
  }
}

const BATCH_BYTES = 64 * 1024

/** Joins parts to larger ones, because each part has a cost for its consumer. */
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
  owner: Owner,
  holes: members.Holes,
  signal: AbortSignal
): AsyncIterable<Uint8Array> =>
  batched(
    (async function* () {
      yield* whole(writingOf(owner, holes, signal), upper)
      yield tar.end
    })()
  )

/** Converts an error of the archive. */
export const failed = (upper: string): ((error: unknown) => BerthError) => failedAs(`layer of ${upper}`)

async function* archiveOf(
  { maxHoleBytes, upper }: DiffOptions,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const holes = members.holesOf(maxHoleBytes)
  const fd = inRoot.openHost(upper, inRoot.O_FOLDER)
  try {
    yield* archive(fd, { rootless: process.geteuid?.() !== 0, ids: own() }, holes, signal)
  } finally {
    native().close(fd)
  }
}

export const diff = (options: DiffOptions): Stream.Stream<Uint8Array, BerthError> =>
  members.streamed((signal) => archiveOf(options, signal), failed(options.upper))
