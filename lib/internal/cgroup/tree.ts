/** Reads the cgroup tree of this machine from /proc/self/cgroup and /proc/self/mountinfo: cgroups(7). */
import { existsSync } from "node:fs"
import { dirname } from "node:path"
import { read } from "../util/readFile.ts"

/** One hierarchy and this process's own place in it. */
export interface Hierarchy {
  readonly version: 1 | 2
  /** The folder of the cgroup in which Berth makes its own. */
  readonly folder: string
  /** Whether it passes a controller on only after a write to its cgroup.subtree_control. */
  readonly passesOnRequest: boolean
}

/** The reason why a controller is missing. */
export interface Missing {
  readonly reason: "NotMounted" | "NotDelegated" | "NotInKernel"
  readonly path: string
  readonly detail: string
}

export interface Tree {
  readonly kind: "v1" | "v2" | "hybrid" | "none"
  /**
   * By the controllers' names on version 2: `memory`, `cpu`, `cpuset`, `pids`, `io` (blkio on version 1) ..., and
   * `cpuacct`, `freezer`, `devices` and `pressure`, which version 2 has without a controller. A controller that is
   * missing here cannot be used.
   */
  readonly controllers: Readonly<Record<string, Hierarchy>>
  /** The reason why a controller is missing, in words. */
  readonly missing: (controller: string) => string
  readonly why: (controller: string) => Missing
  /** Whether cgroups below a folder have this file of a limit. The answer for the tree's own folders is kept. */
  readonly hasFile: (above: string, file: string) => boolean
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
 * The cgroup in which Berth makes its own, and the controllers that it passes on to them. On version 1 it is that of
 * this process. On version 2 a cgroup with processes of its own cannot pass controllers on (cgroup-v2.rst, no internal
 * process constraint), so it is the nearest one upwards that passes any on already, or that of this process if none
 * does. The root of a machine with version 2 alone, and without a manager such as systemd, is free of that constraint:
 * it passes on every requested controller.
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

/** The name of a controller on version 1. */
const v1Name = (controller: string): string => (controller === "io" ? "blkio" : controller)

// Features that every cgroup of version 2 has: cgroup-v2.rst, core interface files; devices by eBPF.
const ofEveryCgroup = ["freezer", "devices", "pressure"]

/** The folder of a process's cgroup if the tree only has version 2. */
export const unifiedOf = (pid: number | "self"): string | undefined => {
  const mounts = parseMounts(read("/proc/self/mountinfo"))
  const path = /^0::(.*)$/m.exec(read(`/proc/${pid}/cgroup`))?.[1]
  const mount = mounts.find((m) => m.type === "cgroup2")
  return mounts.some((m) => m.type === "cgroup") || mount === undefined || path === undefined
    ? undefined
    : below(mount, path)
}

/** Reads the present tree of a process: two small files of /proc, and cgroup.subtree_control of version 2. */
export const detect = (pid: number | "self" = "self"): Tree => {
  const mounts = parseMounts(read("/proc/self/mountinfo"))
  const lines = read(`/proc/${pid}/cgroup`).split("\n")
  const controllers: Record<string, Hierarchy> = {}
  const limiting = new Set<string>()
  const v1 = mounts.some((m) => m.type === "cgroup")
  let unified: Hierarchy | undefined
  let at = ""
  for (const line of lines) {
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
  // Version 2 has cpu.stat without a further controller.
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
        detail: `version 2 has the controller but does not pass it on: write +${controller} to the cgroup.subtree_control of ${at} and of each cgroup on the way to ${unified.folder}, or have it delegated (systemd: Delegate=${controller})`
      }
    }
    const known = new RegExp(`^${v1Name(controller)}\\s`, "m").test(read("/proc/cgroups"))
    return known
      ? {
          reason: "NotMounted",
          path: "/proc/cgroups",
          detail: `the kernel has the controller, but no mounted hierarchy has it: mount -t cgroup -o ${v1Name(controller)}, or boot with version 2 (cgroups(7))`
        }
      : {
          reason: "NotInKernel",
          path: "/proc/cgroups",
          detail: "this kernel was built, or booted, without the controller: leave the limit out"
        }
  }
  const own = new Set(Object.values(controllers).map(({ folder }) => folder))
  const files = new Map<string, boolean>()
  return {
    kind: limiting.size === 0 ? "none" : kind,
    controllers,
    missing: (controller) => why(controller).detail,
    why,
    hasFile: (above, file) => {
      const path = `${above}/${file}`
      const found = files.get(path) ?? existsSync(path)
      if (own.has(above)) files.set(path, found)
      return found
    }
  }
}

/** The tree of this process, read at the first call: a process's own cgroup hardly ever changes. */
export const lazily = (): (() => Tree) => {
  let tree: Tree | undefined
  return () => {
    tree ??= detect()
    return tree
  }
}
