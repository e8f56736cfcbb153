import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Berth, Container, Image } from "../../lib/index.ts"
import { gone, waitUntil } from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { cgroupsOf, descendants, describeProcess, eventually, isAlive } from "../support/leftovers.ts"
import { ended, firstLine, program } from "../support/program.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

interface Victim {
  readonly child: ChildProcess
  readonly supervisor: number
  /** The supervisor, and the first process of each container. */
  readonly first: ReadonlyArray<number>
  /** These and all processes below the supervisor. */
  readonly processes: ReadonlyArray<number>
}

const startVictim = (folder: string, mode: string) =>
  Effect.promise(async (): Promise<Victim> => {
    fs.mkdirSync(folder, { recursive: true })
    if (whyNoBusybox === false) makeRoot(`${folder}/image`)
    const child = program("victim.ts", [folder, mode], { stdio: ["ignore", "pipe", "ignore"] })
    const { supervisor, pids } = JSON.parse(await firstLine(child))
    const first = [supervisor, ...pids]
    const processes = [...new Set([...first, ...descendants(supervisor)])]
    return { child, supervisor, first, processes }
  })

const names = ["killed", "exit", "return", "throw", "interrupted", "asked", "both", "alive"] as const

/** A program takes long to start, so the first test that needs one starts all of them. */
const victimsIn = (folder: () => string) => {
  const started = new Map<string, Promise<Victim>>()
  return (name: (typeof names)[number]) =>
    Effect.promise(() => {
      for (const each of names.filter((each) => !started.has(each))) {
        const mode = ["exit", "return", "throw"].includes(each) ? each : "wait"
        started.set(each, Effect.runPromise(startVictim(`${folder()}/${each}`, mode)))
      }
      return started.get(name)!
    })
}

const died = (child: ChildProcess): Promise<unknown> =>
  child.exitCode !== null || child.signalCode !== null
    ? Promise.resolve()
    : new Promise((resolve) => child.on("exit", resolve))

const left = (victim: Victim, folder: string): ReadonlyArray<string> => [
  ...victim.processes.filter(isAlive).map(describeProcess),
  ...cgroupsOf([victim.child.pid!]),
  ...fs.readdirSync(`${folder}/run`).map((name) => `${folder}/run/${name}`)
]

const nothingLeft = (victim: Victim, folder: string) =>
  Effect.promise(async () => {
    await eventually(() => left(victim, folder).length === 0)
    assert.deepEqual(left(victim, folder), [])
  })

const run = (command: ReadonlyArray<string>) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, { command }))

/** Runs an effect in another Berth, at `folder`. */
const another = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth>) =>
  Effect.provide(effect, berthIn(folder))

const isSwept = (folder: string): boolean => fs.readdirSync(`${folder}/run`).length === 1

suite("Teardown", (effect, folder) => {
  const start = victimsIn(folder)

  effect("a program that is killed leaves nothing", function* () {
    const at = `${folder()}/killed`
    const victim = yield* start("killed")
    assert.ok(victim.processes.length >= 8, `${victim.processes}`)
    assert.ok(victim.first.every(isAlive))
    assert.ok(cgroupsOf([victim.child.pid!]).length > 0)
    victim.child.kill("SIGKILL")
    yield* nothingLeft(victim, at)
  })

  for (const [mode, what] of [
    ["exit", "exits"],
    ["return", "has nothing more to do"],
    ["throw", "throws"]
  ] as const) {
    effect(`a program that ${what} without closing its scope leaves nothing`, function* () {
      const at = `${folder()}/${mode}`
      const victim = yield* start(mode)
      yield* Effect.promise(() => died(victim.child))
      yield* nothingLeft(victim, at)
    })
  }

  effect("a program that is stopped by Ctrl-C leaves nothing", function* () {
    const at = `${folder()}/interrupted`
    const victim = yield* start("interrupted")
    victim.child.kill("SIGINT")
    yield* nothingLeft(victim, at)
  })

  effect("a supervisor that gets SIGTERM releases everything", function* () {
    const at = `${folder()}/asked`
    const victim = yield* start("asked")
    process.kill(victim.supervisor, "SIGTERM")
    yield* nothingLeft(victim, at)
    victim.child.kill("SIGKILL")
    yield* Effect.promise(() => died(victim.child))
  })

  effect(
    "a supervisor that is killed ends its containers, and everyone who waits gets SupervisorError",
    function* () {
      const at = `${folder()}/supervisor`
      yield* another(
        at,
        Effect.scoped(
          Effect.gen(function* () {
            const { supervisor } = yield* Berth.Berth
            const image = yield* Image.host
            const container = yield* Container.start(image, {
              command: ["sleep", "1000"],
              limits: { pids: 9 }
            })
            const exec = yield* Container.execStream(container, ["sleep", "1000"])
            const waiting = yield* Effect.fork(Effect.flip(container.exit))
            const reading = yield* Effect.fork(Stream.runDrain(container.stdout))
            // Lets both fibers begin.
            yield* Effect.yieldNow()
            process.kill(supervisor.pid, "SIGKILL")
            const error = yield* Effect.timeout(Fiber.join(waiting), "15 seconds")
            assert.equal(error._tag, "SupervisorError")
            assert.ok(Exit.isSuccess(yield* Effect.timeout(Fiber.await(reading), "15 seconds")))
            yield* gone(container.pid, exec.pid)
            const late = yield* failure("SupervisorError", run(["true"]))
            assert.equal(late.reason, "Gone")
            yield* failure("ContainerError", Container.exec(container, ["true"]))
          })
        )
      )
      // The next Berth sweeps what the killed supervisor could not release.
      const result = yield* another(
        at,
        Effect.zipLeft(
          run(["echo", "again"]),
          Effect.sync(() => assert.ok(isSwept(at), String(fs.readdirSync(`${at}/run`))))
        )
      )
      assert.equal(result.stdout, "again\n")
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    }
  )

  effect("a start right after the supervisor's death fails with SupervisorError", function* () {
    const at = `${folder()}/at-once`
    const error = yield* another(
      at,
      Effect.gen(function* () {
        const { supervisor } = yield* Berth.Berth
        process.kill(supervisor.pid, "SIGKILL")
        // The event loop does not turn here, so this program learns of the death after it has sent the start.
        for (const end = Date.now() + 1000; isAlive(supervisor.pid) && Date.now() < end; );
        return yield* failure("SupervisorError", run(["true"]))
      })
    )
    assert.equal(error.reason, "Gone")
    yield* another(at, run(["true"]))
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect("the next Berth sweeps what a program and its supervisor leave when both are killed", function* () {
    const at = `${folder()}/both`
    const victim = yield* start("both")
    process.kill(victim.supervisor, "SIGKILL")
    victim.child.kill("SIGKILL")
    yield* Effect.promise(() => died(victim.child))
    // The kernel frees the lock of a killed supervisor later than it answers the kill.
    const swept = another(
      at,
      Effect.sync(() => isSwept(at))
    )
    yield* waitUntil("a Berth sweeps what is left", () => Effect.runPromise(swept))
    yield* nothingLeft(victim, at)
  })

  effect("a sweep leaves a living supervisor and its containers untouched", function* () {
    const at = `${folder()}/alive`
    const victim = yield* start("alive")
    yield* another(at, run(["true"]))
    assert.ok(victim.first.every(isAlive))
    assert.equal(fs.readdirSync(`${at}/run`).length, 1)
    victim.child.kill("SIGKILL")
    yield* nothingLeft(victim, at)
  })

  effect("a container that cleared its parent-death signal does not outlive the supervisor", function* () {
    const at = `${folder()}/let-go`
    const pid = yield* another(
      at,
      Effect.scoped(
        Effect.gen(function* () {
          const { supervisor } = yield* Berth.Berth
          const image = yield* Image.host
          const command = ["setpriv", "--pdeathsig", "clear", "sleep", "1000"]
          const container = yield* Container.start(image, { command })
          const isSleep = () => fs.readFileSync(`/proc/${container.pid}/comm`, "utf8") === "sleep\n"
          yield* waitUntil("setpriv has executed sleep", isSleep)
          process.kill(supervisor.pid, "SIGKILL")
          // Whether it ends is checked outside, where the process can be killed if it does not.
          yield* Effect.promise(() => eventually(() => !isAlive(container.pid)))
          return container.pid
        })
      )
    )
    const outlived = isAlive(pid)
    if (outlived) process.kill(pid, "SIGKILL")
    yield* another(at, run(["true"]))
    assert.ok(!outlived, "the container is still running")
  })

  effect("a program that runs a container ends by itself", function* () {
    const child = program("system.ts", ["run", `${folder()}/ends`], { stdio: ["ignore", "pipe", "pipe"] })
    const { code, stdout, stderr } = yield* Effect.promise(() => ended(child))
    assert.deepEqual([code, stdout], [0, "hello\n"], stderr)
  })
})
