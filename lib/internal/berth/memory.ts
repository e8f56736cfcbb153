/** Data that a Berth computes once and uses again in later starts. Each Berth has its own. */
import type { Image } from "../../Image.ts"
import type { Tree } from "../cgroup/tree.ts"
import type { SharedMounts } from "../container/compile.ts"
import type { User } from "../container/passwd.ts"
import type { Targets } from "../container/targets.ts"
import type { Filters } from "../security/seccomp.ts"

export interface Memory {
  /** The tree in which the cgroups are made. */
  readonly tree: () => Tree
  /** The compiled seccomp filters, by the digest of their policy. */
  readonly filters: Filters
  /** The users of each image, by the text of the option. An image never changes. */
  readonly users: WeakMap<Image, Map<string, User>>
  /** The mode of the root folder of each image. */
  readonly modes: WeakMap<Image, number>
  /** The layers of mount targets that each image lacks, by what is wanted, and how many there are. */
  readonly targets: {
    readonly layers: WeakMap<Image, Map<string, Targets | undefined>>
    count: number
  }
  /** The mounts of the container that was started last, with their encoded bytes. */
  mounts: SharedMounts | undefined
  /** The paths of Berth's own folders on the host, which containers must not see. */
  hidden: ReadonlyArray<string> | undefined
  /** The number of the range at which the next search for free ids begins. */
  nextIds: number
}

export const make = (tree: () => Tree, filters: Filters = new Map()): Memory => ({
  tree,
  filters,
  users: new WeakMap(),
  modes: new WeakMap(),
  targets: { layers: new WeakMap(), count: 0 },
  mounts: undefined,
  hidden: undefined,
  nextIds: 0
})
