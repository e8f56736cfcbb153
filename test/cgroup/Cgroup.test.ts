import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { inspect } from "node:util"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Cgroup, Container, Image } from "../../lib/index.ts"
import { firstLineOf, gone, repeatUntil, run as runScript } from "../support/containers.ts"
import { fileOf, folderOf, without } from "../support/controllers.ts"
import { failure, suite } from "../support/effect.ts"

const run = (script: string, limits: Cgroup.Limits) => runScript(script, { limits })

suite("Cgroup", (effect) => {
  effect(
    "a command that uses more memory than its limit is killed",
    function* () {
      const result = yield* run("exec tail /dev/zero", { memory: "32MiB" })
      assert.deepEqual([result.signal, result.exitCode], ["SIGKILL", 137])
      assert.ok(result.maxRssBytes < 40 * 2 ** 20)
    },
    { skip: without("memory") }
  )

  effect(
    "a container's statistics count the kills by the OOM killer",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sh", "-c", "tail /dev/zero; echo $?; exec sleep 1000"],
        limits: { memory: "32MiB" }
      })
      assert.equal(yield* firstLineOf(container), "137")
      const { memory } = yield* Container.stats(container)
      assert.equal(memory.limit, 32 * 2 ** 20)
      assert.ok(memory.oomKills! >= 1)
      assert.ok(memory.peak! > 20 * 2 ** 20 && memory.peak! <= 32 * 2 ** 20, String(memory.peak))
      assert.ok(memory.current! > 0 && memory.current! <= memory.peak!)
    },
    { skip: without("memory") }
  )

  effect(
    "a memory limit allows no swap",
    function* () {
      const cgroup = yield* Cgroup.make({ memory: "64MiB" })
      const { path, version } = folderOf(cgroup, "memory")
      const swap = version === 1 ? "memory.memsw.limit_in_bytes" : "memory.swap.max"
      // Without swap accounting the file does not exist, and swap cannot be limited.
      if (!fs.existsSync(`${path}/${swap}`)) return
      // The root of version 2 does not tell whether swap is accounted: there, /proc/swaps tells whether there is swap.
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
    "a fork above the pids limit fails",
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
    "a limit of half a CPU is half of every period",
    function* () {
      const cgroup = yield* Cgroup.make({ cpus: 0.5 })
      assert.match(fileOf(cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max"), /^50000\b/)
      const small = yield* Cgroup.make({ cpus: 0.01 })
      assert.match(fileOf(small, "cpu", "cpu.cfs_quota_us", "cpu.max"), /^1000\b/)
    },
    { skip: without("cpu") }
  )

  effect(
    "a command that needs more CPU than its limit is throttled, and the throttling is counted",
    function* () {
      const image = yield* Image.host
      const spin = { command: ["sh", "-c", "while :; do :; done"], limits: { cpus: 0.2 } }
      const [took, { cpu }] = yield* Effect.timed(
        Effect.flatMap(Container.start(image, spin), (container) =>
          repeatUntil("throttled time", Container.stats(container), ({ cpu }) => cpu.throttledMicros! > 1000)
        )
      )
      assert.ok(cpu.throttledPeriods! >= 1)
      // The kernel throttles it once it has used up a slice on each CPU that it ran on.
      const most = 0.2 * Duration.toMillis(took) + 100
      assert.ok(cpu.usageMicros! < 1000 * most, `${cpu.usageMicros} in ${Duration.toMillis(took)} ms`)
    },
    { skip: without("cpu") }
  )

  effect(
    "a container's statistics count its processes and those of execs",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, { command: ["sleep", "1000"], limits: { pids: 5 } })
      yield* Container.execStream(container, ["sleep", "1000"])
      // The process that made the exec's is one of the cgroup's for a moment longer.
      const stats = repeatUntil("two processes", Container.stats(container), ({ pids }) => pids.current === 2)
      const { pids } = yield* stats
      assert.deepEqual([pids.limit, pids.failures], [5, 0])
    },
    { skip: without("pids") }
  )

  effect("the statistics of a container without limits fail with NoCgroup", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["sleep", "1000"] })
    const error = yield* failure("ContainerError", Container.stats(container))
    assert.equal(error.reason, "NoCgroup")
    const counted = yield* Container.start(image, { command: ["sleep", "1000"], limits: {} })
    assert.equal((yield* Container.stats(counted)).memory.limit, undefined)
  })

  effect("a cgroup is a folder that is removed when its scope closes", function* () {
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

  effect("a cgroup whose scope closes kills its processes and those in cgroups below it", function* () {
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
    yield* gone(...children.map(({ pid }) => pid!))
  })

  effect("a cgroup of 150 processes is removed while other containers start", function* () {
    const image = yield* Image.host
    const crowd = Effect.scoped(
      Effect.gen(function* () {
        const script = "i=0; while [ $i -lt 150 ]; do sleep 1000 & i=$((i+1)); done; echo ready; wait"
        const container = yield* Container.start(image, {
          command: ["sh", "-c", script],
          limits: {},
          namespaces: { pid: "host" }
        })
        assert.equal(yield* firstLineOf(container), "ready")
        return container.state.cgroup!.folders
      })
    )
    const busy = Effect.forEach(Array.from({ length: 16 }), () => run("true", {}), { concurrency: 8 })
    const [folders] = yield* Effect.all([crowd, busy], { concurrency: 2 })
    for (const { path } of folders) assert.ok(!fs.existsSync(path), path)
  })

  effect("containers that are started in one cgroup share it", function* () {
    const image = yield* Image.host
    const cgroup = yield* Cgroup.make({ pids: 10 })
    yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
    yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
    assert.equal((yield* Cgroup.stats(cgroup)).pids.current, 2)
  })

  effect("a memory limit can be a number or text with a unit", function* () {
    const bytes = (memory: string | number) =>
      Effect.scoped(
        Effect.map(Cgroup.make({ memory }), (cgroup) =>
          Number(fileOf(cgroup, "memory", "memory.limit_in_bytes", "memory.max"))
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

  effect("an invalid limit is refused by name", function* () {
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
