/**
 * Namespaces as resources: created, held for as long as a scope is open, shared between containers, and joined.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import { InvalidOption } from "./BerthError.ts"
import * as Userns from "./internal/ids/allocation.ts"
import * as Ids from "./internal/ids/idMaps.ts"
import { emptyFolder, explain, flags, flagsOf, idMap } from "./internal/ids/namespaceFlags.ts"
import { scopedUnit } from "./internal/supervisor/scopedUnit.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import * as Plan from "./Plan.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Namespace")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A kind of namespace: mount_namespaces(7), pid_namespaces(7), uts_namespaces(7), ipc_namespaces(7),
 * network_namespaces(7), cgroup_namespaces(7), user_namespaces(7), time_namespaces(7; since Linux 5.6).
 *
 * @since 0.1.0
 * @category models
 */
export type Kind = "mount" | "pid" | "uts" | "ipc" | "network" | "cgroup" | "user" | "time"

/**
 * Namespaces that are held open by a process. A container joins them by the holder's pidfd.
 *
 * @since 0.1.0
 * @category models
 */
export interface Namespace extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly kinds: ReadonlyArray<Kind>
  /** The process that holds them, as the host sees it. */
  readonly pid: number
  /** @internal */
  readonly pidfd: number
  /** @internal what the mount namespace has as its root, once a first process has set it up */
  root: unknown
  /** @internal held by the process that sets it up */
  readonly settingUp: Effect.Semaphore
  /** @internal the ids of its user namespace, undefined where they are Berth's own by the same numbers */
  readonly mapped: Userns.Mapped | undefined
}

const Proto = {
  [TypeId]: TypeId as TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Namespace) {
    return { _id: "Namespace", kinds: this.kinds, pid: this.pid }
  }
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isNamespace = (u: unknown): u is Namespace => hasProperty(u, TypeId)

/**
 * A range of ids for a user namespace: `size` ids from `container` on are those from `host` on.
 *
 * @since 0.1.0
 * @category models
 */
export interface IdRange {
  readonly container: number
  readonly host: number
  readonly size: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The ids of a new user namespace: from 0 on and without a gap, `host` being the ids of Berth's own namespace, which for
   * root are the host's. `"auto"` takes 65536 ids that no other container has (see `Berth.Options.idOwner`), and needs root.
   * Default: all of Berth's own as they are. A root for other ids than those is made with `RootFs.Options.userns`.
   */
  readonly ids?:
    | "auto"
    | { readonly uids: ReadonlyArray<IdRange>; readonly gids: ReadonlyArray<IdRange> }
    | undefined
}

/** The ids of a new user namespace, which are nobody else's for as long as the scope where they are `"auto"`. */
const mappedBy = (
  ids: Options["ids"],
  berth: Berth
): Effect.Effect<Userns.Mapped, BerthError, Scope.Scope> =>
  ids === "auto"
    ? Effect.acquireRelease(
        attempt(() => Userns.acquire(ids, berth)),
        (mapped) => Effect.sync(() => Userns.release(mapped))
      )
    : attempt(() => ({
        ids: ids === undefined ? Ids.nested(berth.ids) : Ids.checkMaps("ids", ids, berth.ids),
        lock: -1
      }))

// Who is in its pid namespace sees the holder, and shall see nothing of the host by it.
const ofTheHolder: ReadonlyArray<Kind> = ["mount", "uts", "ipc", "network", "cgroup"]

/**
 * New namespaces of these kinds, held by a process that does nothing else, which is pid 1 of a new pid namespace: when
 * the scope closes it ends, and with it all that runs in that pid namespace.
 *
 * Fails with `Unsupported` where this kernel lacks one of them or `"auto"` cannot be had, and with `InvalidOption` for ids
 * that overlap, leave a gap or are not there.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  kinds: ReadonlyArray<Kind>,
  options: Options = {}
): Effect.Effect<Namespace, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const id = berth.supervisor.nextId()
    const set = new Set(kinds)
    const unknown = kinds.find((kind) => flags[kind] === undefined)
    if (unknown !== undefined) {
      const expected = `one of ${Object.keys(flags).join(", ")}`
      return yield* new InvalidOption({ option: "kinds", value: JSON.stringify(unknown), expected })
    }
    const mapped = set.has("user") ? yield* mappedBy(options.ids, berth) : undefined
    const plan = Plan.make([
      ...(mapped === undefined ? [] : Userns.hold(mapped)),
      { op: "process", namespaces: flagsOf([...set, ...ofTheHolder]) },
      ...(mapped === undefined ? [] : [idMap(mapped.ids)]),
      { op: "session" },
      { op: "stdio", stdin: null, stdout: null, stderr: null },
      ...(set.has("network") ? [{ op: "loopback" } as const] : []),
      // The mounts of a namespace that is shared are set up, and the host's taken out of it, by its first process.
      {
        op: "empty-root",
        path: set.has("mount") ? emptyFolder(berth.supervisor.folder) : "/",
        proc: set.has("pid") ? 1 : 0
      },
      ...(mapped === undefined ? [] : [{ op: "root-user" } as const]),
      { op: "bounding", capabilities: 0 },
      { op: "capabilities", effective: 0, permitted: 0, inheritable: 0, ambient: 0 },
      { op: "no-new-privileges" },
      { op: "exec-self", arguments: ["berth-hold"], environment: [] }
    ])
    const descriptors = mapped === undefined ? {} : Userns.descriptors(mapped)
    const unit = yield* scopedUnit(berth, id, "namespace holder", plan, descriptors).pipe(
      Effect.mapError(explain(kinds))
    )
    const fields = {
      kinds: [...set],
      pid: unit.pid,
      get pidfd() {
        return unit.pidfd()
      },
      root: undefined,
      settingUp: Effect.unsafeMakeSemaphore(1),
      mapped: mapped === undefined || Ids.areSame(mapped.ids) ? undefined : mapped
    } satisfies Omit<Namespace, TypeId | keyof Inspectable.Inspectable>
    return Object.setPrototypeOf(fields, Proto) as Namespace
  }).pipe(Effect.withSpan("berth.Namespace.make", { attributes: { kinds } }))
