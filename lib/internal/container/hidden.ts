/**
 * The paths to Berth's own folders in the host's root, through any mount. Containers do not see them: a container with
 * the same user could read the files of other containers, and take the locks that Berth waits for (flock(2) does not
 * need write permission).
 */
import * as fs from "node:fs"
import * as path from "node:path/posix"
import type { Memory } from "../berth/memory.ts"
import { defaultFolder } from "../disk/defaultFolder.ts"
import { read } from "../util/readFile.ts"

interface Mounted {
  readonly device: string
  /** The folder of the file system that is mounted. */
  readonly root: string
  readonly target: string
}

const unescaped = (field: string): string =>
  field.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))

const mounts = (): ReadonlyArray<Mounted> =>
  read("/proc/self/mountinfo")
    .split("\n")
    .flatMap((line) => {
      const [, , device = "", root = "", target = ""] = line.split(" ")
      return target === "" ? [] : [{ device, root: unescaped(root), target: unescaped(target) }]
    })

/** The rest of a path below a folder, `""` for the folder itself; undefined for a path outside. */
const below = (folder: string, at: string): string | undefined => {
  const start = folder === "/" ? "" : folder
  return at === folder || at.startsWith(`${start}/`) ? at.slice(start.length) : undefined
}

/** Every path to a folder through a mount of its file system. */
const placesOf = (folder: string): ReadonlyArray<string> => {
  let real: string
  try {
    real = fs.realpathSync(folder)
  } catch {
    // Once the folder exists, it is hidden as well.
    return [folder]
  }
  const all = mounts()
  // The longest target is the nearest mount; of several mounts at one place, the last is on top.
  const on = all.reduce<Mounted | undefined>(
    (best, mount) =>
      below(mount.target, real) !== undefined && mount.target.length >= (best?.target.length ?? 0)
        ? mount
        : best,
    undefined
  )
  if (on === undefined) return [real]
  const inside = path.join(on.root, below(on.target, real)!)
  const others = all.flatMap(({ device, root, target }) => {
    const rest = device === on.device ? below(root, inside) : undefined
    return rest === undefined ? [] : [path.join(target, rest)]
  })
  return [real, ...others]
}

/** The paths to this Berth's folder, and to the default folder of the user; computed once. */
const hostPlaces = (memory: Memory, state: string, rootless: boolean): ReadonlyArray<string> => {
  const own = path.dirname(path.dirname(state))
  memory.hidden ??= [...new Set([own, defaultFolder(rootless)].flatMap(placesOf))]
  return memory.hidden
}

/** The same, relative to a root that is a folder of the host. */
export const hiddenIn = (
  memory: Memory,
  root: string,
  state: string,
  rootless: boolean
): ReadonlyArray<string> => hostPlaces(memory, state, rootless).flatMap((place) => below(root, place) || [])
