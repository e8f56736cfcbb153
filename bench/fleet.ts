/**
 * What another machine costs: commands and output of a container of a fleet next to those of one here, the start of many containers on
 * several runners, and the time until the end of a runner is known. The runners are processes of this machine, by Unix sockets.
 */
import { type ChildProcess, spawn } from "node:child_process"
import * as fs from "node:fs"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import * as NodeContext from "@effect/platform-node/NodeContext"
import { Container, Image } from "berth"
import * as Fleet from "berth/fleet"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { databaseCost } from "./fleetDatabase.ts"
import { swarmService } from "./rivals.ts"
import {
  build,
  type Contender,
  findProgram,
  interleave,
  machine,
  milliseconds,
  onBerth,
  quantile,
  table,
  targetsTable,
  temporaryFolder,
  timed,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const HERE = "exec, here"
const THERE = "exec, by a fleet"
const OUTPUT_BYTES = 256 * 1024 * 1024
const CONTAINERS = 500
const RUNNERS = 4
const WARMUPS = 20
const LEASE_MILLIS = 2000

interface Runners {
  readonly child: ChildProcess
  readonly addresses: ReadonlyArray<string>
}

/** A process with `count` runners, until the scope closes. */
const runners = (folder: string, name: string, count = 1): Effect.Effect<Runners, Unmeasured, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<Runners & { readonly ended: Promise<void> }, Unmeasured>((resume) => {
      const script = fileURLToPath(new URL("fleetRunner.ts", import.meta.url))
      const child = spawn(process.execPath, ["--import", "tsx", script, folder, name, String(count)], {
        stdio: ["pipe", "pipe", "inherit"]
      })
      const ended = new Promise<void>((end) => child.on("close", () => end()))
      ended.then(() => resume(Effect.fail(unmeasured(`the runner ${name} has ended`))))
      createInterface({ input: child.stdout }).once("line", (line) =>
        resume(Effect.succeed({ child, ended, ...JSON.parse(line) }))
      )
    }),
    ({ child, ended }) =>
      Effect.promise(() => {
        child.stdin!.end()
        return ended
      })
  )

/** The context of programs that use these runners. */
const fleet = (addresses: ReadonlyArray<string>) =>
  Layer.build(Layer.fresh(Fleet.layer({ runners: addresses })))

const sleeping: Container.StartOptions = { command: ["sleep", "infinity"], limits: { memory: "16MiB" } }

const start = Effect.flatMap(
  Effect.suspend(() => Image.pull("host")),
  (image) => Container.start(image, sleeping)
)

const running = (box: Container.Container) =>
  Effect.asVoid(Container.exec(box, ["true"])).pipe(Effect.mapError(unmeasured))

/** Bytes a second of a container's output. */
const rate = (box: Container.Container): Effect.Effect<number, Unmeasured> =>
  Effect.scoped(
    Effect.gen(function* () {
      const command = ["head", "--bytes", String(OUTPUT_BYTES), "/dev/zero"]
      const process = yield* Container.execStream(box, command, { stdout: "pipe" })
      const millis = yield* timed(Stream.runDrain(process.stdout))
      return OUTPUT_BYTES / (millis / 1000)
    })
  ).pipe(Effect.mapError(unmeasured))

/** The times of starts, one after the other, all of which run until the scope closes. */
const starts = <R>(get: Effect.Effect<Image.Image, unknown, R>, count: number) =>
  Effect.gen(function* () {
    const image = yield* get
    return yield* Effect.forEach(Array.from({ length: count }), () => timed(Container.start(image, sleeping)))
  }).pipe(Effect.mapError(unmeasured))

/** The same work as a service of Docker Swarm, where dockerd runs. */
const swarmStarts = (folder: string) =>
  Effect.gen(function* () {
    if (findProgram("dockerd") === undefined) return yield* unmeasured("no dockerd")
    fs.mkdirSync(folder)
    const { name, run } = yield* swarmService(folder, yield* build("network"))
    const times = yield* Effect.forEach([1, 2, 3, 4, 5], () => run)
    return [[`${name}, 5`, times] as const]
  }).pipe(
    Effect.catchAll(({ message }) =>
      Effect.as(
        Console.log(`skipped: docker swarm: ${message}`),
        [] as Array<readonly [string, ReadonlyArray<number>]>
      )
    )
  )

/** From the end of a runner by SIGKILL until the program knows. */
const detection = (folder: string, how: NodeJS.Signals) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { addresses, child } = yield* runners(folder, `lost-${how}`)
      const there = yield* fleet(addresses)
      const box = yield* Effect.provide(start, there)
      child.kill(how)
      const millis = yield* timed(Effect.flip(box.exit))
      child.kill("SIGCONT")
      return millis
    })
  ).pipe(Effect.mapError(unmeasured))

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const folder = yield* temporaryFolder
    const four = yield* Effect.forEach(
      Array.from({ length: RUNNERS }, (_, index) => index),
      (index) => runners(folder, `runner${index}`)
    )
    const addresses = four.flatMap((runner) => runner.addresses)
    const there = yield* fleet(addresses)
    const one = yield* Effect.map(fleet(four[0]!.addresses), (context) => context)
    const here = yield* Effect.flatMap(Image.host, (image) => Container.start(image, sleeping))
    const far = yield* Effect.provide(start, one)
    const contenders: ReadonlyArray<Contender> = [
      { name: HERE, run: timed(running(here)) },
      { name: THERE, run: timed(running(far)) }
    ]
    const { summaries } = yield* interleave(contenders, { rounds, warmups: WARMUPS })
    yield* Console.log(`${timesTable(summaries, HERE)}\n`)
    const more = summaries[THERE]!.median - summaries[HERE]!.median

    const rates = yield* Effect.forEach([here, far, here, far], rate)
    const [local, remote] = [Math.max(rates[0]!, rates[2]!), Math.max(rates[1]!, rates[3]!)]
    yield* Console.log(
      `${table([
        ["output", "MB/s"],
        ["here", (local / 1e6).toFixed(0)],
        ["by a fleet", (remote / 1e6).toFixed(0)]
      ])}\n`
    )

    const alone = yield* Effect.scoped(starts(Image.host, 100))
    // As above: a runner's first starts are those of a new program, and it runs for days.
    yield* Effect.scoped(Effect.provide(starts(Image.pull("host"), WARMUPS * RUNNERS), there))
    const many = yield* Effect.scoped(Effect.provide(starts(Image.pull("host"), CONTAINERS), there))
    const swarm = yield* Effect.scoped(swarmStarts(`${folder}/swarm`))
    const rows = [
      ["here, 100", alone],
      [`on ${RUNNERS} runners, ${CONTAINERS}`, many]
    ] as const
    const cost: Array<readonly [string, ReadonlyArray<number>]> = []
    for (const count of [1, 4, 16]) {
      const times = yield* Effect.scoped(
        Effect.gen(function* () {
          const rooms = yield* runners(folder, `rooms${count}`, count)
          return yield* Effect.provide(starts(Image.pull("host"), 60), yield* fleet(rooms.addresses))
        })
      )
      cost.push([`on ${count} in one process, 60`, times])
    }
    yield* Console.log(
      `${table([
        ["starts, milliseconds", "p50", "p95"],
        ...[...rows, ...cost, ...swarm].map(([name, times]) => [
          name,
          milliseconds(quantile(times, 0.5)),
          milliseconds(quantile(times, 0.95))
        ])
      ])}\n`
    )
    yield* Effect.matchEffect(databaseCost, {
      onFailure: ({ message }) => Console.log(`skipped: the database: ${message}`),
      onSuccess: ({ read, write }) =>
        Console.log(
          `a Postgres with 1,000 runners: ${write.toFixed(0)} µs of a CPU for a runner's write, ${read.toFixed(0)} for a program's read; for 1,000 runners and 100 programs ${(((500 * write + 50 * read) / 1e6) * 100).toFixed(0)} % of a CPU\n`
        )
    })
    const killed = yield* detection(folder, "SIGKILL")
    const stopped = yield* detection(folder, "SIGSTOP")
    yield* Console.log(
      `the end of a runner is known after ${milliseconds(killed)} ms, and that it is stopped after ${milliseconds(stopped)} ms, with a lease of ${LEASE_MILLIS}\n`
    )
    yield* Console.log(
      targetsTable(
        [
          { what: `${THERE} - ${HERE}, ms`, value: more, atMost: 3 },
          { what: "output by a fleet, MB/s", value: remote / 1e6, atLeast: 100 },
          { what: `start on ${RUNNERS} runners at p95, ms`, value: quantile(many, 0.95), atMost: 20 },
          { what: "a stopped runner is known, / lease", value: stopped / LEASE_MILLIS, atMost: 1 }
        ],
        "medians"
      )
    )
    const results = { machine: machine(), rounds, summaries, local, remote, starts: many, killed, stopped }
    yield* Console.log(`written: ${writeResults("fleet", results)}`)
  }).pipe(Effect.scoped, Effect.mapError(unmeasured), Effect.provide(NodeContext.layer))

export const fleetCosts = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "200" } } })
  return onBerth(measure(Number(values.rounds)))
}
