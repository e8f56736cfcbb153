import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { inspect } from "node:util"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Cgroup, Container, Image } from "../../lib/index.ts"
import { without } from "../support/controllers.ts"
import { failure, suite } from "../support/effect.ts"
import { eventually, isAlive } from "../support/leftovers.ts"

const run = (script: string, limits: Cgroup.Limits) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["sh", "-c", script], limits }))

/** A file of a cgroup, by its name on either version. */
const file = (cgroup: Cgroup.Cgroup, controller: string, v1: string, v2: string): string => {
  const folder = cgroup.folders.find(({ controllers }) => controllers.includes(controller))!
  return fs.readFileSync(`${folder.path}/${folder.version === 1 ? v1 : v2}`, "utf8").trim()
}

suite("Cgroup", (effect) => {
  effect(
    "a command that takes more memory than its limit is killed",
    function* () {
      const result = yield* run("exec tail /dev/zero", { memory: "32MiB" })
      assert.deepEqual([result.signal, result.exitCode], ["SIGKILL", 137])
      assert.ok(result.maxRssBytes < 40 * 2 ** 20)
    },
    { skip: without("memory") }
  )

  effect(
    "counts what the out-of-memory killer has ended",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sh", "-c", "tail /dev/zero; echo $?; exec sleep 1000"],
        limits: { memory: "32MiB" }
      })
      const code = yield* container.stdout.pipe(Stream.decodeText(), Stream.splitLines, Stream.runHead)
      assert.equal(code._tag === "Some" && code.value, "137")
      const { memory } = yield* Container.stats(container)
      assert.equal(memory.limit, 32 * 2 ** 20)
      assert.ok(memory.oomKills! >= 1)
      assert.ok(memory.peak! > 20 * 2 ** 20 && memory.peak! <= 32 * 2 ** 20, String(memory.peak))
      assert.ok(memory.current! > 0 && memory.current! <= memory.peak!)
    },
    { skip: without("memory") }
  )

  effect(
    "gives no swap on top of the memory",
    function* () {
      const cgroup = yield* Cgroup.make({ memory: "64MiB" })
      const { path, version } = cgroup.folders.find(({ controllers }) => controllers.includes("memory"))!
      const swap = version === 1 ? "memory.memsw.limit_in_bytes" : "memory.swap.max"
      // Without swap accounting there is no such file, and nothing to limit it with.
      if (!fs.existsSync(`${path}/${swap}`)) return
      // The root of version 2 does not say whether it is accounted for: there it is looked at what is swapped to.
      const above = path.slice(0, path.lastIndexOf("/"))
      const swaps = fs.readFileSync("/proc/swaps", "utf8").trim().includes("\n")
      if (!fs.existsSync(`${above}/${swap}`) && !swaps) return
      assert.equal(
        fs.readFileSync(`${path}/${swap}`, "utf8").trim(),
        version === 1 ? String(64 * 2 ** 20) : "0"
      )
    },
    { skip: without("memory") }
  )

  effect(
    "one process too many cannot be made",
    function* () {
      const script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.3 & done; wait"
      const { stderr, exitCode } = yield* run(script, { pids: 8 })
      assert.match(stderr, /fork|resource/i)
      assert.notEqual(exitCode, 0)
      assert.equal((yield* run(script, { pids: 20 })).exitCode, 0)
    },
    { skip: without("pids") }
  )

  effect(
    "half a CPU is half of every period",
    function* () {
      const cgroup = yield* Cgroup.make({ cpus: 0.5 })
      assert.match(file(cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max"), /^50000\b/)
      const small = yield* Cgroup.make({ cpus: 0.01 })
      assert.match(file(small, "cpu", "cpu.cfs_quota_us", "cpu.max"), /^1000\b/)
    },
    { skip: without("cpu") }
  )

  effect(
    "a command that wants more CPU is held back, and that is counted",
    function* () {
      const image = yield* Image.host
      const spin = { command: ["sh", "-c", "while :; do :; done"], limits: { cpus: 0.2 } }
      const [took, cpu] = yield* Container.start(image, spin).pipe(
        Effect.flatMap((container) =>
          Effect.delay(Container.stats(container), "50 millis").pipe(
            Effect.map(({ cpu }) => cpu),
            Effect.repeat({ until: ({ throttledMicros }) => throttledMicros! > 1000 })
          )
        ),
        Effect.timeout("60 seconds"),
        Effect.timed
      )
      assert.ok(cpu.throttledPeriods! >= 1)
      // It is held back once it has taken a period's worth of each CPU that it was on.
      const most = 0.2 * Duration.toMillis(took) + 100
      assert.ok(cpu.usageMicros! < 1000 * most, `${cpu.usageMicros} in ${Duration.toMillis(took)} ms`)
    },
    { skip: without("cpu") }
  )

  effect(
    "counts processes, those that are executed as well",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, { command: ["sleep", "1000"], limits: { pids: 5 } })
      yield* Container.execStream(container, ["sleep", "1000"])
      const { pids } = yield* Container.stats(container)
      assert.deepEqual([pids.current, pids.limit, pids.failures], [2, 5, 0])
    },
    { skip: without("pids") }
  )

  effect("a container without limits has no statistics, and says how to have them", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["sleep", "1000"] })
    const error = yield* failure("ContainerError", Container.stats(container))
    assert.equal(error.reason, "NoCgroup")
    const counted = yield* Container.start(image, { command: ["sleep", "1000"], limits: {} })
    assert.equal((yield* Container.stats(counted)).memory.limit, undefined)
  })

  effect("is a folder of its own, and gone with its scope", function* () {
    const folders = yield* Effect.scoped(
      Effect.map(Cgroup.make({}), (cgroup) => {
        assert.ok(cgroup.folders.length > 0)
        for (const { path } of cgroup.folders) assert.ok(fs.statSync(path).isDirectory())
        assert.deepEqual(cgroup.toJSON(), {
          _id: "berth/Cgroup",
          name: cgroup.name,
          folders: cgroup.folders.map(({ path }) => path)
        })
        assert.equal(inspect(cgroup), `Cgroup(${cgroup.name} in ${path.dirname(cgroup.folders[0]!.path)})`)
        return cgroup.folders
      })
    )
    for (const { path } of folders) assert.ok(!fs.existsSync(path))
  })

  effect(
    "kills what is in it, and in the cgroups that were made below it, when its scope closes",
    function* () {
      const children = [1, 2].map(() => spawn("sleep", ["1000"], { stdio: "ignore" }))
      const folders = yield* Effect.scoped(
        Effect.map(Cgroup.make({}), ({ folders }) => {
          for (const { path } of folders) {
            fs.mkdirSync(`${path}/below`)
            fs.writeFileSync(`${path}/cgroup.procs`, String(children[0]!.pid))
            fs.writeFileSync(`${path}/below/cgroup.procs`, String(children[1]!.pid))
          }
          return folders
        })
      )
      for (const { path } of folders) assert.ok(!fs.existsSync(path), path)
      const dead = () => children.every((child) => !isAlive(child.pid!))
      assert.ok(yield* Effect.promise(() => eventually(dead)))
    }
  )

  effect("many processes in it are killed while others are being started", function* () {
    const image = yield* Image.host
    const crowd = Effect.scoped(
      Effect.gen(function* () {
        const script = "i=0; while [ $i -lt 150 ]; do sleep 1000 & i=$((i+1)); done; echo ready; wait"
        const container = yield* Container.start(image, {
          command: ["sh", "-c", script],
          limits: {},
          namespaces: { pid: "host" }
        })
        yield* container.stdout.pipe(Stream.runHead)
        return container.state.cgroup!.folders
      })
    )
    const busy = Effect.forEach(Array.from({ length: 16 }), () => run("true", {}), { concurrency: 8 })
    const [folders] = yield* Effect.all([crowd, busy], { concurrency: 2 })
    for (const { path } of folders) assert.ok(!fs.existsSync(path), path)
  })

  effect("is shared by the containers that are started in it", function* () {
    const image = yield* Image.host
    const cgroup = yield* Cgroup.make({ pids: 10 })
    yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
    yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
    assert.equal((yield* Cgroup.stats(cgroup)).pids.current, 2)
  })

  effect("takes memory as numbers and as text with units", function* () {
    const bytes = (memory: string | number) =>
      Effect.scoped(
        Effect.map(Cgroup.make({ memory }), (cgroup) =>
          Number(file(cgroup, "memory", "memory.limit_in_bytes", "memory.max"))
        )
      )
    const page = (n: number) => Math.floor(n / 4096) * 4096
    assert.equal(yield* bytes(64 * 2 ** 20), 64 * 2 ** 20)
    assert.equal(yield* bytes("64MiB"), 64 * 2 ** 20)
    assert.equal(yield* bytes("64m"), 64 * 2 ** 20)
    assert.equal(yield* bytes("64 MB"), page(64e6))
    assert.equal(yield* bytes("1.5GiB"), 1.5 * 2 ** 30)
    assert.equal(yield* bytes("100000kb"), page(1e8))
  })

  effect("refuses limits that are none", function* () {
    const parsecs = yield* failure("InvalidOption", Cgroup.make({ memory: "12 parsecs" }))
    assert.deepEqual([parsecs.option, parsecs.value], ["limits.memory", '"12 parsecs"'])
    for (const [limits, option] of [
      [{ memory: 4095 }, "memory"],
      [{ cpus: 0.001 }, "cpus"],
      [{ cpus: Number.NaN }, "cpus"],
      [{ pids: 0 }, "pids"],
      [{ pids: 2.5 }, "pids"]
    ] as const)
      assert.equal((yield* failure("InvalidOption", Cgroup.make(limits))).option, `limits.${option}`)
  })
})
