/**
 * Images, from which containers start: read-only layers and a configuration. Images come from a registry, from an OCI
 * layout of another tool, from an archive, from a folder, or from the machine itself.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError, ImageError, InvalidData, InvalidOption } from "./BerthError.ts"
import type { HistoryEntry, ImageConfig, Inspected } from "./ImageConfig.ts"
import type { Limits } from "./ImageLayer.ts"
import * as internal from "./internal/image/image.ts"
import { told } from "./internal/oci/progress.ts"
import { Berth as service } from "./internal/service.ts"
import { later } from "./internal/util/later.ts"
import type { Progress, ProgressOptions } from "./Progress.ts"
import type { ConnectOptions } from "./Registry.ts"
import type { Descriptor } from "./Store.ts"

export type { Healthcheck, HistoryEntry, ImageConfig, Inspected } from "./ImageConfig.ts"

const assembling = later(() => import("./internal/image/assemble.ts"))
const importing = later(() => import("./internal/image/import.ts"))
const keeping = later(() => import("./internal/image/kept.ts"))
const loading = later(() => import("./internal/image/load.ts"))
const names = later(() => import("./internal/image/names.ts"))
const pulling = later(() => import("./internal/image/pull.ts"))
const pushing = later(() => import("./internal/image/push.ts"))
const saving = later(() => import("./internal/image/save.ts"))

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
 * An image whose layers are on this machine, unpacked.
 *
 * @since 0.1.0
 * @category models
 */
export interface Image extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The origin of the image: `docker.io/library/alpine:3`, `host`, `scratch`, a path. */
  readonly reference: string
  /** The digest of the manifest for this platform; undefined for images without a manifest. */
  readonly digest: string | undefined
  /** The layers' absolute folders, the lowest first. */
  readonly layers: ReadonlyArray<string>
  readonly config: ImageConfig
  /** The default writable layer: `memory` if the lowest layer is `/`, which contains every folder on the disk. */
  readonly upper: "disk" | "memory"
  /** The layout that has the image's blobs, if it is not the store. @internal */
  readonly layout?: string | undefined
}

const named = (method: string, name: string) =>
  Effect.withSpan(`berth.Image.${method}`, { attributes: { "container.image.name": name } })

/** The image on the machines of a fleet, where a program's Berth is one. */
const elsewhereOr = (
  name: string,
  options: PullOptions | undefined,
  here: Effect.Effect<Image, BerthError, Berth>
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.flatMap(service, ({ fleet }) => fleet?.pull(name, options ?? {}) ?? here)

/**
 * Whether a value is an `Image`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isImage: (u: unknown) => u is Image = internal.isImage

/**
 * This machine's own root, read-only and without Berth's folder: nothing is downloaded. Fails with `Unsupported` on
 * systems other than Linux.
 *
 * @since 0.1.0
 * @category constructors
 */
export const host: Effect.Effect<Image, BerthError> = internal.host

/**
 * An existing folder as the only layer. It is not copied: do not change it while containers run from it.
 *
 * Fails with `InvalidOption` if the path is not a folder, and with `ImageError` if it does not exist.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromRootfs = (path: string): Effect.Effect<Image, BerthError> =>
  internal
    .fromRootfs(path)
    .pipe(Effect.withSpan("berth.Image.fromRootfs", { attributes: { "berth.rootfs": path } }))

/**
 * An empty image.
 *
 * @since 0.1.0
 * @category constructors
 */
export const scratch: Image = internal.scratch

/**
 * The image with the layer on top that `Container.keep` has kept under this key for a container of the same image; none if there is
 * none. Fails with `InvalidOption` for an empty or too long key, and with `ImageError`.
 *
 * @since 0.2.0
 * @category constructors
 */
export const kept: {
  (key: string): (image: Image) => Effect.Effect<Option.Option<Image>, BerthError, Berth>
  (image: Image, key: string): Effect.Effect<Option.Option<Image>, BerthError, Berth>
} = dual(2, (image: Image, key: string) =>
  Effect.withSpan(
    keeping((module) => module.kept(image, key)),
    "berth.Image.kept",
    {
      attributes: { "container.image.name": image.reference }
    }
  )
)

/**
 * Which image of a name is meant.
 *
 * @since 0.1.0
 * @category models
 */
export interface NamedOptions {
  /** `os/architecture[/variant]`; Default: this machine's. */
  readonly platform?: string | undefined
}

/**
 * Options of `fromLayout`: a tag, a digest, or neither if the layout has one image.
 *
 * @since 0.1.0
 * @category models
 */
export interface FromLayoutOptions extends NamedOptions, Limits {
  /** The name of the image in the layout's `index.json`. */
  readonly tag?: string | undefined
  /** The digest of a manifest or index of the layout. */
  readonly digest?: string | undefined
}

/**
 * An image from a folder in the OCI image layout format, as skopeo, umoci and buildah make them. Its layers are
 * unpacked from there; its blobs are not copied into the store.
 *
 * Fails with `InvalidOption` if a tag is needed, or if a tag and a digest are given, and with `ImageError`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromLayout = (
  path: string,
  options?: FromLayoutOptions
): Effect.Effect<Image, BerthError, Berth> =>
  assembling((module) => module.fromLayout(path, options ?? {})).pipe(
    Effect.withSpan("berth.Image.fromLayout", {
      attributes: { "berth.layout": path, "berth.image.tag": options?.tag }
    })
  )

/**
 * Options of `pull`.
 *
 * @since 0.1.0
 * @category models
 */
export interface PullOptions extends NamedOptions, Limits, ConnectOptions, ProgressOptions {}

/**
 * An image from a registry. The tag is resolved each time (`get` prefers the store); blobs that the store has are not fetched again.
 *
 * Fails with `InvalidData` for a reference that cannot be parsed, `RegistryError` if a request fails, and `ImageError`
 * for invalid content. After a failure the store is as it was before; if the connection failed, complete blobs are kept
 * for the next try.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.pull("127.0.0.1:5000/library/alpine:3")
 */
export const pull = (reference: string, options?: PullOptions): Effect.Effect<Image, BerthError, Berth> =>
  elsewhereOr(
    reference,
    options,
    pulling((module) => module.pull(reference, options ?? {}))
  ).pipe(named("pull", reference))

/**
 * Options of `get`.
 *
 * @since 0.1.0
 * @category models
 */
export interface GetOptions extends PullOptions {
  /** When to pull: if the store lacks the image, each time as `pull` does, or never as `fromStore`. Default: `"missing"`. */
  readonly pull?: "missing" | "always" | "never" | undefined
}

/**
 * The image of a name that `fromStore` takes: from the store if it was pulled, loaded, tagged, committed or imported there,
 * else from its registry. The store answers without a request, so only `pull: "always"` notices a tag that has moved in the
 * registry. An image that is for another platform or is damaged on the disk counts as missing.
 *
 * Fails as `fromStore` and `pull` do, and with `InvalidOption` for another value of `pull`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const get = (name: string, options?: GetOptions): Effect.Effect<Image, BerthError, Berth> =>
  elsewhereOr(
    name,
    options,
    names((module) => module.get(name, options ?? {}))
  ).pipe(named("get", name))

/**
 * The image, once it is there: the result of the last event of `pullEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pulled {
  readonly _tag: "Image"
  readonly image: Image
}

/**
 * `pull` as a stream of its events: the steps of each layer, and at the end the image. If the consumer stops early, the
 * pull stops, and complete blobs are kept.
 *
 * Fails as `pull` does.
 *
 * @since 0.1.0
 * @category constructors
 */
export const pullEvents = (
  reference: string,
  options?: Omit<PullOptions, "progress">
): Stream.Stream<Progress | Pulled, BerthError, Berth> =>
  told((progress) =>
    Effect.map(pull(reference, { ...options, progress }), (image): Pulled => ({ _tag: "Image", image }))
  )

/**
 * Options of `load`.
 *
 * @since 0.1.0
 * @category models
 */
export interface LoadOptions extends NamedOptions, Limits {
  /** The name of one image of the archive. Default: all images. */
  readonly tag?: string | undefined
  /** The limit of the uncompressed archive in bytes, if it must be written to disk first. Default 64 GiB. */
  readonly maxArchiveBytes?: number | undefined
}

/**
 * The images of an archive: of `docker save` or `podman save`, or an OCI archive as made by skopeo and buildah, plain
 * or compressed with gzip (or zstd, if `node:zlib` supports it). They are copied into the store under the names in the
 * archive, `alpine:3` as `docker.io/library/alpine:3`; the name of an unnamed image is its digest. Layers stay as they
 * are in the archive: docker's are uncompressed.
 *
 * An archive that is compressed or not a regular file takes its size on the disk a second time while it is loaded.
 *
 * Fails with `InvalidOption`, with the error of the stream, and with an `ImageError`: `Unsupported` for a file in
 * neither format, `NotFound` if a tag or a part is missing, `Escape` for names that lead out of the archive, else
 * `Corrupt`, `DigestMismatch`, `TooLarge`, `Platform` or `Storage`. After a failure the store is as it was before.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.load("alpine.tar", { tag: "alpine:3" })
 */
export const load = <E = never, R = never>(
  source: string | Stream.Stream<Uint8Array, E, R>,
  options?: LoadOptions
): Effect.Effect<readonly [Image, ...Array<Image>], BerthError | E, Berth | R> =>
  loading((module) => module.load(source, options ?? {})).pipe(
    Effect.withSpan("berth.Image.load", {
      attributes: {
        "berth.archive": typeof source === "string" ? source : "a stream",
        "berth.image.tag": options?.tag
      }
    })
  )

/**
 * Options of `save`.
 *
 * @since 0.1.0
 * @category models
 */
export interface SaveOptions {
  /**
   * A tar of an OCI layout, a tar that `docker load` and `podman load` read, or a folder that is an OCI layout.
   * `docker-archive` has uncompressed layers; the other two have the layers as in the store.
   */
  readonly format: "oci-archive" | "docker-archive" | "oci-layout"
  /** The name in the archive. Default: the name in the store, or no name if that is a digest. */
  readonly tag?: string | undefined
  /** `os/architecture[/variant]`. Default: this machine's for a name, the image's own for an `Image`. */
  readonly platform?: string | undefined
}

/**
 * Writes an image to a file or folder that other tools read: an image that was pulled, loaded, imported or read from a
 * layout, or the image of a name in the store. The image is verified, appears completely or not at all, and equal
 * images make equal bytes. An existing file is replaced; an existing folder must be empty.
 *
 * Fails with `InvalidOption` for an image without a manifest (`host`, `scratch` and `fromRootfs`), a name that the
 * format cannot hold, and an occupied path; and with `ImageError`: `NotFound` if the store lacks a part, `Unsupported`
 * for a layer in zstd as `docker-archive` if `node:zlib` has no zstd, `DigestMismatch` or `Storage`.
 *
 * @since 0.1.0
 * @category destructors
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.save("alpine:3", "alpine.tar", { format: "docker-archive" })
 */
export const save: {
  (path: string, options: SaveOptions): (image: Image | string) => Effect.Effect<void, BerthError, Berth>
  (image: Image | string, path: string, options: SaveOptions): Effect.Effect<void, BerthError, Berth>
} = dual(3, (image: Image | string, path: string, options: SaveOptions) =>
  saving((module) => module.save(image, path, options))
)

/**
 * Options of `import`.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImportOptions extends Limits {
  /** The configuration. Omitted fields are empty; `PATH` and the platform have the usual values of this machine. */
  readonly config?: Partial<ImageConfig> | undefined
  /** The image's name in the store, in the form that `pull` writes. Default: its digest. */
  readonly tag?: string | undefined
}

const import_ = (path: string, options?: ImportOptions): Effect.Effect<Image, BerthError, Berth> =>
  importing((module) => module.importFrom(path, options ?? {})).pipe(
    Effect.withSpan("berth.Image.import", { attributes: { "berth.rootfs": path } })
  )

export {
  /**
   * Makes an image of one layer in the store from a root filesystem: a tar, plain or compressed with gzip or zstd,
   * which is stored unchanged, or a folder, which is copied as by `ImageLayer.diff`. Unlike with `fromRootfs`, the
   * folder may change afterwards, and the image can be saved and pushed.
   *
   * Fails with `InvalidData` for a name that cannot be parsed, `InvalidOption` for an invalid config, `ImageError` as
   * `ImageLayer.unpack` and `ImageLayer.diff` do, and `OperationFailed` if a file of the folder cannot be read.
   *
   * @since 0.1.0
   * @category constructors
   * @example
   * import { Image } from "berth"
   *
   * const program = Image.import("rootfs.tar.gz", { tag: "mine:1", config: { command: ["/bin/sh"] } })
   */
  import_ as import
}

/**
 * Options of `push`.
 *
 * @since 0.1.0
 * @category models
 */
export interface PushOptions extends ConnectOptions, ProgressOptions {
  /** Another repository of the registry that may have layers of this image, from which it can copy them. */
  readonly mountFrom?: string | undefined
}

/**
 * Sends an image to a registry and returns the descriptor of its manifest: an image that was pulled or read from a
 * layout, or a name in the store; an index is sent with all of its images. Blobs that the registry has are not sent
 * again, and the manifest goes last, so that no reader sees an incomplete image. For a reference with a tag and a
 * digest, the tag is set, and the digest must be the manifest's.
 *
 * Fails with `InvalidData` for a reference that cannot be parsed, `InvalidOption` for an image without a manifest,
 * `RegistryError` if a request fails, and `ImageError` if blobs are missing or do not match their digests.
 *
 * @since 0.1.0
 * @category destinations
 * @example
 * import { Image } from "berth"
 * import { Effect } from "effect"
 *
 * const program = Effect.flatMap(Image.pull("alpine:3"), Image.push("127.0.0.1:5000/team/alpine:3"))
 */
export const push: {
  (
    reference: string,
    options?: PushOptions
  ): (image: Image | string) => Effect.Effect<Descriptor, BerthError, Berth>
  (
    image: Image | string,
    reference: string,
    options?: PushOptions
  ): Effect.Effect<Descriptor, BerthError, Berth>
} = dual(
  (args) => isImage(args[0]) || typeof args[1] === "string",
  (image: Image | string, reference: string, options?: PushOptions) =>
    pushing((module) => module.push(image, reference, options ?? {})).pipe(named("push", reference))
)

/**
 * The manifest's descriptor, once it is there: the result of the last event of `pushEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pushed {
  readonly _tag: "Pushed"
  readonly descriptor: Descriptor
}

/**
 * `push` as a stream of its events: the steps of each layer, and at the end the manifest. A layer that is sent again
 * after a broken connection begins at 0 bytes. If the consumer stops early, the push stops.
 *
 * Fails as `push` does.
 *
 * @since 0.1.0
 * @category destinations
 */
export const pushEvents = (
  image: Image | string,
  reference: string,
  options?: Omit<PushOptions, "progress">
): Stream.Stream<Progress | Pushed, BerthError, Berth> =>
  told((progress) =>
    Effect.map(
      push(image, reference, { ...options, progress }),
      (descriptor): Pushed => ({ _tag: "Pushed", descriptor })
    )
  )

/**
 * A name in the store and its manifest or index.
 *
 * @since 0.1.0
 * @category models
 */
export interface NamedImage {
  /** `docker.io/library/alpine:3`, or the name that another tool has written. */
  readonly name: string
  /** The descriptor of the manifest or index. */
  readonly digest: string
  readonly mediaType: string
  /** `os/architecture[/variant]`, if the entry has it: entries of `pull` do. */
  readonly platform: string | undefined
}

/**
 * All named images of the store. `Store.usage` also counts blobs and layers without a name.
 *
 * @since 0.1.0
 * @category store
 */
export const list: Effect.Effect<ReadonlyArray<NamedImage>, ImageError, Berth> = Effect.withSpan(
  names((module) => module.list),
  "berth.Image.list"
)

/**
 * An image of the store, without a registry: one that was pulled, loaded or copied there. The name is looked up as it
 * is written, and then in the form that `pull` writes: `alpine:3` finds `docker.io/library/alpine:3`.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, and with `ImageError`: `NotFound` for an unknown name, and
 * `DigestMismatch` or `Corrupt` if bytes on the disk have changed, which a `pull` repairs.
 *
 * @since 0.1.0
 * @category store
 */
export const fromStore = (
  name: string,
  options?: NamedOptions & Limits
): Effect.Effect<Image, BerthError, Berth> =>
  names((module) => module.fromStore(name, options ?? {})).pipe(named("fromStore", name))

/**
 * The parts of an image in the store. Looks up names as `fromStore` does, and fails likewise.
 *
 * @since 0.1.0
 * @category store
 */
export const inspect = (
  name: string,
  options?: NamedOptions
): Effect.Effect<Inspected, ImageError | InvalidData | InvalidOption, Berth> =>
  names((module) => module.inspect(name, options ?? {})).pipe(named("inspect", name))

/**
 * The build steps of an image in the store, the first step first, according to its config; empty if the config has no
 * history. Looks up names as `fromStore` does, and fails likewise.
 *
 * @since 0.1.0
 * @category store
 */
export const history = (
  name: string,
  options?: NamedOptions
): Effect.Effect<ReadonlyArray<HistoryEntry>, ImageError | InvalidData | InvalidOption, Berth> =>
  names((module) => module.history(name, options ?? {})).pipe(named("history", name))

/**
 * Gives the image of a name in the store another name; a previous image of the new name loses it. The new name is
 * stored in the form that `pull` writes.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, `InvalidOption` for a new name with a digest, and
 * `ImageError`: `NotFound`, or `Storage`.
 *
 * @since 0.1.0
 * @category store
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.tag("alpine:3", "127.0.0.1:5000/team/alpine:3")
 */
export const tag: {
  (newName: string): (name: string) => Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth>
  (name: string, newName: string): Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth>
} = dual(2, (name: string, newName: string) =>
  names((module) => module.tag(name, newName)).pipe(named("tag", name))
)

/**
 * Removes a name from the store. Blobs and layers that no other name reaches stay on the disk until `Store.gc`; running
 * containers continue.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, and with `ImageError`: `NotFound`, or `Storage`.
 *
 * @since 0.1.0
 * @category store
 */
export const remove = (name: string): Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth> =>
  names((module) => module.remove(name)).pipe(named("remove", name))
