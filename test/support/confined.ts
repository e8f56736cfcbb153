/**
 * A program that is killed while its AppArmor profiles are loaded: `confined.ts FOLDER PROFILES`. Prints a line of JSON with
 * the pids of the supervisor and of a container confined by the first profile.
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
