/** Pulls an image: `puller.ts FOLDER REFERENCE [plain]`, without TLS where that is asked for. */
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Berth, Image } from "../../lib/index.ts"

const [folder, reference, plain] = process.argv.slice(2) as [string, string, string | undefined]

await Effect.runPromise(
  Image.pull(reference, plain === undefined ? {} : { plainHttp: true }).pipe(
    Effect.provide(Layer.provide(Berth.layerWith({ folder }), NodeContext.layer)),
    Effect.asVoid
  )
)
console.log("pulled")
