/**
 * Volumes: folders for containers' files that outlive a container, and that containers share. A volume of a scope is removed with
 * it, also after a `kill -9`; a volume with a name stays in Berth's folder until `Volume.remove`.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Scope from "effect/Scope"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import * as named from "./internal/volume/named.ts"
import * as internal from "./internal/volume/volume.ts"

/**
 * @since 0.2.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

/**
 * @since 0.2.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A volume, for `mounts` of a container: `{ type: "volume", volume, target: "/data" }`.
 *
 * @since 0.2.0
 * @category models
 */
export interface Volume extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly name: string | undefined
  /** In bytes; undefined without a limit. */
  readonly size: number | undefined
  readonly storage: "disk" | "memory"
  /** @internal */
  readonly state: internal.State
}

/**
 * @since 0.2.0
 * @category models
 */
export interface Options {
  /**
   * Keeps the volume in Berth's folder, where each program that asks for the name finds it. Letters, digits, `_`, `.` and `-`, at
   * most 128. Default: the volume is removed with the scope.
   */
  readonly name?: string | undefined
  /**
   * Its capacity, as in `Limits.memory`: a write beyond it fails with ENOSPC. On disk at least 4 MiB, of which the file system's
   * own data takes some percent; it is a sparse file with an ext4 (loop(4)), which takes room on the host's disk as files are
   * written (where that is full, a write fails with EIO), and needs root and `mkfs.ext4`. Default: no limit on disk, half of the machine's memory in memory (tmpfs(5)).
   */
  readonly size?: number | string | undefined
  /** Default: `"disk"`. In memory only without a name; its contents count as memory of the containers that write them. */
  readonly storage?: "disk" | "memory" | undefined
  /**
   * Begins with the files of another volume, without copying them: an overlay, which copies a file when it is first written. The
   * other volume is held and must not change while the copy exists, so writable mounts of it are refused meanwhile, and a copy is
   * refused while a container can write to it. A copy with a name is of a volume with a name, and open in one program at a time.
   */
  readonly from?: Volume | undefined
  /**
   * The mode of a new volume's root folder. Default 0o1777, so that every user of a container can write to it. A copy has the
   * mode and owner of its source.
   */
  readonly mode?: number | undefined
  /** The owner of a new volume's root folder, as ids of a container. Default 0, root. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
}

/**
 * A volume in Berth's folder.
 *
 * @since 0.2.0
 * @category models
 */
export interface Stored {
  readonly name: string
  /** In bytes; undefined without a limit. */
  readonly size: number | undefined
  /** The name of the volume of which it is a copy. */
  readonly from: string | undefined
}

/**
 * Whether a value is a volume.
 *
 * @since 0.2.0
 * @category guards
 */
export const isVolume: (u: unknown) => u is Volume = internal.isVolume

/**
 * Makes a volume, or opens the one of that name. It is empty at first: what an image has at the target of a mount is hidden and, other
 * than with Docker, not copied. With `userns`, a container sees the volume's files with its own ids through an idmapped mount (Linux
 * 5.12; in memory 6.3), so that containers with different ids share them; a copy cannot be used there.
 *
 * If the scope closes earlier than a container or a copy that uses the volume, it is removed after them.
 *
 * Fails with `InvalidOption`, with `Unsupported` for a size that this machine cannot enforce, with `VolumeError` if the volume of
 * this name is another one or in use, and with `ImageError` if the disk refuses.
 *
 * @since 0.2.0
 * @category constructors
 */
export const make = (options: Options = {}): Effect.Effect<Volume, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => internal.open(berth, options)).pipe(
    Effect.withSpan("berth.Volume.make", { attributes: { "berth.volume.name": options.name } })
  )

/**
 * The volumes in Berth's folder, by name. Fails with `VolumeError` if the folder of one was damaged.
 *
 * @since 0.2.0
 * @category getters
 */
export const list: Effect.Effect<ReadonlyArray<Stored>, BerthError, Berth> = Effect.flatMap(Berth, (berth) =>
  attempt(() => named.stored(berth))
)

/**
 * Removes a volume with all its files. Fails with `VolumeError`: `NotFound`, or `InUse` with the programs, containers and copies that
 * use it.
 *
 * @since 0.2.0
 * @category destructors
 */
export const remove = (name: string): Effect.Effect<void, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) =>
    Effect.zipRight(
      attempt(() => named.checkName(name)),
      named.remove(berth, name)
    )
  ).pipe(Effect.withSpan("berth.Volume.remove", { attributes: { "berth.volume.name": name } }))
