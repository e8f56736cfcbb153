import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Cgroup, Container, Image, Namespace, RootFs } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { repeatUntil, waitUntil } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { cgroupsOf, isAlive, sleep, until } from "../support/leftovers.ts"
import { firstLine, program } from "../support/program.ts"

const tree = detect()
const skip: string | false =
  tree.controllers.freezer === undefined ? `no freezer: ${tree.missing("freezer")}` : false

const COUNTING = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.01; done"

const start = (options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) =>
    Container.start(image, {
      command: ["sh", "-c", COUNTING],
      upper: "memory",
      mounts: [{ type: "tmpfs", target: "/tmp" }],
      ...options
    })
  )

const countOf = (container: Container.Container): number =>
  Number(fs.readFileSync(`/proc/${container.pid}/root/tmp/count`, "utf8"))

const goesOn = (container: Container.Container) =>
  Effect.promise(async () => {
    const before = countOf(container)
    await until("the container goes on", () => countOf(container) > before + 1)
  })

/** Only time shows that nothing moves: a container that runs would count far within it. */
const standsStill = (container: Container.Container) =>
  Effect.promise(async () => {
    const before = countOf(container)
    await sleep(200)
    assert.equal(countOf(container), before, "the container should stand still")
  })

const counting = (container: Container.Container) =>
  waitUntil("the container counts", () => fs.existsSync(`/proc/${container.pid}/root/tmp/count`))

/** Fails where an end waits for a paused process. */
const soon = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.timeout(effect, "20 seconds")

suite("Container.pause", (effect, folder) => {
  for (const [name, options] of [
    ["without limits", {}],
    ["with limits", { limits: { pids: 50 } }],
    ["in the host's pid namespace", { namespaces: { pid: "host" } }]
  ] as ReadonlyArray<readonly [string, Container.StartOptions]>) {
    effect(
      `a container ${name} stands still while it is paused and goes on when it is resumed`,
      function* () {
        const container = yield* start(options)
        yield* counting(container)
        yield* Container.pause(container)
        yield* Container.pause(container)
        yield* standsStill(container)
        yield* Container.resume(container)
        yield* goesOn(container)
        yield* Container.resume(container)
      },
      { skip }
    )

    effect(
      `a paused container ${name} can be stopped, killed and closed`,
      function* () {
        const stopped = yield* start({ ...options, init: true })
        yield* Container.pause(stopped)
        // Its init ends by SIGTERM as soon as it goes on, and so long before the grace is over.
        assert.equal((yield* soon(Container.stop(stopped))).exitCode, 143)

        const killed = yield* start(options)
        yield* Container.pause(killed)
        yield* Container.signal(killed, "SIGKILL")
        assert.equal((yield* soon(killed.exit)).signal, "SIGKILL")

        const pid = yield* soon(
          Effect.scoped(
            Effect.gen(function* () {
              const closed = yield* start(options)
              yield* Container.pause(closed)
              return closed.pid
            })
          )
        )
        assert.ok(!isAlive(pid))
      },
      { skip }
    )
  }

  effect(
    "an exec stands still with its paused container, and its scope can still end it",
    function* () {
      const container = yield* start({ command: ["sleep", "1000"] })
      const inside = yield* Effect.forkDaemon(
        Effect.scoped(
          Effect.gen(function* () {
            const process = yield* Container.execStream(container, ["sh", "-c", COUNTING])
            yield* counting(container)
            yield* Container.pause(container)
            yield* standsStill(container)
            return process.pid
          })
        )
      )
      const pid = yield* soon(Fiber.join(inside))
      assert.ok(!isAlive(pid))
      const error = yield* failure("ContainerError", Container.exec(container, ["true"]))
      assert.equal(error.reason, "Paused")
      yield* Container.resume(container)
      assert.equal((yield* Container.exec(container, ["true"])).exitCode, 0)
      // An exec that begins after the first pause takes part in the second.
      yield* Container.execStream(container, ["sh", "-c", COUNTING])
      yield* goesOn(container)
      yield* Container.pause(container)
      yield* standsStill(container)
    },
    { skip }
  )

  for (const [where, make] of [
    ["the host's", Effect.succeed("host" as const)],
    ["another's", start({ command: ["sleep", "1000"] })]
  ] as const)
    effect(
      `an exec from before the container had a cgroup is paused with it, in ${where} pid namespace`,
      function* () {
        const pid = yield* make
        const container = yield* start({ command: ["sleep", "1000"], namespaces: { pid } })
        yield* Container.execStream(container, ["sh", "-c", COUNTING])
        yield* counting(container)
        yield* Container.pause(container)
        yield* standsStill(container)
        assert.ok((yield* Container.top(container)).some(({ command }) => command[0] === "sh"))
        yield* Container.resume(container)
        yield* goesOn(container)
      },
      { skip }
    )

  effect.asRoot(
    "pausing a process in shared namespaces pauses its execs and no other process there",
    function* () {
      const rootfs = yield* RootFs.overlay(yield* Image.host, { upper: "memory" })
      const namespaces = yield* Namespace.make(["pid", "mount"])
      const spawn = (command: ReadonlyArray<string>) => Container.spawn({ rootfs, namespaces, command })
      const forever = (name: string) => ["sh", "-c", COUNTING.replace("/tmp/count", `/tmp/${name}`)]
      const container = yield* spawn(["sleep", "1000"])
      yield* spawn(forever("other"))
      yield* Container.execStream(container, forever("count"))
      yield* Container.execStream(container, forever("within"))
      const of = (name: string) => Number(fs.readFileSync(`/proc/${container.pid}/root/tmp/${name}`, "utf8"))
      const names = ["count", "within", "other"]
      const moving = (expected: ReadonlyArray<string>) =>
        Effect.promise(async () => {
          const before = new Map(names.map((name) => [name, of(name)]))
          const moved = () => names.filter((name) => of(name) > before.get(name)!)
          await until(`${expected.join(", ")} go on`, () => expected.every((name) => moved().includes(name)))
          // As in standsStill. A counter may be read while it is empty, just before its next number is in it.
          await sleep(200)
          const resumed = moved().filter((name) => !expected.includes(name))
          assert.deepEqual(resumed, [])
        })
      yield* waitUntil("all three count", () =>
        names.every((name) => fs.existsSync(`/proc/${container.pid}/root/tmp/${name}`))
      )
      yield* Container.pause(container)
      yield* moving(["other"])
      yield* Container.resume(container)
      yield* moving(names)
    },
    { skip }
  )

  effect.asRoot(
    "an exec that begins while its process in shared namespaces is being paused is refused or paused",
    function* () {
      const sleeping = ["sleep", "1000"]
      // The moment is what is tested.
      for (const millis of [0, 0.3, 0.6, 1, 2, 3]) {
        const rootfs = yield* RootFs.overlay(yield* Image.host, { upper: "memory" })
        const namespaces = yield* Namespace.make(["pid", "mount"])
        const container = yield* Container.spawn({ rootfs, namespaces, command: sleeping })
        const [process] = yield* Effect.all(
          [
            Effect.either(Container.execStream(container, sleeping)),
            Effect.delay(Container.pause(container), millis)
          ],
          { concurrency: 2 }
        )
        // The exec either runs and is paused, or was refused because the container was paused first.
        const pids = process._tag === "Right" ? [process.right.pid] : []
        const [expected, ...cgroups] = [container.pid, ...pids].map((pid) =>
          fs.readFileSync(`/proc/${pid}/cgroup`, "utf8")
        )
        for (const cgroup of cgroups) assert.equal(cgroup, expected)
      }
    },
    { skip }
  )

  effect(
    "pausing one container leaves another in the same cgroup running",
    function* () {
      const cgroup = yield* Cgroup.make({ pids: 50 })
      const a = yield* start({ cgroup })
      const b = yield* start({ cgroup })
      yield* counting(a)
      yield* counting(b)
      yield* Container.pause(a)
      yield* standsStill(a)
      yield* goesOn(b)
      assert.equal((yield* Container.stats(a)).pids.limit, 50)
      yield* Container.resume(a)
      yield* goesOn(a)
      yield* Container.pause(a)
    },
    { skip }
  )

  effect(
    "Cgroup.freeze stops every container in the cgroup, and each can still be ended",
    function* () {
      const cgroup = yield* Cgroup.make({ pids: 50 })
      const a = yield* start({ cgroup })
      yield* counting(a)
      const b = yield* soon(
        Effect.scoped(
          Effect.gen(function* () {
            const b = yield* start({ cgroup })
            yield* counting(b)
            yield* Cgroup.freeze(cgroup)
            yield* standsStill(b)
            return b.pid
          })
        )
      )
      assert.ok(!isAlive(b))
      yield* standsStill(a)
      yield* Cgroup.thaw(cgroup)
      yield* goesOn(a)
      yield* Cgroup.freeze(cgroup)
      yield* Container.signal(a, "SIGKILL")
      assert.equal((yield* soon(a.exit)).signal, "SIGKILL")
    },
    { skip }
  )

  effect(
    "pausing a container that has ended fails with NotRunning",
    function* () {
      const container = yield* start({ command: ["true"] })
      yield* container.exit
      for (const use of [Container.pause(container), Container.top(container)])
        assert.equal((yield* failure("ContainerError", use)).reason, "NotRunning")
      yield* Container.resume(container)
    },
    { skip }
  )

  for (const [how, end] of [
    ["the program", (child: ChildProcess) => child.kill("SIGKILL")],
    ["the supervisor", (_: ChildProcess, supervisor: number) => process.kill(supervisor, "SIGKILL")]
  ] as const)
    effect(
      `a paused container leaves nothing when ${how} is killed`,
      function* () {
        yield* Effect.promise(async () => {
          const at = `${folder()}-${how.replace("the ", "")}`
          fs.mkdirSync(at, { recursive: true })
          const child = program("paused.ts", [at], { stdio: ["ignore", "pipe", "inherit"] })
          const { supervisor, pid } = JSON.parse(await firstLine(child)) as {
            supervisor: number
            pid: number
          }
          assert.ok(isAlive(pid))
          end(child, supervisor)
          if (how === "the supervisor") {
            await until("the supervisor's end", () => !isAlive(supervisor))
            child.kill("SIGKILL")
            await new Promise((resolve) => child.once("exit", resolve))
            // The next Berth in that folder releases what is left.
            const next = program("paused.ts", [at, "end"], { stdio: ["ignore", "pipe", "inherit"] })
            await new Promise((resolve) => next.once("exit", resolve))
          }
          await until("the end of the paused process", () => !isAlive(pid))
          await until("no cgroup is left", () => cgroupsOf([child.pid!]).length === 0)
          fs.rmSync(at, { recursive: true, force: true })
        })
      },
      { skip }
    )
})

suite("Container.top", (effect) => {
  effect("Container.top lists processes with their pids on the host and in the container", function* () {
    const container = yield* start({
      command: ["sh", "-c", "sleep 1001 & while :; do :; done"],
      namespaces: {}
    })
    yield* Container.execStream(container, ["sleep", "1002"], { user: "nobody" })
    const top = yield* repeatUntil(
      "three processes, of which one has used CPU time",
      Container.top(container),
      (all) =>
        all.length === 3 &&
        all.every(({ command }) => command.length > 1) &&
        all.some((p) => p.userMicros > 0)
    )
    const first = top.find(({ pid }) => pid === container.pid)!
    assert.deepEqual([first.pidInside, first.user, first.command[0]], [1, "root", "sh"])
    assert.ok(first.memoryBytes > 100_000 && first.threads === 1 && /^[RS]$/.test(first.state))
    assert.ok(first.userMicros + first.systemMicros > 0)
    const child = top.find(({ command }) => command.join(" ") === "sleep 1001")!
    assert.deepEqual([child.parent, child.pidInside > 1], [container.pid, true])
    const inside = top.find(({ pid }) => pid !== first.pid && pid !== child.pid)!
    assert.equal(inside.user, "nobody")
    assert.deepEqual(inside.command, ["sleep", "1002"])
    assert.ok(inside.pidInside > 1 && inside.pidInside !== inside.pid)
  })
})
