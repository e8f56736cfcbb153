// A container of an image that another tool made: an OCI image layout on disk, from skopeo, umoci, buildah or podman.
// Berth unpacks each layer once for all containers, and uses the image's entrypoint, environment and user.
//
//   skopeo copy docker://... oci:/tmp/layout:latest && tsx examples/layout.ts /tmp/layout latest
import { argv } from "node:process"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Berth, Container, Image } from "berth"
import { Console, Effect, Layer } from "effect"

const [path = "/tmp/layout", tag = "latest"] = argv.slice(2)

const program = Effect.gen(function* () {
  const image = yield* Image.fromLayout(path, { tag })
  yield* Console.log(`${image.reference}: ${image.layers.length} layers`)
  yield* Console.log(String(yield* Container.plan(image)))
  const { exitCode, stdout } = yield* Container.run(image)
  yield* Console.log(exitCode, stdout)
})

program.pipe(Effect.provide(Berth.layer.pipe(Layer.provideMerge(NodeContext.layer))), NodeRuntime.runMain)
