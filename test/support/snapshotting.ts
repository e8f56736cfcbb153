/**
 * A program that is killed while it makes a snapshot: `snapshotting.ts FOLDER [end]`. Prints a line of JSON with the pids of the
 * supervisor and the container, and the supervisor's folder. With `end`, it only starts a Berth there and ends.
 */
import * as Effect from "effect/Effect"
import { Berth, Container } from "../../lib/index.ts"
import { manyFiles } from "./copying.ts"
import { berthIn } from "./effect.ts"
import { makeImage } from "./rootfs.ts"

const [folder, end] = process.argv.slice(2) as [string, string | undefined]

const snapshotting = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const image = yield* makeImage(`${folder}.root`)
  const command = ["/bin/sh", "-c", `${manyFiles}; echo; exec sleep 1000`]
  const container = yield* Container.start(image, { command })
  const { pid } = container
  console.log(JSON.stringify({ supervisor: supervisor.pid, pid, folder: supervisor.folder }))
  for (;;) yield* Container.snapshot(container)
})

await Effect.runPromise(
  (end === "end" ? Effect.asVoid(Berth.Berth) : snapshotting).pipe(
    Effect.scoped,
    Effect.provide(berthIn(folder))
  )
)
