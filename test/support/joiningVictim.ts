/**
 * A program with a container that stops each process which joins it, an innocent one, and executions in both: it says
 * `ready` and goes on until it is killed. Arguments: Berth's folder, and `userns` for ids of the containers' own.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Container } from "../../lib/index.ts"
import { joiningImage } from "./attack.ts"
import { berthIn } from "./effect.ts"

const [folder, mode] = process.argv.slice(2)

await Effect.runPromise(
  Effect.gen(function* () {
    const image = yield* joiningImage
    const options = mode === "userns" ? ({ userns: "auto" } as const) : {}
    const innocent = yield* Container.start(image, { ...options, command: ["sleep", "1000"] })
    const attacker = yield* Container.start(image, { ...options, command: ["joining", "signal", "19"] })
    for (let k = 0; k < 4; k++) yield* Effect.forkScoped(Container.exec(attacker, ["sleep", "1000"]))
    yield* Effect.sleep(200)
    yield* Container.exec(innocent, ["true"])
    yield* Console.log("ready")
    yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(berthIn(folder!)))
)
