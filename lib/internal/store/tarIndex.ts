/** Archives as files on disk: their compression, the members of a tar and their offsets, and reads by offset. */
import { randomBytes } from "node:crypto"
import { createReadStream } from "node:fs"
import * as fs from "node:fs/promises"
import { pipeline, type Transform } from "node:stream"
import * as zlib from "node:zlib"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { ImageError, InvalidData } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { withFileLock } from "../disk/fileLock.ts"
import { append, io, storageDetail } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as tar from "../tar/format.ts"
import { concat } from "../util/bytes.ts"
import * as digests from "../util/digest.ts"
import * as Store from "./store.ts"

export type Compression = "none" | "gzip" | "zstd"

// An archive of images has a few members for each layer, with short names; their index is kept in memory.
const MEMBERS_MAX = 65_536
const NAME_CHARACTERS_MAX = 512
const HEADER_BYTES_MAX = 4 * 1024 * 1024
const LINKS_MAX = 8

const corrupt = (subject: string, detail: string, cause?: unknown) =>
  new ImageError({ reason: "Corrupt", subject, detail, cause })

/** Errors of node:fs, of node:zlib and of the tar reader. */
export const failedOn =
  (subject: string) =>
  (error: unknown): ImageError => {
    if (error instanceof ImageError) return error
    if (error instanceof InvalidData)
      return corrupt(subject, `is not a readable tar: ${error.value}: expected ${error.expected}`, error)
    const { code = "", message } = error as NodeJS.ErrnoException
    if (/^Z_|^ZSTD_|^ERR__?Z/.test(code)) return corrupt(subject, `cannot be decompressed: ${message}`, error)
    return code === "ENOENT"
      ? new ImageError({ reason: "NotFound", subject, detail: "there is no such file", cause: error })
      : new ImageError({
          reason: "Storage",
          subject,
          detail: storageDetail(code, message, subject),
          cause: error
        })
  }

const magics: ReadonlyArray<readonly [format: Compression | "xz" | "bzip2", magic: ReadonlyArray<number>]> = [
  ["gzip", [0x1f, 0x8b]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
  ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ["bzip2", [0x42, 0x5a, 0x68]]
]

/** The compression of a file, or of a part of it. Fails with `Unsupported` for an unknown format. */
export const compressionAt = (
  path: string,
  subject: string,
  offset = 0
): Effect.Effect<Compression, ImageError> =>
  Effect.flatMap(
    Effect.tryPromise({
      try: async () => {
        const file = await fs.open(path)
        try {
          const start = new Uint8Array(8)
          await file.read(start, 0, start.length, offset)
          return magics.find(([, magic]) => magic.every((byte, k) => byte === start[k]))?.[0] ?? "none"
        } finally {
          await file.close()
        }
      },
      catch: failedOn(subject)
    }),
    (format) =>
      format === "xz" || format === "bzip2"
        ? new ImageError({
            reason: "Unsupported",
            subject,
            detail: `is compressed with ${format}: decompress it first, or compress it with gzip or zstd`
          })
        : Effect.succeed(format)
  )

/** Node has zstd since 22.15; the types are older. */
const zstdDecompress = (zlib as { readonly createZstdDecompress?: () => Transform }).createZstdDecompress

/** Whether `decompressed` supports the compression. Fails with `Unsupported` if this runtime has no zstd. */
export const checkDecompression = (
  compression: Compression,
  subject: string,
  hint: string
): Effect.Effect<void, ImageError> =>
  compression === "zstd" && zstdDecompress === undefined
    ? new ImageError({
        reason: "Unsupported",
        subject,
        detail: `is compressed with zstd, which node:zlib of this runtime does not support: ${hint}`
      })
    : Effect.void

async function* decompressing(path: string, transform: Transform): AsyncGenerator<Uint8Array> {
  // An error of either stream reaches the reader, and a reader that stops closes both.
  pipeline(createReadStream(path, { highWaterMark: 256 * 1024 }), transform, () => {})
  yield* transform as AsyncIterable<Uint8Array>
}

/** The decompressed contents of a file. */
export const decompressed = (
  path: string,
  compression: Exclude<Compression, "none">,
  subject: string
): Stream.Stream<Uint8Array, ImageError> =>
  Stream.suspend(() =>
    Stream.fromAsyncIterable(
      decompressing(
        path,
        compression === "gzip" ? zlib.createGunzip({ chunkSize: 256 * 1024 }) : zstdDecompress!()
      ),
      failedOn(subject)
    )
  )

/** Makes an empty file while `use` runs, in the folder of temporary files, which sweeps clean up. It is locked, and `use` may rename it. */
export const temporary = <A, E, R>(
  berth: Berth,
  subject: string,
  use: (path: string, file: FileSystem.File) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> =>
  Effect.suspend(() => {
    const partial = Store.partialFolder(berth)
    const path = `${partial}/archive-${randomBytes(8).toString("hex")}`
    return Effect.zipRight(
      io(subject, partial)(berth.fileSystem.makeDirectory(partial, { recursive: true, mode: 0o700 })),
      withFileLock(berth.fileSystem, path, (file) => use(path, file))
    ).pipe(Effect.ensuring(Effect.ignore(berth.fileSystem.remove(path, { force: true }))))
  })

/** Makes a temporary file of a stream while `use` runs. */
export const spooled = <E0, R0, A, E, R>(
  berth: Berth,
  subject: string,
  content: Stream.Stream<Uint8Array, E0, R0>,
  limit: number,
  use: (path: string) => Effect.Effect<A, E, R>
): Effect.Effect<A, E0 | E | ImageError, R0 | R> =>
  temporary(berth, subject, (path, file) => {
    const disk = io(subject, Store.partialFolder(berth))
    let written = 0
    const write = Stream.runForEach(content, (chunk): Effect.Effect<void, ImageError> => {
      written += chunk.length
      if (written > limit) return tooLarge(subject, written, limit)
      return disk(append(file, chunk))
    })
    return Effect.zipRight(
      write,
      Effect.suspend(() => use(path))
    )
  })

/** The sha256 of a part of a file. */
export const digestOf = (
  berth: Berth,
  path: string,
  subject: string,
  part: Part
): Effect.Effect<Digest, ImageError> => digests.ofStream(read(berth, path, subject, part))

/** A range of a file. */
export interface Part {
  readonly offset: number
  readonly size: number
}

export const read = (
  berth: Berth,
  path: string,
  subject: string,
  { offset, size }: Part
): Stream.Stream<Uint8Array, ImageError> =>
  size === 0
    ? Stream.empty
    : Stream.mapError(
        berth.fileSystem.stream(path, { offset, bytesToRead: size, chunkSize: 256 * 1024 }),
        failedOn(subject)
      )

/** A tar on disk. Its names are never used as paths of this machine: they are looked up only here. */
export interface Archive {
  readonly path: string
  /** The archive's name for the caller. */
  readonly subject: string
  readonly members: ReadonlyMap<string, Part | { readonly link: string }>
}

const escape = (subject: string, name: string) => {
  const shown = JSON.stringify(name.slice(0, 200))
  return new ImageError({ reason: "Escape", subject, detail: `${shown} leads out of the archive` })
}

/** A name or link in an archive as a path below its root. */
const resolveName = (subject: string, folder: ReadonlyArray<string>, name: string): string => {
  if (name.length > NAME_CHARACTERS_MAX) throw corrupt(subject, `has a name of ${name.length} characters`)
  if (name.startsWith("/") || name.includes("\0")) throw escape(subject, name)
  const parts = [...folder]
  for (const part of name.split("/")) {
    if (part === "..") {
      if (parts.pop() === undefined) throw escape(subject, name)
    } else if (part !== "" && part !== ".") parts.push(part)
  }
  return parts.join("/")
}

const nameOf = (subject: string, name: string): string => {
  if (name.split("/").includes("..")) throw escape(subject, name)
  return resolveName(subject, [], name)
}

/** The index of a tar, from its headers: contents are skipped. */
const readMembers = async (path: string, subject: string, signal: AbortSignal): Promise<Archive> => {
  const file = await fs.open(path)
  try {
    const { size: total } = await file.stat()
    const members = new Map<string, Part | { readonly link: string }>()
    const add = (name: string, member: Part | { readonly link: string }) => {
      if (members.has(name)) throw corrupt(subject, `has two members ${JSON.stringify(name)}`)
      members.set(name, member)
    }
    const found: Array<tar.Entry> = []
    const reader = new tar.Reader({
      entry: async (entry) => void found.push(entry),
      contents: async () => {},
      done: async () => {}
    })
    const block = new Uint8Array(tar.BLOCK)
    for (let at = 0, start = 0, count = 0; ; ) {
      signal.throwIfAborted()
      const { bytesRead } = await file.read(block, 0, tar.BLOCK, at)
      const isWhole = bytesRead === tar.BLOCK
      // As in tar(1), the last two blocks may be missing.
      if (at === start && (bytesRead === 0 || (isWhole && block.every((byte) => byte === 0))))
        return { path, subject, members }
      if (!isWhole) throw corrupt(subject, "is cut off in a header")
      await reader.write(block)
      at += tar.BLOCK
      const entry = found.pop()
      if (entry === undefined) {
        if (at - start <= HEADER_BYTES_MAX) continue
        throw corrupt(subject, `has a header of more than ${HEADER_BYTES_MAX} bytes`)
      }
      if (count++ === MEMBERS_MAX) throw corrupt(subject, `has more than ${MEMBERS_MAX} members`)
      const name = nameOf(subject, entry.name)
      if (at + entry.size > total) throw corrupt(subject, `is cut off in ${JSON.stringify(name)}`)
      // Only links and files: no other entry can be part of an image.
      if (entry.kind === "file") add(name, { offset: at, size: entry.size })
      else if (entry.kind === "link") add(name, { link: nameOf(subject, entry.link) })
      else if (entry.kind === "symlink")
        add(name, { link: resolveName(subject, name.split("/").slice(0, -1), entry.link) })
      at += reader.skip()
      start = at
    }
  } finally {
    await file.close()
  }
}

/** Reads the index of a tar, from its headers. */
export const open = (path: string, subject: string): Effect.Effect<Archive, ImageError> =>
  Effect.tryPromise({ try: (signal) => readMembers(path, subject, signal), catch: failedOn(subject) })

/** The range of a member, through the links that docker makes between equal layers. */
export const find = (archive: Archive, name: string): Effect.Effect<Part, ImageError> =>
  Effect.suspend(() => {
    const { subject } = archive
    try {
      let found = archive.members.get(nameOf(subject, name))
      for (let links = 0; found !== undefined && "link" in found; links++) {
        if (links === LINKS_MAX) return corrupt(subject, `${name.slice(0, 200)} is a chain of too many links`)
        found = archive.members.get(found.link)
      }
      const detail = `has no member ${JSON.stringify(name.slice(0, 200))}, or is cut off before it`
      return found === undefined
        ? new ImageError({ reason: "NotFound", subject, detail })
        : Effect.succeed(found)
    } catch (error) {
      return failedOn(subject)(error)
    }
  })

/** The whole contents of a small member. */
export const readSmall = (
  berth: Berth,
  archive: Archive,
  name: string,
  limit: number
): Effect.Effect<Uint8Array, ImageError> =>
  Effect.flatMap(find(archive, name), (part) =>
    part.size > limit
      ? tooLarge(`${archive.subject}: ${name}`, part.size, limit)
      : Effect.map(Stream.runCollect(read(berth, archive.path, archive.subject, part)), concat)
  )
