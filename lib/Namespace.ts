/**
 * Namespaces as resources: created, held open by a scope, shared between containers, and joined.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import { InvalidOption } from "./BerthError.ts"
import * as Userns from "./internal/ids/allocation.ts"
import * as Ids from "./internal/ids/idMaps.ts"
import * as internal from "./internal/ids/namespaceFlags.ts"
import { scopedUnit } from "./internal/supervisor/scopedUnit.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
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
 * A kind of namespace: mount_namespaces(7), pid_namespaces(7), uts_namespaces(7), ipc_namespaces(7),
 * network_namespaces(7), cgroup_namespaces(7), user_namespaces(7), time_namespaces(7; since Linux 5.6).
 *
 * @since 0.1.0
 * @category models
 */
export type Kind = "mount" | "pid" | "uts" | "ipc" | "network" | "cgroup" | "user" | "time"

/**
 * Namespaces that a process holds open. A container joins them through the holder's pidfd.
 *
 * @since 0.1.0
 * @category models
 */
export interface Namespace extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly kinds: ReadonlyArray<Kind>
  /** The pid of the process that holds them, on the host. */
  readonly pid: number
  /** @internal */
  readonly pidfd: number
  /** @internal the root of the mount namespace, once a first process has set it up */
  root: unknown
  /** @internal held while a first process sets up the root */
  readonly settingUp: Effect.Semaphore
  /** @internal the ids of its user namespace; undefined if they have the same numbers as in Berth's own */
  readonly mapped: Userns.Mapped | undefined
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isNamespace = (u: unknown): u is Namespace => hasProperty(u, TypeId)

/**
 * A range of ids for a user namespace: `size` ids that start at `container` inside map to those that start at `host`
 * outside.
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
   * The ids of a new user namespace, which start at 0 and have no gap. `host` counts in Berth's own namespace; for root that
   * is the host. `"auto"` takes 65536 ids that no other container has (see `Berth.Options.idOwner`), and needs root. Default:
   * all ids of Berth's own namespace, unchanged. For other ids, make the root file system with `RootFs.Options.userns`.
   */
  readonly ids?:
    | "auto"
    | { readonly uids: ReadonlyArray<IdRange>; readonly gids: ReadonlyArray<IdRange> }
    | undefined
}

/** The ids of a new user namespace. With `"auto"`, no other container gets them while the scope is open. */
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

// Processes in the pid namespace see the holder, and must see nothing of the host through it.
const ofTheHolder: ReadonlyArray<Kind> = ["mount", "uts", "ipc", "network", "cgroup"]

/**
 * Makes namespaces of these kinds, held by a process that does nothing else. In a new pid namespace the holder is pid 1.
 * When the scope closes, the holder ends, and with it every process in that pid namespace.
 *
 * Fails with `Unsupported` if this kernel lacks one of the kinds or no ids are free for `"auto"`, and with `InvalidOption`
 * for ids that overlap, leave a gap or are not available.
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
    const unknown = kinds.find((kind) => internal.flags[kind] === undefined)
    if (unknown !== undefined) {
      const expected = `one of ${Object.keys(internal.flags).join(", ")}`
      return yield* new InvalidOption({ option: "kinds", value: JSON.stringify(unknown), expected })
    }
    const mapped = set.has("user") ? yield* mappedBy(options.ids, berth) : undefined
    const plan = Plan.make([
      ...(mapped === undefined ? [] : Userns.hold(mapped)),
      { op: "process", namespaces: internal.flagsOf([...set, ...ofTheHolder]) },
      ...(mapped === undefined ? [] : [internal.idMap(mapped.ids)]),
      { op: "session" },
      { op: "stdio", stdin: null, stdout: null, stderr: null },
      ...(set.has("network") ? [{ op: "loopback" } as const] : []),
      // The first process in a shared mount namespace sets up its mounts and removes those of the host.
      {
        op: "empty-root",
        path: set.has("mount") ? internal.emptyFolder(berth.supervisor.folder) : "/",
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
      Effect.mapError(internal.explain(kinds))
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
    return Object.setPrototypeOf(fields, internal.Proto) as Namespace
  }).pipe(Effect.withSpan("berth.Namespace.make", { attributes: { kinds } }))
