/**
 * What the default seccomp policy adds to a start: `true` in a container with it and without one, in turns, each until
 * its end is known and nothing of it is left.
 */
import { parseArgs } from "node:util"
import { type Berth, Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import {
  type Contender,
  interleave,
  machine,
  milliseconds,
  onBerth,
  summarize,
  table,
  timed,
  unmeasured,
  writeResults
} from "./support.ts"

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const image = yield* Image.host
    const context = yield* Effect.context<Berth.Berth>()
    const contenders = (["unconfined", "default"] as const).map(
      (seccomp): Contender => ({
        name: seccomp,
        run: Effect.scoped(
          Effect.flatMap(Container.start(image, { command: ["true"], seccomp }), ({ exit }) => exit)
        ).pipe(Effect.provide(context), Effect.mapError(unmeasured), timed)
      })
    )
    const { samples } = yield* interleave(contenders, { rounds, warmups: 50 })
    const summaries = [...samples].map(([name, values]) => ({ name, ...summarize(values) }))
    yield* Console.log(
      table([
        ["milliseconds", "p50", "p90", "min"],
        ...summaries.map(({ name, median, p90, min }) => [name, ...[median, p90, min].map(milliseconds)])
      ])
    )
    const [without, confined] = summaries
    const added = (confined!.median - without!.median) * 1000
    yield* Console.log(`The default policy adds ${added.toFixed(0)} µs to the median.`)
    yield* Console.log(`written: ${writeResults("seccomp", { machine: machine(), rounds, summaries })}`)
  })

export const seccomp = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "300" } } })
  return onBerth(measure(Number(values.rounds)))
}
