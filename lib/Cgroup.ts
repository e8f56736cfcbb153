/**
 * Limits, statistics and membership: a cgroup as a scoped resource, with one typed interface over version 1, version 2
 * and hybrid trees.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import { Unsupported } from "./BerthError.ts"
import { attempt } from "./internal/attempt.ts"
import * as internal from "./internal/cgroup.ts"
import { scopedUnit } from "./internal/unit.ts"
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
 * What a cgroup may use. What is left out is not limited.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Memory, page cache included, in bytes or as text with a unit: `"256MiB"`, `"1.5GB"`, `"64m"` (Docker's form, of
   * 1024). Swap is not given on top. Past it, the kernel's OOM killer ends processes in the cgroup.
   */
  readonly memory?: number | string | undefined
  /** CPUs, 0.01 or more: 0.5 is half of one CPU's time, in periods of 100 ms. */
  readonly cpus?: number | undefined
  /** Processes and threads at one time; one more makes fork(2) fail with EAGAIN. */
  readonly pids?: number | undefined
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
    /** Processes that the OOM killer has ended. */
    readonly oomKills: number | undefined
  }
  readonly cpu: {
    /** CPU time used, in microseconds. */
    readonly usageMicros: number | undefined
    /** Periods in which it was held back, and for how long in all, in microseconds. */
    readonly throttledPeriods: number | undefined
    readonly throttledMicros: number | undefined
  }
  readonly pids: {
    readonly current: number | undefined
    readonly limit: number | undefined
  }
}

/**
 * A cgroup: a folder in each hierarchy that the tree has for it, removed when its scope closes, with all that is in it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Cgroup extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly name: string
  /** Its folders by hierarchy. */
  readonly folders: ReadonlyArray<Folder>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Folder {
  readonly version: 1 | 2
  readonly path: string
  /** The controllers that are in this hierarchy. */
  readonly controllers: ReadonlyArray<string>
}

const Proto = {
  [TypeId]: TypeId as TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Cgroup) {
    return { _id: "Cgroup", name: this.name, folders: this.folders }
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
 * A cgroup with these limits, empty so far, below the cgroup of this process. Closing the scope kills what is in it.
 *
 * Fails with `InvalidOption` for a limit that cannot be read, `Unsupported` for a controller that the tree lacks,
 * `OperationFailed` where the kernel refuses a value.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (limits: Limits = {}): Effect.Effect<Cgroup, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => {
    const id = berth.supervisor.nextId()
    const made = attempt(() => operations(limits, internal.nameOf(berth.supervisor.folder, id)))
    return Effect.flatMap(made, ({ cgroup, create }) =>
      Effect.as(scopedUnit(berth, id, `cgroup ${cgroup.name}`, Plan.make(create), {}), cgroup)
    )
  }).pipe(Effect.withSpan("berth.Cgroup.make"))

/**
 * A cgroup of this name and the operations that make and limit it; throws.
 *
 * @internal
 */
export const operations = (
  limits: Limits,
  name: string
): { readonly cgroup: Cgroup; readonly create: ReadonlyArray<Plan.Operation> } => {
  const parsed = internal.parseLimits(limits)
  const tree = internal.tree()
  for (const controller of internal.needed(parsed)) {
    if (tree.controllers[controller] !== undefined) continue
    throw new Unsupported({
      feature: `cgroup controller ${controller}`,
      why: tree.missing(controller),
      hint: "Leave the limit out, or have the controller mounted or delegated (cgroups(7))"
    })
  }
  const folders = internal.folders(tree, name)
  const create = folders.map((folder): Plan.Operation => ({ op: "cgroup-create", path: folder.path }))
  return { cgroup: unsafeMake(name, folders), create: [...create, ...internal.writes(folders, parsed)] }
}

/** @internal */
export const joins = (cgroup: Cgroup): ReadonlyArray<Plan.Operation> =>
  cgroup.folders.map((folder) => ({ op: "cgroup-join", path: folder.path, version: folder.version }))

/**
 * What the cgroup uses now.
 *
 * @since 0.1.0
 * @category statistics
 */
export const stats = (cgroup: Cgroup): Effect.Effect<Stats> =>
  Effect.sync(() => internal.readStats(cgroup.folders))
