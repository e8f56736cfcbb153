import assert from "node:assert/strict"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Fleet from "../../lib/fleet.ts"
import { Container, Image } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"
import { rawClient } from "../support/rawFleet.ts"

const sleeping: Container.StartOptions = { command: ["sleep", "1000"] }
const sized = (memory: string, cpus?: number): Container.StartOptions => ({
  ...sleeping,
  limits: { memory, ...(cpus === undefined ? {} : { cpus }) }
})

const host = Effect.suspend(() => Image.pull("host"))

suite("the place of a container", (effect) => {
  effect("is a runner with its labels, or of a name", function* () {
    const one = yield* runner({ name: "one", labels: { disk: "ssd" } })
    const two = yield* runner({ name: "two", labels: { disk: "hdd", gpu: "a100" } })
    yield* Effect.gen(function* () {
      const image = yield* host
      const on = (where: Fleet.Placement) =>
        Effect.map(Container.start(image, sleeping).pipe(Fleet.on(where)), Fleet.runnerOf)
      assert.equal(yield* on({ labels: { gpu: "a100" } }), "two")
      assert.equal(yield* on({ labels: { disk: "ssd" } }), "one")
      assert.equal(yield* on({ runner: "two" }), "two")
      const error = yield* failure("FleetError", on({ labels: { disk: "ssd", gpu: "a100" } }))
      assert.equal(error.reason, "NoRunner")
      assert.match(error.message, /one: it lacks the label gpu=a100; two: it lacks the label disk=ssd/)
      assert.match((yield* failure("FleetError", on({ runner: "three" }))).message, /two: it is not three/)
      const arm = yield* failure(
        "FleetError",
        Image.pull("127.0.0.1:1/a:1", { platform: process.arch === "arm64" ? "linux/amd64" : "linux/arm64" })
      )
      assert.match(arm.message, /one: it is (amd64|arm64), and the image (amd64|arm64)/)
    }).pipe(onFleet([one, two]))
  })

  effect("is the runner with the most room, in turns where all have as much", function* () {
    const one = yield* runner({ name: "one", memory: "1GiB" })
    const two = yield* runner({ name: "two", memory: "1GiB" })
    yield* Effect.gen(function* () {
      const image = yield* host
      const all = yield* Effect.forEach(
        Array.from({ length: 6 }),
        () => Container.start(image, sized("64MiB")),
        { concurrency: "unbounded" }
      )
      const names = all.map(Fleet.runnerOf).sort()
      assert.deepEqual(names, ["one", "one", "one", "two", "two", "two"])
    }).pipe(onFleet([one, two]))
  })

  effect(
    "is known by the answers to what a program starts, and by messages of what others start",
    function* () {
      const address = yield* runner()
      const one = yield* rawClient(address)
      const other = yield* rawClient(address)
      const image = { reference: "host", digest: undefined }
      const answer = yield* one.ask("start", { id: "a", image, options: sleeping })
      assert.match(JSON.stringify(answer), /"Success".*"containers":1/)
      yield* Effect.sleep("200 millis")
      assert.match(JSON.stringify(one.told), /^\[\{"_tag":"Hello",[^_]*\}\]$/)
      assert.match(
        JSON.stringify(other.told),
        /"Hello".*"_tag":"Changed","room":\{[^_]*"containers":1[^_]*\}\]$/
      )
    }
  )

  effect("is waited for until another container has ended", function* () {
    const address = yield* runner({ memory: "128MiB", cpus: 2 })
    yield* Effect.gen(function* () {
      const image = yield* host
      const gate = yield* Deferred.make<void>()
      const there = yield* Deferred.make<void>()
      const first = yield* Effect.fork(
        Effect.scoped(
          Container.start(image, sized("100MiB")).pipe(
            Effect.zipRight(Deferred.succeed(there, undefined)),
            Effect.zipRight(Deferred.await(gate))
          )
        )
      )
      yield* Deferred.await(there)
      const started = Container.start(image, sized("100MiB"))
      const full = yield* failure(
        "FleetError",
        Effect.scoped(started.pipe(Fleet.on({ patience: "300 millis" })))
      )
      assert.equal(full.reason, "NoRoom")
      assert.match(full.message, /no runner had room for 104857600 bytes of memory and 0 CPUs within 300ms/)
      const second = yield* Effect.fork(Effect.map(started, Fleet.runnerOf))
      yield* Deferred.succeed(gate, undefined)
      assert.equal(yield* Fiber.join(second), "one")
      yield* Fiber.join(first)
    }).pipe(onFleet([address]))
  })

  effect("is refused by a fleet whose runners are all too small, at once", function* () {
    const address = yield* runner({ memory: "64MiB", cpus: 1 })
    yield* Effect.gen(function* () {
      const image = yield* host
      const memory = yield* failure("FleetError", Container.start(image, sized("100MiB")))
      assert.equal(memory.reason, "NoRunner")
      assert.match(memory.message, /too small for 104857600 bytes of memory, of which it has 67108864/)
      const cpus = yield* failure("FleetError", Container.start(image, sized("10MiB", 2)))
      assert.match(cpus.message, /too small for 2 CPUs, of which it has 1/)
    }).pipe(onFleet([address]))
  })

  effect("is refused without a runner that answers", function* () {
    const error = yield* failure("FleetError", host.pipe(onFleet(["tcp://127.0.0.1:1"])))
    assert.equal(error.reason, "Unreachable")
    assert.match(error.message, /tcp:\/\/127.0.0.1:1.*does not answer/)
    const wrong = yield* failure("InvalidOption", host.pipe(onFleet(["http://127.0.0.1"])))
    assert.match(wrong.message, /tcp:\/\/host:port/)
  })
})
