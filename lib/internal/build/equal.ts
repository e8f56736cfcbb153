/** Layers with equal files, which have one place in the store, so that what is on top of them need not run again. */
import { randomUUID } from "node:crypto"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import { kept } from "../image/kept.ts"
import * as Kept from "../layer/kept.ts"
import { contentOf } from "../layer/pack.ts"

const layerOf = ({ layers }: Image): string => layers.at(-1)!

/** Has a key lead to the last layer of an image that was made on top of this one. */
export const alias = (
  berth: Berth,
  image: Image,
  key: string,
  made: Image
): Effect.Effect<void, BerthError> => Kept.alias(berth, image, key, dirname(layerOf(made)))

export interface Making {
  /** The key of the layer. */
  readonly as: string
  /** The key of the layer that the step had last. */
  readonly before: string | undefined
  readonly makeLayer: (key: string) => Effect.Effect<Image | undefined, BerthError, Berth>
}

/** Makes a layer. If its files are those of the layer before, except for times, its key leads to that one. */
export const unlessEqual = (
  berth: Berth,
  image: Image,
  { as, before, makeLayer }: Making
): Effect.Effect<Image | undefined, BerthError, Berth> =>
  Effect.gen(function* () {
    const old = before === undefined ? Option.none() : yield* kept(image, before)
    if (Option.isNone(old)) return yield* makeLayer(as)
    const made = yield* makeLayer(`${as} ${randomUUID()}`)
    if (made === undefined) return undefined
    const [was, is] = yield* Effect.forEach([old.value, made], (one) => contentOf(berth, layerOf(one)))
    const result = was === is ? old.value : made
    yield* alias(berth, image, as, result)
    return result
  })
