/** A runner in a process of its own: `fleetRunner.ts FOLDER NAME COUNT`, until its input ends. COUNT runners share its Berth. */
import * as NodeContext from "@effect/platform-node/NodeContext"
import { Berth } from "berth"
import * as Fleet from "berth/fleet"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const [folder, name, count] = process.argv.slice(2) as [string, string, string]

const indexes = Array.from({ length: Number(count) }, (_, index) => index)

const program = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const runners = yield* Effect.forEach(indexes, (index) =>
    Fleet.serve({
      listen: `unix:${folder}/${name}-${index}`,
      name: `${name}-${index}`,
      lease: "2 seconds",
      allow: { hostImage: true }
    })
  )
  console.log(
    JSON.stringify({ supervisor: supervisor.pid, addresses: runners.map(({ address }) => address) })
  )
  yield* Effect.async<void>((resume) => {
    process.stdin.resume().on("end", () => resume(Effect.void))
  })
}).pipe(
  Effect.scoped,
  Effect.provide(Layer.provideMerge(Berth.layerWith({ folder: `${folder}/${name}` }), NodeContext.layer))
)

Effect.runPromise(program).then(() => process.exit(0))
