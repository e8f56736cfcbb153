/** Pulls an image: `puller.ts FOLDER REFERENCE [OPTIONS]`, with the options of `Image.pull` as JSON. */
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Berth, Image } from "../../lib/index.ts"

const [folder, reference, options = "{}"] = process.argv.slice(2) as [string, string, string?]

await Effect.runPromise(
  Image.pull(reference, JSON.parse(options)).pipe(
    Effect.provide(Layer.provide(Berth.layerWith({ folder }), NodeContext.layer)),
    Effect.asVoid
  )
)
console.log("pulled")
