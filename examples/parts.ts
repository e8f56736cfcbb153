// The resources that Container.start makes, made one by one: a root, namespaces and a cgroup. Each has its own scope.
// The program then spawns a process into them.
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Berth, Cgroup, Container, Image, Namespace, RootFs } from "berth"
import { Console, Effect, Layer, Stream } from "effect"

const parts = Effect.gen(function* () {
  const image = yield* Image.host
  const rootfs = yield* RootFs.overlay(image, { upper: "memory" })
  const namespaces = yield* Namespace.make(["pid", "mount", "uts", "ipc", "network", "cgroup"])
  const cgroup = yield* Cgroup.make({ memory: "64MiB" })
  const process = yield* Container.spawn({
    rootfs,
    namespaces,
    cgroup,
    command: ["/bin/sh", "-c", "hostname"]
  })
  yield* Stream.runForEach(Stream.decodeText(process.stdout), (text) => Console.log(text.trimEnd()))
  return yield* process.exit
}).pipe(Effect.scoped)

parts.pipe(
  Effect.tap(Console.log),
  Effect.provide(Berth.layer.pipe(Layer.provideMerge(NodeContext.layer))),
  NodeRuntime.runMain
)
