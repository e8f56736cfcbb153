/**
 * One filesystem layer of an image, unpacked: a folder addressed by the diff id, so that images share it. (The name
 * `Layer` is Effect's.)
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as layerDiff from "./internal/layer/diff.ts"
import * as internal from "./internal/layer/unpack.ts"
import type { Digest } from "./Reference.ts"
import type { Descriptor } from "./Store.ts"

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
 * An unpacked layer.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageLayer extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The digest of the blob as it is stored and sent, compressed or not. */
  readonly digest: Digest
  /** The digest of the uncompressed tar. */
  readonly diffId: Digest
  readonly mediaType: string
  /**
   * The absolute folder. Writing into it breaks every image that shares the layer. It lacks hard links to files that
   * only a lower layer has: for these, `Image` makes an additional layer.
   */
  readonly folder: string
}

/**
 * Whether a value is an `ImageLayer`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isImageLayer: (u: unknown) => u is ImageLayer = internal.isImageLayer

/**
 * Limits of one layer. A layer that exceeds one fails with the `ImageError` `TooLarge`, which names the limit. Fixed
 * limits that no useful layer reaches: 16 KiB for a path, 10,000 hard links to files that the layer has not had before,
 * 384 MiB of memory, and a cost of paths through symlinks in proportion to the tar's length.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Bytes of the uncompressed tar, and of the files in it with their holes. Default: 64 GiB, but for a compressed layer
   * at most 1 GiB plus 200 times its size, because a few megabytes can expand to as many gigabytes of zeros.
   */
  readonly maxBytes?: number | undefined
  /** The number of members of the tar and of folders that they imply. Default 10 million. */
  readonly maxEntries?: number | undefined
  /**
   * Seconds of processor time that the unpacker may take without progress; each 256 KiB of the tar add one second.
   * Default 60; 0 for no limit.
   */
  readonly maxCpuSeconds?: number | undefined
}

/**
 * The options of `unpack`.
 *
 * @since 0.1.0
 * @category models
 */
export interface UnpackOptions extends Limits {
  readonly descriptor: Descriptor
  /** The digest of the uncompressed tar, according to the image's config. */
  readonly diffId: string
  /** The absolute path of the layer's file. */
  readonly blob: string
}

/**
 * The folder of the layer with this diff id, whether it exists or not.
 *
 * @since 0.1.0
 * @category getters
 */
export const folder = (diffId: Digest): Effect.Effect<string, never, Berth> =>
  Effect.map(Berth, (berth) => internal.layerFolder(berth, diffId))

/**
 * Unpacks a layer into its folder, unless that exists already. The layer is verified and appears completely or not at
 * all. One fiber of one process at a time unpacks a layer; the others wait and share it.
 *
 * Fails with an `ImageError`: `DigestMismatch`, `Corrupt` (truncated, not a tar), `Escape` (a member that tries to
 * leave its folder), `Unsupported` (media type, kind of entry), `TooLarge` (over a limit), `Storage` (disk full).
 *
 * @since 0.1.0
 * @category constructors
 */
export const unpack = (options: UnpackOptions): Effect.Effect<ImageLayer, BerthError, Berth> =>
  internal.unpack(options).pipe(
    Effect.withSpan("berth.ImageLayer.unpack", {
      attributes: {
        "berth.layer.digest": options.descriptor.digest,
        "berth.layer.diff_id": options.diffId,
        "berth.layer.size": options.descriptor.size
      }
    })
  )

/**
 * The options of `diff`.
 *
 * @since 0.1.0
 * @category models
 */
export interface DiffOptions {
  /** The writable layer of an overlay, from `RootFs.upper`: a folder on the host. */
  readonly upper: string
  /**
   * The limit of bytes in the holes of all files, which are zeros in the tar, as a number or as text like "256MiB".
   * Default: 16 GiB.
   */
  readonly maxHoleBytes?: number | string | undefined
}

/**
 * The changes in an overlay's writable layer as a layer of an image: an uncompressed tar with modes, owners, times to
 * the nanosecond, extended attributes except SELinux labels, and hard links. Holes are zeros, at most `maxHoleBytes`,
 * because the image specification advises against sparse members. A removed file is a whiteout, `.wh.NAME`, and so is a
 * socket, which a tar cannot hold. Equal trees make equal bytes.
 *
 * The targets of mounts and the working directory that a start makes are below the writable layer, and no part of it unless
 * the container changes them. The ones that the `mounts` or the `cwd` of a `Container.spawn` need are made in the root itself.
 *
 * For a root in use, each file has its contents at the time of reading. Without root, this program's own files are
 * owned by root in the layer.
 *
 * Fails with `ImageError` `Unsupported`, which names the file, for a name that begins with `.wh.`, an attribute whose
 * name a tar cannot hold, and overlays with `redirect_dir` or `metacopy`, which Berth does not make; with
 * `OperationFailed` if a file cannot be read, and if holes exceed `maxHoleBytes` (EFBIG).
 *
 * @since 0.1.0
 * @category destructors
 */
export const diff: (options: DiffOptions) => Stream.Stream<Uint8Array, BerthError> = (options) =>
  layerDiff
    .diff(options)
    .pipe(Stream.withSpan("berth.ImageLayer.diff", { attributes: { "berth.rootfs": options.upper } }))
