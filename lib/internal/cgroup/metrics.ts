/** Statistics at intervals, and as Effect's metrics. */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../BerthError.ts"
import type { Cgroup, Stats } from "../../Cgroup.ts"
import { type Gauge, gauge, setting } from "../util/gauges.ts"

const gauges: ReadonlyArray<Gauge<Stats>> = [
  gauge("berth.cgroup.memory.usage", "bytes in use", ({ memory }) => memory.current),
  gauge("berth.cgroup.memory.limit", "bytes that may be used", ({ memory }) => memory.limit),
  gauge(
    "berth.cgroup.memory.oom_kills",
    "processes that the OOM killer has ended",
    ({ memory }) => memory.oomKills
  ),
  gauge("berth.cgroup.cpu.time", "CPU time used, in microseconds", ({ cpu }) => cpu.usageMicros),
  gauge("berth.cgroup.cpu.throttled", "time held back, in microseconds", ({ cpu }) => cpu.throttledMicros),
  gauge("berth.cgroup.pids.current", "processes and threads", ({ pids }) => pids.current),
  gauge("berth.cgroup.io.read", "bytes read", ({ io }) =>
    io.reduce((all, device) => all + device.readBytes, 0)
  ),
  gauge("berth.cgroup.io.written", "bytes written", ({ io }) =>
    io.reduce((all, device) => all + device.writtenBytes, 0)
  )
]

export const metrics = (
  cgroup: Cgroup,
  stats: Effect.Effect<Stats, BerthError>,
  every: Duration.DurationInput
): Stream.Stream<Stats, BerthError> =>
  Stream.suspend(() =>
    Stream.tap(
      Stream.repeatEffectWithSchedule(stats, Schedule.fixed(every)),
      setting(gauges, "cgroup", cgroup.name)
    )
  )
