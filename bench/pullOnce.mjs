/** In a process of its own, as the others are, and as the package is installed: pulls once, and prints what moved. */
import * as NodeContext from "@effect/platform-node/NodeContext"
import { Berth, Image } from "berth"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const [, , folder, reference] = process.argv
const moved = new Map()
const pulled = Image.pull(reference, { progress: ({ bytes, digest }) => moved.set(digest, bytes) })
const berth = Layer.provide(Berth.layerWith({ folder }), NodeContext.layer)
await Effect.runPromise(Effect.provide(pulled, berth))
console.log([...moved.values()].reduce((sum, bytes) => sum + bytes, 0))
