// A new image from an old one: a container writes a file, and a commit adds its writes as a layer. The program saves
// the new image for other tools, loads it back and runs it. It then lists and removes the store's names, and a
// collection deletes the data that nothing needs.
//
//   skopeo copy docker://... oci:/tmp/layout:latest && tsx examples/images.ts /tmp/layout latest
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { argv } from "node:process"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Berth, Container, Image, Store } from "berth"
import { Console, Effect, Layer } from "effect"

const [path = "/tmp/layout", tag = "latest"] = argv.slice(2)

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(`${tmpdir()}/berth-images-`)),
  (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
)

const program = Effect.gen(function* () {
  const archive = `${yield* folder}/mine.tar`
  const image = yield* Image.fromLayout(path, { tag })
  const box = yield* Container.start(image, {
    command: ["/bin/sh", "-c", "echo a greeting >/greeting"],
    upper: "disk"
  })
  yield* box.exit
  const mine = yield* Container.commit(box, {
    tag: "mine:1",
    comment: "greets",
    config: { command: ["/bin/cat", "/greeting"] }
  })
  yield* Image.save(mine, archive, { format: "docker-archive" })
  const [loaded] = yield* Image.load(archive)
  yield* Console.log((yield* Container.run(loaded)).stdout)
  for (const { name } of yield* Image.list) {
    yield* Console.log(name, yield* Image.history(name))
    yield* Image.remove(name)
  }
}).pipe(Effect.scoped)

const all = Effect.zipRight(
  program,
  Effect.flatMap(Store.gc(), (collected) => Console.log(collected))
)

const berth = Layer.unwrapScoped(Effect.map(folder, (made) => Berth.layerWith({ folder: made })))

all.pipe(Effect.provide(berth.pipe(Layer.provideMerge(NodeContext.layer))), NodeRuntime.runMain)
