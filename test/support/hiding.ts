/**
 * A program that is going to die: `hiding.ts FOLDER`. Starts a container that hides from a sweep in a Berth at FOLDER, prints
 * a line of JSON once it has, and waits.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container } from "../../lib/index.ts"
import { attackImage } from "./attack.ts"
import { berthIn } from "./effect.ts"

const [folder] = process.argv.slice(2) as [string]

const program = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const box = yield* Container.start(yield* attackImage, {
    command: ["attack", "hide"],
    seccomp: "unconfined"
  })
  const [first] = yield* Stream.runCollect(Stream.take(Container.logs(box, { follow: true }), 1))
  fs.writeSync(1, `${JSON.stringify({ pid: box.pid, supervisor: supervisor.pid, said: first?.line })}\n`)
  return yield* Effect.never
})

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(berthIn(folder))))
