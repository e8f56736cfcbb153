// Berth's main features on this machine's own root, without a download: a container gets limits, writes to a file,
// streams its output, reaches its limits, and ends with its scope. The program prints how long each phase took, and
// compares the machine's mounts, cgroups, processes and folders before and after.
import * as fs from "node:fs"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Berth, Container, Image } from "berth"
import { Console, Effect, Exit, Scope, Stream } from "effect"

const timeline: Array<readonly [phase: string, milliseconds: number]> = []

const timed = <A, E, R>(phase: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const before = performance.now()
    return Effect.tap(effect, () => Effect.sync(() => timeline.push([phase, performance.now() - before])))
  })

const say = (text: string) => Console.log(`  ${text}`)

const cgroups = (folder: string): ReadonlyArray<string> =>
  fs.existsSync(folder)
    ? fs
        .readdirSync(folder, { recursive: true, encoding: "utf8" })
        .filter((path) => /(^|\/)berth\.[^/]*$/.test(path))
    : []

const processes = (): ReadonlyArray<string> =>
  fs.readdirSync("/proc").filter((pid) => {
    try {
      return (
        /^\d+$/.test(pid) &&
        fs.readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ")[1] === String(process.pid)
      )
    } catch {
      return false
    }
  })

/** The resources that a container could leave behind on the machine. */
const machine = (folder: string) => ({
  mounts: fs.readFileSync("/proc/self/mountinfo", "utf8").trim().split("\n"),
  cgroups: cgroups("/sys/fs/cgroup"),
  processes: processes(),
  folders: fs.existsSync(`${folder}/run`) ? fs.readdirSync(`${folder}/run`) : []
})

const inside = Effect.gen(function* () {
  const image = yield* timed("image: this machine's own root", Image.host)
  const scope = yield* Scope.make()
  const box = yield* timed(
    "start, with limits of 64 MiB and 16 processes",
    Container.start(image, { command: ["sleep", "infinity"], limits: { memory: "64MiB", pids: 16 } })
  ).pipe(Scope.extend(scope))
  yield* say(`container ${box.id} runs as process ${box.pid} of the host`)

  const file = "/etc/hostname"
  const before = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : undefined
  const write = `echo written inside > ${file} && cat ${file}`
  const written = yield* timed("exec, a write to /etc/hostname", Container.exec(box, ["sh", "-c", write]))
  const after = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : undefined
  yield* say(`inside, ${file} says: ${written.stdout.trim()}`)
  yield* say(`on the host, it is ${before === after ? "untouched" : "CHANGED"}`)
  if (before !== after) return yield* Effect.dieMessage("the host's file was changed")

  const counter = "for i in 1 2 3; do echo line $i; sleep 0.1; done"
  yield* timed(
    "exec, output as it comes",
    Effect.scoped(
      Effect.flatMap(Container.execStream(box, ["sh", "-c", counter]), (counting) =>
        Stream.runForEach(Stream.splitLines(Stream.decodeText(counting.stdout)), (line) =>
          say(`it says: ${line}`)
        )
      )
    )
  )

  const eaten = yield* timed("exec, against the memory limit", Container.exec(box, ["tail", "/dev/zero"]))
  const stats = yield* Container.stats(box)
  const kills = stats.memory.oomKills ?? 0
  yield* say(`endless memory in a limit of 64 MiB: ended with ${eaten.signal}, OOM kills: ${kills}`)
  const forks = "for i in $(seq 40); do sleep 0.5 & done; wait"
  const bomb = yield* timed("exec, against the process limit", Container.exec(box, ["sh", "-c", forks]))
  yield* say(`40 processes in a limit of 16: ${bomb.stderr.trim().split("\n")[0]}`)
  if (bomb.stderr === "" || kills === 0) return yield* Effect.dieMessage("a limit did not bite")

  yield* timed("close the scope", Scope.close(scope, Exit.void))
})

const program = Effect.gen(function* () {
  const folder = process.geteuid?.() === 0 ? "/var/lib/berth" : `${process.env.HOME}/.local/share/berth`
  const before = machine(folder)
  yield* Console.log("\nA container of this machine's own root:")
  const began = performance.now()
  yield* timed("everything", Effect.scoped(inside).pipe(Effect.provide(Berth.layer)))

  yield* Console.log("\nTimeline:")
  const starting =
    (timeline.at(-1)?.[1] ?? 0) - timeline.slice(0, -1).reduce((sum, [, spent]) => sum + spent, 0)
  for (const [phase, spent] of [
    ["start and end of the supervisor, and its messages", starting] as const,
    ...timeline
  ])
    yield* say(`${spent.toFixed(1).padStart(9)} ms  ${phase}`)

  yield* Console.log(`\nLeft behind, ${(performance.now() - began).toFixed(0)} ms after the beginning:`)
  const after = machine(folder)
  for (const kind of ["mounts", "cgroups", "processes", "folders"] as const) {
    const left = after[kind].filter((item) => !(before[kind] as ReadonlyArray<string>).includes(item))
    yield* say(
      `${kind}: ${left.length === 0 ? `none (${before[kind].length} before, ${after[kind].length} after)` : left.join(", ")}`
    )
    if (left.length > 0) return yield* Effect.dieMessage(`${kind} were left behind`)
  }
})

program.pipe(Effect.provide(NodeContext.layer), NodeRuntime.runMain)
