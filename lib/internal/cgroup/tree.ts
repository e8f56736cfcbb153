/** Which cgroup tree this machine has, from /proc/self/cgroup and /proc/self/mountinfo: cgroups(7). */
import { existsSync } from "node:fs"
import { dirname } from "node:path"
import { read } from "../util/readFile.ts"

/** One hierarchy and this process's own place in it. */
export interface Hierarchy {
  readonly version: 1 | 2
  /** The folder of the cgroup that ours are made in. */
  readonly folder: string
  /** Whether it passes a controller on only once that has been written to its cgroup.subtree_control. */
  readonly passesOnRequest: boolean
}

/** Why there is no such controller. */
export interface Missing {
  readonly reason: "NotMounted" | "NotDelegated" | "NotInKernel"
  readonly path: string
  readonly detail: string
}

export interface Tree {
  readonly kind: "v1" | "v2" | "hybrid" | "none"
  /**
   * By the name that version 2 has for a controller: `memory`, `cpu`, `cpuset`, `pids`, `io` (blkio on version 1) ..., and
   * `cpuacct`, `freezer`, `devices` and `pressure`, which version 2 has without a controller. What is not in here cannot be
   * limited.
   */
  readonly controllers: Readonly<Record<string, Hierarchy>>
  /** Why a controller that is not there is not, in words. */
  readonly missing: (controller: string) => string
  readonly why: (controller: string) => Missing
}

interface Mounted {
  readonly root: string
  readonly at: string
  readonly type: string
  readonly options: ReadonlyArray<string>
}

const unescape = (path: string): string =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

// proc_pid_mountinfo(5): id parent major:minor root mount-point options [tag ...] - type source super-options
const parseMounts = (text: string): ReadonlyArray<Mounted> =>
  text.split("\n").flatMap((line) => {
    const [front, back] = line.split(" - ")
    const fields = front?.split(" ") ?? []
    const [type, , options] = back?.split(" ") ?? []
    if (type !== "cgroup" && type !== "cgroup2") return []
    return [
      { root: unescape(fields[3]!), at: unescape(fields[4]!), type, options: options?.split(",") ?? [] }
    ]
  })

const below = (mount: Mounted, path: string): string => {
  const relative =
    mount.root === "/" ? path : path.startsWith(mount.root) ? path.slice(mount.root.length) : "/"
  return relative === "/" || relative === ""
    ? mount.at
    : `${mount.at}${relative.startsWith("/") ? "" : "/"}${relative}`
}

const words = (text: string): ReadonlyArray<string> => text.split(/\s+/).filter((word) => word !== "")

/**
 * Below which cgroup ours are made, and which controllers it passes on to them: on version 1 our own. On version 2 a cgroup
 * with processes of its own cannot pass controllers on (cgroup-v2.rst, no internal process constraint), so it is the nearest,
 * from our own upwards, that passes any on already; our own where none does. The root of a machine that has version 2 alone
 * and nobody who sees to it, such as systemd, is free of that constraint and passes on what it is asked for.
 */
export const parentOf = (
  version: 1 | 2,
  own: string,
  alone: boolean
): Pick<Hierarchy, "folder" | "passesOnRequest"> & { readonly controllers: ReadonlyArray<string> } => {
  if (version === 2)
    for (let folder = own; existsSync(`${folder}/cgroup.subtree_control`); folder = dirname(folder)) {
      const controllers = words(read(`${folder}/cgroup.subtree_control`))
      const isRoot = alone && !existsSync(`${folder}/cgroup.type`)
      if (isRoot && folder === own)
        return { folder, controllers: words(read(`${folder}/cgroup.controllers`)), passesOnRequest: true }
      if (controllers.length > 0) return { folder, controllers, passesOnRequest: false }
    }
  return { folder: own, controllers: [], passesOnRequest: false }
}

/** What version 1 calls a controller. */
const v1Name = (controller: string): string => (controller === "io" ? "blkio" : controller)

// What every cgroup of version 2 has: cgroup-v2.rst, core interface files; devices by eBPF.
const ofEveryCgroup = ["freezer", "devices", "pressure"]

/** The folder of a process's cgroup where the tree is of version 2 alone. */
export const unifiedOf = (pid: number | "self"): string | undefined => {
  const mounts = parseMounts(read("/proc/self/mountinfo"))
  const path = /^0::(.*)$/m.exec(read(`/proc/${pid}/cgroup`))?.[1]
  const mount = mounts.find((m) => m.type === "cgroup2")
  return mounts.some((m) => m.type === "cgroup") || mount === undefined || path === undefined
    ? undefined
    : below(mount, path)
}

/** Reads the tree: two small files of /proc, and cgroup.subtree_control where there is version 2. `pid` is whose place counts. */
export const detect = (pid: number | "self" = "self"): Tree => {
  const mounts = parseMounts(read("/proc/self/mountinfo"))
  const own = read(`/proc/${pid}/cgroup`).split("\n")
  const controllers: Record<string, Hierarchy> = {}
  const limiting = new Set<string>()
  const v1 = mounts.some((m) => m.type === "cgroup")
  let unified: Hierarchy | undefined
  let at = ""
  for (const line of own) {
    const [, names, ...rest] = line.split(":")
    const path = rest.join(":")
    if (names === undefined) continue
    const type = names === "" ? "cgroup2" : "cgroup"
    for (const name of names.split(",")) {
      if (name.startsWith("name=")) continue
      const mount = mounts.find((m) => m.type === type && (name === "" || m.options.includes(name)))
      if (mount === undefined) continue
      const parent = parentOf(name === "" ? 2 : 1, below(mount, path), !v1)
      const { controllers: passed, folder, passesOnRequest } = parent
      if (name !== "") {
        controllers[name === "blkio" ? "io" : name] = { version: 1, folder, passesOnRequest }
        limiting.add(name)
      } else {
        at = mount.at
        unified = { version: 2, folder, passesOnRequest }
        for (const controller of passed) {
          controllers[controller] ??= unified
          limiting.add(controller)
        }
      }
    }
  }
  if (unified !== undefined) for (const name of ofEveryCgroup) controllers[name] ??= unified
  // cpu.stat is there on version 2 without further controllers.
  if (controllers.cpu?.version === 2) controllers.cpuacct ??= controllers.cpu
  const kind = mounts.length === 0 ? "none" : v1 ? (unified === undefined ? "v1" : "hybrid") : "v2"
  const why = (controller: string): Missing => {
    if (mounts.length === 0)
      return {
        reason: "NotMounted",
        path: "/sys/fs/cgroup",
        detail: "no cgroup file system is mounted: mount one (cgroups(7))"
      }
    if (unified !== undefined && words(read(`${at}/cgroup.controllers`)).includes(controller)) {
      const path = `${unified.folder}/cgroup.subtree_control`
      return {
        reason: "NotDelegated",
        path,
        detail: `version 2 has the controller and does not pass it on: write +${controller} to the cgroup.subtree_control of ${at} and of each cgroup on the way to ${unified.folder}, or have it delegated (systemd: Delegate=${controller})`
      }
    }
    const known = new RegExp(`^${v1Name(controller)}\\s`, "m").test(read("/proc/cgroups"))
    return known
      ? {
          reason: "NotMounted",
          path: "/proc/cgroups",
          detail: `the kernel has the controller, but no mounted hierarchy does: mount -t cgroup -o ${v1Name(controller)}, or boot with version 2 (cgroups(7))`
        }
      : {
          reason: "NotInKernel",
          path: "/proc/cgroups",
          detail: "this kernel was built, or booted, without the controller: leave the limit out"
        }
  }
  return {
    kind: limiting.size === 0 ? "none" : kind,
    controllers,
    missing: (controller) => why(controller).detail,
    why
  }
}
