/**
 * The store of images: a standard OCI image layout in Berth's folder, which skopeo, umoci, podman and buildah also read
 * and write. Blobs appear completely or not at all; `index.json` changes under a lock between processes.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import { type BerthError, ImageError } from "./BerthError.ts"
import { readBounded } from "./internal/disk/files.ts"
import type * as Oci from "./internal/oci/documents.ts"
import { DOCUMENT_BYTES_MAX } from "./internal/oci/documents.ts"
import * as Layout from "./internal/oci/layout.ts"
import * as internal from "./internal/store/store.ts"
import * as digests from "./internal/util/digest.ts"
import { later } from "./internal/util/later.ts"
import type { Digest } from "./Reference.ts"

const pruning = later(() => import("./internal/build/prune.ts"))
const collecting = later(() => import("./internal/gc/collect.ts"))

/**
 * The descriptor of a blob: its media type, digest and size in bytes, as in the OCI specification.
 *
 * @since 0.1.0
 * @category models
 */
export type Descriptor = Oci.Descriptor

/**
 * A name in the store, with its manifest or index.
 *
 * @since 0.1.0
 * @category models
 */
export interface Tagged {
  readonly name: string
  readonly descriptor: Descriptor
}

/**
 * The folder of the layout. It may not exist yet: the first `put` or `tag` makes it.
 *
 * @since 0.1.0
 * @category getters
 */
export const folder: Effect.Effect<string, never, Berth> = Effect.map(Berth, internal.folder)

/**
 * The path of a blob, whether it exists or not.
 *
 * @since 0.1.0
 * @category getters
 */
export const blobPath = (digest: Digest): Effect.Effect<string, never, Berth> =>
  Effect.map(folder, (path) => Layout.blobPath(path, digest))

/**
 * Whether the store has a blob.
 *
 * @since 0.1.0
 * @category getters
 */
export const has = (digest: Digest): Effect.Effect<boolean, ImageError, Berth> =>
  Effect.flatMap(Berth, (berth) => internal.has(berth, digest)).pipe(
    Effect.withSpan("berth.Store.has", { attributes: { "berth.digest": digest } })
  )

/**
 * Puts a blob into the store. If it exists already, the stream is not run. One fiber at a time, of all processes that
 * use this store, writes a digest; the others wait and find it there.
 *
 * Fails with `DigestMismatch` if the bytes do not match the digest or the size, with `Storage` if the disk refuses, and
 * with the error of the stream; nothing is left behind then.
 *
 * @since 0.1.0
 * @category constructors
 */
export const put = <E, R>(
  digest: Digest,
  content: Stream.Stream<Uint8Array, E, R>,
  options?: {
    /** The expected size in bytes: longer content is refused before it is on the disk. */
    readonly size?: number | undefined
  }
): Effect.Effect<void, E | ImageError, R | Berth> =>
  Effect.flatMap(Berth, (berth) => internal.put(berth, digest, content, options?.size))

/**
 * Reads a blob into memory and verifies it. Fails with `NotFound`, `TooLarge` above `maxBytes` (default 4 MiB) or
 * `DigestMismatch`.
 *
 * @since 0.1.0
 * @category getters
 */
export const read: (
  digest: Digest,
  options?: { readonly maxBytes?: number | undefined }
) => Effect.Effect<Uint8Array, ImageError, Berth> = Effect.fn("berth.Store.read")(
  function* (digest, options) {
    const berth = yield* Berth
    const path = internal.folder(berth)
    const limit = options?.maxBytes ?? DOCUMENT_BYTES_MAX
    const bytes = yield* readBounded(berth.fileSystem, Layout.blobPath(path, digest), digest, limit)
    if (Option.isNone(bytes))
      return yield* new ImageError({
        reason: "NotFound",
        subject: digest,
        detail: "is not in the store: pull its image, or put it there"
      })
    yield* digests.verify(digest, bytes.value.length, bytes.value)
    return bytes.value
  }
)

/**
 * Points a name at a manifest or index, in place of its previous one.
 *
 * @since 0.1.0
 * @category tags
 */
export const tag = (name: string, descriptor: Descriptor): Effect.Effect<void, ImageError, Berth> =>
  Effect.flatMap(Berth, (berth) => internal.tag(berth, name, descriptor))

/**
 * The manifest or index of a name. Fails with `NotFound`.
 *
 * @since 0.1.0
 * @category tags
 */
export const resolve = (name: string): Effect.Effect<Descriptor, ImageError, Berth> =>
  Effect.flatMap(list, (entries) => {
    const found = entries.find((entry) => entry.name === name)
    return found === undefined
      ? new ImageError({
          reason: "NotFound",
          subject: name,
          detail:
            "is not a name in the store: pull the image, or take one of Store.list, exactly as it is there"
        })
      : Effect.succeed(found.descriptor)
  }).pipe(Effect.withSpan("berth.Store.resolve", { attributes: { "oci.ref.name": name } }))

/**
 * All names in the store.
 *
 * @since 0.1.0
 * @category tags
 */
export const list: Effect.Effect<ReadonlyArray<Tagged>, ImageError, Berth> = Effect.map(
  Effect.flatMap(Berth, internal.entries),
  (entries) =>
    entries.flatMap((descriptor) => {
      const name = internal.nameOf(descriptor)
      return name === undefined ? [] : [{ name, descriptor }]
    })
).pipe(Effect.withSpan("berth.Store.list"))

/**
 * Runs an effect during which `gc` removes nothing that the effect puts, pulls, unpacks or finds in the store, even if
 * the collection runs in another process. `Image.pull` and similar effects do this by themselves. Use it for a `put` of
 * several blobs followed by `tag`, and for an image without a name in the store, such as one of `Image.fromLayout`,
 * until a container has been started from it.
 *
 * @since 0.1.0
 * @category collecting
 */
export const keeping: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Berth> =
  internal.keeping

/**
 * The things that a collection has removed, or would remove.
 *
 * @since 0.1.0
 * @category models
 */
export interface Collected {
  /** The number of blobs. */
  readonly blobs: number
  /** The number of unpacked layers. */
  readonly layers: number
  /** The bytes of both on the disk, and of caches of builds. */
  readonly bytes: number
}

/**
 * Removes unused blobs and layers: blobs that no entry of `index.json` reaches, and unpacked layers that neither a
 * named image nor a running container uses; a layer that `Container.keep` kept under a key is named until seven days after its last
 * use. Blobs and layers that running pulls and unpacks need stay, in this process
 * and in others, and so do the layers from which another Berth has started containers since its own last collection. An
 * `Image` whose layers were removed cannot be started any more: get it again.
 *
 * Other tools that write into the layout do not use Berth's lock: run this after they have ended.
 *
 * Fails with `InvalidOption` for `keep`, and with an `ImageError`, and removes nothing: `Corrupt`, `DigestMismatch` or `TooLarge` if `oci-layout`,
 * `index.json`, or a manifest, index or config is missing or cannot be read, because its references are unknown then,
 * or if a pull has moved such an `index.json` aside (`index.json.broken-...`), until that file is removed; `Storage` if
 * the disk refuses.
 *
 * @since 0.1.0
 * @category collecting
 */
export const gc = (options?: {
  /** Whether to report only, without removing anything. Default: false. */
  readonly dryRun?: boolean | undefined
  /**
   * The size that the layers of keys (of builds, fixtures and `Container.keep`) and the caches of builds may have on the disk together,
   * as a number or as text like "10GiB". Beyond it, the layers that were unused for longest are removed, and then the largest caches;
   * what is in use stays. Default: no limit.
   *
   * @since 0.2.0
   */
  readonly keep?: number | string | undefined
}): Effect.Effect<Collected, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => {
    const { dryRun = false, keep } = options ?? {}
    return keep === undefined
      ? collecting((module) => module.gc(berth, dryRun))
      : pruning((module) => module.gc(berth, dryRun, keep))
  })

/**
 * The disk space of an image in bytes: its blobs and its unpacked layers.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageUsage {
  /** The digest of the manifest or index. */
  readonly digest: string
  /** The name, undefined for an entry that another tool has written without one. */
  readonly names: ReadonlyArray<string>
  /** The bytes that no other image uses. */
  readonly own: number
  /** The bytes that other images use as well. */
  readonly shared: number
}

/**
 * The disk space of the store, in bytes.
 *
 * @since 0.1.0
 * @category models
 */
export interface Usage {
  readonly blobs: number
  /** The bytes of unpacked layers, as du(1) counts them. */
  readonly layers: number
  /** The bytes that `gc` would remove now. */
  readonly reclaimable: Collected
  readonly images: ReadonlyArray<ImageUsage>
}

/**
 * The disk space of the store and the unpacked layers, by image. Visits every file of every layer.
 *
 * Fails as `gc` does.
 *
 * @since 0.1.0
 * @category collecting
 */
export const usage: Effect.Effect<Usage, ImageError, Berth> = Effect.flatMap(Berth, (berth) =>
  collecting((module) => module.usage(berth))
)
