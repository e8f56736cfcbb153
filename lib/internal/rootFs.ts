import { statSync } from "node:fs"
import { ImageError } from "../BerthError.ts"
import type { Image } from "../Image.ts"
import type * as Plan from "../Plan.ts"
import type { Options } from "../RootFs.ts"
import * as check from "./options.ts"

export interface Composed {
  readonly scratch: ReadonlyArray<Plan.Operation>
  readonly mount: Plan.Operation
  /** The folder of the writable layer, undefined where it is in memory. */
  readonly upper: string | undefined
}

// Device nodes that an image brings, or a container makes, open nothing.
const MOUNT_ATTR_NODEV = 0x4

// The merged root has the mode of the writable layer's, so that one is given the image's.
const modes = new WeakMap<Image, number>()

const modeOf = (image: Image): number => {
  const known = modes.get(image)
  if (known !== undefined) return known
  const top = image.layers.at(-1)
  try {
    const mode = top === undefined ? 0o755 : statSync(top).mode & 0o7777
    modes.set(image, mode)
    return mode
  } catch {
    throw new ImageError({
      reason: "NotFound",
      subject: image.reference,
      detail: `its layer ${top} is no longer there`
    })
  }
}

/** The operations for an image's root with the writable layer that the options ask for; throws. */
export const compose = (
  image: Image,
  options: Options,
  folder: string,
  id: number,
  rootless: boolean
): Composed => {
  const where = options.upper ?? image.upper
  const size = options.size === undefined ? undefined : check.bytes("size", options.size)
  if (where === "disk" && image.upper === "memory") {
    const expected = `"memory" for ${image.reference}: overlayfs takes no writable layer from within a read-only one (ELOOP)`
    check.invalid("upper", where, expected)
  }
  const mode = modeOf(image)
  // A scratch image has no layer: an empty folder stands for it.
  const lower = image.layers.length === 0 ? [`${folder}/empty`] : image.layers.toReversed()
  // What is written is thrown away with the container, so nothing waits for the disk (overlayfs.rst, volatile mount).
  const overlay = rootless ? ["volatile", "userxattr"] : ["volatile"]
  if (where === "memory") {
    const tmpfs = ["mode=0755", ...(size === undefined ? [] : [`size=${size}`])]
    return {
      scratch: [],
      mount: { op: "overlay-memory", lower, mode, tmpfs, options: overlay, attributes: MOUNT_ATTR_NODEV },
      upper: undefined
    }
  }
  const base = `${folder}/${id}`
  const [upper, work] = [`${base}/upper`, `${base}/work`]
  return {
    scratch: [
      { op: "scratch", path: base, mode: 0o700 },
      { op: "scratch", path: upper, mode },
      { op: "scratch", path: work, mode: 0o700 }
    ],
    mount: { op: "overlay", lower, upper, work, options: overlay, attributes: MOUNT_ATTR_NODEV },
    upper
  }
}
