/** The bodies of `Store`: writes the layout. */
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberRef from "effect/FiberRef"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { tryFileLock, withFileLock } from "../disk/fileLock.ts"
import { append, clearWay, io, isNotFound, oneAtATime, replaceFile, syncFolder } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as digests from "../util/digest.ts"
import * as Index from "./index.ts"
import * as Holds from "./leases.ts"

export const folder = (berth: Berth): string => `${berth.folder}/store`

/** A folder beside the standard's files; a layout may have others. */
export const partialFolder = (berth: Berth): string => `${folder(berth)}/.partial`

/** Makes the layout if it does not exist. */
const initialize = (berth: Berth): Effect.Effect<void, ImageError> => {
  const fs = berth.fileSystem
  const root = folder(berth)
  return Effect.gen(function* () {
    if (yield* Index.isMade(fs, root)) return
    yield* io(root)(fs.makeDirectory(`${root}/blobs/sha256`, { recursive: true }))
    yield* withIndexLock(berth, Index.make(fs, root))
  })
}

/** Moves the layout's unreadable files aside. Their names are lost, so `gc` refuses then. */
export const repair = (berth: Berth): Effect.Effect<void, ImageError> =>
  withIndexLock(berth, Index.repair(berth.fileSystem, folder(berth)))

const withIndexLock = <A, E, R>(
  berth: Berth,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | ImageError, R> => {
  const lock = `${folder(berth)}/.lock`
  return oneAtATime(berth, lock)(withFileLock(berth.fileSystem, lock, () => effect))
}

export const has = (berth: Berth, digest: Digest): Effect.Effect<boolean, ImageError> =>
  berth.fileSystem.stat(Layout.blobPath(folder(berth), digest)).pipe(
    Effect.map((info) => info.type === "File"),
    Effect.catchIf(isNotFound, () => Effect.succeed(false)),
    io(digest, folder(berth))
  )

/** Whether the store has a blob whose bytes match its digest. */
export const isIntact = (berth: Berth, digest: Digest): Effect.Effect<boolean, ImageError> =>
  Effect.flatMap(has(berth, digest), (there) =>
    there
      ? Effect.map(
          Layout.hashFile(berth.fileSystem, Layout.blobPath(folder(berth), digest), digest),
          (found) => found === digest
        )
      : Effect.succeed(false)
  )

/** Collects the blobs that `put` has added, while an effect wants to know. */
export const added: FiberRef.FiberRef<Set<Digest> | undefined> = FiberRef.unsafeMake<Set<Digest> | undefined>(
  undefined
)

/** The check by which `put` finds that the blob exists. */
export type IsThere = typeof has

/** With `isIntact` instead of `isThere`, a corrupted blob is written again. */
export const put = <E, R>(
  berth: Berth,
  digest: Digest,
  content: Stream.Stream<Uint8Array, E, R>,
  size: number | undefined,
  isThere: IsThere = has
): Effect.Effect<void, E | ImageError, R> => {
  const fs = berth.fileSystem
  const { algorithm, hex } = digests.parts(digest)
  const target = Layout.blobPath(folder(berth), digest)
  const disk = io(digest, folder(berth))
  // A digest has a single temporary name, and the lock is on that file: the rest of a dead process is overwritten.
  const temporary = `${partialFolder(berth)}/${algorithm}-${hex}`
  const discard = fs.remove(temporary, { force: true })
  const write = (file: FileSystem.File) =>
    Effect.gen(function* () {
      if (yield* isThere(berth, digest)) return yield* disk(discard)
      yield* disk(file.truncate(0))
      const verifier = new digests.Verifier({ digest, size })
      yield* Stream.runForEach(content, (chunk) =>
        Effect.zipRight(verifier.take(chunk), disk(append(file, chunk)))
      )
      yield* verifier.end()
      yield* disk(fs.chmod(temporary, 0o644))
      yield* disk(file.sync)
      yield* disk(clearWay(fs, target, "File"))
      yield* disk(fs.rename(temporary, target))
      yield* disk(syncFolder(fs, `${folder(berth)}/blobs/${algorithm}`))
      ;(yield* FiberRef.get(added))?.add(digest)
    })
  return Effect.gen(function* () {
    yield* Holds.hold(berth.holds, [digest])
    if (yield* isThere(berth, digest)) return
    yield* initialize(berth)
    yield* disk(fs.makeDirectory(partialFolder(berth), { recursive: true, mode: 0o700 }))
    yield* disk(fs.makeDirectory(`${folder(berth)}/blobs/${algorithm}`, { recursive: true }))
    yield* sweep(berth)
    yield* withFileLock(fs, temporary, write, (exit) =>
      Exit.isSuccess(exit) ? Effect.void : Effect.ignore(discard)
    )
  }).pipe(
    Holds.keeping(berth.holds),
    oneAtATime(berth, target),
    Effect.withSpan("berth.Store.put", { attributes: { "berth.digest": digest } })
  )
}

/** Makes a whole file that this process has locked, within `partialFolder`, the blob of its digest. Its bytes are not read again. */
export const adopt = (
  berth: Berth,
  digest: Digest,
  path: string,
  file: FileSystem.File
): Effect.Effect<void, ImageError> => {
  const fs = berth.fileSystem
  const { algorithm } = digests.parts(digest)
  const target = Layout.blobPath(folder(berth), digest)
  return Effect.gen(function* () {
    yield* Holds.hold(berth.holds, [digest])
    if (yield* has(berth, digest)) return
    yield* initialize(berth)
    yield* io(
      digest,
      folder(berth)
    )(
      Effect.gen(function* () {
        yield* fs.makeDirectory(`${folder(berth)}/blobs/${algorithm}`, { recursive: true })
        yield* fs.chmod(path, 0o644)
        yield* file.sync
        yield* clearWay(fs, target, "File")
        yield* fs.rename(path, target)
        yield* syncFolder(fs, `${folder(berth)}/blobs/${algorithm}`)
      })
    )
    ;(yield* FiberRef.get(added))?.add(digest)
  }).pipe(
    Holds.keeping(berth.holds),
    oneAtATime(berth, target),
    Effect.withSpan("berth.Store.put", { attributes: { "berth.digest": digest } })
  )
}

/** Runs an effect during which no collection removes the blobs and layers that it needs: see leases.ts. */
export const keeping = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Berth> =>
  Effect.flatMap(Berth, (berth) => Holds.keeping(berth.holds)(effect))

/**
 * If an effect fails because of corrupted blobs on the disk, fetches them again and retries once. Blobs are only
 * checked then, because this reads all of them.
 */
export const healing =
  <R1>(
    berth: Berth,
    blobs: ReadonlyArray<Oci.Descriptor>,
    fetch: (descriptor: Oci.Descriptor) => Effect.Effect<unknown, BerthError, R1>
  ) =>
  <A, R>(effect: Effect.Effect<A, BerthError, R>): Effect.Effect<A, BerthError, R | R1> =>
    Effect.catchIf(
      effect,
      // Corrupted bytes can cause any error except those of the disk.
      (error) => error._tag === "ImageError" && error.reason !== "Storage",
      (error) =>
        Effect.gen(function* () {
          const rotten = yield* Effect.filter(blobs, (descriptor) =>
            Effect.flatMap(Oci.digestOf(descriptor), (digest) =>
              Effect.zipWith(has(berth, digest), isIntact(berth, digest), (there, intact) => there && !intact)
            )
          )
          if (rotten.length === 0) return yield* Effect.fail(error)
          yield* Effect.forEach(rotten, fetch, { discard: true })
          return yield* effect
        })
    )

/** Removes the temporary files of processes that died while they wrote. */
export const sweep = (berth: Berth): Effect.Effect<void> =>
  Effect.flatMap(berth.fileSystem.readDirectory(partialFolder(berth)), (names) =>
    Effect.forEach(
      names.map((name) => `${partialFolder(berth)}/${name}`),
      (path) => Effect.ignore(tryFileLock(berth.fileSystem, path, () => berth.fileSystem.remove(path))),
      { discard: true }
    )
  ).pipe(Effect.ignore)

/** An entry of `index.json`: the original with the fields of other tools, and its decoded form. */
export interface Entry {
  readonly raw: unknown
  readonly descriptor: Oci.Descriptor
}

export const nameOf = ({ annotations }: Oci.Descriptor): string | undefined =>
  annotations?.[Oci.refNameAnnotation]

/** Every entry of `index.json`; empty if there is no store yet. */
export const entries = (berth: Berth): Effect.Effect<ReadonlyArray<Oci.Descriptor>, ImageError> =>
  Effect.map(Index.read(berth.fileSystem, folder(berth)), (layout) =>
    Option.isNone(layout) ? [] : layout.value.index.manifests
  )

/** Changes the entries of `index.json`, under a lock between all processes. */
export const update = <E>(
  berth: Berth,
  change: (entries: ReadonlyArray<Entry>) => Effect.Effect<ReadonlyArray<unknown>, E>
): Effect.Effect<void, E | ImageError> => {
  const root = folder(berth)
  const work = Effect.gen(function* () {
    const layout = yield* Index.read(berth.fileSystem, root)
    if (Option.isNone(layout))
      return yield* new ImageError({ reason: "Storage", subject: root, detail: "the store is gone" })
    const { raw, index } = layout.value
    const read = (Array.isArray(raw.manifests) ? raw.manifests : []) as ReadonlyArray<unknown>
    const manifests = yield* change(index.manifests.map((descriptor, i) => ({ raw: read[i], descriptor })))
    const bytes = new TextEncoder().encode(JSON.stringify({ ...raw, manifests }))
    if (bytes.length > Oci.DOCUMENT_BYTES_MAX)
      return yield* tooLarge(`${root}/index.json`, bytes.length, Oci.DOCUMENT_BYTES_MAX)
    yield* io(root)(replaceFile(berth.fileSystem, root, "index.json", bytes))
  })
  return Effect.zipRight(initialize(berth), withIndexLock(berth, work))
}

/** An entry with another name. */
const withName = ({ descriptor, raw }: Entry, name: string): unknown => ({
  ...(raw as object),
  annotations: { ...descriptor.annotations, [Oci.refNameAnnotation]: name }
})

/** The entries after the name has been set. */
export const named = (
  entries: ReadonlyArray<Entry>,
  name: string,
  meant: ReadonlyArray<Entry>
): ReadonlyArray<unknown> => [
  ...entries.filter((entry) => nameOf(entry.descriptor) !== name).map(({ raw }) => raw),
  ...meant.map((entry) => withName(entry, name))
]

/** Names descriptors, all or none; the last one of a repeated name counts. */
export const tagAll = (
  berth: Berth,
  tags: ReadonlyArray<readonly [name: string, descriptor: Oci.Descriptor]>
): Effect.Effect<void, ImageError> => {
  const meant = new Map<string | undefined, Oci.Descriptor>(tags)
  const others = (entries: ReadonlyArray<Entry>) =>
    entries.filter(({ descriptor }) => !meant.has(nameOf(descriptor))).map(({ raw }) => raw)
  return update(berth, (entries) =>
    Effect.succeed([
      ...others(entries),
      ...[...meant].map(([name, descriptor]) => withName({ raw: descriptor, descriptor }, name!))
    ])
  ).pipe(Effect.withSpan("berth.Store.tag", { attributes: { "oci.ref.name": tags.map(([name]) => name) } }))
}

export const tag = (
  berth: Berth,
  name: string,
  descriptor: Oci.Descriptor
): Effect.Effect<void, ImageError> => tagAll(berth, [[name, descriptor]])
