/**
 * The two files that make the store an OCI layout. They decide which blobs are deleted and which are kept, so a missing
 * or unreadable file is an error if there are blobs: its names are unknown.
 */
import { randomBytes } from "node:crypto"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { ImageError } from "../../BerthError.ts"
import { io, isNotFound, readBounded, replaceFile } from "../disk/files.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as digests from "../util/digest.ts"

const versionFile = "oci-layout"
const indexFile = "index.json"
const version = { imageLayoutVersion: "1.0.0" }
const noNames = { schemaVersion: 2, mediaType: Oci.mediaTypes.index, manifests: [] }

const write = (fs: FileSystem.FileSystem, root: string, name: string, content: unknown) =>
  io(root)(replaceFile(fs, root, name, new TextEncoder().encode(JSON.stringify(content))))

const corrupt = (subject: string, detail: string) => new ImageError({ reason: "Corrupt", subject, detail })

/** Returns an empty list if the folder does not exist. */
const namesIn = (
  fs: FileSystem.FileSystem,
  folder: string
): Effect.Effect<ReadonlyArray<string>, ImageError> =>
  fs.readDirectory(folder).pipe(
    Effect.catchIf(isNotFound, () => Effect.succeed([])),
    io(folder)
  )

const hasBlobs = (fs: FileSystem.FileSystem, root: string): Effect.Effect<boolean, ImageError> =>
  Effect.map(
    Effect.forEach(digests.algorithms, (algorithm) => namesIn(fs, `${root}/blobs/${algorithm}`)),
    (lists) => lists.some((list) => list.length > 0)
  )

const lostIndex = (root: string): ImageError =>
  corrupt(
    root,
    `${indexFile} is missing, but there are blobs: their names are unknown, so nothing is changed or removed. ` +
      `Put ${indexFile} back from a backup, or write ${JSON.stringify(noNames)} there to give all names up`
  )

/** The index of the store; none if there is no store yet. */
export const read = (
  fs: FileSystem.FileSystem,
  root: string
): Effect.Effect<
  Option.Option<{ readonly index: Oci.Index; readonly raw: Record<string, unknown> }>,
  ImageError
> =>
  Effect.gen(function* () {
    const layout = yield* Layout.readIndex(fs, root)
    if (Option.isSome(layout)) return layout
    const isLayoutLost = yield* io(root)(fs.exists(`${root}/${indexFile}`))
    if (!isLayoutLost && !(yield* hasBlobs(fs, root))) return Option.none()
    // Another process may have made the store meanwhile, and put blobs there.
    const made = yield* Layout.readIndex(fs, root)
    if (Option.isSome(made)) return made
    const detail = `${versionFile} is missing: pull an image, which writes it, or write ${JSON.stringify(version)} there`
    return yield* isLayoutLost ? corrupt(root, detail) : lostIndex(root)
  }).pipe(
    Effect.mapError((error) =>
      error.reason === "Corrupt" && error.subject !== root
        ? new ImageError({
            reason: "Corrupt",
            subject: error.subject,
            detail: `${error.detail}. Put the file back from a backup, or pull an image, which moves it aside`,
            cause: error
          })
        : error
    )
  )

/** Makes the files if there is no store yet. The caller has the lock of the index. */
export const make = (fs: FileSystem.FileSystem, root: string): Effect.Effect<void, ImageError> =>
  Effect.gen(function* () {
    const exists = (name: string) => io(root)(fs.exists(`${root}/${name}`))
    const isThere = yield* exists(indexFile)
    if (!isThere && (yield* hasBlobs(fs, root))) return yield* lostIndex(root)
    if (!(yield* exists(versionFile))) yield* write(fs, root, versionFile, version)
    if (!isThere) yield* write(fs, root, indexFile, noNames)
  })

/** Whether both files exist. */
export const isMade = (fs: FileSystem.FileSystem, root: string): Effect.Effect<boolean, ImageError> =>
  io(root)(
    Effect.zipWith(
      fs.exists(`${root}/${indexFile}`),
      fs.exists(`${root}/${versionFile}`),
      (index, layout) => index && layout
    )
  )

const asidePrefix = `${indexFile}.broken-`

const isBroken = <A>(decoded: Effect.Effect<A, ImageError>): Effect.Effect<boolean, ImageError> =>
  decoded.pipe(
    Effect.as(false),
    Effect.catchIf(
      (error) => error.reason === "Corrupt",
      () => Effect.succeed(true)
    )
  )

/**
 * Moves an unreadable file aside, and writes an empty one in its place. An unknown version of the layout does not count
 * as unreadable. The caller has the lock of the index.
 */
export const repair = (fs: FileSystem.FileSystem, root: string): Effect.Effect<void, ImageError> =>
  Effect.gen(function* () {
    const mend = (
      name: string,
      content: unknown,
      decode: (bytes: Uint8Array) => Effect.Effect<unknown, ImageError>
    ) =>
      Effect.gen(function* () {
        const path = `${root}/${name}`
        const decoded = Effect.flatMap(readBounded(fs, path, path, Oci.DOCUMENT_BYTES_MAX), (bytes) =>
          Option.isNone(bytes) ? Effect.void : decode(bytes.value)
        )
        if (!(yield* isBroken(decoded))) return
        const aside = `${root}/${name}.broken-${randomBytes(8).toString("hex")}`
        yield* io(root)(fs.rename(path, aside))
        yield* write(fs, root, name, content)
        yield* Effect.logWarning(`berth: ${path} could not be read, and was moved to ${aside}`)
      })
    yield* mend(versionFile, version, (bytes) =>
      Effect.filterOrFail(
        Oci.parseObject(versionFile, bytes),
        ({ imageLayoutVersion }) => typeof imageLayoutVersion === "string",
        () => corrupt(versionFile, "has no version")
      )
    )
    yield* mend(indexFile, noNames, (bytes) => Oci.decodeLayoutIndex(indexFile, bytes))
  })

/** Fails if an index was moved aside: the blobs that its names reached are unknown, and must not be removed. */
export const refuseAside = (fs: FileSystem.FileSystem, root: string): Effect.Effect<void, ImageError> =>
  Effect.flatMap(namesIn(fs, root), (names) => {
    const aside = names.find((name) => name.startsWith(asidePrefix))
    return aside === undefined
      ? Effect.void
      : corrupt(
          `${root}/${aside}`,
          "this index could not be read, and was moved aside: its names are unknown, so nothing is removed. " +
            "Pull the images again, then remove this file"
        )
  })
