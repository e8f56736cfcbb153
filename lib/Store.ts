/**
 * Where images are kept: a standard OCI image layout under Berth's folder, which skopeo, umoci, podman and buildah read
 * and write too. Blobs appear whole or not at all; `index.json` changes under a lock between processes.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import { ImageError } from "./BerthError.ts"
import { readBounded } from "./internal/disk/files.ts"
import * as storeGc from "./internal/gc/collect.ts"
import type * as Oci from "./internal/oci/documents.ts"
import { maxDocumentBytes } from "./internal/oci/documents.ts"
import * as Layout from "./internal/oci/layout.ts"
import * as internal from "./internal/store/store.ts"
import * as digests from "./internal/util/digest.ts"
import type { Digest } from "./Reference.ts"

/**
 * What the store knows of a blob: its media type, digest and size in bytes, as the OCI specification has it.
 *
 * @since 0.1.0
 * @category models
 */
export type Descriptor = Oci.Descriptor

/**
 * A name in the store, and the manifest or index that it stands for.
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
 * Where a blob is, or would be, on disk.
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
 * Puts a blob into the store, unless it is there already: then the stream is not run. At any time one fiber, of all
 * processes that use this store, writes a digest; others wait and find it there.
 *
 * Fails with `DigestMismatch` when the bytes are not what the digest or the size say, with `Storage` when the disk
 * refuses, and with whatever the stream fails with; nothing is left behind then.
 *
 * @since 0.1.0
 * @category constructors
 */
export const put = <E, R>(
  digest: Digest,
  content: Stream.Stream<Uint8Array, E, R>,
  options?: {
    /** Bytes that the content should have: a longer one is refused before it is on the disk. */
    readonly size?: number | undefined
  }
): Effect.Effect<void, E | ImageError, R | Berth> =>
  Effect.flatMap(Berth, (berth) => internal.put(berth, digest, content, options?.size))

/**
 * Reads a blob into memory and verifies it. Fails with `NotFound`, `TooLarge` past `maxBytes` (4 MiB unless given) or
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
    const limit = options?.maxBytes ?? maxDocumentBytes
    const bytes = yield* readBounded(berth.fileSystem, Layout.blobPath(path, digest), digest, limit)
    if (Option.isNone(bytes)) {
      return yield* new ImageError({
        reason: "NotFound",
        subject: digest,
        detail: "is not in the store: pull its image, or put it there"
      })
    }
    yield* digests.verify(digest, bytes.value.length, bytes.value)
    return bytes.value
  }
)

/**
 * Lets a name stand for a manifest or index, in place of what it stood for before.
 *
 * @since 0.1.0
 * @category tags
 */
export const tag = (name: string, descriptor: Descriptor): Effect.Effect<void, ImageError, Berth> =>
  Effect.flatMap(Berth, (berth) => internal.tag(berth, name, descriptor))

/**
 * What a name stands for. Fails with `NotFound`.
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
 * Every name in the store.
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
 * Runs an effect in which `gc` takes nothing away: what it puts, pulls or unpacks, or finds there, stays until it has
 * ended, also where a collection runs in another process. `Image.pull` and its like are such effects by themselves; this
 * is for a `put` of several blobs whose `tag` comes last, and for an image without a name in the store, such as
 * `Image.fromLayout` gives, until a container has been started from it.
 *
 * @since 0.1.0
 * @category collecting
 */
export const keeping: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | Berth> =
  internal.keeping

/**
 * What a collection has removed, or would.
 *
 * @since 0.1.0
 * @category models
 */
export interface Collected {
  /** How many blobs. */
  readonly blobs: number
  /** How many unpacked layers. */
  readonly layers: number
  /** Of both together, on the disk. */
  readonly bytes: number
}

/**
 * Removes what nobody needs any more: blobs that no entry of `index.json` reaches, and unpacked layers that neither such
 * an image nor a running container has. What a pull or an unpack under way relies on stays, in this process and in others, and
 * so do the layers that another Berth has started containers from since it ended its own last collection. An `Image`
 * whose layers were removed cannot be started any more: get it again.
 *
 * Other tools that write into the layout know of no lock: let them end before.
 *
 * Fails with an `ImageError`, and removes nothing: `Corrupt`, `DigestMismatch` or `TooLarge` where `oci-layout`,
 * `index.json`, or a manifest, index or config is missing or cannot be read, as then nobody knows what it reaches, and
 * where a pull has moved such an `index.json` aside (`index.json.broken-...`), until that file is removed; `Storage` where
 * the disk refuses.
 *
 * @since 0.1.0
 * @category collecting
 */
export const gc = (options?: {
  /** Only says what would be removed. Default: false. */
  readonly dryRun?: boolean | undefined
}): Effect.Effect<Collected, ImageError, Berth> =>
  Effect.flatMap(Berth, (berth) => storeGc.gc(berth, options?.dryRun ?? false))

/**
 * How many bytes an image takes: its blobs and its unpacked layers, on the disk.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageUsage {
  /** Of the manifest or index. */
  readonly digest: string
  /** None for an entry of another tool without a name. */
  readonly names: ReadonlyArray<string>
  /** What no other image has. */
  readonly own: number
  /** What other images have, too. */
  readonly shared: number
}

/**
 * What is on the disk, in bytes.
 *
 * @since 0.1.0
 * @category models
 */
export interface Usage {
  readonly blobs: number
  /** Of unpacked layers, as du(1) has it. */
  readonly layers: number
  /** What `gc` would remove now. */
  readonly reclaimable: Collected
  readonly images: ReadonlyArray<ImageUsage>
}

/**
 * How much of the disk the store and the unpacked layers take, and what for. Looks at every file of every layer.
 *
 * Fails as `gc` does.
 *
 * @since 0.1.0
 * @category collecting
 */
export const usage: Effect.Effect<Usage, ImageError, Berth> = Effect.flatMap(Berth, storeGc.usage)
