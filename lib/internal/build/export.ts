/** Gives the result of a build a manifest and a name: the layers of its steps become blobs of the store. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import type { Digest } from "../../Reference.ts"
import * as Reference from "../../Reference.ts"
import { readBounded } from "../disk/files.ts"
import * as inRoot from "../files/rooted.ts"
import { own } from "../ids/idMaps.ts"
import { configOf, copyLayers, documentsOf } from "../image/derive.ts"
import * as LayerBlob from "../image/layerBlob.ts"
import { write } from "../image/write.ts"
import * as layerDiff from "../layer/diff.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Holds from "../store/leases.ts"
import * as Store from "../store/store.ts"
import { native } from "../system/addon.ts"
import { holesOf } from "../tar/members.ts"
import type { State } from "./evaluate.ts"

const Record = Schema.parseJson(
  Schema.Struct({ digest: Schema.String, size: Schema.Number, diffId: Schema.String })
)

const RECORD_BYTES_MAX = 4096

/** What is known of the blob of a layer, beside the layer. */
const recordOf = (layer: string): string => `${path.dirname(layer)}/blob.json`

/** The blob that a layer already has in the store. */
const known = (berth: Berth, layer: string): Effect.Effect<Option.Option<LayerBlob.LayerBlob>, BerthError> =>
  Effect.gen(function* () {
    const bytes = yield* readBounded(berth.fileSystem, recordOf(layer), layer, RECORD_BYTES_MAX)
    const found = Option.flatMap(bytes, (text) =>
      Schema.decodeUnknownOption(Record)(new TextDecoder().decode(text))
    )
    if (Option.isNone(found)) return Option.none()
    const { diffId, digest, size } = found.value
    yield* Holds.hold(berth.holds, [digest])
    if (!(yield* Store.has(berth, digest as Digest))) return Option.none()
    return Option.some({
      descriptor: Descriptors.ofLayer("gzip", digest as Digest, size),
      diffId: diffId as Digest
    })
  })

/** Makes the blob of a layer. */
const blobOf = (berth: Berth, layer: string): Effect.Effect<LayerBlob.LayerBlob, BerthError> =>
  Effect.gen(function* () {
    const found = yield* known(berth, layer)
    if (Option.isSome(found)) return found.value
    const failed = layerDiff.failed(layer)
    const made = yield* LayerBlob.put(berth, `layer ${layer}`, (compressed) =>
      Stream.unwrapScoped(
        Effect.gen(function* () {
          const controller = new AbortController()
          const fd = yield* Effect.acquireRelease(
            Effect.try({ try: () => inRoot.openHost(layer, inRoot.O_FOLDER), catch: failed }),
            (opened) => Effect.sync(() => native().close(opened))
          )
          yield* Effect.addFinalizer(() => Effect.sync(() => controller.abort()))
          const owner = { rootless: berth.rootless, ids: own() }
          const tar = layerDiff.archive(fd, owner, holesOf(undefined), controller.signal)
          return Stream.fromAsyncIterable(compressed(tar), failed)
        })
      )
    )
    const { descriptor, diffId } = made
    const record = JSON.stringify({ digest: descriptor.digest, size: descriptor.size, diffId })
    yield* Effect.tryPromise({
      try: async () => {
        await fs.writeFile(`${recordOf(layer)}.new`, record, { mode: 0o600 })
        await fs.rename(`${recordOf(layer)}.new`, recordOf(layer))
      },
      catch: (cause) => new ImageError({ reason: "Storage", subject: layer, detail: String(cause), cause })
    })
    return made
  })

/** The image of a build with a manifest, under a name or under its digest. */
export const named = (
  { base, image, raw, steps }: State,
  options: { readonly tag: string | undefined; readonly created: Date | undefined }
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    const documents = yield* documentsOf(base)
    const below = yield* copyLayers(documents)
    const layers = steps.flatMap(({ layer }) => layer ?? [])
    const blobs = yield* Effect.forEach(layers, (layer) => blobOf(berth, layer), { concurrency: 2 })
    const { architecture: _, os: __, ...config } = image.config
    const bytes = yield* configOf(documents, {
      diffIds: blobs.map(({ diffId }) => diffId),
      history: steps.map(({ history }) => history),
      config,
      created: options.created,
      author: undefined,
      raw
    })
    return yield* write(berth, name, [...below, ...blobs.map(({ descriptor }) => descriptor)], bytes, {})
  })
