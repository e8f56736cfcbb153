/**
 * One filesystem layer of an image, unpacked: a folder addressed by the diff id, so that images share it. (The name
 * `Layer` is Effect's.)
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type * as Stream from "effect/Stream"
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
  /** Of the bytes as they are kept and sent, compressed or not. */
  readonly digest: Digest
  /** Of the tar itself. */
  readonly diffId: Digest
  readonly mediaType: string
  /**
   * The folder, absolute. Whoever writes into it breaks every image that shares the layer. Hard links to files that only
   * a lower layer has are not in it: an image has a layer more for these, which `Image` makes.
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
 * Bounds for one layer. A layer that exceeds one fails with the `ImageError` `TooLarge`, which names it. There are others
 * that no layer of use comes near: 16 KiB of a path, 10,000 hard links to files that its layer has not shown before, 384 MiB
 * of memory, and what paths through symlinks cost in proportion to the tar's length.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Bytes of the uncompressed tar, and of the files in it with their holes. Unless given, 64 GiB, but no more than 1 GiB
   * and 200 times the size of a compressed layer: a few megabytes can stand for as many gigabytes of zeros.
   */
  readonly maxBytes?: number | undefined
  /** Members of the tar, and folders that these imply; 10 million unless given. */
  readonly maxEntries?: number | undefined
  /**
   * Seconds of processor time that the unpacker may take without getting on with the tar, of which each 256 KiB give it
   * one more second; 60 unless given, 0 for any.
   */
  readonly maxCpuSeconds?: number | undefined
}

/**
 * What `unpack` takes.
 *
 * @since 0.1.0
 * @category models
 */
export interface UnpackOptions extends Limits {
  readonly descriptor: Descriptor
  /** What the image's config says that the digest of the uncompressed tar is. */
  readonly diffId: string
  /** The file that holds the layer, absolute. */
  readonly blob: string
}

/**
 * Where the layer with this diff id is, or would be, on disk.
 *
 * @since 0.1.0
 * @category getters
 */
export const folder = (diffId: Digest): Effect.Effect<string, never, Berth> =>
  Effect.map(Berth, (berth) => internal.layerFolder(berth, diffId))

/**
 * Unpacks a layer, unless it has been already, into its folder: verified, and either whole or not at all, whatever
 * else happens. One layer is unpacked by one fiber of one process at a time; the others wait and share it.
 *
 * Fails with an `ImageError`: `DigestMismatch`, `Corrupt` (truncated, not a tar), `Escape` (a member that tries to
 * leave its folder), `Unsupported` (media type, kind of entry), `TooLarge` (past the limits), `Storage` (disk full).
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
 * What `diff` takes.
 *
 * @since 0.1.0
 * @category models
 */
export interface DiffOptions {
  /** The writable layer of an overlay, as `RootFs.upper` names it: a folder on the host. */
  readonly upper: string
  /**
   * How many bytes the holes of all files may have, which are zeros in the tar, as a number or as text like "256MiB".
   * Default: 16 GiB.
   */
  readonly maxHoleBytes?: number | string | undefined
}

/**
 * What an overlay's writable layer changes, as a layer of an image: a tar, not compressed, with modes, owners, times to
 * the nanosecond, extended attributes but labels of SELinux, and hard links. Holes are zeros, as the image specification advises against
 * sparse members; those of `maxHoleBytes` at most. What was removed is a
 * whiteout, `.wh.NAME`, and so is a socket, which a tar cannot hold. Equal trees make equal bytes.
 *
 * The targets of mounts and the working directory that a start makes are below the writable layer, and no part of it unless
 * the container changes them. The ones that the `mounts` or the `cwd` of a `Container.spawn` need are made in the root itself.
 *
 * Of a root that is in use, it is what is there at that moment. Without root, this program's own files are root's.
 *
 * Fails with `ImageError` `Unsupported`, which names the file, for a name that begins with `.wh.`, an attribute whose
 * name a tar cannot hold, and overlays with `redirect_dir` or `metacopy`, which Berth does not make; with
 * `OperationFailed` where a file cannot be read, and where holes are larger than `maxHoleBytes` (EFBIG).
 *
 * @since 0.1.0
 * @category destructors
 */
export const diff: (options: DiffOptions) => Stream.Stream<Uint8Array, BerthError> = layerDiff.diff
