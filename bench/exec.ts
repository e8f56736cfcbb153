/**
 * What a command in a running container costs: `true`, from the call until its end is known. All contenders take turns
 * in one run.
 */
import { parseArgs } from "node:util"
import { Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { runtimeExec } from "./oci.ts"
import {
  build,
  type Contender,
  interleave,
  machine,
  onBerth,
  program,
  ratio,
  shareFilter,
  temporaryFolder,
  timed,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const LIMIT = "the limit (C, no library)"
const BERTH = "Berth"

const one = (box: Container.Container): Effect.Effect<void, Unmeasured> =>
  Effect.scoped(Effect.flatMap(Container.execStream(box, ["true"]), (process) => process.exit)).pipe(
    Effect.mapError(unmeasured),
    Effect.flatMap(({ exitCode }) =>
      exitCode === 0 ? Effect.void : Effect.fail(unmeasured(`exit code ${exitCode}`))
    )
  )

const targets = [
  { name: LIMIT, most: 1.25 },
  { name: "crun exec", most: 0.3 }
]

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const image = yield* Image.host
    const box = yield* Container.start(image, {
      command: ["sleep", "infinity"],
      limits: { memory: "256MiB" }
    })
    const folders = box.state.cgroup?.folders.map((folder) => folder.path) ?? []
    const temporary = yield* temporaryFolder
    yield* shareFilter(box.plan)
    const contenders: Array<Contender> = [
      yield* program(LIMIT, yield* build("exec"), [String(box.pid), ...folders]),
      { name: BERTH, run: timed(one(box)) }
    ]
    for (const name of ["crun", "runc"] as const) {
      const other = yield* Effect.either(runtimeExec(name, temporary))
      if (other._tag === "Right") contenders.push(other.right)
      else yield* Console.log(`skipped ${name} exec: ${other.left.message}`)
    }
    const { summaries, skipped } = yield* interleave(contenders, { rounds, warmups: 20 })
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    yield* Console.log(timesTable(summaries, LIMIT))
    for (const { name, most } of targets) {
      const value = ratio(summaries, BERTH, name)
      if (Number.isNaN(value)) continue
      yield* Console.log(
        `Berth / ${name}: ${value.toFixed(2)}, target <= ${most}: ${value <= most ? "met" : "not met"}`
      )
    }
    yield* Console.log(`written: ${writeResults("exec", { machine: machine(), rounds, summaries })}`)
  })

export const exec = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "200" } } })
  return onBerth(measure(Number(values.rounds)))
}
