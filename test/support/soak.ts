/**
 * The soak: rounds in which everything that Berth offers is under way and is cut short at a random moment, in one of many
 * ways. Afterwards nothing may be left. The seed of a round decides all that Berth does in it, and the moment.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Berth } from "../../lib/index.ts"
import { compile } from "./attack.ts"
import { berthIn } from "./effect.ts"
import { hostNetwork } from "./hostNetwork.ts"
import { cgroupsOf, descriptors, isAlive, sleep } from "./leftovers.ts"
import { firstLine, program } from "./program.ts"
import { makeRoot } from "./rootfs.ts"
import { random, type Slow, slowRegistry, type Work, work } from "./soakWork.ts"

/** What cuts a round short. */
export const faults = [
  "interrupt",
  "throw",
  "close twice",
  "kill the supervisor",
  "stop the supervisor",
  "fill the disk",
  "busy cgroup",
  "fork bomb",
  "attack",
  "exit",
  "SIGTERM",
  "SIGINT",
  "SIGKILL",
  "kill both"
] as const

export type Fault = (typeof faults)[number]

const isOfProgram = (fault: Fault): boolean => faults.indexOf(fault) >= faults.indexOf("exit")

/** How a round in which a container attacks is ended. */
const endings: ReadonlyArray<Fault> = ["interrupt", "close twice", "kill both", "SIGKILL"]

export interface Round {
  readonly seed: number
  readonly fault: Fault
  /** How the round was ended, where a container attacked. */
  readonly ending: Fault
  /** The moment at which it was cut short, in milliseconds after Berth had started. */
  readonly at: number
  /** How long something was left afterwards, in milliseconds. */
  readonly took: number
  /** What was left longer than allowed. */
  readonly left: ReadonlyArray<string>
}

const read = (path: string): string => {
  try {
    return fs.readFileSync(path, "latin1")
  } catch {
    return ""
  }
}

const list = (folder: string): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

const processesOf = (mark: string, folder: string): ReadonlyArray<number> =>
  list("/proc")
    .map(Number)
    .filter(
      (pid) =>
        pid > 1 &&
        pid !== process.pid &&
        (read(`/proc/${pid}/environ`).includes(`BERTH_SOAK=${mark}`) ||
          ["cmdline", "environ"].some((file) => read(`/proc/${pid}/${file}`).includes(`${folder}/`))) &&
        isAlive(pid)
    )

/**
 * What is there for a while only. A download, which goes on from where it was, and the lock of a layer, which the next
 * unpack takes, may stay where the program was killed; a layer that is not whole may not.
 */
const temporaries = (folder: string, killed: boolean): ReadonlyArray<string> =>
  list(`${folder}/layers/sha256`)
    .filter((name) => name.startsWith(".") || (!killed && name.endsWith(".lock")))
    .map((name) => `temporary ${folder}/layers/sha256/${name}`)

interface Place {
  readonly mark: string
  /** Berth's folder. */
  readonly folder: string
  /** The process whose cgroups they are. */
  readonly owner: number
  readonly killed: boolean
  readonly descriptors: ReadonlyArray<string>
  readonly network: ReadonlyArray<string>
}

const more = (before: ReadonlyArray<string>, now: ReadonlyArray<string>): ReadonlyArray<string> => {
  const rest = [...before]
  return now.filter((item) => {
    const at = rest.indexOf(item)
    if (at >= 0) rest.splice(at, 1)
    return at < 0
  })
}

const leftIn = (place: Place): ReadonlyArray<string> => [
  ...processesOf(place.mark, place.folder).map((pid) => `process ${pid} ${read(`/proc/${pid}/cmdline`)}`),
  ...cgroupsOf([place.owner]).map((path) => `cgroup ${path}`),
  ...read("/proc/self/mountinfo")
    .split("\n")
    .filter((line) => line.includes(`${place.folder}/`))
    .map((line) => `mount ${line}`),
  ...temporaries(place.folder, place.killed),
  ...list(`${place.folder}/run`).map((name) => `folder ${place.folder}/run/${name}`),
  ...more(place.descriptors, descriptors()).map((target) => `descriptor of ${target}`)
]

// An overloaded machine gets more time, in proportion.
const patience = (): number => 1000 * Math.max(1, os.loadavg()[0]! / os.availableParallelism())

const awaitNothing = async (place: Place): Promise<Pick<Round, "took" | "left">> => {
  const start = performance.now()
  const limit = patience()
  for (;;) {
    const left = leftIn(place)
    const took = performance.now() - start
    if (left.length === 0) return { took, left: more(place.network, hostNetwork()) }
    if (took > limit) return { took, left: await stillThere(left, place, start) }
    await sleep(5)
  }
}

/** Says of what is left too long whether it goes at last, so that what is slow is told from what is lost. */
const stillThere = async (left: ReadonlyArray<string>, place: Place, start: number) => {
  while (performance.now() - start < 30_000) {
    if (leftIn(place).length === 0)
      return [...left, `all of it gone after ${Math.round(performance.now() - start)} ms`]
    await sleep(20)
  }
  return left
}

const quietly = Logger.remove(Logger.defaultLogger)

const runIn = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth | Scope.Scope>) =>
  Effect.runPromiseExit(Effect.scoped(effect).pipe(Effect.provide(Layer.merge(berthIn(folder), quietly))))

/** Puts a process of this program into a cgroup of a container. */
const makeBusy = (): (() => void) => {
  const cgroup = cgroupsOf([process.pid]).at(-1)
  if (cgroup === undefined) return () => {}
  const child = spawn("sleep", ["1000"], { stdio: "ignore" })
  child.on("error", () => {})
  try {
    fs.mkdirSync(`${cgroup}/busy`)
    fs.writeFileSync(`${cgroup}/busy/cgroup.procs`, String(child.pid))
  } catch {
    // The cgroup has been removed meanwhile.
  }
  return () => child.kill("SIGKILL")
}

const fill = (folder: string): void => {
  const fd = fs.openSync(`${folder}/filler`, "w")
  try {
    for (;;) fs.writeSync(fd, Buffer.alloc(65536))
  } catch {
    // The cgroup is full.
  } finally {
    fs.closeSync(fd)
  }
}

/** The work does not end by itself, but where something in it does not work. */
const assertAtWork = (fiber: Fiber.RuntimeFiber<unknown, unknown>): void => {
  const exit = Option.getOrUndefined(Effect.runSync(Fiber.poll(fiber)))
  if (exit !== undefined && Exit.isFailure(exit)) throw new Error(Cause.pretty(exit.cause))
}

/** Unmounts a filesystem as soon as the kernel has let go of the containers' mounts on it. */
const unmount = async (folder: string): Promise<void> => {
  const limit = performance.now() + patience()
  for (;;) {
    const { status, stderr } = spawnSync("umount", [folder], { encoding: "utf8" })
    if (status === 0) return
    if (performance.now() > limit) {
      const left = processesOf("", folder).map((pid) => `${pid} ${read(`/proc/${pid}/cmdline`)}`)
      throw new Error([stderr, ...left].join("\n"))
    }
    await sleep(5)
  }
}

/** A round in this process. */
const here = async (fault: Fault, at: number, folder: string, options: Work): Promise<void> => {
  if (fault === "fill the disk") {
    fs.mkdirSync(folder, { recursive: true })
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", folder])
  }
  let undo = (): void => {}
  const cut = Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    yield* Effect.sleep(at)
    if (fault === "kill the supervisor") process.kill(supervisor.pid, "SIGKILL")
    if (fault === "stop the supervisor") process.kill(supervisor.pid, "SIGSTOP")
    if (fault === "busy cgroup") undo = makeBusy()
    if (fault === "fill the disk") fill(folder)
    if (["kill the supervisor", "fill the disk", "stop the supervisor"].includes(fault))
      yield* Effect.sleep(30)
    if (fault === "throw") throw new Error("the program's own mistake")
  })
  try {
    if (fault === "close twice") {
      const scope = Effect.runSync(Scope.make())
      const context = await Effect.runPromise(
        Layer.buildWithScope(Layer.merge(berthIn(folder), quietly), scope)
      )
      const inner = Effect.runSync(Scope.fork(scope, ExecutionStrategy.sequential))
      const fiber = Effect.runFork(work(options).pipe(Scope.extend(inner), Effect.provide(context)))
      await sleep(at)
      assertAtWork(fiber)
      await Promise.all(
        [inner, inner, scope, scope].map((each) => Effect.runPromise(Scope.close(each, Exit.void)))
      )
      await Effect.runPromise(Fiber.interrupt(fiber))
      return
    }
    if (fault === "interrupt") {
      const fiber = Effect.runFork(
        Effect.scoped(work(options)).pipe(Effect.provide(Layer.merge(berthIn(folder), quietly)))
      )
      await sleep(at)
      assertAtWork(fiber)
      await Effect.runPromise(Fiber.interrupt(fiber))
      return
    }
    const exit = await runIn(folder, Effect.raceFirst(work(options), cut))
    if (Exit.isFailure(exit) && fault !== "throw" && fault !== "fill the disk")
      throw new Error(Cause.pretty(exit.cause))
  } finally {
    undo()
    if (fault === "fill the disk") await unmount(folder)
  }
}

/** A round in a program of its own; gives the program's process. */
const there = async (fault: Fault, at: number, folder: string, options: Work): Promise<number> => {
  const millis = fault === "exit" ? String(at) : "-1"
  const child = program("soakVictim.ts", [folder, JSON.stringify(options), millis], {
    stdio: ["ignore", "pipe", "inherit"]
  })
  const gone = new Promise((resolve) => child.on("exit", resolve))
  const supervisor = Number(await firstLine(child))
  if (fault !== "exit") await sleep(at)
  if (child.exitCode !== null && fault !== "exit") throw new Error(`the program ended with ${child.exitCode}`)
  if (fault === "kill both") {
    process.kill(supervisor, "SIGKILL")
    child.kill("SIGKILL")
  } else if (fault !== "exit") {
    child.kill(fault as NodeJS.Signals)
  }
  await gone
  if (fault === "kill both") {
    while (isAlive(supervisor)) await sleep(5)
    await runIn(folder, Berth.Berth)
  }
  return child.pid!
}

/** The root and the registry that all rounds share. */
export interface Soak {
  readonly folder: string
  readonly registry: Slow
}

export const makeSoak = async (folder: string): Promise<Soak> => {
  compile(`${makeRoot(`${folder}/root`)}/births`, "births.c")
  const soak = { folder, registry: await slowRegistry() }
  // What a runtime opens on first use is there before anything is compared.
  execFileSync("true")
  const work = {
    seed: 0,
    mark: "warm",
    root: `${folder}/root`,
    folder: `${folder}/warm`,
    bomb: false,
    attack: false
  }
  await here("busy cgroup", 100, `${folder}/warm/berth`, { ...work, reference: soak.registry.reference })
  return soak
}

/** One round. Tests may choose the fault; otherwise the seed does. */
export const round = async (soak: Soak, seed: number, chosen?: Fault): Promise<Round> => {
  const below = random(seed ^ 0x5eed)
  // Programs take long to start, so that they are in one round of four.
  const group = faults.filter((each) => isOfProgram(each) === (below(4) === 0))
  const picked = group[below(group.length)]!
  const fault = chosen ?? picked
  const soon = below(4) === 0 ? below(400) : below(80)
  const attack = fault === "attack"
  // It takes a while for all of it to be under way.
  const at = attack ? 100 + below(500) : soon
  const ending = attack ? endings[below(endings.length)]! : fault
  const mark = `${process.pid}-${seed}`
  const base = `${soak.folder}/${mark}`
  const folder = `${base}/berth`
  const options: Work = {
    seed,
    mark,
    root: `${soak.folder}/root`,
    folder: base,
    reference: soak.registry.reference,
    bomb: fault === "fork bomb",
    attack
  }
  fs.mkdirSync(base)
  const before = { descriptors: descriptors(), network: hostNetwork() }
  let owner = process.pid
  if (isOfProgram(ending)) owner = await there(ending, at, folder, options)
  else await here(ending, at, folder, options)
  const result = await awaitNothing({
    mark,
    folder,
    owner,
    killed: isOfProgram(ending) || fault === "kill the supervisor",
    ...before
  })
  if (result.left.length === 0) fs.rmSync(base, { recursive: true, force: true })
  return { seed, fault, ending, at, ...result }
}
