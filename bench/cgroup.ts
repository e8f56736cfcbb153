/**
 * What cgroups cost: in a container's start and end, when statistics are read, and when those of 500 are read every second.
 */
import * as fs from "node:fs"
import { parseArgs } from "node:util"
import { type Berth, Cgroup, Container, Image } from "berth"
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

const MANY = 500

const limits: Cgroup.Limits = { memory: "64MiB", cpus: 0.5, pids: 64 }

const contenders: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["no cgroup", {}],
  ["a cgroup", { limits: {} }],
  ["memory, cpus, pids", { limits }],
  ["and devices", { limits: { ...limits, devices: [] } }]
]

const started = (options: Container.StartOptions) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, { ...options, command: ["true"] })).pipe(
    Effect.mapError(unmeasured),
    Effect.asVoid
  )

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

const report = (title: string, samples: ReadonlyMap<string, ReadonlyArray<number>>) => {
  const summaries = Object.fromEntries([...samples].map(([name, values]) => [name, summarize(values)]))
  const rows = Object.entries(summaries).map(([name, { median, min, p90 }]) => [
    name,
    ...[median, p90, min].map((value) => milliseconds(value))
  ])
  return Effect.as(Console.log(table([[title, "p50", "p90", "min"], ...rows])), summaries)
}

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const context = yield* Effect.context<Berth.Berth>()
    const made: Contender = {
      name: "Cgroup.make and its end",
      run: Effect.provide(timed(Effect.scoped(Effect.mapError(Cgroup.make(limits), unmeasured))), context)
    }
    const runs = contenders.map(
      ([name, options]): Contender => ({ name, run: Effect.provide(timed(started(options)), context) })
    )
    const starts = yield* interleave([...runs, made], { rounds, warmups: 20 })
    const summaries = yield* report("milliseconds", starts.samples)

    const cgroup = yield* Cgroup.make(limits)
    yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"], cgroup })
    const files = filesOf(cgroup)
    const times = 100
    const reads = yield* interleave(
      [
        {
          name: `Cgroup.stats, ${times} times`,
          run: timed(Effect.repeatN(Effect.mapError(Cgroup.stats(cgroup), unmeasured), times - 1))
        },
        {
          name: `its ${files.length} files by hand, ${times} times`,
          run: timed(
            Effect.sync(() => {
              for (let k = 0; k < times; k++) for (const file of files) fs.readFileSync(file, "utf8")
            })
          )
        }
      ],
      { rounds: Math.min(rounds, 50), warmups: 5 }
    )
    const reading = yield* report("milliseconds", reads.samples)

    const every = yield* Effect.scoped(
      Effect.gen(function* () {
        const all = yield* Effect.forEach(Array.from({ length: MANY }), () => Cgroup.make({}))
        const used = process.cpuUsage()
        const seconds = 3
        for (let second = 0; second < seconds; second++) {
          yield* Effect.forEach(all, Cgroup.stats, { discard: true })
          yield* Effect.sleep("1 second")
        }
        const { system, user } = process.cpuUsage(used)
        return (system + user) / 1000 / seconds
      })
    )
    yield* Console.log(
      `${MANY} cgroups' statistics every second: ${milliseconds(every)} ms of CPU time a second, ${(every / 10).toFixed(1)} % of one core`
    )
    const results = { machine: machine(), rounds, summaries, reading, everySecond: every }
    yield* Console.log(`written: ${writeResults("cgroup", results)}`)
  })

export const cgroup = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "200" } } })
  return onBerth(measure(Number(values.rounds)))
}
