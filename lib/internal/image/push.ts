/** `Image.push`: selects the manifest and the layout of its blobs. */
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Image, PushOptions } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import type * as Oci from "../oci/documents.ts"
import * as Progress from "../oci/progress.ts"
import * as references from "../oci/reference.ts"
import { pushFromLayout } from "../registry/push.ts"
import { connectTo } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import * as Named from "./names.ts"
import { ofImage, ofName } from "./source.ts"

export const push = (
  image: Image | string,
  reference: string,
  options: PushOptions
): Effect.Effect<Oci.Descriptor, BerthError, Berth> =>
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
  }).pipe(Effect.scoped, Store.keeping)
