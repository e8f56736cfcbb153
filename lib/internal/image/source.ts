/** The manifest of an image, and the layout that has its blobs. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import { readBounded } from "../disk/files.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"
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
export const ofName = (name: string): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { entries } = yield* Named.find(yield* Store.entries(berth), Store.nameOf, name)
    // A name with one entry stands for that image, whatever its platform is.
    const descriptor =
      entries.length === 1 ? entries[0]! : yield* Layout.selectPlatform(name, entries, hostPlatform())
    return { folder: Store.folder(berth), descriptor }
  })
