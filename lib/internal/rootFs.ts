import { statSync } from "node:fs"
import * as Effect from "effect/Effect"
import { ImageError, InvalidOption } from "../BerthError.ts"
import type { Image } from "../Image.ts"
import type * as Plan from "../Plan.ts"
import type { Options } from "../RootFs.ts"
import { parseBytes } from "./cgroup.ts"

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
  let mode = modes.get(image)
  if (mode === undefined) {
    const top = image.layers.at(-1)
    mode = top === undefined ? 0o755 : statSync(top).mode & 0o7777
    modes.set(image, mode)
  }
  return mode
}

/** The operations for an image's root with the writable layer that the options ask for. */
export const compose = (
  image: Image,
  options: Options,
  folder: string,
  id: number,
  rootless: boolean
): Effect.Effect<Composed, InvalidOption | ImageError> =>
  Effect.suspend((): Effect.Effect<Composed, InvalidOption | ImageError> => {
    const where = options.upper ?? image.upper
    const size = options.size === undefined ? undefined : parseBytes(options.size)
    if (options.size !== undefined && size === undefined) {
      const expected = `bytes, as a number or as text like "256MiB"`
      return Effect.fail(new InvalidOption({ option: "size", value: JSON.stringify(options.size), expected }))
    }
    if (where === "disk" && image.upper === "memory") {
      return Effect.fail(
        new InvalidOption({
          option: "upper",
          value: '"disk"',
          expected: `"memory" for ${image.reference}: overlayfs takes no writable layer from within a read-only one (ELOOP)`
        })
      )
    }
    let mode: number
    try {
      mode = modeOf(image)
    } catch {
      const detail = `its layer ${image.layers.at(-1)} is no longer there`
      return Effect.fail(new ImageError({ reason: "NotFound", subject: image.reference, detail }))
    }
    // A scratch image has no layer: an empty folder stands for it.
    const lower = image.layers.length === 0 ? [`${folder}/empty`] : image.layers.toReversed()
    // What is written is thrown away with the container, so nothing waits for the disk (overlayfs.rst, volatile mount).
    const overlay = rootless ? ["volatile", "userxattr"] : ["volatile"]
    if (where === "memory") {
      const tmpfs = ["mode=0755", ...(size === undefined ? [] : [`size=${size}`])]
      return Effect.succeed({
        scratch: [],
        mount: { op: "overlay-memory", lower, mode, tmpfs, options: overlay, attributes: MOUNT_ATTR_NODEV },
        upper: undefined
      })
    }
    const base = `${folder}/${id}`
    return Effect.succeed({
      scratch: [
        { op: "scratch", path: base, mode: 0o700 },
        { op: "scratch", path: `${base}/upper`, mode },
        { op: "scratch", path: `${base}/work`, mode: 0o700 }
      ],
      mount: {
        op: "overlay",
        lower,
        upper: `${base}/upper`,
        work: `${base}/work`,
        options: overlay,
        attributes: MOUNT_ATTR_NODEV
      },
      upper: `${base}/upper`
    })
  })
