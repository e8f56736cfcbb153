/**
 * What a container is started from: read-only layers and a configuration. Images come from a registry, from an OCI
 * layout that another tool has made, from a folder, or from the machine itself.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Limits } from "./ImageLayer.ts"
import * as internal from "./internal/image.ts"
import { told } from "./internal/progress.ts"
import type { Progress, ProgressOptions } from "./Progress.ts"
import type { ConnectOptions } from "./Registry.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Image")

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

/**
 * Whether a value is an `Image`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isImage = (u: unknown): u is Image => Predicate.hasProperty(u, TypeId)

/**
 * This machine's own root, read-only: nothing to download. Fails with `Unsupported` off Linux.
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
export const fromRootfs = (path: string): Effect.Effect<Image, BerthError> => internal.fromRootfs(path)

/**
 * An image with nothing in it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const scratch: Image = internal.scratch

/**
 * Options of `fromLayout`.
 *
 * @since 0.1.0
 * @category models
 */
export interface FromLayoutOptions extends Limits {
  /** Which image of the layout; may be left out where there is one. */
  readonly tag?: string | undefined
  /** `os/architecture[/variant]`; this machine's unless given. */
  readonly platform?: string | undefined
}

/**
 * An image from a folder in the OCI image layout format, as skopeo, umoci and buildah make them. Its layers are
 * unpacked from there; its blobs are not copied into the store.
 *
 * Fails with `InvalidOption` where a tag is needed, and with `ImageError`.
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
export interface PullOptions extends Limits, ConnectOptions, ProgressOptions {
  /** `os/architecture[/variant]`; this machine's unless given. */
  readonly platform?: string | undefined
}

/**
 * An image from a registry. The tag is resolved each time; what the store has already is not fetched again.
 *
 * Fails with `InvalidOption` for a malformed reference, `RegistryError` for what the registry does, and `ImageError`
 * for what it gives.
 *
 * @since 0.1.0
 * @category constructors
 * @example
 * import { Image } from "berth"
 *
 * const program = Image.pull("127.0.0.1:5000/library/alpine:3")
 */
export const pull = (reference: string, options?: PullOptions): Effect.Effect<Image, BerthError, Berth> =>
  internal
    .pull(reference, options ?? {})
    .pipe(Effect.withSpan("berth.Image.pull", { attributes: { "container.image.name": reference } }))

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
