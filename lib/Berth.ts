/**
 * The service that every other part of Berth needs: its folder, its supervisor and the platform's services.
 *
 * @since 0.1.0
 */
import type * as FileSystem from "@effect/platform/FileSystem"
import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { BerthError } from "./BerthError.ts"
import type * as Doctor from "./Doctor.ts"
import * as internal from "./internal/berth/layer.ts"
import type { Memory } from "./internal/berth/memory.ts"
import type { Turns } from "./internal/disk/files.ts"
import type { Responder } from "./internal/network/names.ts"
import type { NetworkNamespace, Router } from "./internal/network/router.ts"
import * as tag from "./internal/service.ts"
import type { Holds } from "./internal/store/leases.ts"
import type { Supervisor, TimeLimits } from "./internal/supervisor/connection.ts"
import type { Fleet } from "./internal/util/elsewhere.ts"
import { later } from "./internal/util/later.ts"
import type { IdRange } from "./Namespace.ts"

const examining = later(() => import("./internal/berth/doctor.ts"))

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = tag.TypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A running Berth: one supervisor and one folder.
 *
 * @since 0.1.0
 * @category models
 */
export interface Berth extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The folder of all that Berth keeps on disk: the store, the unpacked layers, the state of running supervisors. */
  readonly folder: string
  /** Whether this process runs as a non-root user. The supervisor is then in a user namespace. */
  readonly rootless: boolean
  /**
   * The ids that containers can have, as a map from the supervisor's user namespace to the host. Root has all ids. For any
   * other user, root is the user, and the other ids are the user's ranges in /etc/subuid and /etc/subgid, if there are any.
   */
  readonly ids: { readonly uids: ReadonlyArray<IdRange>; readonly gids: ReadonlyArray<IdRange> }
  /** @internal */
  readonly fileSystem: FileSystem.FileSystem
  /** @internal */
  readonly supervisor: Supervisor
  /** @internal */
  readonly holds: Holds
  /** @internal */
  readonly idOwner: string
  /** @internal the folder of the unpacked layers; their files have owners, so it is for these ids only */
  readonly layers: string
  /** @internal */
  readonly memory: Memory
  /** @internal */
  readonly turns: Turns
  /** @internal the responder for the names of its networks, which the first one starts */
  readonly responder: Effect.Effect<Responder, BerthError>
  /** @internal the way out of its networks by pasta, which the first one with `outbound: "pasta"` starts */
  readonly uplink: Effect.Effect<Router, BerthError>
  /** @internal the namespace of a network without options, which may have been made in advance */
  readonly usualNamespace: Effect.Effect<NetworkNamespace, BerthError, Scope.Scope>
  /** @internal what starts its containers on other machines; undefined for one whose containers are on this machine */
  readonly fleet?: Fleet | undefined
}

/**
 * @since 0.1.0
 * @category tags
 */
export const Berth: Context.Tag<Berth, Berth> = tag.Berth

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The folder of the store, the unpacked layers and the state. Default: `/var/lib/berth` for root, else
   * `$XDG_DATA_HOME/berth`.
   */
  readonly folder?: string | undefined
  /**
   * The ids of containers that a non-root user starts. `"ranges"`: the user as root, and the user's ranges in /etc/subuid
   * and /etc/subgid, mapped by newuidmap(1). `"single"`: root alone; files of other owners in an image then belong to root.
   * Default `"auto"`: ranges if the user has any. Root ignores this option.
   */
  readonly ids?: "auto" | "ranges" | "single" | undefined
  /**
   * The user whose ranges in /etc/subuid and /etc/subgid supply the ids of `userns: "auto"`; only root uses it. Default
   * `containers`. If that user has no ranges, the ids start at 1879048192.
   */
  readonly idOwner?: string | undefined
  /** @internal how long a start, a release and the supervisor's end may take, in milliseconds */
  readonly timeLimits?: Partial<TimeLimits> | undefined
}

/**
 * Berth with these options: starts one supervisor, and removes what killed supervisors have left. When the layer's scope
 * closes, the supervisor releases everything that it still owns and ends.
 *
 * Fails with `Unsupported` on a system other than Linux, for a non-root user if the kernel refuses user namespaces, and for
 * `ids: "ranges"` if the user has no ranges. Fails with `OperationFailed` if the folder belongs to another user.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = (options: Options): Layer.Layer<Berth, BerthError, FileSystem.FileSystem> =>
  Layer.scoped(Berth, internal.make(options))

/**
 * Berth with the default options, for root and for any other user.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Berth, BerthError, FileSystem.FileSystem> = layerWith({})

/**
 * Reports what Berth can use on this machine, as this user, with the exact fix for each thing that is missing. It tries
 * what containers need in temporary namespaces, and leaves nothing behind. It needs no `Berth`.
 *
 * @since 0.1.0
 * @category diagnosis
 */
export const doctor: Effect.Effect<Doctor.Report> = examining((module) => module.doctor)
