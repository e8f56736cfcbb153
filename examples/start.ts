// A container of an image from a registry: it has limits, runs a command, and ends with its scope. The program
// expects a registry on loopback, such as Debian's docker-registry; replace the reference to use another one.
import { Cgroup, Container, Image, Berth } from "berth"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer } from "effect"

const program = Effect.gen(function* () {
  const image = yield* Image.pull("127.0.0.1:5000/library/alpine:3")
  const box = yield* Container.start(image, {
    command: ["sleep", "infinity"],
    limits: { memory: "256MiB", pids: 64, cpus: 0.5 }
  })
  const result = yield* Container.exec(box, ["cat", "/etc/os-release"])
  yield* Console.log(result.exitCode, result.stdout)
})

program.pipe(
  Effect.scoped,
  Effect.provide(Berth.layer.pipe(Layer.provideMerge(NodeContext.layer))),
  NodeRuntime.runMain
)
