/**
 * The service that everything of Berth runs on: the folder, the supervisor and the platform's services.
 *
 * @since 0.1.0
 */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import type * as FileSystem from "@effect/platform/FileSystem"
import type * as HttpClient from "@effect/platform/HttpClient"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import * as Layer from "effect/Layer"
import type { BerthError } from "./BerthError.ts"
import type * as Doctor from "./Doctor.ts"
import * as examination from "./internal/berth/doctor.ts"
import * as internal from "./internal/berth/layer.ts"
import type { Memory } from "./internal/berth/memory.ts"
import type { Turns } from "./internal/disk/files.ts"
import * as tag from "./internal/service.ts"
import type { Holds } from "./internal/store/leases.ts"
import type { Supervisor, TimeLimits } from "./internal/supervisor/connection.ts"
import type { IdRange } from "./Namespace.ts"

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
  /** Where everything that Berth keeps on disk is: the store, the unpacked layers, the state of running supervisors. */
  readonly folder: string
  /** Whether this process is not root, and the supervisor therefore is in a user namespace. */
  readonly rootless: boolean
  /**
   * The ids that there are for containers, as a map from the namespace that the supervisor is in to the host: all of them
   * for root, else this process's user as root and, where there are any, the user's ranges of /etc/subuid and /etc/subgid.
   */
  readonly ids: { readonly uids: ReadonlyArray<IdRange>; readonly gids: ReadonlyArray<IdRange> }
  /** @internal */
  readonly fileSystem: FileSystem.FileSystem
  /** @internal */
  readonly httpClient: HttpClient.HttpClient
  /** @internal */
  readonly supervisor: Supervisor
  /** @internal */
  readonly holds: Holds
  /** @internal */
  readonly idOwner: string
  /** @internal where the unpacked layers are, which have owners and so are for these ids only */
  readonly layers: string
  /** @internal */
  readonly memory: Memory
  /** @internal */
  readonly turns: Turns
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
   * Where the store, the unpacked layers and the state are. Default: `/var/lib/berth` for root, else
   * `$XDG_DATA_HOME/berth`.
   */
  readonly folder?: string | undefined
  /**
   * Which ids there are without root: `"ranges"`, the user's own as root and those of /etc/subuid and /etc/subgid, by
   * newuidmap(1), or `"single"`, root alone: files of other owners in an image then belong to root. Default `"auto"`:
   * ranges where the user has any. No meaning for root.
   */
  readonly ids?: "auto" | "ranges" | "single" | undefined
  /**
   * The user whose ranges in /etc/subuid and /etc/subgid root takes those of `userns: "auto"` from. Default `containers`;
   * where that user has none, the ids from 1879048192 on.
   */
  readonly idOwner?: string | undefined
  /** @internal how long a start, a release and the supervisor's end may take, in milliseconds */
  readonly timeLimits?: Partial<TimeLimits> | undefined
}

/**
 * Berth with these options: starts one supervisor, and sweeps what supervisors that were killed have left. When the
 * layer's scope closes, everything that it still owns is given back and the supervisor is gone.
 *
 * Fails with `Unsupported` on another system than Linux, for somebody who is not root where there are no user namespaces,
 * or no ranges of ids where they are asked for, and with `OperationFailed` for a folder that belongs to somebody else.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = (options: Options): Layer.Layer<Berth, BerthError, FileSystem.FileSystem> =>
  Layer.scoped(Berth, internal.make(options)).pipe(Layer.provide(FetchHttpClient.layer))

/**
 * Berth with its defaults, without root where the process has none.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Berth, BerthError, FileSystem.FileSystem> = layerWith({})

/**
 * What Berth can use on this machine, as this user, and the exact fix for what is missing. What counts is tried, in
 * namespaces that are gone when this succeeds; nothing is left. Needs no `Berth`.
 *
 * @since 0.1.0
 * @category diagnosis
 */
export const doctor: Effect.Effect<Doctor.Report> = Effect.suspend(() => examination.doctor)
