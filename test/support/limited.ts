/** A program that asks for limits: `limited.ts FOLDER`. Prints the error that it gets as a line of JSON. */
import * as Effect from "effect/Effect"
import { Cgroup } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder] = process.argv.slice(2) as [string]

const error = await Effect.runPromise(
  Effect.flip(Cgroup.make({ pids: 5 })).pipe(Effect.scoped, Effect.provide(berthIn(folder)))
)
console.log(JSON.stringify({ ...error, message: error.message }))
