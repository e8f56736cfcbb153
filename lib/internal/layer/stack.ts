/** The stack of folders of an image: its layers, with completing layers and a correction on top. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import type { BerthError, ImageError } from "../../BerthError.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as LinkLayer from "./crossLayerLinks.ts"
import * as Implicit from "./missingFolders.ts"
import * as Notes from "./sidecar.ts"

/** The stack of these layers (lowest first), without the correction. */
const placedOf = (berth: Berth, layers: ReadonlyArray<string>) =>
  Effect.map(
    Effect.forEach(layers, (folder) => Notes.load(berth, folder)),
    (notes) => {
      const implicit = new Map(layers.map((folder, i) => [folder, new Set(notes[i]!.implicit)]))
      const placed = LinkLayer.placed(berth, layers, notes)
      return {
        placed,
        folders: placed.map(
          ({ folder }): Implicit.Layer => ({ folder, implicit: implicit.get(folder) ?? "all" })
        )
      }
    }
  )

const foldersOf = (
  placed: ReadonlyArray<LinkLayer.Placed>,
  correction: Option.Option<string>
): ReadonlyArray<string> => [...placed.map(({ folder }) => folder), ...Option.toArray(correction)]

/** The folders for an image of these layers, lowest first; makes completing layers and the correction. */
export const make = (
  berth: Berth,
  layers: ReadonlyArray<string>,
  limits: Limits
): Effect.Effect<ReadonlyArray<string>, BerthError, Berth> =>
  Effect.gen(function* () {
    const { folders, placed } = yield* placedOf(berth, layers)
    // From the lowest up, because a link may have its target in another completing layer.
    yield* Effect.forEach(placed, (layer) => LinkLayer.complete(berth, layer, limits), { discard: true })
    return foldersOf(placed, yield* Implicit.correction(berth, folders))
  })

/** The folders that `make` returns, for layers that exist. */
export const wanted = (
  berth: Berth,
  layers: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<string>, ImageError> =>
  Effect.gen(function* () {
    const { folders, placed } = yield* placedOf(berth, layers)
    const correction = yield* Implicit.wanted(berth, folders)
    return foldersOf(
      placed,
      Option.map(correction, ({ target }) => target)
    )
  })
