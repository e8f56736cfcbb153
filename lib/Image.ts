/**
 * What a container is started from: read-only layers and a configuration. Images come from a registry, from an OCI
 * layout that another tool has made, from a folder, or from the machine itself.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError, ImageError, InvalidData, InvalidOption } from "./BerthError.ts"
import type { Limits } from "./ImageLayer.ts"
import * as internal from "./internal/image/image.ts"
import * as imageImport from "./internal/image/import.ts"
import * as imageLoad from "./internal/image/load.ts"
import * as imageStore from "./internal/image/names.ts"
import * as pushing from "./internal/image/push.ts"
import * as imageSave from "./internal/image/save.ts"
import { told } from "./internal/oci/progress.ts"
import type { Progress, ProgressOptions } from "./Progress.ts"
import type { ConnectOptions } from "./Registry.ts"
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
 * An image whose layers are on this machine, unpacked.
 *
 * @since 0.1.0
 * @category models
 */
export interface Image extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** Where it came from: `docker.io/library/alpine:3`, `host`, `scratch`, a path. */
  readonly reference: string
  /** Of the manifest for this platform; none for images that have no manifest. */
  readonly digest: string | undefined
  /** Absolute folders, the lowest first. */
  readonly layers: ReadonlyArray<string>
  readonly config: ImageConfig
  /** Which writable layer fits: `memory` where the lowest layer is `/`, which no upper on the same disk can overlay. */
  readonly upper: "disk" | "memory"
  /** The layout that has its blobs, where that is not the store. @internal */
  readonly layout?: string | undefined
}

/**
 * What an image says about how to run it.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageConfig {
  readonly entrypoint: ReadonlyArray<string>
  /** Arguments of the entrypoint, or the whole command where there is no entrypoint. */
  readonly command: ReadonlyArray<string>
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory: string
  /** `user[:group]`, names or numbers; empty for root. */
  readonly user: string
  readonly stopSignal: string | undefined
  /** `80/tcp`. */
  readonly exposedPorts: ReadonlyArray<string>
  /** Paths inside the container. */
  readonly volumes: ReadonlyArray<string>
  readonly labels: Readonly<Record<string, string>>
  readonly healthcheck: Healthcheck | undefined
  readonly architecture: string
  readonly os: string
}

/**
 * How an image wants to be asked whether it is well.
 *
 * @since 0.1.0
 * @category models
 */
export interface Healthcheck {
  /** `["NONE"]`, `["CMD", ...arguments]`, or `["CMD-SHELL", command]`. */
  readonly test: ReadonlyArray<string>
  readonly interval: Duration.Duration | undefined
  readonly timeout: Duration.Duration | undefined
  readonly startPeriod: Duration.Duration | undefined
  readonly startInterval: Duration.Duration | undefined
  readonly retries: number | undefined
}

const named = (method: string, name: string) =>
  Effect.withSpan(`berth.Image.${method}`, { attributes: { "container.image.name": name } })

/**
 * Whether a value is an `Image`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isImage: (u: unknown) => u is Image = internal.isImage

/**
 * This machine's own root, read-only and without Berth's folder: nothing to download. Fails with `Unsupported` off Linux.
 *
 * @since 0.1.0
 * @category constructors
 */
export const host: Effect.Effect<Image, BerthError> = internal.host

/**
 * An existing folder as the only layer. It is not copied: while containers run from it, leave it as it is.
 *
 * Fails with `InvalidOption` where the path is not a folder, and with `ImageError` where there is none.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromRootfs = (path: string): Effect.Effect<Image, BerthError> =>
  internal
    .fromRootfs(path)
    .pipe(Effect.withSpan("berth.Image.fromRootfs", { attributes: { "berth.rootfs": path } }))

/**
 * An image with nothing in it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const scratch: Image = internal.scratch

/**
 * Which image of a name is meant.
 *
 * @since 0.1.0
 * @category models
 */
export interface NamedOptions {
  /** `os/architecture[/variant]`; this machine's unless given. */
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
 * Fails with `InvalidOption` where a tag is needed, or a tag and a digest are given; and with `ImageError`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromLayout = (
  path: string,
  options?: FromLayoutOptions
): Effect.Effect<Image, BerthError, Berth> =>
  internal.fromLayout(path, options ?? {}).pipe(
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
 * An image from a registry. Each pull asks the registry for the tag (`get` prefers the store); what the store has already
 * is not fetched again.
 *
 * Fails with `InvalidData` for a reference that cannot be parsed, `RegistryError` for what the registry does, and `ImageError`
 * for what it gives. The store is then as it was before; where it was the connection that failed, what had been fetched
 * whole is kept for the next try.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.pull("127.0.0.1:5000/library/alpine:3")
 */
export const pull = (reference: string, options?: PullOptions): Effect.Effect<Image, BerthError, Berth> =>
  internal.pull(reference, options ?? {}).pipe(named("pull", reference))

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
  imageStore.get(name, options ?? {}).pipe(named("get", name))

/**
 * The image, when it is there: the last of the events of `pullEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pulled {
  readonly _tag: "Image"
  readonly image: Image
}

/**
 * `pull` as a stream of what it does: each layer's steps, and then the image. A consumer that stops half way stops the
 * pull; what had been fetched whole is kept.
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
  /** Which image of the archive; all of them unless given. */
  readonly tag?: string | undefined
  /** Bytes of the archive without compression, where it has to be written to disk first; 64 GiB unless given. */
  readonly maxArchiveBytes?: number | undefined
}

/**
 * The images of an archive: of `docker save` or `podman save`, or an OCI archive as skopeo and buildah make them, plain
 * or compressed with gzip (or zstd, where `node:zlib` has it). They are copied into the store and get the names that the
 * archive gives them there, `alpine:3` as `docker.io/library/alpine:3`; one without a name gets its digest as a name.
 * Layers stay as they are in the archive, which for docker means uncompressed.
 *
 * An archive that is compressed or is not a regular file is on the disk a second time while it is loaded.
 *
 * Fails with `InvalidOption`, with what the stream fails with, and with an `ImageError`: `Unsupported` for a file that is
 * neither format, `NotFound` where a tag or a part is missing, `Escape` for names that lead out of the archive, else
 * `Corrupt`, `DigestMismatch`, `TooLarge`, `Platform` or `Storage`. The store is as it was before, then.
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
  imageLoad.load(source, options ?? {}).pipe(
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
   * A tar of an OCI layout, a tar as `docker load` and `podman load` read it, or a folder that is an OCI layout.
   * `docker-archive` has layers without compression, the other two have them as they are in the store.
   */
  readonly format: "oci-archive" | "docker-archive" | "oci-layout"
  /** The name in the archive; that in the store unless given, and none where that is only a digest. */
  readonly tag?: string | undefined
  /** `os/architecture[/variant]`; of a name this machine's unless given, else the image's own. */
  readonly platform?: string | undefined
}

/**
 * Writes an image that was pulled, loaded, imported or read from a layout, or what a name in the store stands for, to a
 * file or folder that other tools read. It is verified on the way, appears whole or not at all, and is the same bytes for
 * the same image. A file is replaced, a folder has to be empty.
 *
 * Fails with `InvalidOption` for an image without a manifest (`host`, `scratch` and `fromRootfs` have none), a name that
 * the format cannot hold, and a path that is taken; and with `ImageError`: `NotFound` for what is not in the store,
 * `Unsupported` for a layer in zstd as `docker-archive` where `node:zlib` has no zstd, `DigestMismatch` or `Storage`.
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
} = dual(3, imageSave.save)

/**
 * Options of `import`.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImportOptions extends Limits {
  /** How to run it. What is left out is empty, `PATH` and the platform are as usual on this machine. */
  readonly config?: Partial<ImageConfig> | undefined
  /** The image's name in the store, as `pull` would write it; its digest unless given. */
  readonly tag?: string | undefined
}

const import_ = (path: string, options?: ImportOptions): Effect.Effect<Image, BerthError, Berth> =>
  imageImport
    .importFrom(path, options ?? {})
    .pipe(Effect.withSpan("berth.Image.import", { attributes: { "berth.rootfs": path } }))

export {
  /**
   * Makes an image of one layer, in the store, out of a root filesystem: a tar, plain or compressed with gzip or zstd,
   * which stays as it is, or a folder, which is copied as `ImageLayer.diff` does it. Unlike with `fromRootfs`, the folder
   * may change afterwards, and the image can be saved and pushed.
   *
   * Fails with `InvalidData` for a name that cannot be parsed, `InvalidOption` for a config that cannot be, with `ImageError` as `ImageLayer.unpack` and
   * `ImageLayer.diff` do, and with `OperationFailed` where a file of the folder cannot be read.
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
  /** A repository of the same registry that may have layers of this image already, from where it can take them. */
  readonly mountFrom?: string | undefined
}

/**
 * Sends an image to a registry, and gives the descriptor of its manifest: an image that was pulled or is from a layout,
 * or whatever the store has under a name, where an index is sent with all of its images. What the registry has already
 * is not sent again, and the manifest goes last: nobody sees half of an image. A reference with a tag and a digest gets
 * the tag; the digest has to be the manifest's.
 *
 * Fails with `InvalidData` for a reference that cannot be parsed, `InvalidOption` for an image without a manifest, with `RegistryError` for what the registry does, and with
 * `ImageError` where blobs are missing or are not what their digests say.
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
} = pushing.push

/**
 * The manifest, when it is there: the last of the events of `pushEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pushed {
  readonly _tag: "Pushed"
  readonly descriptor: Descriptor
}

/**
 * `push` as a stream of what it does: each layer's steps, and then the manifest. A layer that is sent once more, as the
 * connection broke, begins at 0 bytes again. A consumer that stops half way stops the push.
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
 * A name in the store, and what it stands for.
 *
 * @since 0.1.0
 * @category models
 */
export interface NamedImage {
  /** `docker.io/library/alpine:3`, or whatever another tool has written. */
  readonly name: string
  /** Of the manifest or index. */
  readonly digest: string
  readonly mediaType: string
  /** `os/architecture[/variant]`, where the entry says so: those of `pull` do. */
  readonly platform: string | undefined
}

/**
 * Every image that the store has a name for. What has no name of its own, as the layers do, is in `Store.usage`.
 *
 * @since 0.1.0
 * @category store
 */
export const list: Effect.Effect<ReadonlyArray<NamedImage>, ImageError, Berth> = Effect.withSpan(
  imageStore.list,
  "berth.Image.list"
)

/**
 * An image that the store has already, without a registry: what was pulled, loaded or copied there. The name is taken as
 * it is written in the store, or else as `pull` would write it: `alpine:3` finds `docker.io/library/alpine:3`.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, and with `ImageError`: `NotFound` for a name that is not there, and
 * `DigestMismatch` or `Corrupt` where bytes on the disk are not what they were, which a `pull` mends.
 *
 * @since 0.1.0
 * @category store
 */
export const fromStore = (
  name: string,
  options?: NamedOptions & Limits
): Effect.Effect<Image, BerthError, Berth> =>
  imageStore.fromStore(name, options ?? {}).pipe(named("fromStore", name))

/**
 * What an image in the store is made of. Texts are as whoever made the image wrote them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Inspected {
  readonly name: string
  /** Of the manifest for the platform. */
  readonly digest: string
  readonly mediaType: string
  /** `os/architecture[/variant]` */
  readonly platform: string
  readonly created: Date | undefined
  readonly author: string | undefined
  /** Of the manifest; labels are in `config`. */
  readonly annotations: Readonly<Record<string, string>>
  readonly config: ImageConfig
  /** The lowest first. */
  readonly layers: ReadonlyArray<{
    readonly digest: string
    readonly diffId: string
    readonly mediaType: string
    /** Bytes as the store keeps it, most often compressed. */
    readonly size: number
    readonly unpacked: boolean
  }>
  /** Bytes of manifest, config and layers together. */
  readonly size: number
}

/**
 * What an image in the store is made of. Takes names as `fromStore` does, and fails likewise.
 *
 * @since 0.1.0
 * @category store
 */
export const inspect = (
  name: string,
  options?: NamedOptions
): Effect.Effect<Inspected, ImageError | InvalidData | InvalidOption, Berth> =>
  imageStore.inspect(name, options ?? {}).pipe(named("inspect", name))

/**
 * One step in which an image was made.
 *
 * @since 0.1.0
 * @category models
 */
export interface HistoryEntry {
  readonly created: Date | undefined
  /** The command, as the builder has it. */
  readonly createdBy: string | undefined
  readonly author: string | undefined
  readonly comment: string | undefined
  /** None where the step has changed the configuration only. */
  readonly layer: { readonly digest: string; readonly size: number } | undefined
}

/**
 * How an image in the store was made, as it says itself, the first step first; empty where it does not say. Takes names as
 * `fromStore` does, and fails likewise.
 *
 * @since 0.1.0
 * @category store
 */
export const history = (
  name: string,
  options?: NamedOptions
): Effect.Effect<ReadonlyArray<HistoryEntry>, ImageError | InvalidData | InvalidOption, Berth> =>
  imageStore.history(name, options ?? {}).pipe(named("history", name))

/**
 * Gives what has a name in the store another name, too, in place of what that stood for. The new one is kept as `pull`
 * would write it.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, `InvalidOption` for a new name with a digest, and `ImageError`:
 * `NotFound`, or `Storage`.
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
} = dual(2, (name: string, newName: string) => imageStore.tag(name, newName).pipe(named("tag", name)))

/**
 * Takes a name from the store. What nothing else reaches stays on the disk until `Store.gc`; containers run on.
 *
 * Fails with `InvalidData` for a name that cannot be parsed, and with `ImageError`: `NotFound`, or `Storage`.
 *
 * @since 0.1.0
 * @category store
 */
export const remove = (name: string): Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth> =>
  imageStore.remove(name).pipe(named("remove", name))
