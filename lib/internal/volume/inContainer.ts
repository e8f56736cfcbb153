/** The volumes among the mounts of a container. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type * as Mount from "../../Mount.ts"
import type { Operation } from "../../Plan.ts"
import { type Mapped, mapping } from "../ids/allocation.ts"
import { attempt } from "../util/fromThrowing.ts"
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY } from "../util/mountAttributes.ts"
import { invalid } from "../util/validate.ts"
import { isVolume, type State, stateOf, use } from "./volume.ts"

type Mounts = ReadonlyArray<Mount.Mount> | undefined

export const hasVolumes = (mounts: Mounts): boolean => mounts?.some(({ type }) => type === "volume") === true

/** Holds the volumes for a container until the scope closes. Fails if one of them is not open, or must not change. */
export const hold = (
  berth: Berth,
  mounts: Mounts,
  container: string
): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.flatMap(
    attempt(() => {
      const all = new Map<State, "reads" | "writes">()
      for (const [index, mount] of (mounts ?? []).entries()) {
        if (mount.type !== "volume") continue
        const state = stateOf(`mounts[${index}].volume`, mount.volume, berth)
        if (mount.readOnly !== true) all.set(state, "writes")
        else if (!all.has(state)) all.set(state, "reads")
      }
      return all
    }),
    (all) => Effect.forEach(all, ([state, how]) => use(state, container, how), { discard: true })
  )

/** A volume that the supervisor hands over to the container's process, to be placed at the target. */
export interface Placed {
  readonly type: "placed"
  readonly target: string
}

export interface Bound {
  readonly mounts: ReadonlyArray<Mount.Bind | Mount.Tmpfs | Mount.File | Placed>
  /** Operations before the container's process, which may be in a mount namespace that lacks the volumes. */
  readonly scratch: ReadonlyArray<Operation>
}

/** The mounts of a container, which sees the files of volumes with the ids of its user namespace; throws. */
export const bound = (mounts: ReadonlyArray<Mount.Mount>, mapped: Mapped | undefined): Bound => {
  const scratch: Array<Operation> = []
  const all = mounts.map((mount, index) => {
    if (mount.type !== "volume") return mount
    if (!isVolume(mount.volume))
      return invalid(`mounts[${index}].volume`, mount.volume, "a volume of Volume.make")
    const { folder, label, source } = mount.volume.state
    if (mapped !== undefined && source !== undefined)
      throw new Unsupported({
        feature: `volume ${label}, which is a copy, in a container with userns`,
        why: "overlayfs has no idmapped mounts, which would show its files with the ids of the container",
        hint: "Use it in containers without userns, or fill a volume that is no copy"
      })
    if (mapped !== undefined && scratch.length === 0) scratch.push(mapping(mapped))
    const attributes =
      MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (mount.readOnly === true ? MOUNT_ATTR_RDONLY : 0)
    const tree = { op: "tree", path: folder, mapped: mapped === undefined ? 0 : 1, attributes } as const
    scratch.push(tree, { op: "hand-over" })
    return { type: "placed", target: mount.target } as const
  })
  return { mounts: all, scratch }
}
