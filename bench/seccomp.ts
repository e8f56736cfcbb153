/**
 * The cost of the default seccomp policy in a start: `true` in a container with the policy, with the program that libseccomp
 * makes of it (security/bpfSearch.ts makes that one shorter), and without a policy, in turns, each until nothing of the
 * container is left.
 */
import { parseArgs } from "node:util"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { Berth } from "../lib/index.ts"
import * as Capabilities from "../lib/internal/security/capabilities.ts"
import * as Seccomp from "../lib/internal/security/seccomp.ts"
import { defaultProfile } from "../lib/internal/security/seccompDefault.ts"
import {
  berthOfItsOwn,
  interleave,
  machine,
  onBerth,
  oneContainer,
  onThisBerth,
  timed,
  timesTable,
  writeResults
} from "./support.ts"

const WITHOUT = "unconfined"
const LIBSECCOMP = "default, by libseccomp"

/** A Berth whose default policy is the program that libseccomp makes, a binary tree of comparisons. */
const withLibseccomp = Effect.gen(function* () {
  const berth = yield* berthOfItsOwn
  const { filters } = Context.get(berth, Berth.Berth).memory
  const set = Capabilities.maskOf(Capabilities.defaults)
  const [key, filter] = [...filters].find(([name]) => name.startsWith("default"))!
  const program = Seccomp.assemble(defaultProfile, set)
  filters.set(key, { ...filter, operation: { ...filter.operation, program } as typeof filter.operation })
  const run = oneContainer({ seccomp: "default" })
  return { name: LIBSECCOMP, run: Effect.provide(timed(run), berth) }
})

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const contenders = yield* Effect.forEach([WITHOUT, "default"] as const, (seccomp) =>
      onThisBerth(seccomp, oneContainer({ seccomp }))
    )
    const { summaries } = yield* interleave([...contenders, yield* withLibseccomp], { rounds, warmups: 50 })
    yield* Console.log(timesTable(summaries, WITHOUT))
    const added = (summaries.default!.median - summaries[WITHOUT]!.median) * 1000
    const saved = (summaries[LIBSECCOMP]!.median - summaries.default!.median) * 1000
    yield* Console.log(
      `The default policy adds ${added.toFixed(0)} µs to the median; libseccomp's program ${saved.toFixed(0)} µs more.`
    )
    yield* Console.log(`written: ${writeResults("seccomp", { machine: machine(), rounds, summaries })}`)
  })

export const seccomp = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "300" } } })
  return onBerth(measure(Number(values.rounds)))
}
