/**
 * A program that is killed while a profile of its own is loaded: `confined.ts FOLDER [PROFILES]`. Prints a line of JSON with
 * the supervisor's process and that of a container in the first of them; without, it only starts a Berth there and ends.
 */
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Security } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder, profiles] = process.argv.slice(2) as [string, string | undefined]

const confined = (text: string) =>
  Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    const [appArmor] = yield* Security.appArmor(text)
    const container = yield* Container.start(yield* Image.host, { command: ["sleep", "1000"], appArmor })
    console.log(JSON.stringify({ supervisor: supervisor.pid, pid: container.pid }))
    yield* Effect.never
  })

await Effect.runPromise(
  (profiles === undefined ? Effect.asVoid(Berth.Berth) : confined(profiles)).pipe(
    Effect.scoped,
    Effect.provide(berthIn(folder))
  )
)
