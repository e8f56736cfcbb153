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
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Limits } from "./CgroupLimits.ts"
import type { MemoryEvents, PidsEvents, Pressure, Stats } from "./CgroupStats.ts"
import * as internal from "./internal/cgroup/cgroup.ts"
import * as events from "./internal/cgroup/events.ts"
import * as freezer from "./internal/cgroup/freezer.ts"
import * as measuring from "./internal/cgroup/metrics.ts"
import { readStats } from "./internal/cgroup/stats.ts"
import type { Tree } from "./internal/cgroup/tree.ts"
import * as tag from "./internal/service.ts"
import { scopedUnit } from "./internal/supervisor/scopedUnit.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import * as Plan from "./Plan.ts"

export type * from "./CgroupLimits.ts"
export type * from "./CgroupStats.ts"

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
  /** Its folders, one for each hierarchy. Folders are added when more controllers are used. */
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
  /** The controllers that this folder has, by the names of version 2. */
  readonly controllers: ReadonlyArray<string>
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isCgroup = (u: unknown): u is Cgroup => hasProperty(u, TypeId)

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
 * When to report pressure: either `some` or `full`.
 *
 * @since 0.1.0
 * @category models
 */
export interface PressureOptions {
  /** How long at least one process must have waited in a window. */
  readonly some?: Time | undefined
  /** How long all processes must have waited at the same time. */
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
 * A cgroup with this name, and the operations that make and limit it; throws.
 *
 * @internal
 */
export const operations = (
  tree: Tree,
  limits: Limits,
  name: string
): { readonly cgroup: Cgroup; readonly create: ReadonlyArray<Plan.Operation> } => {
  const { create, folders } = internal.operations(tree, limits, name)
  return { cgroup: internal.unsafeMake(name, folders), create }
}

// On version 2 a process is in one cgroup only: the last folder.
const isEntered = (folder: Folder, index: number, all: ReadonlyArray<Folder>): boolean =>
  folder.version === 1 || !all.some((other, at) => other.version === 2 && at > index)

/** @internal */
export const joins = (cgroup: Cgroup): ReadonlyArray<Plan.Operation> =>
  cgroup.folders
    .filter(isEntered)
    .map((folder) => ({ op: "cgroup-join", path: folder.path, version: folder.version }))

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
  )

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
    cgroup.folders.filter(isEntered),
    ({ path }) => internal.filesOf("cgroup", `${path}/cgroup.procs`, () => internal.moveTo(path, pid)),
    { discard: true }
  )
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
export const freeze = (cgroup: Cgroup): Effect.Effect<void, BerthError> => freezer.freeze(cgroup)

/**
 * Lets the processes of a frozen cgroup run again. Does nothing if the cgroup is not frozen.
 *
 * @since 0.1.0
 * @category freezing
 */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> => freezer.thaw(cgroup)

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
  )

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
): Stream.Stream<Stats, BerthError> => measuring.metrics(cgroup, stats(cgroup), options.every ?? "1 second")

/**
 * The counters of the memory limits, now and whenever the kernel reports a change: on version 2 through `memory.events`, on
 * version 1 when the memory runs out. Ends with the cgroup, or with the container that the cgroup belongs to.
 *
 * @since 0.1.0
 * @category events
 */
export const memoryEvents = (cgroup: Cgroup): Stream.Stream<MemoryEvents, BerthError> =>
  events.memoryEvents(cgroup)

/**
 * The total number of processes that the OOM killer has ended, each time that it grows. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const oomKills = (cgroup: Cgroup): Stream.Stream<number, BerthError> => events.oomKills(cgroup)

/**
 * The number of forks that the limit has refused, now and whenever it grows (`pids.events`). On version 2 the kernel reports
 * changes; on version 1 the file is read ten times a second. Ends as `memoryEvents` does.
 *
 * @since 0.1.0
 * @category events
 */
export const pidsEvents = (cgroup: Cgroup): Stream.Stream<PidsEvents, BerthError> => events.pidsEvents(cgroup)

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
  events.pressure(cgroup, resource, options)
)
