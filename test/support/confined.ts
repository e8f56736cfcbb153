/**
 * A program that is killed while profiles of its own are loaded: `confined.ts FOLDER PROFILES`. Prints a line of JSON with the
 * supervisor's process and that of a container in the first of them.
 */
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Security } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder, profiles] = process.argv.slice(2) as [string, string]

await Effect.runPromise(
  Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    const [appArmor] = yield* Security.appArmor(profiles)
    const container = yield* Container.start(yield* Image.host, { command: ["sleep", "1000"], appArmor })
    console.log(JSON.stringify({ supervisor: supervisor.pid, pid: container.pid }))
    yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(berthIn(folder)))
)
