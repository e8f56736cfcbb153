import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import * as Stream from "effect/Stream"
import { Cgroup, Container, Image } from "../../lib/index.ts"
import { repeatUntil, waitUntil } from "../support/containers.ts"
import { disk, tree, without } from "../support/controllers.ts"
import { failure, suite } from "../support/effect.ts"

const noPressure = (): string | false =>
  without("pressure") ||
  (fs.existsSync("/proc/pressure/cpu") ? false : "this kernel has no pressure stall information")

/** Without CAP_SYS_RESOURCE the kernel only accepts windows that are multiples of 2 seconds (psi.rst). */
const mayHaveAnyWindow =
  (BigInt(`0x${/^CapEff:\s*(\w+)$/m.exec(fs.readFileSync("/proc/self/status", "utf8"))![1]}`) &
    (1n << 24n)) !==
  0n
const window = mayHaveAnyWindow ? "500ms" : "2s"

const whyNoDirectWrites: string | false =
  disk === undefined
    ? "no disk with a known name"
    : / \/ \/ .* - ext4 /.test(fs.readFileSync("/proc/self/mountinfo", "utf8"))
      ? false
      : "the root is not ext4: direct writes may not reach a disk"

const start = (script: string, limits?: Cgroup.Limits) =>
  Effect.flatMap(Image.host, (image) =>
    Container.start(image, { command: ["sh", "-c", script], limits, init: true, stdin: "pipe" })
  )

const say = (container: Container.Container, text: string) =>
  Stream.run(Stream.encodeText(Stream.make(text)), container.stdin)

suite("Cgroup: events and statistics", (effect) => {
  effect(
    "Cgroup.oomKills and Cgroup.memoryEvents report each kill by the OOM killer",
    function* () {
      const script = "while read line; do tail /dev/zero; done"
      const container = yield* start(script, { memory: "32MiB" })
      const cgroup = yield* Container.cgroup(container)
      const kills = yield* Effect.fork(Stream.runCollect(Stream.take(Cgroup.oomKills(cgroup), 1)))
      const begun = yield* Deferred.make<void>()
      const events = yield* Effect.fork(
        Cgroup.memoryEvents(cgroup).pipe(
          Stream.tap(() => Deferred.succeed(begun, undefined)),
          Stream.filter(({ oomKill }) => (oomKill ?? 0) > 0),
          Stream.runHead
        )
      )
      yield* Deferred.await(begun)
      yield* say(container, "\n")
      assert.deepEqual(Chunk.toReadonlyArray(yield* Fiber.join(kills)), [1])
      const seen = yield* Fiber.join(events)
      assert.equal(seen._tag === "Some" && seen.value.oomKill, 1)
      const stats = yield* Container.stats(container)
      assert.equal(stats.memory.events.oomKill, 1)
      if (tree.controllers.memory?.version === 2) assert.ok((stats.memory.events.max ?? 0) > 0)
    },
    { skip: without("memory") }
  )

  effect(
    "Cgroup.oomKills reports the kill that ends the container, and then ends",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sh", "-c", "read line; exec tail /dev/zero"],
        limits: { memory: "32MiB" },
        stdin: "pipe"
      })
      const cgroup = yield* Container.cgroup(container)
      const kills = yield* Effect.fork(Stream.runCollect(Cgroup.oomKills(cgroup)))
      // The stream of all events gives the present counts once it has begun, and it begins after that of the kills.
      yield* Stream.runHead(Cgroup.memoryEvents(cgroup))
      yield* say(container, "\n")
      assert.deepEqual(Chunk.toReadonlyArray(yield* Fiber.join(kills)), [1])
      assert.equal((yield* container.exit).signal, "SIGKILL")
    },
    { skip: without("memory") }
  )

  effect(
    "Cgroup.pidsEvents reports forks that fail",
    function* () {
      const seen: Array<number> = []
      yield* Effect.scoped(
        Effect.gen(function* () {
          const cgroup = yield* Cgroup.make({ pids: 2 })
          yield* Effect.forkDaemon(
            Stream.runForEach(Cgroup.pidsEvents(cgroup), ({ max }) => Effect.sync(() => seen.push(max)))
          )
          yield* waitUntil("the present count", () => seen.length >= 1)
          const child = spawn("sh", ["-c", "read line; sleep 5 & sleep 5 & wait"], {
            stdio: ["pipe", "ignore", "ignore"]
          })
          yield* Cgroup.move(cgroup, child.pid!)
          child.stdin.end("go\n")
          yield* waitUntil("the count of failed forks", () => seen.length >= 2)
          assert.ok((yield* Cgroup.stats(cgroup)).pids.failures! >= 1)
        })
      )
      assert.equal(seen[0], 0)
      assert.ok(seen[1]! >= 1)
    },
    { skip: without("pids") }
  )

  effect("streams of events end with their cgroup, and fail for one that is gone", function* () {
    const waiting = yield* Effect.scoped(
      Effect.gen(function* () {
        const cgroup = yield* Cgroup.make({})
        const fibers = [
          yield* Effect.forkDaemon(Stream.runDrain(Cgroup.memoryEvents(cgroup))),
          yield* Effect.forkDaemon(Stream.runDrain(Cgroup.pidsEvents(cgroup))),
          ...(noPressure() === false
            ? [
                yield* Effect.forkDaemon(
                  Stream.runDrain(Cgroup.pressure(cgroup, "cpu", { some: "500ms", window }))
                )
              ]
            : [])
        ]
        // Time for each to wait for its file: without it, this would test a stream that begins after the end.
        yield* Effect.sleep("500 millis")
        return fibers
      })
    )
    for (const fiber of waiting) yield* Fiber.join(fiber)
    const cgroup = yield* Effect.scoped(Cgroup.make({}))
    const error = yield* failure("CgroupError", Stream.runDrain(Cgroup.pidsEvents(cgroup)))
    assert.equal(error.reason, "Gone")
  })

  effect(
    "Cgroup.pressure reports pressure by the kernel's trigger",
    function* () {
      const container = yield* start("for i in 1 2 3 4; do while :; do :; done & done; wait", { cpus: 0.5 })
      const cgroup = yield* Container.cgroup(container)
      const first = yield* cgroup.pipe(
        Cgroup.pressure("cpu", { some: "100ms", window }),
        Stream.take(2),
        Stream.runCollect,
        Effect.timeout("60 seconds")
      )
      const [a, b] = Chunk.toReadonlyArray(first)
      assert.ok(a!.some.totalMicros >= 100_000, String(a!.some.totalMicros))
      assert.ok(b!.some.totalMicros > a!.some.totalMicros)
      assert.ok((yield* Container.stats(container)).pressure.cpu!.some.totalMicros > 100_000)
    },
    { skip: noPressure() || without("cpu") }
  )

  effect(
    "Cgroup.pressure refuses an invalid trigger",
    function* () {
      const cgroup = yield* Cgroup.make({})
      for (const [options, option] of [
        [{}, "pressure"],
        [{ some: "1ms", full: "1ms" }, "pressure"],
        [{ some: "2s", window: "1s" }, "pressure.some"],
        [{ full: "-1 seconds", window: "1s" }, "pressure.full"],
        [{ some: "1ms", window: "100ms" }, "pressure.window"],
        [{ some: "1ms", window: "11s" }, "pressure.window"]
      ] as const) {
        const error = yield* failure(
          "InvalidOption",
          Stream.runDrain(Cgroup.pressure(cgroup, "memory", options as Cgroup.PressureOptions))
        )
        assert.equal(error.option, option, JSON.stringify(options))
      }
      if (!mayHaveAnyWindow) {
        const short = Cgroup.pressure(cgroup, "memory", { some: "150ms", window: "1s" })
        const error = yield* failure("CgroupError", Stream.runDrain(short))
        assert.deepEqual([error.controller, error.reason], ["pressure", "Refused"])
        assert.match(error.message, /CAP_SYS_RESOURCE/)
      }
      const disk = Cgroup.pressure(cgroup, "disk" as Cgroup.Resource, { some: "1ms" })
      assert.equal((yield* failure("InvalidOption", Stream.runDrain(disk))).option, "pressure")
    },
    { skip: noPressure() }
  )

  effect("Cgroup.stats gives CPU, memory and processes in one reading", function* () {
    const cgroup = yield* Cgroup.make({
      memory: "64MiB",
      cpus: 0.5,
      pids: 9,
      ...(without("io") === false ? { io: { devices: [] } } : {})
    })
    const image = yield* Image.host
    const container = yield* Container.start(image, {
      command: ["sh", "-c", "while :; do :; done"],
      cgroup
    })
    // The kernel divides CPU time into user and system time by ticks.
    const stats = yield* repeatUntil(
      "20 ms of user time",
      Cgroup.stats(cgroup),
      ({ cpu }) => (cpu.userMicros ?? 0) > 20_000 && (cpu.periods ?? 0) >= 1
    )
    assert.ok(stats.cpu.usageMicros! > 10_000)
    assert.ok(stats.cpu.systemMicros! >= 0 && stats.cpu.periods! >= 1)
    assert.deepEqual([stats.cpu.limit, stats.memory.limit, stats.pids.limit], [0.5, 64 * 2 ** 20, 9])
    assert.ok(stats.memory.current! > 0 && stats.memory.anon! > 0 && stats.memory.pageFaults! > 0)
    assert.equal(stats.pids.current, 1)
    assert.deepEqual(yield* Effect.map(Container.stats(container), ({ pids }) => pids.current), 1)
  })

  effect(
    "Cgroup.stats counts bytes read from and written to disks",
    function* () {
      const cgroup = yield* Cgroup.make({ memory: "64MiB" })
      yield* Cgroup.update(cgroup, { io: { devices: [{ device: disk!, writeBps: "max" }] } })
      const child = spawn(
        "sh",
        [
          "-c",
          "read line; dd if=/dev/zero of=$1 bs=64k count=16 oflag=direct",
          "sh",
          `/var/tmp/berth-io-${process.pid}`
        ],
        {
          stdio: ["pipe", "ignore", "ignore"]
        }
      )
      yield* Cgroup.move(cgroup, child.pid!)
      child.stdin.end("go\n")
      yield* Effect.promise(() => new Promise((resolve) => child.on("exit", resolve)))
      fs.rmSync(`/var/tmp/berth-io-${process.pid}`, { force: true })
      const { io } = yield* Cgroup.stats(cgroup)
      assert.ok(
        io.some(({ writes, writtenBytes }) => writtenBytes >= 2 ** 20 && writes >= 1),
        JSON.stringify(io)
      )
    },
    { skip: without("io") || whyNoDirectWrites }
  )

  effect("Cgroup.metrics gives statistics at intervals and sets Effect's metrics", function* () {
    const cgroup = yield* Cgroup.make({ pids: 9 })
    const image = yield* Image.host
    yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
    const began = Date.now()
    const readings = yield* Cgroup.metrics(cgroup, { every: "50 millis" }).pipe(
      Stream.take(3),
      Stream.runCollect
    )
    assert.ok(Date.now() - began >= 100)
    assert.deepEqual(
      Chunk.toReadonlyArray(readings).map(({ pids }) => pids.current),
      [1, 1, 1]
    )
    const gauge = Metric.tagged(
      Metric.gauge("berth.cgroup.pids.current", { description: "processes and threads" }),
      "cgroup",
      cgroup.name
    )
    assert.deepEqual(yield* Metric.value(gauge), MetricState.gauge(1))
  })

  effect("Cgroup.metrics fails once the cgroup is gone", function* () {
    const cgroup = yield* Cgroup.make({})
    const begun = yield* Deferred.make<void>()
    const readings = Stream.tap(Cgroup.metrics(cgroup, { every: "20 millis" }), () =>
      Deferred.succeed(begun, undefined)
    )
    const fiber = yield* Effect.fork(failure("CgroupError", Stream.runDrain(readings)))
    yield* Deferred.await(begun)
    for (const { path } of cgroup.folders) fs.rmdirSync(path)
    assert.equal((yield* Fiber.join(fiber)).reason, "Gone")
  })
})
