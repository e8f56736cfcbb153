/** `Container.commit`: makes an image of the layers of a container's image, a layer of its changes, and a config. */

import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { CommitOptions, Container } from "../../Container.ts"
import { type Image, scratch } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import { noFilesError } from "../files/archiveCopy.ts"
import type { Ids } from "../ids/idMaps.ts"
import { configOf, copyLayers, documentsOf } from "../image/derive.ts"
import * as LayerBlob from "../image/layerBlob.ts"
import { write } from "../image/write.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import * as layerDiff from "../layer/diff.ts"
import * as mergedDiff from "../layer/memoryDiff.ts"
import * as Holds from "../store/leases.ts"
import { native } from "../system/addon.ts"
import { type Holes, holesOf } from "../tar/members.ts"
import { attempt } from "../util/fromThrowing.ts"

interface Source {
  readonly image: Image
  /** The folder of the writable layer in the supervisor's mount namespace, undefined if it is in memory. */
  readonly upper: string | undefined
  /** The layer of mount targets, which is no part of what it wrote. */
  readonly targets: string | undefined
  /** The maps between the ids of its files in the container and on the host. */
  readonly ids: Ids
}

/** The image that the container was started from, and the location of its changes. */
const sourceOf = (container: Container): Effect.Effect<Source, BerthError> =>
  Effect.suspend((): Effect.Effect<Source, BerthError> => {
    const { base, root } = container.state
    if (root < 0 || !base.isThere()) return Effect.fail(noFilesError(container))
    const { ids, image, mountedUpper, targets } = base
    const upper = mountedUpper ?? base.upper
    if (image.digest === undefined && image !== scratch) {
      const expected =
        "a container of an image with a manifest, or of Image.scratch: Image.import makes one of a folder"
      return Effect.fail(new InvalidOption({ option: "container", value: image.reference, expected }))
    }
    return Effect.succeed({ image, upper, targets, ids })
  })

/** A writable layer in memory: the differences between the root and the lower layers. */
const inMemory = (
  container: Container,
  { ids, image, targets }: Source,
  holes: Holes
): Effect.Effect<LayerBlob.LayerBlob, BerthError> => {
  const { berth, root } = container.state
  const subject = `container ${container.id}`
  const failed = layerDiff.failed(subject)
  return LayerBlob.put(berth, subject, (compressed) =>
    Stream.unwrapScoped(
      Effect.gen(function* () {
        const controller = new AbortController()
        const fd = yield* Effect.acquireRelease(
          Effect.try({ try: () => native().duplicate(root), catch: failed }),
          (opened) => Effect.sync(() => native().close(opened))
        )
        const layers = targets === undefined ? image.layers : [...image.layers, targets]
        const lower = layers.length === 0 ? undefined : yield* merged(berth, layers)
        yield* Effect.addFinalizer(() => Effect.sync(() => controller.abort()))
        const owner = { rootless: berth.rootless, ids }
        const tar = mergedDiff.archive(fd, lower, owner, holes, controller.signal)
        return Stream.fromAsyncIterable(compressed(tar), failed)
      })
    )
  )
}

/** The blob of the writable layer. Fails if that was released in the meantime: an empty layer would be wrong then. */
const layerOf = (
  container: Container,
  source: Source,
  holes: Holes
): Effect.Effect<LayerBlob.LayerBlob, BerthError> =>
  Effect.suspend(() => {
    const { base, berth, ids } = container.state
    const { upper } = source
    const isGone = Effect.suspend(() =>
      container.state.root < 0 || !base.isThere() ? Effect.fail(noFilesError(container)) : Effect.void
    )
    const made =
      upper === undefined
        ? inMemory(container, source, holes)
        : LayerBlob.packed(
            berth,
            `container ${container.id}`,
            { upper, ids },
            { compression: "gzip", maxHoleBytes: holes.left, latest: undefined }
          )
    return Effect.zipLeft(
      Effect.tapError(made, () => isGone),
      isGone
    )
  })

const commitTo = (container: Container, options: CommitOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const source = yield* sourceOf(container)
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    const documents = yield* documentsOf(source.image)
    const { author, comment, config = {}, created } = options
    const entry = { created_by: "berth commit", comment }
    const changes = { history: [entry], config, created, author }
    // Checks come before anything is read: a mistake should not appear only at the end.
    const holes = yield* attempt(() => holesOf(options.maxHoleBytes))
    yield* configOf(documents, { ...changes, diffIds: [""] })
    const below = yield* copyLayers(documents)
    const { descriptor, diffId } = yield* layerOf(container, source, holes)
    const bytes = yield* configOf(documents, { ...changes, diffIds: [diffId] })
    return yield* write(berth, name, [...below, descriptor], bytes, {})
  })

export const commit = (container: Container, options: CommitOptions): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return commitTo(container, options).pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    Effect.withSpan("berth.Container.commit", {
      attributes: { "container.id": container.id, "container.image.name": options.tag }
    })
  )
}
