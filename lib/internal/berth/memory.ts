/** What a Berth finds out or makes once, and uses again in later starts. Each Berth has its own. */
import type { Image } from "../../Image.ts"
import type { Tree } from "../cgroup/tree.ts"
import type { SharedMounts } from "../container/compile.ts"
import type { User } from "../container/passwd.ts"
import type { Filters } from "../security/seccomp.ts"

export interface Memory {
  /** The tree in which the cgroups are made. */
  readonly tree: () => Tree
  /** The compiled seccomp filters, by what they say. */
  readonly filters: Filters
  /** The users by what an option calls them, and the mode of the root folder, of each image: an image never changes. */
  readonly users: WeakMap<Image, Map<string, User>>
  readonly modes: WeakMap<Image, number>
  /** The mounts of the container that was started last, with their encoded bytes. */
  mounts: SharedMounts | undefined
  /** Where Berth's own folders are on the host. */
  hidden: ReadonlyArray<string> | undefined
  /** The number of the range of ids that the next search for a free one begins with. */
  nextIds: number
}

export const make = (tree: () => Tree, filters: Filters = new Map()): Memory => ({
  tree,
  filters,
  users: new WeakMap(),
  modes: new WeakMap(),
  mounts: undefined,
  hidden: undefined,
  nextIds: 0
})
