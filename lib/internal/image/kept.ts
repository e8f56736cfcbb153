/** `Image.kept`: an image with the layer of a key on top. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import * as Kept from "../layer/kept.ts"
import * as Store from "../store/store.ts"
import { withLayer } from "./image.ts"

const KEY_CHARACTERS_MAX = 1024

export const checkKey = (key: string): Effect.Effect<void, InvalidOption> =>
  typeof key === "string" && key !== "" && key.length <= KEY_CHARACTERS_MAX
    ? Effect.void
    : new InvalidOption({
        option: "key",
        value: typeof key === "string" ? `a text of ${key.length} characters` : String(key),
        expected: `a text of 1 to ${KEY_CHARACTERS_MAX} characters`
      })

/** The image of a kept layer. */
export const imageOf = (image: Image, folder: string): Image => withLayer(image, Kept.layerIn(folder))

export const kept = (image: Image, key: string): Effect.Effect<Option.Option<Image>, BerthError, Berth> =>
  Effect.gen(function* () {
    yield* checkKey(key)
    const berth = yield* Berth
    const folder = Kept.folderOf(berth, image, key)
    return Option.map(yield* Kept.use(berth, folder), (found) => imageOf(image, found))
  }).pipe(Store.keeping)
