/**
 * Limits, statistics and membership: a cgroup as a scoped resource, with one typed interface over version 1, version 2
 * and hybrid trees.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as internal from "./internal/cgroup/cgroup.ts"
import * as events from "./internal/cgroup/events.ts"
import * as freezer from "./internal/cgroup/freezer.ts"
import * as measuring from "./internal/cgroup/metrics.ts"
import { readStats } from "./internal/cgroup/stats.ts"
import * as tag from "./internal/service.ts"
import { scopedUnit } from "./internal/supervisor/scopedUnit.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import { spanIfObserved } from "./internal/util/spanIfObserved.ts"
import * as Plan from "./Plan.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A cgroup: one folder in each hierarchy that it uses. When its scope closes, its processes are killed and the folders are
 * removed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Cgroup extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly name: string
  /** The cgroup's folders, one for each hierarchy. Folders are added when more controllers are used. */
  readonly folders: ReadonlyArray<Folder>
  /** @internal */
  readonly state: internal.State
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Folder {
  readonly version: 1 | 2
  readonly path: string
  /** The controllers of this folder, by their names on version 2. */
  readonly controllers: ReadonlyArray<string>
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isCgroup = (u: unknown): u is Cgroup => hasProperty(u, TypeId)

/**
 * Bytes, as a number or as text with a unit: `"256MiB"`, `"1.5GB"`, `"64m"` (Docker's form, powers of 1024). `"max"`
 * removes the limit.
 *
 * @since 0.1.0
 * @category models
 */
export type Bytes = number | string

/**
 * @since 0.1.0
 * @category models
 */
export interface MemoryLimits {
  /** The limit at which the kernel's OOM killer ends processes in the cgroup. Page cache counts. */
  readonly max?: Bytes | undefined
  /** Above this limit, the kernel slows processes down until it has reclaimed memory. Version 2. */
  readonly high?: Bytes | undefined
  /** Below this use, the kernel reclaims memory from other cgroups first. On version 1 it is the soft limit. */
  readonly low?: Bytes | undefined
  /** Swap in addition to `max`, which must be given too. Default: no swap if `max` is given. */
  readonly swap?: Bytes | undefined
  /** Whether the OOM killer ends all of the cgroup's processes instead of one. Version 2, Linux 4.19. */
  readonly oomGroup?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpuLimits {
  /** The share of CPU time under contention, from 1 to 10000. Default 100. Not together with `idle`. */
  readonly weight?: number | undefined
  /** The period of `cpus`, in microseconds, from 1000 to 1000000. Default 100000. */
  readonly periodMicros?: number | undefined
  /** Unused time of earlier periods that may be used in addition, in microseconds, at most the quota. Linux 5.14. */
  readonly burstMicros?: number | undefined
  /** Whether the processes run only on an otherwise idle CPU (SCHED_IDLE). Linux 5.15. */
  readonly idle?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpusetLimits {
  /** The CPUs that the processes may use, as a list of numbers and ranges: `"0-3,6"`. */
  readonly cpus?: string | undefined
  /** The memory nodes to allocate from. Default: all. */
  readonly mems?: string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoDeviceLimits {
  /** A block device on the host, `/dev/vda`, or its numbers, `254:0`. A whole disk, not a partition. */
  readonly device: string
  /** Bytes per second. */
  readonly readBps?: Bytes | undefined
  readonly writeBps?: Bytes | undefined
  /** Operations per second; `"max"` removes the limit. */
  readonly readIops?: number | "max" | undefined
  readonly writeIops?: number | "max" | undefined
  /** The weight for this device, as in `IoLimits.weight`. */
  readonly weight?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoLimits {
  /**
   * The share of a disk's time under contention, from 1 to 10000; on version 1 to 1000. Default 100. Needs the BFQ
   * scheduler, or on version 2 io.cost.
   */
  readonly weight?: number | undefined
  readonly devices?: ReadonlyArray<IoDeviceLimits> | undefined
}

/**
 * A device that the processes may use in addition to `null`, `zero`, `full`, `random`, `urandom`, `tty`, `ptmx` and
 * terminals.
 *
 * @since 0.1.0
 * @category models
 */
export type DeviceRule =
  | {
      /** A device node on the host: `/dev/fuse`. */
      readonly path: string
      /** Any of `r`, `w` and `m`: read, write, make a node. Default `rwm`. */
      readonly access?: string | undefined
    }
  | {
      readonly type: "char" | "block"
      /** The device's number. Default: all numbers. */
      readonly major?: number | undefined
      readonly minor?: number | undefined
      readonly access?: string | undefined
    }

/**
 * @since 0.1.0
 * @category models
 */
export interface RdmaLimits {
  readonly handles?: number | "max" | undefined
  readonly objects?: number | "max" | undefined
}

/**
 * The limits of a cgroup. An omitted limit does not exist or, in `Cgroup.update`, stays unchanged.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Memory, page cache included; a plain number or text is `{ max }`. No swap is available in addition. At the limit,
   * the kernel's OOM killer ends processes in the cgroup.
   */
  readonly memory?: Bytes | MemoryLimits | undefined
  /** CPUs, 0.01 or more: 0.5 is half of one CPU's time, in periods of 100 ms. `"max"` removes the limit. */
  readonly cpus?: number | "max" | undefined
  readonly cpu?: CpuLimits | undefined
  readonly cpuset?: CpusetLimits | undefined
  /**
   * The number of processes and threads; one more makes fork(2) fail with EAGAIN. A limit below the present number ends
   * none of them. `"max"` removes the limit.
   */
  readonly pids?: number | "max" | undefined
  readonly io?: IoLimits | undefined
  /** Bytes of huge pages, by page size as the kernel writes it: `{ "2MB": "64MiB" }`. */
  readonly hugetlb?: Readonly<Record<string, Bytes>> | undefined
  /**
   * The devices that may be opened or made: Docker's list and these; `[]` is Docker's list alone. Default: no limit. A
   * container's root and mounts are `nodev`, so it can only open the nodes of its `/dev` in any case. The list is not
   * the default, because it would add 0.1 ms to a start on version 1 and 1 ms on version 2.
   */
  readonly devices?: ReadonlyArray<DeviceRule> | undefined
  /** By device, as in `/sys/class/infiniband`. */
  readonly rdma?: Readonly<Record<string, RdmaLimits>> | undefined
  /** By resource, as in `misc.capacity`. */
  readonly misc?: Readonly<Record<string, number | "max">> | undefined
}

/**
 * How long processes waited for a resource: cgroup-v2.rst and psi.rst. Version 2.
 *
 * @since 0.1.0
 * @category models
 */
export interface PressureTimes {
  /** The share of the last 10, 60 and 300 seconds, in percent. */
  readonly avg10: number
  readonly avg60: number
  readonly avg300: number
  /** The total, in microseconds. */
  readonly totalMicros: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Pressure {
  /** At least one process waited. */
  readonly some: PressureTimes
  /** All processes that were not idle waited at the same time. */
  readonly full: PressureTimes | undefined
}

/**
 * Counters of how often the memory limits have had an effect. A value that the tree lacks is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface MemoryEvents {
  /** Memory was reclaimed below `low`; processes were slowed down at `high`; use was about to exceed `max`. */
  readonly low: number | undefined
  readonly high: number | undefined
  readonly max: number | undefined
  /** Use was at `max`, and nothing could be reclaimed. */
  readonly oom: number | undefined
  /** Processes that the OOM killer has ended, and how often it ended a whole cgroup. */
  readonly oomKill: number | undefined
  readonly oomGroupKill: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface PidsEvents {
  /** Forks that failed at the limit. */
  readonly max: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoStats {
  /** `MAJOR:MINOR`. */
  readonly device: string
  readonly readBytes: number
  readonly writtenBytes: number
  readonly reads: number
  readonly writes: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HugetlbStats {
  /** Bytes. */
  readonly current: number | undefined
  readonly limit: number | undefined
  /** Allocations that failed at the limit. */
  readonly failures: number | undefined
}

/**
 * The use of a cgroup, read at one time. A value that this tree lacks is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface Stats {
  readonly memory: {
    /** Bytes in use now. */
    readonly current: number | undefined
    /** The peak use in bytes. */
    readonly peak: number | undefined
    /** The limit in bytes, undefined without a limit. */
    readonly limit: number | undefined
    /** Bytes of swap in use. */
    readonly swap: number | undefined
    /** Bytes of memory that processes have allocated, of page cache, of the kernel's own data and of socket buffers. */
    readonly anon: number | undefined
    readonly file: number | undefined
    readonly kernel: number | undefined
    readonly sockets: number | undefined
    readonly pageFaults: number | undefined
    readonly majorPageFaults: number | undefined
    /** Processes that the OOM killer has ended. */
    readonly oomKills: number | undefined
    readonly events: MemoryEvents
  }
  readonly cpu: {
    /** CPU time used, in microseconds. */
    readonly usageMicros: number | undefined
    readonly userMicros: number | undefined
    readonly systemMicros: number | undefined
    /** The limit in CPUs, undefined without a limit. */
    readonly limit: number | undefined
    /** The periods in which processes ran, those in which they were throttled, and the throttled microseconds. */
    readonly periods: number | undefined
    readonly throttledPeriods: number | undefined
    readonly throttledMicros: number | undefined
    /** CPU time beyond the quota, in microseconds. */
    readonly burstMicros: number | undefined
  }
  readonly pids: {
    readonly current: number | undefined
    readonly peak: number | undefined
    readonly limit: number | undefined
    /** Forks that failed at the limit. */
    readonly failures: number | undefined
  }
  /** By device that has been used. */
  readonly io: ReadonlyArray<IoStats>
  /** By page size: `2MB`. */
  readonly hugetlb: Readonly<Record<string, HugetlbStats>>
  /** By device: the handles and objects in use. */
  readonly rdma: Readonly<Record<string, { readonly handles: number; readonly objects: number }>>
  /** By resource: the amount in use. */
  readonly misc: Readonly<Record<string, number>>
  readonly pressure: {
    readonly cpu: Pressure | undefined
    readonly memory: Pressure | undefined
    readonly io: Pressure | undefined
  }
}

/**
 * A resource for which processes can wait.
 *
 * @since 0.1.0
 * @category models
 */
export type Resource = "cpu" | "memory" | "io"

/**
 * A duration in any form that Effect takes, or as `"150ms"`, `"1s"`.
 *
 * @since 0.1.0
 * @category models
 */
export type Time = Duration.DurationInput | `${number}us` | `${number}ms` | `${number}s`

/**
 * The threshold of a report: either `some` or `full`.
 *
 * @since 0.1.0
 * @category models
 */
export interface PressureOptions {
  /** How long at least one process must have waited in a window. */
  readonly some?: Time | undefined
  /** How long all processes must have waited at the same time in a window. */
  readonly full?: Time | undefined
  /** From 500 ms to 10 s. Without CAP_SYS_RESOURCE it must be a multiple of 2 s, else `CgroupError`. Default 2 s. */
  readonly window?: Time | undefined
}

const makeBelow = (
  limits: Limits,
  above: ReadonlyArray<Folder>
): Effect.Effect<Cgroup, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(tag.Berth, (berth) => {
    const id = berth.supervisor.nextId()
    const name = internal.nameOf(berth.supervisor.folder, id)
    return Effect.flatMap(
      attempt(() => internal.operations(berth.memory.tree(), limits, name, above)),
      ({ create, folders }) => {
        const cgroup = internal.unsafeMake(name, folders)
        const plan = Plan.make(create)
        return Effect.flatMap(Effect.scope, (scope) =>
          scopedUnit(berth, id, `cgroup ${name}`, plan, {}).pipe(
            Effect.mapError(internal.explain(plan)),
            Effect.map(() => {
              cgroup.state.owner = { berth, scope, container: undefined }
              return cgroup
            })
          )
        )
      }
    )
  })

/**
 * Makes an empty cgroup with these limits below the cgroup of this process. Closing the scope kills its processes.
 *
 * Fails with `InvalidOption` for a malformed limit, or one that names something that this machine lacks. Fails with
 * `CgroupError` for a controller that the tree lacks or that does not support the limit, and for limits that the kernel
 * refuses.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (limits: Limits = {}): Effect.Effect<Cgroup, BerthError, Berth | Scope.Scope> =>
  makeBelow(limits, []).pipe(Effect.withSpan("berth.Cgroup.make"))

/**
 * Makes a cgroup inside another one, whose limits hold for all cgroups in it together. On version 2 the outer one must not
 * have processes of its own: `CgroupError` with `HasProcesses`. On version 1 the new cgroup is inside the outer one in the
 * hierarchies that the outer one uses.
 *
 * @since 0.1.0
 * @category constructors
 */
export const makeIn = (
  parent: Cgroup,
  limits: Limits = {}
): Effect.Effect<Cgroup, BerthError, Berth | Scope.Scope> =>
  Effect.suspend(() => makeBelow(limits, parent.folders)).pipe(Effect.withSpan("berth.Cgroup.makeIn"))

/**
 * Changes limits while processes run. Limits that are left out stay, and `"max"` removes a limit. Controllers that the
 * cgroup lacks are added.
 *
 * Fails as `make` does, and with `CgroupError`: `InUse` if the processes use more memory than the new limit and it cannot be
 * reclaimed, `Gone` if the cgroup was removed. Limits are set one after the other: those before the failed one stay set.
 *
 * @since 0.1.0
 * @category limits
 */
export const update: {
  (limits: Limits): (cgroup: Cgroup) => Effect.Effect<void, BerthError>
  (cgroup: Cgroup, limits: Limits): Effect.Effect<void, BerthError>
} = dual(2, (cgroup: Cgroup, limits: Limits) =>
  internal.update(cgroup, limits).pipe(Effect.withSpan("berth.Cgroup.update"))
)

/**
 * The host's pids of the processes in the cgroup and in the cgroups below it.
 *
 * @since 0.1.0
 * @category processes
 */
export const processes = (cgroup: Cgroup): Effect.Effect<ReadonlyArray<number>, BerthError> =>
  Effect.zipRight(
    isThere(cgroup),
    Effect.sync(() => internal.processes(cgroup))
  ).pipe(Effect.withSpan("berth.Cgroup.processes"))

/**
 * Moves a process with all its threads into the cgroup. Its present children stay in their cgroup; later ones start in this
 * one. Does nothing if the process has ended.
 *
 * @since 0.1.0
 * @category processes
 */
export const move: {
  (pid: number): (cgroup: Cgroup) => Effect.Effect<void, BerthError>
  (cgroup: Cgroup, pid: number): Effect.Effect<void, BerthError>
} = dual(2, (cgroup: Cgroup, pid: number) =>
  Effect.forEach(
    internal.entered(cgroup),
    ({ path }) => internal.filesOf("cgroup", `${path}/cgroup.procs`, () => internal.moveTo(path, pid)),
    { discard: true }
  ).pipe(Effect.withSpan("berth.Cgroup.move"))
)

/**
 * Freezes every process in the cgroup, and succeeds once all stand still. Frozen processes can be killed: a container or a
 * command in the cgroup ends with its scope, and `Container.stop` and SIGKILL let it run again until it ends.
 *
 * Fails with `CgroupError` if a process waits in the kernel and does not stop within 5 seconds; all processes then run
 * again.
 *
 * @since 0.1.0
 * @category freezing
 */
export const freeze = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  freezer.freeze(cgroup).pipe(Effect.withSpan("berth.Cgroup.freeze"))

/**
 * Lets the processes of a frozen cgroup run again. Does nothing if the cgroup is not frozen.
 *
 * @since 0.1.0
 * @category freezing
 */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  freezer.thaw(cgroup).pipe(Effect.withSpan("berth.Cgroup.thaw"))

const isThere = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => (internal.isThere(cgroup) ? Effect.void : Effect.fail(internal.gone(cgroup))))

/**
 * What the cgroup uses now, read once from all its files. Fails with `CgroupError` if the cgroup is gone.
 *
 * @since 0.1.0
 * @category statistics
 */
export const stats = (cgroup: Cgroup): Effect.Effect<Stats, BerthError> =>
  Effect.zipRight(
    isThere(cgroup),
    Effect.sync(() => readStats(cgroup))
  ).pipe(spanIfObserved("berth.Cgroup.stats"))

/**
 * What the cgroup uses, at intervals: the first reading comes at once. Fails with `CgroupError` once the cgroup is gone. Each
 * reading is also set in Effect's metrics, tagged with the cgroup's name: `berth.cgroup.memory.usage`, `.memory.limit`, `.memory.oom_kills`,
 * `.cpu.time`, `.cpu.throttled`, `.pids.current`, `.io.read` and `.io.written`.
 *
 * @since 0.1.0
 * @category statistics
 */
export const metrics = (
  cgroup: Cgroup,
  options: {
    /** Default 1 second. */
    readonly every?: Duration.DurationInput | undefined
  } = {}
): Stream.Stream<Stats, BerthError> =>
  measuring
    .metrics(cgroup, stats(cgroup), options.every ?? "1 second")
    .pipe(Stream.withSpan("berth.Cgroup.metrics"))

/**
 * The counters of the memory limits, now and whenever the kernel reports a change: on version 2 through `memory.events`, on
 * version 1 when the memory runs out. Ends with the cgroup, or with the container that the cgroup belongs to.
 *
 * @since 0.1.0
 * @category events
 */
export const memoryEvents = (cgroup: Cgroup): Stream.Stream<MemoryEvents, BerthError> =>
  events.memoryEvents(cgroup).pipe(Stream.withSpan("berth.Cgroup.memoryEvents"))

/**
 * The total number of processes that the OOM killer has ended, each time that it grows. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const oomKills = (cgroup: Cgroup): Stream.Stream<number, BerthError> =>
  events.oomKills(cgroup).pipe(Stream.withSpan("berth.Cgroup.oomKills"))

/**
 * The number of forks that the limit has refused, now and whenever it grows (`pids.events`). On version 2 the kernel reports
 * changes; on version 1 the file is read ten times a second. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const pidsEvents = (cgroup: Cgroup): Stream.Stream<PidsEvents, BerthError> =>
  events.pidsEvents(cgroup).pipe(Stream.withSpan("berth.Cgroup.pidsEvents"))

/**
 * The pressure on a resource, each time that the processes have waited for as long as the options say, at most once a
 * window. A trigger in the kernel reports it (psi.rst). Pressure is a part of version 2, which must be mounted even if the
 * controllers are of version 1. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 * @example
 * cgroup.pipe(Cgroup.pressure("memory", { some: "150ms", window: "1s" }), Stream.runForEach(shed))
 */
export const pressure: {
  (resource: Resource, options: PressureOptions): (cgroup: Cgroup) => Stream.Stream<Pressure, BerthError>
  (cgroup: Cgroup, resource: Resource, options: PressureOptions): Stream.Stream<Pressure, BerthError>
} = dual(3, (cgroup: Cgroup, resource: Resource, options: PressureOptions) =>
  events.pressure(cgroup, resource, options).pipe(Stream.withSpan("berth.Cgroup.pressure"))
)
