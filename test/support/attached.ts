/** Attaches its terminal to a shell in a container, and ends with that shell's exit code. */
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Berth, Container, Image } from "../../lib/index.ts"

const attached = Effect.gen(function* () {
  const box = yield* Container.start(yield* Image.host, {
    command: [
      "sh",
      "-c",
      "trap 'stty size' WINCH; trap 'echo interrupted' INT; stty size; while :; do read -r line && $line; done"
    ],
    terminal: true
  })
  return yield* Container.attach(box)
}).pipe(
  Effect.scoped,
  Effect.provide(Layer.provide(Berth.layerWith({ folder: process.argv[2]! }), NodeContext.layer))
)

const { exitCode } = await Effect.runPromise(attached)
process.exitCode = exitCode
