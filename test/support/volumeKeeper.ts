/** A program that makes volumes of each kind in a Berth at a folder, writes to them, prints the pid of its supervisor, and waits to be killed: `volumeKeeper.ts FOLDER`. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container, Image, Mount, Volume } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder] = process.argv.slice(2) as [string]
const sizes = process.getuid?.() === 0 ? [{ size: "8MiB" }, { name: "sized", size: "8MiB" }] : []

await Effect.gen(function* () {
  const volumes = yield* Effect.forEach(
    [{ name: "kept" }, {}, { storage: "memory" }, ...sizes] satisfies ReadonlyArray<Volume.Options>,
    (options) => Volume.make(options)
  )
  const box = yield* Container.start(yield* Image.host, {
    command: ["sh", "-c", "for to in /volume*; do echo kept > $to/file; done; echo written; exec sleep 1000"],
    mounts: volumes.map((volume, k) => Mount.volume(volume, `/volume${k}`))
  })
  yield* Stream.runHead(box.stdout)
  console.log((yield* Berth.Berth).supervisor.pid)
  return yield* Effect.never
}).pipe(Effect.scoped, Effect.provide(berthIn(folder)), Effect.runPromise)
