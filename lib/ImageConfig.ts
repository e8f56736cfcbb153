/**
 * What an image says of itself: its configuration, as containers use it, and what `Image.inspect` and `Image.history` tell. `Image` has these
 * types too.
 *
 * @since 0.2.0
 */
import type * as Duration from "effect/Duration"

/**
 * The configuration of an image: how its containers run.
 *
 * @since 0.1.0
 * @category models
 */
export interface ImageConfig {
  readonly entrypoint: ReadonlyArray<string>
  /** Arguments of the entrypoint, or the whole command if there is no entrypoint. */
  readonly command: ReadonlyArray<string>
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory: string
  /** `user[:group]`, names or numbers; empty for root. */
  readonly user: string
  readonly stopSignal: string | undefined
  /** Ports, as `80/tcp`. */
  readonly exposedPorts: ReadonlyArray<string>
  /** Paths inside the container. */
  readonly volumes: ReadonlyArray<string>
  readonly labels: Readonly<Record<string, string>>
  readonly healthcheck: Healthcheck | undefined
  readonly architecture: string
  readonly os: string
}

/**
 * The health check of an image.
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
 * The parts of an image in the store. Texts are unchanged from the author of the image.
 *
 * @since 0.1.0
 * @category models
 */
export interface Inspected {
  readonly name: string
  /** The digest of the manifest for the platform. */
  readonly digest: string
  readonly mediaType: string
  /** `os/architecture[/variant]` */
  readonly platform: string
  readonly created: Date | undefined
  readonly author: string | undefined
  /** The annotations of the manifest; labels are in `config`. */
  readonly annotations: Readonly<Record<string, string>>
  readonly config: ImageConfig
  /** The layers, the lowest first. */
  readonly layers: ReadonlyArray<{
    readonly digest: string
    readonly diffId: string
    readonly mediaType: string
    /** The size in bytes in the store, usually compressed. */
    readonly size: number
    readonly unpacked: boolean
  }>
  /** The size in bytes of manifest, config and layers together. */
  readonly size: number
}

/**
 * One build step of an image.
 *
 * @since 0.1.0
 * @category models
 */
export interface HistoryEntry {
  readonly created: Date | undefined
  /** The command, as the builder recorded it. */
  readonly createdBy: string | undefined
  readonly author: string | undefined
  readonly comment: string | undefined
  /** The layer of the step, undefined if the step only changed the configuration. */
  readonly layer: { readonly digest: string; readonly size: number } | undefined
}
