/** Writes the layers of a build to a cache, in place of what it had: for the next build, on another machine. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { CachePlace, ImageOptions } from "../../Build.ts"
import * as Reference from "../../Reference.ts"
import { io, replaceFile, syncFolder } from "../disk/files.ts"
import * as Named from "../image/names.ts"
import { putDocument } from "../image/write.ts"
import * as Kept from "../layer/kept.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { pushFromLayout } from "../registry/push.ts"
import { connectTo } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import * as Cache from "./cache.ts"
import { blobOf, packingOf } from "./export.ts"

/** Layers on folders of the host mean nothing elsewhere. */
const isPortable = (layers: ReadonlyArray<string>): boolean => layers.every((layer) => !layer.startsWith("/"))

/** The config of a cache, and its layers. */
const documentOf = (
  berth: Berth,
  made: Iterable<string>,
  options: Pick<ImageOptions, "compression" | "created">
) =>
  Effect.gen(function* () {
    const packing = yield* packingOf(options)
    const layers = new Map<string, { readonly key: string; readonly layers: ReadonlyArray<string> }>()
    const aliases: Array<(typeof Cache.Document.Type)["aliases"][number]> = []
    const folders = [...made]
    for (const folder of folders) {
      const record = Option.getOrUndefined(yield* Kept.recorded(berth, folder))
      if (record === undefined || record.key === null || !isPortable(record.layers)) continue
      const { key, same } = record
      if (same === undefined) {
        layers.set(folder, { key, layers: record.layers })
        continue
      }
      aliases.push({ key, layers: record.layers, same })
      folders.push(`${Kept.parentFolder(berth)}/${same}`)
    }
    const blobs = yield* Effect.forEach(
      [...layers].slice(-Oci.LAYERS_MAX),
      ([folder, record]) =>
        Effect.map(blobOf(berth, Kept.layerIn(folder), packing), ({ descriptor, diffId }) => ({
          descriptor,
          entry: { ...record, digest: descriptor.digest, diffId, latest: packing.latest }
        })),
      { concurrency: 2 }
    )
    const text = yield* Effect.orDie(
      Schema.encode(Cache.Document)({ layers: blobs.map(({ entry }) => entry), aliases })
    )
    const unique = new Map(blobs.map(({ descriptor }) => [descriptor.digest, descriptor]))
    return { bytes: new TextEncoder().encode(text), layers: [...unique.values()] }
  })

/** The name of a place that can be written to; what has something else in it is not touched. */
export const check = (berth: Berth, place: CachePlace): Effect.Effect<string, BerthError> =>
  Effect.gen(function* () {
    const { fileSystem } = berth
    const folder = yield* Cache.nameOf("cacheTo", place)
    if (typeof place === "string") return folder
    const names = yield* Effect.orElseSucceed(fileSystem.readDirectory(folder), () => [])
    const layout = yield* Layout.readIndex(fileSystem, folder)
    // What an earlier program has left unfinished has no index.
    const isOwn = Option.isSome(layout)
      ? layout.value.index.manifests.every(({ annotations }) => annotations?.[Cache.ANNOTATION] !== undefined)
      : names.every((name) => name === "oci-layout" || name === "blobs")
    if (!isOwn)
      return yield* new InvalidOption({
        option: "cacheTo",
        value: folder,
        expected: "a folder that is empty, that is not there, or that has a cache of a build"
      })
    return folder
  })

/** Writes blobs that a folder lacks, then its `index.json`, and removes the blobs that it had before. */
const writeFolder = (
  berth: Berth,
  folder: string,
  start: Oci.Descriptor,
  blobs: ReadonlyArray<Oci.Descriptor>
): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const { fileSystem } = berth
    const disk = io(folder)
    const writeJson = (name: string, content: unknown) =>
      disk(replaceFile(fileSystem, folder, name, new TextEncoder().encode(JSON.stringify(content))))
    yield* disk(fileSystem.makeDirectory(`${folder}/blobs/sha256`, { recursive: true }))
    yield* writeJson("oci-layout", { imageLayoutVersion: "1.0.0" })
    for (const blob of blobs) {
      const digest = yield* Oci.digestOf(blob)
      const target = Layout.blobPath(folder, digest)
      if (yield* disk(fileSystem.exists(target))) continue
      const source = yield* Layout.checkBlob(fileSystem, Store.folder(berth), blob)
      const partial = `${target}.partial`
      yield* disk(fileSystem.copyFile(source, partial))
      yield* disk(fileSystem.rename(partial, target))
    }
    yield* disk(syncFolder(fileSystem, `${folder}/blobs/sha256`))
    const entry = { ...start, annotations: { [Cache.ANNOTATION]: "1" } }
    yield* writeJson("index.json", {
      schemaVersion: 2,
      mediaType: Oci.mediaTypes.index,
      manifests: [entry]
    })
    const kept = new Set(blobs.map(({ digest }) => digest.slice(digest.indexOf(":") + 1)))
    for (const name of yield* disk(fileSystem.readDirectory(`${folder}/blobs/sha256`)))
      if (!kept.has(name)) yield* disk(fileSystem.remove(`${folder}/blobs/sha256/${name}`, { force: true }))
  })

export const write = (
  berth: Berth,
  place: CachePlace,
  made: Iterable<string>,
  options: Pick<ImageOptions, "compression" | "created">
): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const name = yield* check(berth, place)
    const { bytes, layers } = yield* documentOf(berth, made, options)
    const config = yield* putDocument(berth, Cache.MEDIA_TYPE, bytes)
    const manifest = Descriptors.manifestOf(config, layers)
    const start = yield* putDocument(berth, Oci.mediaTypes.manifest, manifest)
    if (typeof place !== "string") return yield* writeFolder(berth, name, start, [start, config, ...layers])
    const target = yield* Reference.parse(name)
    const registry = yield* connectTo(berth, target.registry, {})
    const source = {
      fileSystem: berth.fileSystem,
      folder: Store.folder(berth),
      descriptor: start,
      hold: (descriptor: Oci.Descriptor) => Named.hold(berth, descriptor)
    }
    yield* pushFromLayout(registry, target, source, () => {})
  }).pipe(Effect.withSpan("berth.Build.cacheTo"))
