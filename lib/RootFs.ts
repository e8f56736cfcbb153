/**
 * A composed root file system: an image's read-only layers below one writable layer, as a detached overlay mount that
 * no mount table shows.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Image } from "./Image.ts"
import * as internal from "./internal/container/rootPlan.ts"
import { layerFor } from "./internal/container/targets.ts"
import * as Userns from "./internal/ids/allocation.ts"
import { scopedUnit } from "./internal/supervisor/scopedUnit.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import { format } from "./internal/volume/image.ts"
import type { Namespace } from "./Namespace.ts"
import * as Plan from "./Plan.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/RootFs")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A root for containers, one after another or several at once: they see each other's writes.
 *
 * @since 0.1.0
 * @category models
 */
export interface RootFs extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly image: Image
  /** The folder of the writable layer on disk, undefined if it is in memory or has a size. */
  readonly upper: string | undefined
  /** @internal */
  readonly mount: number
  /** @internal the ids of the user namespace that it is made for, undefined for Berth's own */
  readonly mapped: Userns.Mapped | undefined
  /** @internal the layer of mount targets below the writable one */
  readonly targets: string | undefined
  /** @internal operations on the root after its mount */
  readonly content: ReadonlyArray<Plan.Operation>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The writable layer: `"disk"`, a folder below Berth's own, or `"memory"`, a tmpfs. Default: memory for `Image.host`,
   * disk for all other images.
   */
  readonly upper?: "disk" | "memory" | undefined
  /**
   * The capacity of the writable layer, as in `Limits.memory`: a write beyond it fails with ENOSPC. On disk at least 4 MiB, of which
   * the file system's own data takes some percent; it needs root, loop(4) and `mkfs.ext4`, else the start fails with
   * `Unsupported`, and `Container.keep` copies such a layer. Default: no limit on disk, half of the machine's memory in memory.
   */
  readonly size?: number | string | undefined
  /**
   * Namespaces with a user namespace, for which the root is made: the layers are shown with its ids (Linux 5.19), and
   * written files have them on disk. Containers on this root must join these namespaces, or others with the same ids.
   * Default: Berth's own ids.
   */
  readonly userns?: Namespace | undefined
}

const Proto = {
  [TypeId]: TypeId as TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: RootFs) {
    return { _id: "berth/RootFs", image: this.image.reference, upper: this.upper ?? "memory" }
  },
  toString(this: RootFs) {
    return `RootFs(${this.image.reference}, written to ${this.upper ?? "memory"})`
  },
  [Inspectable.NodeInspectSymbol](this: RootFs) {
    return this.toString()
  }
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isRootFs = (u: unknown): u is RootFs => hasProperty(u, TypeId)

/**
 * An overlay mount of the image's layers with a writable layer. The image is never changed; the writable layer is
 * removed when the scope closes.
 *
 * The root also shows the targets of mounts that its image lacks: `/proc`, `/sys`, `/dev`, the working directory, and empty
 * files at `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`. They are below the writable layer, and no part of a diff.
 *
 * Fails with `InvalidOption` for a `userns` without a user namespace, with `Unsupported` for one with other ids if
 * Berth runs without root, and as `Container.start` does.
 *
 * A root can be used in one mount namespace after the other or, since Linux 6.15, in several at once.
 *
 * @since 0.1.0
 * @category constructors
 */
export const overlay = (
  image: Image,
  options: Options = {}
): Effect.Effect<RootFs, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const id = berth.supervisor.nextId()
    const { folder } = berth.supervisor
    const mapped = yield* attempt(() => Userns.mappedOf(options.userns, berth.rootless))
    const targets = yield* layerFor(berth, image, {})
    const plain = yield* attempt(() =>
      internal.compose(image, options, berth.memory, folder, id, berth.rootless, targets)
    )
    const root = mapped === undefined ? plain : internal.withIds(plain, mapped)
    const plan = Plan.make([...root.scratch, root.mount])
    const descriptors = mapped === undefined ? {} : Userns.descriptors(mapped)
    if (root.disk !== undefined) yield* format(root.disk)
    const unit = yield* scopedUnit(berth, id, `root file system of ${image.reference}`, plan, descriptors)
    const fields = {
      image,
      mapped,
      upper: root.upper,
      targets: targets?.layer,
      content: root.content,
      get mount() {
        return unit.root()
      }
    }
    return Object.setPrototypeOf(fields, Proto) as RootFs
  }).pipe(
    Effect.withSpan("berth.RootFs.overlay", { attributes: { "container.image.name": image.reference } })
  )
