/**
 * `berth demo`: Berth's main features on this machine's own root, without a download. A container gets limits, writes to a file,
 * streams its output, reaches its limits, and ends with its scope. The program prints how long each phase took, and
 * compares the machine's mounts, cgroups, processes and folders before and after.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import process from "node:process"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Berth from "../Berth.ts"
import type { BerthError, CgroupError } from "../BerthError.ts"
import * as Container from "../Container.ts"
import * as Image from "../Image.ts"
import { type Invocation, print, printJson } from "./invocation.ts"

const cgroups = (folder: string): ReadonlyArray<string> =>
  fs.existsSync(folder)
    ? fs
        .readdirSync(folder, { recursive: true, encoding: "utf8" })
        .filter((path) => /(^|\/)berth\.[^/]*$/.test(path))
    : []

const children = (): ReadonlyArray<string> =>
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
  processes: children(),
  folders: fs.existsSync(`${folder}/run`) ? fs.readdirSync(`${folder}/run`) : []
})

const contents = (file: string): string | undefined =>
  fs.existsSync(file) ? fs.readFileSync(file, "utf8") : undefined

export const demo = async (_: {}, { folder: chosen, json, signal }: Invocation): Promise<number> => {
  const timeline: Array<{ readonly phase: string; readonly millis: number }> = []
  const timed = <A, E, R>(phase: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      const before = performance.now()
      return Effect.tap(effect, () => timeline.push({ phase, millis: performance.now() - before }))
    })
  const say = (text: string): void => {
    if (!json) print(text === "" || !text.startsWith("\n") ? `  ${text}` : text)
  }

  /** The container of the demonstration; without limits where this user may set none. */
  const start = (
    image: Image.Image
  ): Effect.Effect<readonly [Container.Container, boolean], BerthError, Berth.Berth | Scope.Scope> => {
    const command = ["sleep", "infinity"]
    const limited = Container.start(image, { command, limits: { memory: "64MiB", pids: 16 } })
    return timed(
      "start, with limits of 64 MiB and 16 processes",
      Effect.map(limited, (box) => [box, true] as const)
    ).pipe(
      Effect.catchTag("CgroupError", (error: CgroupError) => {
        say(`limits cannot be set here: ${error.message}`)
        return timed(
          "start",
          Effect.map(Container.start(image, { command }), (box) => [box, false] as const)
        )
      })
    )
  }

  const inside = Effect.gen(function* () {
    const image = yield* timed("image: this machine's own root", Image.host)
    const scope = yield* Scope.make()
    const [box, limited] = yield* Scope.extend(start(image), scope)
    say(`container ${box.id} runs as process ${box.pid} of the host`)

    const file = "/etc/hostname"
    const before = contents(file)
    const write = `echo written inside > ${file} && cat ${file}`
    const written = yield* timed(`exec, a write to ${file}`, Container.exec(box, ["sh", "-c", write]))
    say(`inside, ${file} says: ${written.stdout.trim()}`)
    say(`on the host, it is ${before === contents(file) ? "untouched" : "CHANGED"}`)

    const counter = "for i in 1 2 3; do echo line $i; sleep 0.1; done"
    const counting = Container.execStream(box, ["sh", "-c", counter]).pipe(
      Effect.flatMap(({ stdout }) =>
        Stream.runForEach(Stream.splitLines(Stream.decodeText(stdout)), (line) =>
          Effect.sync(() => say(`it says: ${line}`))
        )
      )
    )
    yield* timed("exec, output as it comes", Effect.scoped(counting))

    if (limited) {
      const eaten = yield* timed("exec, against the memory limit", Container.exec(box, ["tail", "/dev/zero"]))
      const { memory } = yield* Container.stats(box)
      say(
        `endless memory in a limit of 64 MiB: ended with ${eaten.signal}, OOM kills: ${memory.oomKills ?? 0}`
      )
      const forks = "for i in $(seq 40); do sleep 0.5 & done; wait"
      const bomb = yield* timed("exec, against the process limit", Container.exec(box, ["sh", "-c", forks]))
      say(`40 processes in a limit of 16: ${bomb.stderr.trim().split("\n")[0]}`)
    }

    yield* timed("close the scope", Scope.close(scope, Exit.void))
  })

  const data = process.env.XDG_DATA_HOME ?? `${os.homedir()}/.local/share`
  const folder = chosen ?? (process.geteuid?.() === 0 ? "/var/lib/berth" : `${data}/berth`)
  const before = machine(folder)
  say("\nA container of this machine's own root:")
  const began = performance.now()
  const berth = Berth.layerWith({ folder: chosen })
  const everything = timed("everything", Effect.scoped(inside).pipe(Effect.provide(berth)))
  const exit = await Effect.runPromiseExit(Effect.provide(everything, NodeFileSystem.layer), { signal })
  if (Exit.isFailure(exit)) throw Runtime.makeFiberFailure(exit.cause)

  say("\nTimeline:")
  const all = timeline.at(-1)!.millis
  const starting = all - timeline.slice(0, -1).reduce((sum, { millis }) => sum + millis, 0)
  timeline.unshift({ phase: "start and end of the supervisor, and its messages", millis: starting })
  for (const { millis, phase } of timeline) say(`${millis.toFixed(1).padStart(9)} ms  ${phase}`)

  say(`\nLeft behind, ${(performance.now() - began).toFixed(0)} ms after the beginning:`)
  const after = machine(folder)
  const left = (["mounts", "cgroups", "processes", "folders"] as const).map((kind) => {
    const items = after[kind].filter((item) => !before[kind].includes(item))
    say(
      `${kind}: ${items.length === 0 ? "none" : items.join(", ")} (${before[kind].length} before, ${after[kind].length} after)`
    )
    return [kind, items] as const
  })
  if (json) printJson({ timeline, left: Object.fromEntries(left) })
  return left.every(([, items]) => items.length === 0) ? 0 : 1
}
