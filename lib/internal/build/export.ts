/** Gives the result of a build a manifest and a name: the layers of its steps become blobs of the store. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { ImageOptions } from "../../Build.ts"
import type { Image } from "../../Image.ts"
import type { Digest } from "../../Reference.ts"
import * as Reference from "../../Reference.ts"
import { readBounded, storageDetail } from "../disk/files.ts"
import { configOf, copyLayers, documentsOf } from "../image/derive.ts"
import * as LayerBlob from "../image/layerBlob.ts"
import { write } from "../image/write.ts"
import type { Options } from "../layer/pack.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Holds from "../store/leases.ts"
import * as Store from "../store/store.ts"
import { holesOf } from "../tar/members.ts"
import type { State } from "./evaluate.ts"
import { annotationsOf } from "./provenance.ts"

const Record = Schema.parseJson(
  Schema.Struct({ digest: Schema.String, size: Schema.Number, diffId: Schema.String })
)

const RECORD_BYTES_MAX = 4096

type BlobOptions = Pick<Options, "compression" | "latest">

/** How the layers of a build become blobs. Fails with `InvalidOption` for a compression that is unknown. */
export const packingOf = ({
  compression = "gzip",
  created
}: Pick<ImageOptions, "created" | "compression">): Effect.Effect<Options, InvalidOption> => {
  if (compression !== "gzip" && compression !== "zstd")
    return new InvalidOption({
      option: "compression",
      value: String(compression),
      expected: `"gzip" or "zstd"`
    })
  // No file of an image is newer than the image says that it is itself.
  const latest = created === undefined ? undefined : Math.max(0, Math.floor(created.getTime() / 1000))
  return Effect.succeed({ compression, latest, maxHoleBytes: holesOf(undefined).left })
}

/** What is known of the blob of a layer, beside the layer: a file for all options that change the blob. */
const recordOf = (layer: string, { compression, latest }: BlobOptions): string =>
  `${path.dirname(layer)}/blob.${compression}${latest === undefined ? "" : `.${latest}`}.json`

/** The blob that a layer already has in the store. */
const known = (
  berth: Berth,
  layer: string,
  options: Options
): Effect.Effect<Option.Option<LayerBlob.LayerBlob>, BerthError> =>
  Effect.gen(function* () {
    const bytes = yield* readBounded(berth.fileSystem, recordOf(layer, options), layer, RECORD_BYTES_MAX)
    const found = Option.flatMap(bytes, (text) =>
      Schema.decodeUnknownOption(Record)(new TextDecoder().decode(text))
    )
    if (Option.isNone(found)) return Option.none()
    const { diffId, digest, size } = found.value
    yield* Holds.hold(berth.holds, [digest])
    if (!(yield* Store.has(berth, digest as Digest))) return Option.none()
    return Option.some({
      descriptor: Descriptors.ofLayer(options.compression, digest as Digest, size),
      diffId: diffId as Digest
    })
  })

/** Records which blob a layer has. */
export const record = (
  layer: string,
  options: BlobOptions,
  { descriptor, diffId }: LayerBlob.LayerBlob
): Effect.Effect<void, ImageError> =>
  Effect.tryPromise({
    try: async () => {
      const file = recordOf(layer, options)
      const { digest, size } = descriptor
      await fs.writeFile(`${file}.new`, JSON.stringify({ digest, size, diffId }), { mode: 0o600 })
      await fs.rename(`${file}.new`, file)
    },
    catch: (cause) => {
      const { code = "", message } = cause as NodeJS.ErrnoException
      const detail = storageDetail(code, message, path.dirname(layer))
      return new ImageError({ reason: "Storage", subject: layer, detail, cause })
    }
  })

/** The blob of a layer, which is made if the store lacks it. */
export const blobOf = (
  berth: Berth,
  layer: string,
  options: Options
): Effect.Effect<LayerBlob.LayerBlob, BerthError> =>
  Effect.gen(function* () {
    const found = yield* known(berth, layer, options)
    if (Option.isSome(found)) return found.value
    const made = yield* LayerBlob.packed(berth, `layer ${layer}`, { upper: layer, ids: undefined }, options)
    yield* record(layer, options, made)
    return made
  })

/** The image of a build with a manifest, under a name or under its digest. */
export const named = (
  state: State,
  options: Pick<ImageOptions, "tag" | "created" | "compression" | "provenance">
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { author, base, image, platform, raw, steps } = state
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    const documents = yield* documentsOf(base)
    const below = yield* copyLayers(documents)
    const layers = steps.flatMap(({ layer }) => layer ?? [])
    const packing = yield* packingOf(options)
    const blobs = yield* Effect.forEach(layers, (layer) => blobOf(berth, layer, packing), { concurrency: 2 })
    const { architecture: _, os: __, ...config } = image.config
    const bytes = yield* configOf(
      { ...documents, raw: { ...documents.raw, ...platform } },
      {
        diffIds: blobs.map(({ diffId }) => diffId),
        history: steps.map(({ history }) => history),
        config,
        created: options.created,
        author,
        raw
      }
    )
    const unpacked = new Map(layers.map((layer, k) => [blobs[k]!.diffId, layer]))
    return yield* write(
      berth,
      name,
      [...below, ...blobs.map(({ descriptor }) => descriptor)],
      bytes,
      {},
      { unpacked, annotations: options.provenance === true ? annotationsOf(state) : undefined }
    )
  })
