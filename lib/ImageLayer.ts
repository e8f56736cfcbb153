/**
 * One filesystem layer of an image, unpacked: a folder addressed by the diff id, so that images share it. (The name
 * `Layer` is Effect's.)
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as internal from "./internal/imageLayer.ts"
import type { Digest } from "./Reference.ts"
import type { Descriptor } from "./Store.ts"

/**
 * An unpacked layer.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageLayer {
  /** Of the bytes as they are kept and sent, compressed or not. */
  readonly digest: Digest
  /** Of the tar itself. */
  readonly diffId: Digest
  readonly mediaType: string
  /** The folder, absolute. Whoever writes into it breaks every image that shares the layer. */
  readonly folder: string
}

/**
 * Bounds for one layer.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /** Bytes of the uncompressed tar; 64 GiB unless given. */
  readonly maxBytes?: number | undefined
  /** Members of the tar; 10 million unless given. */
  readonly maxEntries?: number | undefined
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
