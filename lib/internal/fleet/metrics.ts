/** What a fleet counts and measures, as Effect's metrics. `lib/fleet.ts` lists them. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { type Gauge, gauge, setting } from "../util/gauges.ts"
import type { Room } from "./protocol.ts"

const incremental = true

// Of a program

export const startTime = Metric.timer("berth.fleet.start", "starts of containers, with their wait for room")

export const runners = Metric.gauge("berth.fleet.runners", {
  description: "runners that the program is connected to"
})

export const lost = Metric.counter("berth.fleet.runners.lost", {
  description: "connections to runners that broke",
  incremental
})

const waiting = Metric.gauge("berth.fleet.waiting", {
  description: "starts and pulls that wait for a runner"
})

/** Counts an effect as waiting while it runs. */
export const whileWaiting = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.acquireUseRelease(
    Metric.increment(waiting),
    () => effect,
    () => Metric.incrementBy(waiting, -1)
  )

// Of a runner

export const clients = Metric.gauge("berth.runner.clients", { description: "programs that it serves" })

export const leasesEnded = Metric.counter("berth.runner.leases.ended", {
  description: "programs that were not heard of for the time of a lease",
  incremental
})

const rooms: ReadonlyArray<Gauge<Room>> = [
  gauge("berth.runner.containers", "containers of all programs", ({ containers }) => containers),
  gauge("berth.runner.memory.used", "bytes that containers have", ({ usedMemoryBytes }) => usedMemoryBytes),
  gauge("berth.runner.memory.size", "bytes for containers", ({ memoryBytes }) => memoryBytes),
  gauge("berth.runner.cpus.used", "CPUs that containers have", ({ usedCpus }) => usedCpus),
  gauge("berth.runner.cpus.size", "CPUs for containers", ({ cpus }) => cpus)
]

const RUNNER = "runner"

/** The metric of one runner. */
export const of = <Type, In, Out>(metric: Metric.Metric<Type, In, Out>, runner: string) =>
  Metric.tagged(metric, RUNNER, runner)

export const settingRoom = (runner: string): ((room: Room) => Effect.Effect<void>) =>
  setting(rooms, RUNNER, runner)
