/**
 * The cache of a build in a registry or a folder: an artifact whose layers are the blobs of kept layers, and whose config says the keys
 * of each. What a cache has is as trusted as an image from there: who can write to it decides what builds with it contain.
 */
import { randomBytes } from "node:crypto"
import { resolve as absolute, basename } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { CachePlace } from "../../Build.ts"
import type { Image } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import { io } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import { imageOf } from "../image/kept.ts"
import * as Kept from "../layer/kept.ts"
import { removeTree } from "../layer/sweep.ts"
import { unpackVerified } from "../layer/unpack.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { blob, connectTo, manifest, resolve, unverifiedBlob } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"
import { record } from "./export.ts"

/** The media type of the config. */
export const MEDIA_TYPE = "application/vnd.berth.build.cache.v1+json"

/** The annotation of the entry in the `index.json` of a folder. */
export const ANNOTATION = "vnd.berth.build.cache"

const Key = { key: Schema.String, layers: Schema.Array(Schema.String) }

/** The config. Layers below are named by their paths in the folder of layers. */
export const Document = Schema.parseJson(
  Schema.Struct({
    layers: Schema.Array(
      Schema.Struct({
        ...Key,
        digest: Schema.String,
        diffId: Schema.String,
        /** The latest time of its files, in seconds; without it, they have their own. */
        latest: Schema.optional(Schema.Number)
      })
    ),
    /** Keys whose layers are those of others, whose folders are `same`. */
    aliases: Schema.Array(Schema.Struct({ ...Key, same: Schema.String }))
  })
)

type Document = typeof Document.Type

/** A place that a build takes layers from. */
export interface Cache {
  readonly name: string
  /** The layer of a key on top of an image, which is then in the store. What fails is a warning, and the layer is not there. */
  readonly get: (image: Image, key: string) => Effect.Effect<Option.Option<Image>, never, Berth>
}

/** A cache that can be read. */
interface Source {
  readonly document: (descriptor: Oci.Descriptor) => Effect.Effect<Uint8Array, BerthError, Berth>
  /** The file of a blob. */
  readonly file: (descriptor: Oci.Descriptor) => Effect.Effect<string, BerthError, Berth>
  readonly start: Oci.Descriptor
}

/** A name for people. Fails with `InvalidOption` and `InvalidData` for a place that cannot be one. */
export const nameOf = (option: string, place: CachePlace): Effect.Effect<string, BerthError> =>
  typeof place === "string"
    ? Effect.map(Reference.parse(place), Reference.print)
    : typeof place?.folder === "string" && place.folder !== "" && !place.folder.includes("\0")
      ? Effect.succeed(absolute(place.folder))
      : new InvalidOption({
          option,
          value: JSON.stringify(place) ?? "undefined",
          expected: `the name of an image in a registry, or { folder: "a path" }`
        })

const inRegistry = (berth: Berth, name: string): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    const reference = yield* Reference.parse(name)
    const registry = yield* connectTo(berth, reference.registry, {})
    const start = yield* resolve(registry, reference)
    return {
      start,
      document: (descriptor) =>
        descriptor.digest === start.digest
          ? manifest(registry, reference, descriptor)
          : descriptor.size > Oci.DOCUMENT_BYTES_MAX
            ? tooLarge(descriptor.digest, descriptor.size, Oci.DOCUMENT_BYTES_MAX)
            : Effect.map(Stream.runCollect(blob(registry, reference, descriptor)), (parts) =>
                Buffer.concat([...parts])
              ),
      file: (descriptor) =>
        Effect.gen(function* () {
          const digest = yield* Oci.digestOf(descriptor)
          const content = unverifiedBlob(registry, reference, descriptor)
          yield* Store.put(berth, digest, content, descriptor.size)
          return yield* Layout.checkBlob(berth.fileSystem, Store.folder(berth), descriptor)
        })
    }
  })

const notThere = (subject: string) =>
  new ImageError({ reason: "NotFound", subject, detail: "there is no cache of a build" })

const inFolder = ({ fileSystem }: Berth, folder: string): Effect.Effect<Source, BerthError> =>
  Effect.gen(function* () {
    const found = yield* Layout.readIndex(fileSystem, folder)
    const start = Option.getOrUndefined(found)?.index.manifests.find(
      ({ annotations }) => annotations?.[ANNOTATION] !== undefined
    )
    if (start === undefined) return yield* notThere(folder)
    return {
      start,
      document: (descriptor) => Layout.readDocument(fileSystem, folder, descriptor),
      file: (descriptor) => Layout.checkBlob(fileSystem, folder, descriptor)
    }
  })

const corrupt = (subject: string, detail: string) => new ImageError({ reason: "Corrupt", subject, detail })

/** What a cache has, by the names of folders of kept layers. */
interface Opened {
  readonly source: Source
  readonly layers: ReadonlyMap<string, Document["layers"][number] & { readonly blob: Oci.Descriptor }>
  readonly aliases: ReadonlyMap<string, string>
}

const read = (source: Source, name: string): Effect.Effect<Opened, BerthError, Berth> =>
  Effect.gen(function* () {
    const { document, start } = source
    const found = yield* Oci.decodeManifest(name, yield* document(start), start.mediaType)
    if (found._tag === "Index" || found.config.mediaType !== MEDIA_TYPE) return yield* notThere(name)
    const text = new TextDecoder().decode(yield* document(found.config))
    const decoded = Schema.decodeUnknownOption(Document)(text)
    if (Option.isNone(decoded)) return yield* corrupt(name, "its config is not that of a build's cache")
    const blobs = new Map(found.layers.map((layer) => [layer.digest, layer]))
    const { aliases, layers } = decoded.value
    const have = layers.flatMap((layer) => {
      const blob = blobs.get(layer.digest)
      return blob === undefined ? [] : [[Kept.nameOf(layer.key, layer.layers), { ...layer, blob }] as const]
    })
    return {
      source,
      layers: new Map(have),
      aliases: new Map(aliases.map(({ key, layers, same }) => [Kept.nameOf(key, layers), same]))
    }
  })

/** Makes a layer of a cache a layer of the store. */
const take = (
  berth: Berth,
  { source }: Opened,
  layer: NonNullable<ReturnType<Opened["layers"]["get"]>>,
  image: Image
): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const { blob, key, latest } = layer
    const expected = { digest: yield* Oci.digestOf(blob), diffId: yield* digests.parse(layer.diffId) }
    const compression = yield* Oci.compressionOf(blob)
    const file = yield* source.file(blob)
    // In the state folder until it has a name: a sweep removes the files of a killed supervisor.
    const prepared = `${berth.supervisor.folder}/cache-${randomBytes(8).toString("hex")}`
    yield* Effect.acquireUseRelease(
      io(prepared)(berth.fileSystem.makeDirectory(prepared, { mode: 0o700 })),
      () =>
        Effect.gen(function* () {
          const upper = Kept.layerIn(prepared)
          const report = yield* unpackVerified(berth, upper, file, compression, {}, expected)
          if (report.links.length > 0 || report.implicit.length > 0)
            return yield* corrupt(
              blob.digest,
              "it depends on the layers below it, as no layer of a build does"
            )
          yield* record(upper, { compression, latest }, { descriptor: blob, diffId: expected.diffId })
          yield* Kept.place(berth, prepared, Kept.folderOf(berth, image, key), image, key)
        }).pipe(Effect.scoped),
      () => Effect.ignore(removeTree(berth, prepared))
    )
  })

/** A place that may have a cache, which is looked at when the first layer is missing. */
export const open = (berth: Berth, place: CachePlace): Effect.Effect<Cache, BerthError> =>
  Effect.gen(function* () {
    const name = yield* nameOf("cacheFrom", place)
    const warned = (error: BerthError) =>
      // A cache that nothing has been written to yet is no mistake.
      (error._tag === "ImageError" || error._tag === "RegistryError") && error.reason === "NotFound"
        ? Effect.logDebug(`there is no cache at ${name}`)
        : Effect.logWarning(`the cache at ${name} is not used: ${error.message}`)
    const opened = yield* Effect.cached(
      (typeof place === "string" ? inRegistry(berth, name) : inFolder(berth, name)).pipe(
        Effect.flatMap((source) => read(source, name)),
        Effect.map(Option.some),
        Effect.catchAll((error) => Effect.as(warned(error), Option.none<Opened>()))
      )
    )
    const get = (image: Image, key: string): Effect.Effect<Option.Option<Image>, BerthError, Berth> =>
      Effect.gen(function* () {
        const cache = Option.getOrUndefined(yield* opened)
        if (cache === undefined) return Option.none()
        const wanted = basename(Kept.folderOf(berth, image, key))
        const layer = cache.layers.get(cache.aliases.get(wanted) ?? wanted)
        if (layer === undefined) return Option.none()
        const folder = Kept.folderOf(berth, image, layer.key)
        if (basename(folder) !== Kept.nameOf(layer.key, layer.layers)) return Option.none()
        if (Option.isNone(yield* Kept.use(berth, folder))) yield* take(berth, cache, layer, image)
        if (layer.key !== key) yield* Kept.alias(berth, image, key, folder)
        return Option.map(yield* Kept.use(berth, folder), (found) => imageOf(image, found))
      })
    return {
      name,
      get: (image, key) =>
        Effect.catchAll(get(image, key), (error) => Effect.as(warned(error), Option.none<Image>()))
    }
  })
