/**
 * What the default seccomp policy adds to a start: `true` in a container with it and without one, in turns, each until
 * its end is known and nothing of it is left.
 */
import { parseArgs } from "node:util"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import {
  interleave,
  machine,
  onBerth,
  oneContainer,
  onThisBerth,
  timesTable,
  writeResults
} from "./support.ts"

const WITHOUT = "unconfined"

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const contenders = yield* Effect.forEach([WITHOUT, "default"] as const, (seccomp) =>
      onThisBerth(seccomp, oneContainer({ seccomp }))
    )
    const { summaries } = yield* interleave(contenders, { rounds, warmups: 50 })
    yield* Console.log(timesTable(summaries, WITHOUT))
    const added = (summaries.default!.median - summaries[WITHOUT]!.median) * 1000
    yield* Console.log(`The default policy adds ${added.toFixed(0)} µs to the median.`)
    yield* Console.log(`written: ${writeResults("seccomp", { machine: machine(), rounds, summaries })}`)
  })

export const seccomp = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "300" } } })
  return onBerth(measure(Number(values.rounds)))
}
