/**
 * A program that tries every operation on a container that attacks it, and meanwhile on an innocent one:
 * `attackedOperations.ts FOLDER OPTIONS`, the last as JSON. It prints a line of JSON, a `Report`. It is a program of its
 * own because it reports by how much its memory has grown.
 */
import * as fs from "node:fs"
import { Command } from "@effect/platform"
import { CommandExecutor } from "@effect/platform/CommandExecutor"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Berth, Cgroup, Container, Image, WaitFor } from "../../lib/index.ts"
import { compile } from "./attack.ts"
import { berthIn } from "./effect.ts"
import { makeRoot } from "./rootfs.ts"

export interface Report {
  /** The operations that died on the attacker instead of failing with an error, each with its cause. */
  readonly died: ReadonlyArray<string>
  /** The operations that fail on the innocent container without an attacker, as this machine lacks something. */
  readonly unavailable: ReadonlyArray<string>
  /** The others that failed on the innocent container during the attack, each with its cause. */
  readonly disturbed: ReadonlyArray<string>
  /** By how many bytes the resident memory was larger during the attack than before, at most. */
  readonly grown: number
}

type Operation = (box: Container.Container) => Effect.Effect<unknown, unknown, Berth.Berth | Scope.Scope>

const SECONDS_HELD = 3
const SECONDS_OTHERS = 30
const MILLIS_SAMPLED = 50

const [folder, json] = process.argv.slice(2) as [string, string]
const options = JSON.parse(json) as Container.StartOptions

/** What a program does with a container. Each takes milliseconds where nothing attacks. */
const operations: Readonly<Record<string, Operation>> = {
  exec: (box) => Container.exec(box, ["echo", "well"]),
  "exec as a user of its own files": (box) => Container.exec(box, ["true"], { user: "root" }),
  "exec with a terminal": (box) => Container.exec(box, ["true"], { terminal: true }),
  execStream: (box) =>
    Effect.flatMap(Container.execStream(box, ["cat"], { stdin: "pipe" }), (process) =>
      Effect.zipRight(Stream.run(Stream.make(new Uint8Array(1000)), process.stdin), process.exit)
    ),
  commandExecutor: (box) =>
    Effect.provideService(
      Command.string(Command.make("uname", "-n")),
      CommandExecutor,
      Container.commandExecutor(box)
    ),
  signal: (box) => Container.signal(box, "SIGURG"),
  top: (box) => Container.top(box),
  stats: (box) => Container.stats(box),
  "pause and resume": (box) => Effect.zipRight(Container.pause(box), Container.resume(box)),
  cgroup: (box) => Effect.flatMap(Container.cgroup(box), (cgroup) => Cgroup.update(cgroup, { pids: 100 })),
  logs: (box) => Stream.runCollect(Stream.take(Container.logs(box), 3)),
  copyIn: (box) => Container.copyIn(box, `${folder}/source`, "/tmp/copied"),
  copyOut: (box) => Container.copyOut(box, "/etc", `${folder}/out`),
  tarOut: (box) => Stream.runDrain(Container.tarOut(box, "/etc")),
  tarIn: (box) => Stream.run(Container.tarOut(box, "/etc"), Container.tarIn(box, "/tmp")),
  "fileSystem.writeFile": (box) => Container.fileSystem(box).writeFileString("/tmp/file", "text"),
  "fileSystem.readFile": (box) => Container.fileSystem(box).readFile("/etc/passwd"),
  "fileSystem.readDirectory": (box) => Container.fileSystem(box).readDirectory("/", { recursive: false }),
  "fileSystem.copy": (box) => Container.fileSystem(box).copy("/etc", "/tmp/etc", { overwrite: true }),
  "WaitFor.command": (box) => WaitFor.command(box, ["true"]),
  "WaitFor.log": (box) => WaitFor.log(box, /./),
  "a container in its namespaces": (box) =>
    Effect.flatMap(Image.host, (image) =>
      Container.run(image, { command: ["true"], namespaces: { pid: box, ipc: box, network: box } })
    ),
  commit: (box) => Container.commit(box)
}

/** Runs each operation on a container, and gives how it ended, by itself or at the limit. */
const each = (box: Container.Container, seconds: number) =>
  Effect.forEach(Object.entries(operations), ([name, operation]) =>
    Effect.gen(function* () {
      fs.rmSync(`${folder}/out`, { recursive: true, force: true })
      const exit = yield* Effect.exit(Effect.scoped(Effect.timeout(operation(box), seconds * 1000)))
      return { name, exit }
    })
  )

type Ends = Effect.Effect.Success<ReturnType<typeof each>>

const failed = (ends: Ends): Ends => ends.filter(({ exit }) => Exit.isFailure(exit))

const printed = (ends: Ends): ReadonlyArray<string> =>
  ends.flatMap(({ exit, name }) =>
    Exit.isFailure(exit) ? [`${name}: ${Cause.pretty(exit.cause).split("\n")[0]}`] : []
  )

/** The result of the effect, and by how many bytes the resident memory was larger than before it, at most. */
const measured = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const rss = (): number => process.memoryUsage().rss
    const before = rss()
    let most = before
    const sample = (): void => {
      most = Math.max(most, rss())
    }
    const timer = setInterval(sample, MILLIS_SAMPLED)
    return Effect.map(effect, (result) => {
      sample()
      return { result, grown: most - before }
    }).pipe(Effect.ensuring(Effect.sync(() => clearInterval(timer))))
  })

const report: Effect.Effect<Report, unknown, Berth.Berth | Scope.Scope> = Effect.gen(function* () {
  const root = `${folder}/root`
  compile(`${makeRoot(root)}/births`, "births.c")
  fs.writeFileSync(`${folder}/source`, "source")
  const image = yield* Image.import(root)
  const command = ["sh", "-c", "while :; do echo line; sleep 1; done"]
  const innocent = yield* Container.start(image, { ...options, command, limits: {} })
  const unavailable = failed(yield* each(innocent, SECONDS_OTHERS)).map(({ name }) => name)
  const attacked = Effect.gen(function* () {
    const attacker = yield* Container.start(image, { ...options, command: ["/births"], limits: {} })
    return [yield* each(attacker, SECONDS_HELD), yield* each(innocent, SECONDS_OTHERS)] as const
  })
  const {
    grown,
    result: [attackers, others]
  } = yield* measured(Effect.scoped(attacked))
  return {
    died: printed(attackers.filter(({ exit }) => Exit.isFailure(exit) && Cause.isDie(exit.cause))),
    unavailable,
    disturbed: printed(failed(others).filter(({ name }) => !unavailable.includes(name))),
    grown
  }
})

const found = await Effect.runPromise(report.pipe(Effect.scoped, Effect.provide(berthIn(`${folder}/berth`))))
fs.writeSync(1, `${JSON.stringify(found)}\n`)
process.exit(0)
