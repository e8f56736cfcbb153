/**
 * Images of containers: `commit` and `keep` make one of a container's changes, `snapshot` of a container that runs, and `fork` starts
 * containers from it. The functions are also in `Container`.
 *
 * @since 0.2.0
 */
import type * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import type { BerthError } from "./BerthError.ts"
import type { ArchiveOptions, Container, StartOptions } from "./Container.ts"
import type { Image, ImageConfig } from "./Image.ts"
import { isContainer } from "./internal/typeIds.ts"
import { here } from "./internal/util/elsewhere.ts"
import { later } from "./internal/util/later.ts"

const committing = later(() => import("./internal/container/commit.ts"))
const keeping = later(() => import("./internal/container/keep.ts"))
const snapshotting = later(() => import("./internal/container/snapshot.ts"))

/**
 * @since 0.1.0
 * @category models
 */
export interface CommitOptions extends ArchiveOptions {
  /** The image's name in the store, in the form that `Image.pull` writes. Default: its digest. */
  readonly tag?: string | undefined
  readonly author?: string | undefined
  /** The description of the new layer in the image's history. */
  readonly comment?: string | undefined
  /** Default: now. The same files, options and time make the same image. */
  readonly created?: Date | undefined
  /** The new configuration. `environment` and `labels` are added to the image's; other omitted fields are kept. */
  readonly config?: Partial<Omit<ImageConfig, "architecture" | "os">> | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface KeepOptions {
  /**
   * The name by which `Image.kept` finds the layer again, in this program and in others: 1 to 1024 characters. It should say all
   * that made the layer. Default: none; the layer is there as long as something uses it.
   */
  readonly key?: string | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface SnapshotOptions extends KeepOptions {
  /** The limit of bytes to copy, without holes, as a number or as text like "1GiB". Default: 64 GiB. */
  readonly maxBytes?: number | string | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface ForkOptions extends StartOptions {
  /** The number of forks, 1 to 1000. Default: 1. */
  readonly count?: number | undefined
}

/**
 * Makes an image in the store from the container's image and one more layer, compressed with gzip: the container's
 * changes, as `ImageLayer.diff` reports them. Mounts are not included. If the container runs, the layer has the
 * contents of each file at the time of reading; a container that has ended can be committed until its scope closes.
 *
 * Fails with `InvalidOption` for a container of `Image.host` or `Image.fromRootfs`, which have no manifest;
 * `ContainerError` after the scope has closed; `ImageError` and `OperationFailed` as `ImageLayer.diff` does. After a
 * failure, the names in the store are unchanged.
 *
 * @since 0.1.0
 * @category images
 * @example
 * const image = Container.commit(box, { tag: "mine:1", config: { command: ["/usr/bin/serve"] } })
 */
export const commit: {
  (options?: CommitOptions): (container: Container) => Effect.Effect<Image, BerthError>
  (container: Container, options?: CommitOptions): Effect.Effect<Image, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options?: CommitOptions) =>
    container.state.elsewhere?.commit(options ?? {}) ??
    committing((module) => module.commit(container, options ?? {}))
)

/**
 * Makes the writable layer of an ended container a read-only layer of the store, and returns the container's image with that layer on
 * top. It is a rename, which costs no copy, whatever the layer's size; a layer of a container with `userns` or `upperSize` is copied.
 * The container's files are gone then, as at the end of its scope.
 *
 * A layer with a key is synced to disk (syncfs(2)). A layer that exists under the same key for the same image stays, and is returned:
 * the new one is dropped. `Store.gc` removes a kept layer that nothing uses: without a key at once, with a key when it has not been
 * used for seven days. The image has no manifest, so it cannot be pushed, saved or committed to.
 *
 * Fails with `ContainerError` if the container runs or its scope has closed; `InvalidOption` for a writable layer in memory, as of
 * `Image.host`, a container of `spawn`, or one that shares a pid namespace; and `ImageError` if the disk refuses. After a failure
 * nothing is in the store.
 *
 * @since 0.2.0
 * @category images
 * @example
 * const ready = Effect.zipRight(Container.stop(box), Container.keep(box, { key: "app with dependencies 1" }))
 */
export const keep: {
  (options?: KeepOptions): (container: Container) => Effect.Effect<Image, BerthError>
  (container: Container, options?: KeepOptions): Effect.Effect<Image, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options?: KeepOptions) =>
    keeping((module) => module.keep(container, options ?? {})).pipe(here(container, "keeping a layer"))
)

/**
 * Copies the writable layer of a running container to a layer of the store, as `keep` makes one, and returns the container's image with
 * that layer on top. The container stands still while its files are copied, as by `pause`, and goes on whatever happens. File systems
 * that share blocks between files (xfs, btrfs) copy no data. The layer has the files as a crash at that moment would leave them: a
 * database recovers from it at its start. Mounts, volumes and memory are not in it; files that this program writes meanwhile may be
 * there in part. `exec`, `pause` and `resume` wait for the copy.
 *
 * If the key has a layer for the image already, that one is returned, and the container does not stand still.
 *
 * Fails with `ContainerError` if the container has ended, or is stopped or resumed during the copy; `CgroupError` as `pause` does;
 * `InvalidOption` as `keep` does; and `ImageError` for a layer of more than `maxBytes` or ten million files, and if the disk refuses.
 * After a failure nothing is in the store.
 *
 * @since 0.2.0
 * @category images
 * @example
 * const before = Container.snapshot(box, { key: "before the migration" })
 */
export const snapshot: {
  (options?: SnapshotOptions): (container: Container) => Effect.Effect<Image, BerthError>
  (container: Container, options?: SnapshotOptions): Effect.Effect<Image, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options?: SnapshotOptions) =>
    snapshotting((module) => module.snapshot(container, options ?? {})).pipe(here(container, "a snapshot"))
)

/**
 * Starts containers from one `snapshot` of a running container, with its command and options, or with those given here. As many start
 * at once as there are processors. Its `ports`, `name`, `aliases` and `logs` stay its own; volumes and binds are shared. The snapshot's
 * layer is removed after the forks, when the scope closes.
 *
 * Fails as `snapshot` and `start` do; no fork runs then.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const five = Container.fork(database, { count: 5 })
 */
export const fork: {
  (
    options?: ForkOptions
  ): (container: Container) => Effect.Effect<ReadonlyArray<Container>, BerthError, Scope.Scope>
  (
    container: Container,
    options?: ForkOptions
  ): Effect.Effect<ReadonlyArray<Container>, BerthError, Scope.Scope>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options?: ForkOptions) =>
    snapshotting((module) => module.fork(container, options ?? {})).pipe(here(container, "a fork"))
)
