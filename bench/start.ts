/**
 * What starting a container costs: `true` in new namespaces, with limits, on an overlay of the host's root, until its
 * end is known and nothing of it is left. All contenders take turns in one run.
 */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import { createInterface } from "node:readline"
import { parseArgs } from "node:util"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import * as NodeContext from "@effect/platform-node/NodeContext"
import { Berth, Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { bubblewrap, runtime } from "./oci.ts"
import {
  build,
  type Contender,
  capture,
  interleave,
  isMet,
  lineProgram,
  type Measured,
  machine,
  median,
  oneContainer,
  onThisBerth,
  program,
  ratio,
  type Summaries,
  shareFilter,
  summarize,
  type Target,
  table,
  targetsTable,
  temporaryFolder,
  timed,
  timesTable,
  Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const WARMUPS = 150
const HEAP_BYTES = 1024 ** 3
const IN_FLIGHT = 8
const BURST = 400
const BURSTS = 3
const LEAK_CONTAINERS = 100

const LIMIT = "the limit (C, no library)"
const BERTH = "Berth"
const SPAWN = "child_process.spawn"
const CRUN = "crun run"

// Contenders

const limit = (path: string): Effect.Effect<Contender, never, Scope.Scope> => program(LIMIT, path, ["0"])

const options: Container.StartOptions = { limits: { memory: "64MiB", pids: 64, cpus: 0.5 } }

const one: Effect.Effect<void, Unmeasured, Berth.Berth> = oneContainer(options)

const berth: Effect.Effect<Contender, never, Berth.Berth> = onThisBerth(BERTH, one)

// bench/limit.c does what these do, besides the cgroup's.
const mirrored =
  "process session keyring stdio unshare loopback hostname overlay-memory attach-root mask mount mount bind bind bind bind bind bind " +
  "symlink symlink symlink symlink symlink mount files mount mount mount mask readonly readonly pivot working-directory umask " +
  "bounding user capabilities no-new-privileges seccomp exec"

/** Gives the limit Berth's filter, and says so where Berth's plan has changed and the limit has not. */
const checkMirror: Effect.Effect<void, Unmeasured, Scope.Scope> = Effect.flatMap(Image.host, (image) =>
  Container.plan(image, { ...options, command: ["true"] })
).pipe(
  Effect.mapError(unmeasured),
  Effect.tap(shareFilter),
  Effect.flatMap(({ operations }) => {
    const own = operations.map(({ op }) => op).filter((op) => !op.startsWith("cgroup-"))
    return own.join(" ") === mirrored
      ? Effect.void
      : Console.log("note: the plan is another one than bench/limit.c performs: the ratios to it are off\n")
  })
)

const bareSpawn: Contender = {
  name: SPAWN,
  run: timed(
    Effect.async<void, Unmeasured>((resume) => {
      const child = spawn("/bin/true")
      child.on("error", (cause) => resume(Effect.fail(unmeasured(cause))))
      child.on("exit", () => resume(Effect.void))
    })
  )
}

/** A spawn for each line that comes in on stdin. */
const spawner: Effect.Effect<void, Unmeasured> = Effect.flatMap(
  Effect.sync(() => createInterface({ input: process.stdin })[Symbol.asyncIterator]()),
  (lines) =>
    Effect.iterate(true, {
      while: (more) => more,
      body: () =>
        Effect.flatMap(
          Effect.promise(() => lines.next()),
          ({ done }) =>
            done === true
              ? Effect.succeed(false)
              : Effect.flatMap(bareSpawn.run, (elapsed) => Effect.as(Console.log(elapsed), true))
        )
    })
)

/**
 * The same from another process, with as much loaded as this one: libuv forks, and a fork leaves all of the parent's
 * memory write-protected, so that whoever runs next in it pays for the page faults.
 */
const spawnElsewhere: Effect.Effect<Contender, never, Scope.Scope> = Effect.map(
  lineProgram(process.execPath, [...process.execArgv, process.argv[1]!, "start", "--spawner"]),
  ({ ask }) => ({
    name: SPAWN,
    run: Effect.flatMap(ask("go"), (answer) =>
      Number.isFinite(Number(answer)) ? Effect.succeed(Number(answer)) : Effect.fail(unmeasured(answer))
    )
  })
)

// Passes

const pass = (contenders: ReadonlyArray<Contender>, rounds: number): Effect.Effect<Measured> =>
  interleave(contenders, { rounds, warmups: WARMUPS })

const collectGarbage = (): void => {
  v8.setFlagsFromString("--expose-gc")
  const gc = vm.runInNewContext("gc") as () => void
  for (let k = 0; k < 3; k++) gc()
}

/** Live objects, small and linked as a program's are: what a plain fork would have to copy the page tables of. */
const fillHeap = (bytes: number): ReadonlyArray<unknown> => {
  const kept: Array<unknown> = []
  while (process.memoryUsage().heapUsed < bytes) {
    const chunk: Array<unknown> = []
    for (let k = 0; k < 50000; k++)
      chunk.push({ index: k, name: `object ${k}`, list: [k, k + 1], before: chunk[k - 1] })
    kept.push(chunk)
  }
  return kept
}

interface HeapPass {
  readonly heapBytes: number
  readonly summaries: Summaries
}

/**
 * Runs in a process of its own: prints its summaries as a line of JSON. child_process.spawn has its turns afterwards,
 * as `spawnElsewhere` explains.
 */
const heapPass = (rounds: number): Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const kept = fillHeap(HEAP_BYTES)
    collectGarbage()
    const first = yield* pass([yield* limit(yield* build("limit")), yield* berth], rounds)
    const second = yield* pass([bareSpawn], rounds)
    const summaries = { ...first.summaries, ...second.summaries }
    const result: HeapPass = { heapBytes: process.memoryUsage().heapUsed, summaries }
    if (kept.length > 0) yield* Console.log(JSON.stringify(result))
  })

const withLargeHeap = (rounds: number): Effect.Effect<HeapPass, Unmeasured> =>
  Effect.map(
    capture(process.execPath, [
      "--max-old-space-size=4096",
      ...process.execArgv,
      ...[process.argv[1]!, "start", "--heap-pass", "--rounds", String(rounds)]
    ]),
    (output) => JSON.parse(output.trim().split("\n").at(-1)!) as HeapPass
  )

interface Throughput {
  /** Containers a second, of each burst. */
  readonly limit: ReadonlyArray<number>
  readonly berth: ReadonlyArray<number>
}

const throughput = (path: string): Effect.Effect<Throughput, Unmeasured, Berth.Berth> =>
  Effect.gen(function* () {
    const limitOnce = Effect.map(
      capture(path, [String(BURST / IN_FLIGHT), String(IN_FLIGHT)]),
      (output) => BURST / (Number(output) / 1e6)
    )
    const berthOnce = Effect.map(
      timed(
        Effect.forEach(Array.from({ length: BURST }), () => one, {
          concurrency: IN_FLIGHT,
          discard: true
        })
      ),
      (elapsed) => BURST / (elapsed / 1000)
    )
    const results = { limit: [] as Array<number>, berth: [] as Array<number> }
    for (let burst = 0; burst < BURSTS; burst++) {
      if (burst % 2 === 0) results.limit.push(yield* limitOnce)
      results.berth.push(yield* berthOnce)
      if (burst % 2 === 1) results.limit.push(yield* limitOnce)
    }
    return results
  })

// Leaks

interface Usage {
  readonly rssKiB: number
  readonly descriptors: number
}

const usage = (pid: number): Usage => ({
  rssKiB: Number(/^VmRSS:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]),
  descriptors: fs.readdirSync(`/proc/${pid}/fd`).length
})

interface Leak {
  readonly process: string
  readonly before: Usage
  readonly after: Usage
}

const leaks: Effect.Effect<ReadonlyArray<Leak>, Unmeasured, Berth.Berth> = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const look = Effect.sync(() => {
    collectGarbage()
    return [usage(process.pid), usage(supervisor.pid)] as const
  })
  yield* Effect.repeatN(one, 9)
  const before = yield* look
  yield* Effect.repeatN(one, LEAK_CONTAINERS - 1)
  const after = yield* look
  return [
    { process: "this process", before: before[0], after: after[0] },
    { process: "supervisor", before: before[1], after: after[1] }
  ]
})

// Reports

const leakTable = (found: ReadonlyArray<Leak>): string =>
  table([
    [`over ${LEAK_CONTAINERS} containers`, "resident KiB", "descriptors"],
    ...found.map(({ process, before, after }) => [
      process,
      `${before.rssKiB} -> ${after.rssKiB}`,
      `${before.descriptors} -> ${after.descriptors}`
    ])
  ])

// The benchmark

const available = <A extends Contender>(
  name: string,
  effect: Effect.Effect<A, Unmeasured, Scope.Scope>
): Effect.Effect<ReadonlyArray<A>, never, Scope.Scope> =>
  Effect.matchEffect(effect, {
    onSuccess: (contender) => Effect.succeed([contender]),
    onFailure: ({ message }) => Effect.as(Console.log(`skipped: ${name}: ${message}`), [])
  })

const compare = (
  rounds: number,
  temporary: string
): Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const host = machine()
    const limitPath = yield* build("limit")
    yield* Console.log(
      `Linux ${host.kernel} ${host.architecture}, ${host.cpus} CPUs, ${host.runtime}, load ${host.load.toFixed(1)}; ${rounds} rounds\n`
    )
    yield* checkMirror
    const contenders: ReadonlyArray<Contender> = [
      yield* limit(limitPath),
      yield* berth,
      yield* spawnElsewhere,
      ...(yield* available(CRUN, runtime("crun", temporary))),
      ...(yield* available("runc run", runtime("runc", temporary))),
      ...(yield* available("bwrap", bubblewrap(temporary)))
    ]
    const { summaries, skipped } = yield* pass(contenders, rounds)
    for (const [name, why] of skipped) yield* Console.log(`skipped: ${name}: ${why}`)
    yield* Console.log(`${timesTable(summaries, LIMIT)}\n`)

    const heap = yield* withLargeHeap(rounds)
    yield* Console.log(
      `With ${(heap.heapBytes / 1024 ** 3).toFixed(1)} GiB of live JavaScript objects:\n${timesTable(heap.summaries, LIMIT)}\n`
    )

    const rates = yield* throughput(limitPath)
    yield* Console.log(
      table([
        [`containers a second, ${IN_FLIGHT} in flight`, "median", "bursts"],
        [LIMIT, median(rates.limit).toFixed(0), rates.limit.map((rate) => rate.toFixed(0)).join(" ")],
        [BERTH, median(rates.berth).toFixed(0), rates.berth.map((rate) => rate.toFixed(0)).join(" ")]
      ])
    )
    const found = yield* leaks
    yield* Console.log(`\n${leakTable(found)}\n`)

    const targets: ReadonlyArray<Target> = [
      { what: "Berth / the limit", value: ratio(summaries, BERTH, LIMIT), atMost: 1.15 },
      { what: "Berth / child_process.spawn", value: ratio(summaries, BERTH, SPAWN), atMost: 0.85 },
      { what: "Berth / crun run", value: ratio(summaries, BERTH, CRUN), atMost: 0.3 },
      { what: "Berth / the limit, 1 GiB heap", value: ratio(heap.summaries, BERTH, LIMIT), atMost: 1.15 },
      {
        what: "Berth / child_process.spawn, 1 GiB heap",
        value: ratio(heap.summaries, BERTH, SPAWN),
        atMost: 0.85
      },
      {
        what: `throughput of Berth / the limit, ${IN_FLIGHT} in flight`,
        value: median(rates.berth) / median(rates.limit),
        atLeast: 0.9
      }
    ]
    yield* Console.log(targetsTable(targets))
    const path = writeResults("start", {
      machine: host,
      rounds,
      times: summaries,
      skipped: Object.fromEntries(skipped),
      heap,
      throughput: rates,
      leaks: found,
      targets: targets.map((target) => ({ ...target, met: isMet(target) }))
    })
    yield* Console.log(`\nwritten: ${path}`)
  })

const MICROS_A_MARK = 100

/** Where the time of the system calls goes: medians of each phase, a mark for each 100 µs. */
const phases = (rounds: number): Effect.Effect<void, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    yield* checkMirror
    const phased = yield* lineProgram(yield* build("limit"), ["0", "1", "phases"])
    const names = (yield* phased.ask("")).split(" ")
    const samples: Array<ReadonlyArray<number>> = []
    for (let round = -WARMUPS; round < rounds; round++) {
      const answer = (yield* phased.ask("go")).split(" ").map(Number)
      if (round >= 0) samples.push(answer)
    }
    const columns = ["total", ...names].map((name, column) => ({
      name,
      ...summarize(samples.map((sample) => sample[column]!))
    }))
    const total = columns[0]!.median
    yield* Console.log(
      table([
        ["microseconds", "p50", "p90", "min", "share"],
        ...columns.map(({ name, median, p90, min }) => [
          name,
          median.toFixed(0),
          p90.toFixed(0),
          min.toFixed(0),
          `${((median / total) * 100).toFixed(1)} %`
        ])
      ])
    )
    yield* Console.log(`\nOne # is ${MICROS_A_MARK} µs of the median:`)
    yield* Console.log(
      columns
        .slice(1)
        .map(({ name, median }) => `${name.padEnd(28)}${"#".repeat(Math.round(median / MICROS_A_MARK))}`)
        .join("\n")
    )
  })

export const start = (args: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.gen(function* () {
    const { values } = yield* Effect.try({
      try: () =>
        parseArgs({
          args: [...args],
          options: {
            rounds: { type: "string", default: "100" },
            phases: { type: "boolean", default: false },
            "heap-pass": { type: "boolean", default: false },
            spawner: { type: "boolean", default: false }
          }
        }),
      catch: unmeasured
    })
    const rounds = Number(values.rounds)
    if (!Number.isInteger(rounds) || rounds < 1)
      return yield* new Unmeasured({ message: "--rounds takes a whole number, at least 1" })
    if (values.phases) return yield* phases(rounds)
    if (values.spawner) return yield* spawner
    const temporary = yield* temporaryFolder
    const layer = Berth.layerWith({ folder: `${temporary}/berth` }).pipe(Layer.provide(NodeContext.layer))
    yield* Effect.provide(
      values["heap-pass"] ? heapPass(rounds) : compare(rounds, temporary),
      Layer.mapError(layer, unmeasured)
    )
  }).pipe(
    Effect.scoped,
    Effect.catchAll(({ message }) =>
      Effect.sync(() => {
        console.error(message)
        process.exitCode = 1
      })
    )
  )
