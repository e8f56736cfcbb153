/** The bodies of `Store`: writing the layout. */
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

/** Beside the standard's files; a layout may hold others. */
export const partialFolder = (berth: Berth): string => `${folder(berth)}/.partial`

/** Makes the layout where it is not there. */
const initialize = (berth: Berth): Effect.Effect<void, ImageError> => {
  const fs = berth.fileSystem
  const root = folder(berth)
  return Effect.gen(function* () {
    if (yield* Index.isMade(fs, root)) {
      return
    }
    yield* io(root)(fs.makeDirectory(`${root}/blobs/sha256`, { recursive: true }))
    yield* withIndexLock(berth, Index.make(fs, root))
  })
}

/** Moves what cannot be read of the layout's own files aside. Names that were in there are lost, so `gc` refuses then. */
export const repair = (berth: Berth): Effect.Effect<void, ImageError> =>
  withIndexLock(berth, Index.repair(berth.fileSystem, folder(berth)))

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

/** Whether the store has a blob, and its bytes are what its digest says. */
export const isIntact = (berth: Berth, digest: Digest): Effect.Effect<boolean, ImageError> =>
  Effect.flatMap(has(berth, digest), (there) =>
    there
      ? Effect.map(
          Layout.hashFile(berth.fileSystem, Layout.blobPath(folder(berth), digest), digest),
          (found) => found === digest
        )
      : Effect.succeed(false)
  )

/** Where it is noted which blobs `put` has added, while somebody wants to know. */
export const added: FiberRef.FiberRef<Set<Digest> | undefined> = FiberRef.unsafeMake<Set<Digest> | undefined>(
  undefined
)

/** How `put` finds out that it has nothing to do. */
export type IsThere = typeof has

/** With `isIntact` for `isThere`, a blob that has rotten on the disk is written again. */
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
  // One name for a digest, and the lock is on the file itself: what a dead process has left is written over.
  const temporary = `${partialFolder(berth)}/${algorithm}-${hex}`
  const discard = fs.remove(temporary, { force: true })
  const write = (file: FileSystem.File) =>
    Effect.gen(function* () {
      if (yield* isThere(berth, digest)) {
        return yield* disk(discard)
      }
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
    if (yield* isThere(berth, digest)) {
      return
    }
    yield* initialize(berth)
    yield* disk(fs.makeDirectory(partialFolder(berth), { recursive: true, mode: 0o700 }))
    yield* disk(fs.makeDirectory(`${folder(berth)}/blobs/${algorithm}`, { recursive: true }))
    yield* sweep(berth)
    yield* withFileLock(fs, temporary, write, (exit) =>
      Exit.isSuccess(exit) ? Effect.void : Effect.ignore(discard)
    )
  }).pipe(
    Holds.keeping(berth.holds),
    oneAtATime(target),
    Effect.withSpan("berth.Store.put", { attributes: { "berth.digest": digest } })
  )
}

/** Runs an effect in which no collection removes what it relies on: see `holds.ts`. */
export const keeping = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Berth> =>
  Effect.flatMap(Berth, (berth) => Holds.keeping(berth.holds)(effect))

/**
 * Where an effect fails because of blobs that have rotten on the disk, they are fetched again, and it has a second try.
 * Which have is looked for only then, as it takes reading them all.
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
      // Broken bytes can look like anything, but what the disk refused is not about them.
      (error) => error._tag === "ImageError" && error.reason !== "Storage",
      (error) =>
        Effect.gen(function* () {
          const rotten = yield* Effect.filter(blobs, (descriptor) =>
            Effect.flatMap(Oci.digestOf(descriptor), (digest) =>
              Effect.zipWith(has(berth, digest), isIntact(berth, digest), (there, intact) => there && !intact)
            )
          )
          if (rotten.length === 0) {
            return yield* Effect.fail(error)
          }
          yield* Effect.forEach(rotten, fetch, { discard: true })
          return yield* effect
        })
    )

/** Removes what processes that died while they wrote have left. */
export const sweep = (berth: Berth): Effect.Effect<void> =>
  Effect.flatMap(berth.fileSystem.readDirectory(partialFolder(berth)), (names) =>
    Effect.forEach(
      names.map((name) => `${partialFolder(berth)}/${name}`),
      (path) => Effect.ignore(tryFileLock(berth.fileSystem, path, () => berth.fileSystem.remove(path))),
      { discard: true }
    )
  ).pipe(Effect.ignore)

/** An entry of `index.json`: as it was read, whatever other tools have written into it, and as Berth knows it. */
export interface Entry {
  readonly raw: unknown
  readonly descriptor: Oci.Descriptor
}

export const nameOf = ({ annotations }: Oci.Descriptor): string | undefined =>
  annotations?.[Oci.refNameAnnotation]

/** Every entry of `index.json`; none where there is no store yet. */
export const entries = (berth: Berth): Effect.Effect<ReadonlyArray<Oci.Descriptor>, ImageError> =>
  Effect.map(Index.read(berth.fileSystem, folder(berth)), (layout) =>
    Option.isNone(layout) ? [] : layout.value.index.manifests
  )

/** Changes the entries of `index.json`: at any time one does, of all processes. */
export const update = <E>(
  berth: Berth,
  change: (entries: ReadonlyArray<Entry>) => Effect.Effect<ReadonlyArray<unknown>, E>
): Effect.Effect<void, E | ImageError> => {
  const root = folder(berth)
  const work = Effect.gen(function* () {
    const layout = yield* Index.read(berth.fileSystem, root)
    if (Option.isNone(layout)) {
      return yield* new ImageError({ reason: "Storage", subject: root, detail: "the store is gone" })
    }
    const { raw, index } = layout.value
    const read = (Array.isArray(raw.manifests) ? raw.manifests : []) as ReadonlyArray<unknown>
    const manifests = yield* change(index.manifests.map((descriptor, i) => ({ raw: read[i], descriptor })))
    const bytes = new TextEncoder().encode(JSON.stringify({ ...raw, manifests }))
    if (bytes.length > Oci.maxDocumentBytes) {
      return yield* tooLarge(`${root}/index.json`, bytes.length, Oci.maxDocumentBytes)
    }
    yield* io(root)(replaceFile(berth.fileSystem, root, "index.json", bytes))
  })
  return Effect.zipRight(initialize(berth), withIndexLock(berth, work))
}

/** An entry with another name. */
const withName = ({ descriptor, raw }: Entry, name: string): unknown => ({
  ...(raw as object),
  annotations: { ...descriptor.annotations, [Oci.refNameAnnotation]: name }
})

/** The entries once the name stands for these. */
export const named = (
  entries: ReadonlyArray<Entry>,
  name: string,
  meant: ReadonlyArray<Entry>
): ReadonlyArray<unknown> => [
  ...entries.filter((entry) => nameOf(entry.descriptor) !== name).map(({ raw }) => raw),
  ...meant.map((entry) => withName(entry, name))
]

/** Gives names to descriptors, all of them or none; of one that is given twice, the last counts. */
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
