/**
 * A program that is killed while its container is paused: `paused.ts FOLDER [end]`. Prints a line of JSON with the pids of
 * the supervisor and the container. With `end`, it only starts a Berth there and ends.
 */
import * as Effect from "effect/Effect"
import { Berth, Container, Image } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder, end] = process.argv.slice(2) as [string, string | undefined]

const paused = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const container = yield* Container.start(yield* Image.host, { command: ["sleep", "1000"] })
  yield* Container.pause(container)
  console.log(JSON.stringify({ supervisor: supervisor.pid, pid: container.pid }))
  yield* Effect.never
})

await Effect.runPromise(
  (end === "end" ? Effect.asVoid(Berth.Berth) : paused).pipe(Effect.scoped, Effect.provide(berthIn(folder)))
)
