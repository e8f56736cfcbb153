import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import { Container, Image } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"

/** The values of gauges and counters whose name begins so, by the rest of it and their tags; the numbers of timed calls. */
const metrics = (beginning: string): Readonly<Record<string, number>> =>
  Object.fromEntries(
    Metric.unsafeSnapshot()
      .filter(({ metricKey }) => metricKey.name.startsWith(beginning))
      .map(({ metricKey: { name, tags }, metricState }) => {
        const state = metricState as { readonly value?: number; readonly count?: number }
        const of = tags.filter(({ key }) => key === "runner").map(({ value }) => ` of ${value}`)
        return [`${name.slice(beginning.length)}${of.join("")}`, state.value ?? state.count!]
      })
  )

const untilMetric = (beginning: string, name: string, value: number) =>
  Effect.sync(() => metrics(beginning)[name]).pipe(
    Effect.repeat({ until: (now) => now === value, schedule: Schedule.spaced("10 millis") }),
    Effect.timeoutFail({
      duration: "10 seconds",
      onTimeout: () => new Error(`${name} is ${metrics(beginning)[name]}, not ${value}`)
    })
  )

suite("metrics of a fleet", (effect) => {
  effect("tell of the program's runners and starts, and of each runner's clients and room", function* () {
    const address = yield* runner({ cpus: 2, memory: "1GiB" })
    const start = Effect.flatMap(Image.pull("host"), (image) =>
      Container.start(image, { command: ["sleep", "1000"], limits: { cpus: 2, memory: "64MiB" } })
    )
    yield* Effect.gen(function* () {
      const first = yield* Effect.scoped(
        Effect.gen(function* () {
          yield* start
          assert.deepEqual(metrics("berth.fleet."), { runners: 1, start: 1 })
          yield* untilMetric("berth.runner.", "containers of one", 1)
          assert.deepEqual(metrics("berth.runner."), {
            "clients of one": 1,
            "containers of one": 1,
            "memory.used of one": 64 << 20,
            "memory.size of one": 1 << 30,
            "cpus.used of one": 2,
            "cpus.size of one": 2
          })
          const second = yield* Effect.fork(Effect.scoped(start))
          yield* untilMetric("berth.fleet.", "waiting", 1)
          return second
        })
      )
      yield* Fiber.join(first)
      assert.deepEqual(metrics("berth.fleet."), { runners: 1, start: 2, waiting: 0 })
    }).pipe(onFleet([address]))
    yield* untilMetric("berth.runner.", "containers of one", 0)
    yield* untilMetric("berth.runner.", "clients of one", 0)
    assert.equal(metrics("berth.fleet.").runners, 0)
  })

  effect("count a runner that is lost", function* () {
    const program = yield* Effect.scoped(
      Effect.gen(function* () {
        const address = yield* runner({ name: "two" })
        const program = yield* Effect.never.pipe(onFleet([address]), Effect.fork)
        yield* untilMetric("berth.fleet.", "runners", 1)
        return program
      })
    )
    yield* untilMetric("berth.fleet.", "runners.lost of two", 1)
    yield* Fiber.interrupt(program)
  })
})
