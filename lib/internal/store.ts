/** The bodies of `Store`: writing the layout. */
import { createHash } from "node:crypto"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Berth } from "../Berth.ts"
import { ImageError } from "../BerthError.ts"
import { type Digest, digestParts } from "../Reference.ts"
import * as Layout from "./layout.ts"
import * as Oci from "./oci.ts"
import {
  io,
  isNotFound,
  oneAtATime,
  replaceFile,
  syncFolder,
  tryFileLock,
  withFileLock
} from "./storeFiles.ts"

export const folder = (berth: Berth): string => `${berth.folder}/store`

/** Beside the standard's files; a layout may hold others. */
const partialFolder = (berth: Berth) => `${folder(berth)}/.partial`

/** Makes the layout where it is not there. */
const initialize = (berth: Berth): Effect.Effect<void, ImageError> => {
  const fs = berth.fileSystem
  const root = folder(berth)
  const writeIfMissing = (name: string, content: unknown) =>
    Effect.flatMap(fs.exists(`${root}/${name}`), (exists) =>
      exists ? Effect.void : replaceFile(fs, root, name, new TextEncoder().encode(JSON.stringify(content)))
    )
  return Effect.gen(function* () {
    if (yield* io(root)(fs.exists(`${root}/index.json`))) {
      return
    }
    yield* io(root)(fs.makeDirectory(`${root}/blobs/sha256`, { recursive: true }))
    yield* withIndexLock(
      berth,
      Effect.zipRight(
        io(root)(writeIfMissing("oci-layout", { imageLayoutVersion: "1.0.0" })),
        io(root)(
          writeIfMissing("index.json", { schemaVersion: 2, mediaType: Oci.mediaTypes.index, manifests: [] })
        )
      )
    )
  })
}

const withIndexLock = <A, E, R>(
  berth: Berth,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> => {
  const lock = `${folder(berth)}/.lock`
  return oneAtATime(lock)(withFileLock(berth.fileSystem, lock, () => effect))
}

export const has = (berth: Berth, digest: Digest): Effect.Effect<boolean, ImageError> =>
  berth.fileSystem.stat(Layout.blobPath(folder(berth), digest)).pipe(
    Effect.map((info) => info.type === "File"),
    Effect.catchIf(isNotFound, () => Effect.succeed(false)),
    io(digest, folder(berth))
  )

export const put = <E, R>(
  berth: Berth,
  digest: Digest,
  content: Stream.Stream<Uint8Array, E, R>,
  size: number | undefined
): Effect.Effect<void, E | ImageError, R> => {
  const fs = berth.fileSystem
  const { algorithm, hex } = digestParts(digest)
  const target = Layout.blobPath(folder(berth), digest)
  const disk = io(digest, folder(berth))
  // One name for a digest, and the lock is on the file itself: what a dead process has left is written over.
  const temporary = `${partialFolder(berth)}/${algorithm}-${hex}`
  const discard = fs.remove(temporary, { force: true })
  const write = (file: FileSystem.File) =>
    Effect.gen(function* () {
      if (yield* has(berth, digest)) {
        return yield* disk(discard)
      }
      yield* disk(file.truncate(0))
      const hash = createHash(algorithm)
      let written = 0
      yield* Stream.runForEach(content, (chunk): Effect.Effect<void, ImageError> => {
        written += chunk.length
        if (size !== undefined && written > size) {
          return Layout.mismatch(digest, "its size", `${size} bytes`, "more")
        }
        hash.update(chunk)
        return disk(file.writeAll(chunk))
      })
      if (size !== undefined && written !== size) {
        return yield* Layout.mismatch(digest, "its size", `${size} bytes`, `${written} bytes`)
      }
      const found = hash.digest("hex")
      if (found !== hex) {
        return yield* Layout.mismatch(digest, "its digest", digest, `${algorithm}:${found}`)
      }
      yield* disk(fs.chmod(temporary, 0o644))
      yield* disk(file.sync)
      yield* disk(fs.rename(temporary, target))
      yield* disk(syncFolder(fs, `${folder(berth)}/blobs/${algorithm}`))
    }).pipe(Effect.onError(() => Effect.ignore(discard)))
  return Effect.gen(function* () {
    if (yield* has(berth, digest)) {
      return
    }
    yield* initialize(berth)
    yield* disk(fs.makeDirectory(partialFolder(berth), { recursive: true, mode: 0o700 }))
    yield* disk(fs.makeDirectory(`${folder(berth)}/blobs/${algorithm}`, { recursive: true }))
    yield* sweep(berth)
    yield* withFileLock(fs, temporary, write)
  }).pipe(oneAtATime(target), Effect.withSpan("berth.Store.put", { attributes: { "berth.digest": digest } }))
}

/** Removes what processes that died while they wrote have left. */
const sweep = (berth: Berth): Effect.Effect<void> =>
  Effect.flatMap(berth.fileSystem.readDirectory(partialFolder(berth)), (names) =>
    Effect.forEach(
      names.map((name) => `${partialFolder(berth)}/${name}`),
      (path) => Effect.ignore(tryFileLock(berth.fileSystem, path, () => berth.fileSystem.remove(path))),
      { discard: true }
    )
  ).pipe(Effect.ignore)

export const tag = (
  berth: Berth,
  name: string,
  descriptor: Oci.Descriptor
): Effect.Effect<void, ImageError> => {
  const root = folder(berth)
  const update = Effect.gen(function* () {
    const layout = yield* Layout.readIndex(berth.fileSystem, root)
    if (Option.isNone(layout)) {
      return yield* new ImageError({ reason: "Storage", subject: root, detail: "the store is gone" })
    }
    const { raw, index } = layout.value
    // The entries as they were read, whatever other tools have written into them.
    const entries = (Array.isArray(raw.manifests) ? raw.manifests : []) as ReadonlyArray<unknown>
    const others = entries.filter((_, i) => index.manifests[i]?.annotations?.[Oci.refNameAnnotation] !== name)
    const added = { ...descriptor, annotations: { ...descriptor.annotations, [Oci.refNameAnnotation]: name } }
    const bytes = new TextEncoder().encode(JSON.stringify({ ...raw, manifests: [...others, added] }))
    if (bytes.length > Oci.maxDocumentBytes) {
      return yield* Oci.tooLarge(`${root}/index.json`, bytes.length, Oci.maxDocumentBytes)
    }
    yield* io(root)(replaceFile(berth.fileSystem, root, "index.json", bytes))
  })
  return initialize(berth).pipe(
    Effect.zipRight(withIndexLock(berth, update)),
    Effect.withSpan("berth.Store.tag", { attributes: { "oci.ref.name": name } })
  )
}
