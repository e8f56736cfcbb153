// An Effect program that uses Command and FileSystem runs unchanged inside a container: it gets the container's
// services instead of the host's.
import { Command, CommandExecutor, FileSystem } from "@effect/platform"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Berth, Container, Image } from "berth"
import { Console, Effect, Layer } from "effect"

const program = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  yield* fs.writeFileString("/tmp/greeting", "hello from ")
  yield* Command.exitCode(Command.make("sh", "-c", "uname -n >> /tmp/greeting"))
  return yield* fs.readFileString("/tmp/greeting")
})

const inside = Effect.gen(function* () {
  const box = yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"], init: true })
  return yield* program.pipe(
    Effect.provideService(CommandExecutor.CommandExecutor, Container.commandExecutor(box)),
    Effect.provideService(FileSystem.FileSystem, Container.fileSystem(box))
  )
}).pipe(Effect.scoped)

inside.pipe(
  Effect.tap((text) => Console.log(text.trimEnd())),
  Effect.provide(Berth.layer.pipe(Layer.provideMerge(NodeContext.layer))),
  NodeRuntime.runMain
)
