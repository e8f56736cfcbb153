/**
 * What cgroups cost: in a container's start and end, when statistics are read, and when those of 500 are read every second.
 */
import * as fs from "node:fs"
import { parseArgs } from "node:util"
import { Cgroup, Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import {
  interleave,
  machine,
  milliseconds,
  onBerth,
  oneContainer,
  onThisBerth,
  timed,
  timesTable,
  unmeasured,
  writeResults
} from "./support.ts"

const MANY = 500
const TIMES = 100
const SECONDS = 3

const limits: Cgroup.Limits = { memory: "64MiB", cpus: 0.5, pids: 64 }

const WITHOUT = "no cgroup"

const starts = Effect.all([
  onThisBerth(WITHOUT, oneContainer({})),
  onThisBerth("a cgroup", oneContainer({ limits: {} })),
  onThisBerth("memory, cpus, pids", oneContainer({ limits })),
  onThisBerth("and devices", oneContainer({ limits: { ...limits, devices: [] } })),
  onThisBerth("Cgroup.make and its end", Effect.scoped(Effect.mapError(Cgroup.make(limits), unmeasured)))
])

// What Cgroup.stats reads, as far as it is there.
const statistics =
  /^(memory\.(stat|current|peak|max|events|swap\.current|oom_control|usage_in_bytes|max_usage_in_bytes|limit_in_bytes|memsw\.usage_in_bytes|kmem\.usage_in_bytes|kmem\.tcp\.usage_in_bytes)|cpu\.(stat|max|cfs_quota_us|cfs_period_us)|cpuacct\.usage(_user|_sys)?|pids\.(current|peak|max|events)|io\.stat|(cpu|memory|io)\.pressure|(rdma|misc)\.current|hugetlb\.\w+\.(current|max|events))$/

const filesOf = (cgroup: Cgroup.Cgroup): ReadonlyArray<string> =>
  cgroup.folders.flatMap(({ path }) =>
    fs
      .readdirSync(path)
      .filter((name) => statistics.test(name))
      .map((name) => `${path}/${name}`)
  )

/** How long a read of everything takes, and one of the same files without anything made of them. */
const reads = Effect.gen(function* () {
  const cgroup = yield* Cgroup.make(limits)
  yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"], cgroup })
  const files = filesOf(cgroup)
  const byHand = `its ${files.length} files by hand, ${TIMES} times`
  const contenders = [
    {
      name: `Cgroup.stats, ${TIMES} times`,
      run: timed(Effect.repeatN(Effect.mapError(Cgroup.stats(cgroup), unmeasured), TIMES - 1))
    },
    {
      name: byHand,
      run: timed(
        Effect.sync(() => {
          for (let k = 0; k < TIMES; k++) for (const file of files) fs.readFileSync(file, "utf8")
        })
      )
    }
  ]
  return { byHand, contenders, versions: [...new Set(cgroup.folders.map(({ version }) => version))] }
})

/** The milliseconds of CPU time that it takes each second to read the statistics of many. */
const everySecond = Effect.gen(function* () {
  const all = yield* Effect.forEach(Array.from({ length: MANY }), () => Cgroup.make({}))
  const used = process.cpuUsage()
  for (let second = 0; second < SECONDS; second++) {
    yield* Effect.forEach(all, Cgroup.stats, { discard: true })
    yield* Effect.sleep("1 second")
  }
  const { system, user } = process.cpuUsage(used)
  return (system + user) / 1000 / SECONDS
})

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const { summaries } = yield* interleave(yield* starts, { rounds, warmups: 20 })
    yield* Console.log(timesTable(summaries, WITHOUT))
    const { byHand, contenders, versions } = yield* reads
    const reading = yield* interleave(contenders, { rounds: Math.min(rounds, 50), warmups: 5 })
    yield* Console.log(timesTable(reading.summaries, byHand))
    const every = yield* Effect.scoped(everySecond)
    yield* Console.log(
      `${MANY} cgroups' statistics every second: ${milliseconds(every)} ms of CPU time a second, ${(every / 10).toFixed(1)} % of one core`
    )
    const results = {
      machine: machine(),
      versions,
      rounds,
      summaries,
      reading: reading.summaries,
      everySecond: every
    }
    yield* Console.log(`written: ${writeResults("cgroup", results)}`)
  })

export const cgroup = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "200" } } })
  return onBerth(measure(Number(values.rounds)))
}
