/**
 * Limits, statistics and membership: a cgroup as a scoped resource, with one typed interface over version 1, version 2
 * and hybrid trees.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Inspectable from "effect/Inspectable"
import { type Pipeable, pipeArguments } from "effect/Pipeable"
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
export const TypeId: unique symbol = Symbol.for("berth/Cgroup")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A cgroup: a folder in each hierarchy that the tree has for it, removed when its scope closes, with all that is in it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Cgroup extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly name: string
  /** Its folders by hierarchy; more come with the controllers that are used. */
  readonly folders: ReadonlyArray<Folder>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Folder {
  readonly version: 1 | 2
  readonly path: string
  /** What it limits, counts and controls, by version 2's names. */
  readonly controllers: ReadonlyArray<string>
}

const Proto = {
  [TypeId]: TypeId as TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Cgroup) {
    return { _id: "Cgroup", name: this.name, folders: this.folders }
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isCgroup = (u: unknown): u is Cgroup => hasProperty(u, TypeId)

/** @internal */
export const unsafeMake = (name: string, folders: ReadonlyArray<Folder>): Cgroup =>
  Object.assign(Object.create(Proto), { name, folders })

/**
 * Bytes, as a number or as text with a unit: `"256MiB"`, `"1.5GB"`, `"64m"` (Docker's form, of 1024). `"max"` is no limit.
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
  /** Past it, the kernel's OOM killer ends processes in the cgroup. Page cache counts. */
  readonly max?: Bytes | undefined
  /** Past it, processes are held up until memory has been reclaimed. Version 2. */
  readonly high?: Bytes | undefined
  /** Below it, nothing is reclaimed as long as it can be had elsewhere. Version 1 has a soft limit in its place. */
  readonly low?: Bytes | undefined
  /** Swap on top of `max`, which has to be given as well. Default: none where `max` is given. */
  readonly swap?: Bytes | undefined
  /** Whether the OOM killer ends all of the cgroup's processes instead of one. Version 2, Linux 4.19. */
  readonly oomGroup?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpuLimits {
  /** The share of CPU time where there is not enough for all, from 1 to 10000. Default 100. Not with `idle`. */
  readonly weight?: number | undefined
  /** The period of `cpus`, in microseconds, from 1000 to 1000000. Default 100000. */
  readonly periodMicros?: number | undefined
  /** How much unused time of earlier periods may be used on top, in microseconds, at most the quota. Linux 5.14. */
  readonly burstMicros?: number | undefined
  /** Whether it runs only when nothing else does (SCHED_IDLE). Linux 5.15. */
  readonly idle?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpusetLimits {
  /** The CPUs to run on, as a list of numbers and ranges: `"0-3,6"`. */
  readonly cpus?: string | undefined
  /** The memory nodes to allocate on. Default: all that there are. */
  readonly mems?: string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoDeviceLimits {
  /** A block device on the host, `/dev/vda`, or its numbers, `254:0`. A whole disk, not a partition. */
  readonly device: string
  /** Bytes a second. */
  readonly readBps?: Bytes | undefined
  readonly writeBps?: Bytes | undefined
  /** Operations a second; `"max"` is no limit. */
  readonly readIops?: number | "max" | undefined
  readonly writeIops?: number | "max" | undefined
  /** As `IoLimits.weight`, for this device. */
  readonly weight?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoLimits {
  /**
   * The share of a disk's time where there is not enough for all, from 1 to 10000; on version 1 to 1000. Default 100.
   * Needs the BFQ scheduler, or on version 2 io.cost.
   */
  readonly weight?: number | undefined
  readonly devices?: ReadonlyArray<IoDeviceLimits> | undefined
}

/**
 * A device that may be used besides `null`, `zero`, `full`, `random`, `urandom`, `tty`, `ptmx` and terminals.
 *
 * @since 0.1.0
 * @category models
 */
export type DeviceRule =
  | {
      /** A device node on the host: `/dev/fuse`. */
      readonly path: string
      /** Some of `r`, `w` and `m`: to read, to write, to make a node. Default `rwm`. */
      readonly access?: string | undefined
    }
  | {
      readonly type: "char" | "block"
      /** Default: any. */
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
 * What a cgroup may use. What is left out is not limited, or, in `Cgroup.update`, stays as it is.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Memory, page cache included: bytes alone are `{ max }`. Swap is not given on top. Past it, the kernel's OOM killer
   * ends processes in the cgroup.
   */
  readonly memory?: Bytes | MemoryLimits | undefined
  /** CPUs, 0.01 or more: 0.5 is half of one CPU's time, in periods of 100 ms. `"max"` is no limit. */
  readonly cpus?: number | "max" | undefined
  readonly cpu?: CpuLimits | undefined
  readonly cpuset?: CpusetLimits | undefined
  /**
   * Processes and threads at one time; one more makes fork(2) fail with EAGAIN. May be fewer than there are: those stay.
   * `"max"` is no limit.
   */
  readonly pids?: number | "max" | undefined
  readonly io?: IoLimits | undefined
  /** Bytes of huge pages, by their size as the kernel writes it: `{ "2MB": "64MiB" }`. */
  readonly hugetlb?: Readonly<Record<string, Bytes>> | undefined
  /**
   * Which devices may be opened or made: Docker's list and these. `[]` is the list alone. Left out, all may be, as far as
   * the kernel lets the processes: a container's root and mounts are `nodev`, so it has the nodes of its `/dev` alone
   * anyway. That is why it is not the default: it would add 0.1 ms to a start on version 1 and 1 ms on version 2.
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
  /** The part of the last 10, 60 and 300 seconds, in percent. */
  readonly avg10: number
  readonly avg60: number
  readonly avg300: number
  /** In all, in microseconds. */
  readonly totalMicros: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Pressure {
  /** At least one process waited. */
  readonly some: PressureTimes
  /** All that were not idle waited at once. */
  readonly full: PressureTimes | undefined
}

/**
 * How often the limits of memory have had an effect: counters. A value that the tree cannot give is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface MemoryEvents {
  /** Reclaimed from although below `low`; held up at `high`; about to go past `max`. */
  readonly low: number | undefined
  readonly high: number | undefined
  readonly max: number | undefined
  /** At `max`, and nothing could be reclaimed. */
  readonly oom: number | undefined
  /** Processes that the OOM killer has ended, and times that it ended all of a cgroup. */
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
 * What a cgroup uses, read at once. A value that this tree cannot give is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface Stats {
  readonly memory: {
    /** Bytes in use now. */
    readonly current: number | undefined
    /** The most bytes that were in use. */
    readonly peak: number | undefined
    /** The limit in bytes, undefined where there is none. */
    readonly limit: number | undefined
    /** Bytes of swap in use. */
    readonly swap: number | undefined
    /** Bytes of what processes have allocated, of page cache, of the kernel's own and of sockets' buffers. */
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
    /** The limit in CPUs, undefined where there is none. */
    readonly limit: number | undefined
    /** Periods in which it ran, in which it was held back, and for how long in all, in microseconds. */
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
  /** Of the devices that have been used. */
  readonly io: ReadonlyArray<IoStats>
  /** By size: `2MB`. */
  readonly hugetlb: Readonly<Record<string, HugetlbStats>>
  /** By device: handles and objects in use. */
  readonly rdma: Readonly<Record<string, { readonly handles: number; readonly objects: number }>>
  /** By resource: how much of it is in use. */
  readonly misc: Readonly<Record<string, number>>
  readonly pressure: {
    readonly cpu: Pressure | undefined
    readonly memory: Pressure | undefined
    readonly io: Pressure | undefined
  }
}

/**
 * What there can be too little of.
 *
 * @since 0.1.0
 * @category models
 */
export type Resource = "cpu" | "memory" | "io"

/**
 * A duration as Effect has them, or as `"150ms"`, `"1s"`.
 *
 * @since 0.1.0
 * @category models
 */
export type Time = Duration.DurationInput | `${number}us` | `${number}ms` | `${number}s`

/**
 * When to tell of pressure: either `some` or `full`.
 *
 * @since 0.1.0
 * @category models
 */
export interface PressureOptions {
  /** For how long in a window at least one process has to have waited. */
  readonly some?: Time | undefined
  /** For how long all of them have to have waited at once. */
  readonly full?: Time | undefined
  /** From 500 ms to 10 s; without CAP_SYS_RESOURCE a multiple of 2 s, else `CgroupError`. Default 2 s. */
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
      attempt(() => internal.operations(limits, name, above)),
      ({ create, folders }) => {
        const cgroup = unsafeMake(name, folders)
        const plan = Plan.make(create)
        return Effect.flatMap(Effect.scope, (scope) =>
          scopedUnit(berth, id, `cgroup ${name}`, plan, {}).pipe(
            Effect.mapError(internal.explain(plan)),
            Effect.map(() => {
              internal.own(cgroup, { berth, scope, container: undefined })
              return cgroup
            })
          )
        )
      }
    )
  })

/**
 * A cgroup with these limits, empty so far, below the cgroup of this process. Closing the scope kills what is in it.
 *
 * Fails with `InvalidOption` for a limit that cannot be read or names what this machine does not have, and with
 * `CgroupError` for a controller that the tree lacks or that cannot do it, and for what the kernel refuses.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (limits: Limits = {}): Effect.Effect<Cgroup, BerthError, Berth | Scope.Scope> =>
  makeBelow(limits, []).pipe(Effect.withSpan("berth.Cgroup.make"))

/**
 * A cgroup in another, whose limits hold for all that are in it together. On version 2 the other one can have no processes
 * of its own then: `CgroupError` with `HasProcesses`. On version 1 it is in the other as far as that has the controller.
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
 * Changes limits while processes run; what is left out stays, and `"max"` takes a limit away. A controller that the cgroup
 * was made without is added.
 *
 * Fails as `make` does, and with `CgroupError`: `InUse` where more memory is in use and cannot be reclaimed, `Gone`. Limits
 * are set one after the other: those before the one that failed are set then.
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
 * The processes in it and in those below it, as the host numbers them.
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
 * Moves a process into it, with all of its threads; its children stay where they are, and those to come are in here.
 * Nothing happens where it has ended.
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
 * Has everything in it stand still, and succeeds once it does. What is frozen can be killed; a container or a command in
 * it ends with its scope all the same, and `Container.stop` and SIGKILL let it go on for its end.
 *
 * Fails with `CgroupError` where a process waits in the kernel and does not stop within 5 seconds; everything runs then.
 *
 * @since 0.1.0
 * @category freezing
 */
export const freeze = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  freezer.freeze(cgroup).pipe(Effect.withSpan("berth.Cgroup.freeze"))

/**
 * Lets it go on. Nothing happens where it is not frozen.
 *
 * @since 0.1.0
 * @category freezing
 */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  freezer.thaw(cgroup).pipe(Effect.withSpan("berth.Cgroup.thaw"))

const isThere = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => (internal.isThere(cgroup) ? Effect.void : Effect.fail(internal.gone(cgroup))))

/**
 * What the cgroup uses now: one read of all that there is. Fails with `CgroupError` where it is gone.
 *
 * @since 0.1.0
 * @category statistics
 */
export const stats = (cgroup: Cgroup): Effect.Effect<Stats, BerthError> =>
  Effect.zipRight(
    isThere(cgroup),
    Effect.sync(() => readStats(cgroup.folders))
  ).pipe(spanIfObserved("berth.Cgroup.stats"))

/**
 * What it uses at intervals, the first at once; fails with `CgroupError` once it is gone. Each reading is also set in
 * Effect's metrics, tagged with the cgroup's name: `berth.cgroup.memory.usage`, `.memory.limit`, `.memory.oom_kills`,
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
 * The counters of memory's limits, now and whenever the kernel says that they have changed: on version 2 by
 * `memory.events`, on version 1 when memory has run out. Ends with the cgroup, or with the container that it is of.
 *
 * @since 0.1.0
 * @category events
 */
export const memoryEvents = (cgroup: Cgroup): Stream.Stream<MemoryEvents, BerthError> =>
  events.memoryEvents(cgroup).pipe(Stream.withSpan("berth.Cgroup.memoryEvents"))

/**
 * How many processes the OOM killer has ended in all, each time that there are more. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const oomKills = (cgroup: Cgroup): Stream.Stream<number, BerthError> =>
  events.oomKills(cgroup).pipe(Stream.withSpan("berth.Cgroup.oomKills"))

/**
 * How many forks have failed at the limit, now and whenever there are more (`pids.events`; the kernel tells of it on version
 * 2, on version 1 it is looked at ten times a second). Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const pidsEvents = (cgroup: Cgroup): Stream.Stream<PidsEvents, BerthError> =>
  events.pidsEvents(cgroup).pipe(Stream.withSpan("berth.Cgroup.pidsEvents"))

/**
 * The pressure on a resource, each time that its processes have waited for as long as the options say, at most once a
 * window; by a trigger in the kernel (psi.rst). Where the controllers are of version 1 this still is of version 2, which
 * has to be mounted as well. Ends as `memoryEvents` does.
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
