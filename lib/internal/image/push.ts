/** `Image.push`: selects the manifest and the layout of its blobs. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { Image, PushOptions } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import { readBounded } from "../disk/files.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Progress from "../oci/progress.ts"
import * as references from "../oci/reference.ts"
import { pushFromLayout } from "../registry/push.ts"
import { connectTo } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"
import { isImage } from "./image.ts"
import * as Named from "./names.ts"

export interface Source {
  /** The layout that has the blobs. */
  readonly folder: string
  readonly descriptor: Oci.Descriptor
}

export const ofImage = (image: Image): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    if (image.digest === undefined) {
      const expected = "an image with a manifest: pulled, or read from a layout"
      return yield* new InvalidOption({
        option: "image",
        value: JSON.stringify(image.reference.slice(0, 200)),
        expected
      })
    }
    const folder = image.layout ?? Store.folder(berth)
    const digest = yield* digests.parse(image.digest)
    const path = Layout.blobPath(folder, digest)
    const bytes = yield* readBounded(berth.fileSystem, path, digest, Oci.DOCUMENT_BYTES_MAX)
    if (Option.isNone(bytes)) {
      const detail = `its manifest ${digest} is no longer in ${folder}: get the image again`
      return yield* new ImageError({ reason: "NotFound", subject: image.reference, detail })
    }
    const size = bytes.value.length
    return { folder, descriptor: { mediaType: yield* Oci.mediaTypeOf(digest, bytes.value), digest, size } }
  })

/** The entry of a name in the store; of several platforms, this machine's. */
const ofName = (name: string): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { entries } = yield* Named.find(yield* Store.entries(berth), Store.nameOf, name)
    // A name with one entry stands for that image, whatever its platform is.
    const descriptor =
      entries.length === 1 ? entries[0]! : yield* Layout.selectPlatform(name, entries, Layout.hostPlatform())
    return { folder: Store.folder(berth), descriptor }
  })

export const push: {
  (
    reference: string,
    options?: PushOptions
  ): (image: Image | string) => Effect.Effect<Oci.Descriptor, BerthError, Berth>
  (
    image: Image | string,
    reference: string,
    options?: PushOptions
  ): Effect.Effect<Oci.Descriptor, BerthError, Berth>
} = dual(
  (args) => isImage(args[0]) || typeof args[1] === "string",
  (image: Image | string, reference: string, options: PushOptions = {}) =>
    Effect.gen(function* () {
      const berth = yield* Berth
      const listener = yield* Progress.listening(options)
      const target = yield* Reference.parse(reference)
      const source = yield* typeof image === "string" ? ofName(image) : ofImage(image)
      const { digest } = source.descriptor
      if (target.digest !== undefined && target.digest !== digest) {
        const expected = `a tag, or the digest of the pushed manifest, ${digest}`
        return yield* new InvalidOption({
          option: "reference",
          value: JSON.stringify(reference.slice(0, 400)),
          expected
        })
      }
      const mountFrom =
        options.mountFrom === undefined
          ? undefined
          : yield* references.inRegistry(target.registry, options.mountFrom)
      const registry = yield* connectTo(berth, target.registry, options)
      const layout = {
        ...source,
        fileSystem: berth.fileSystem,
        hold: (descriptor: Oci.Descriptor) =>
          source.folder === Store.folder(berth) ? Named.hold(berth, descriptor) : Effect.void
      }
      return yield* pushFromLayout(registry, target, layout, listener, mountFrom)
    }).pipe(
      Effect.scoped,
      Store.keeping,
      Effect.withSpan("berth.Image.push", { attributes: { "container.image.name": reference } })
    )
)
