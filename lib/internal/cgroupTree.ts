/** Which cgroup tree this machine has, from /proc/self/cgroup and /proc/self/mountinfo: cgroups(7). */
import { existsSync, readFileSync } from "node:fs"
import { dirname } from "node:path"

/** One hierarchy and this process's own place in it. */
export interface Hierarchy {
  readonly version: 1 | 2
  /** The folder of this process's own cgroup. */
  readonly folder: string
}

export interface Tree {
  readonly kind: "v1" | "v2" | "hybrid" | "none"
  /** By controller: `memory`, `cpu`, `cpuacct`, `pids` ...; what is not in here cannot be limited. */
  readonly controllers: Readonly<Record<string, Hierarchy>>
  /** Why a controller that is not there is not. */
  readonly missing: (controller: string) => string
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

const read = (path: string): string => {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

// A cgroup with processes of its own cannot pass controllers on (cgroup-v2.rst, no internal process constraint), so new
// ones go below the nearest cgroup, from our own upwards, that passes any on already.
const delegating = (
  own: string
): { readonly folder: string; readonly controllers: ReadonlyArray<string> } | undefined => {
  for (let folder = own; existsSync(`${folder}/cgroup.subtree_control`); folder = dirname(folder)) {
    const passed = read(`${folder}/cgroup.subtree_control`)
      .split(/\s+/)
      .filter((name) => name !== "")
    if (passed.length > 0) return { folder, controllers: passed }
  }
  return undefined
}

/** Reads the tree: two small files of /proc, and cgroup.subtree_control where there is version 2. */
export const detect = (): Tree => {
  const mounts = parseMounts(read("/proc/self/mountinfo"))
  const own = read("/proc/self/cgroup").split("\n")
  const controllers: Record<string, Hierarchy> = {}
  let unified: Hierarchy | undefined
  for (const line of own) {
    const [, names, ...rest] = line.split(":")
    const path = rest.join(":")
    if (names === undefined) continue
    if (names === "") {
      const mount = mounts.find((m) => m.type === "cgroup2")
      if (mount !== undefined) unified = { version: 2, folder: below(mount, path) }
      continue
    }
    for (const name of names.split(",")) {
      const mount = mounts.find((m) => m.type === "cgroup" && m.options.includes(name))
      if (mount !== undefined && !name.startsWith("name="))
        controllers[name] = { version: 1, folder: below(mount, path) }
    }
  }
  const base = unified === undefined ? undefined : delegating(unified.folder)
  if (base !== undefined)
    for (const name of base.controllers) controllers[name] ??= { version: 2, folder: base.folder }
  // cpu.stat and memory.current are there on version 2 without further controllers.
  if (controllers.cpu?.version === 2) controllers.cpuacct ??= controllers.cpu
  const versions = new Set(Object.values(controllers).map((hierarchy) => hierarchy.version))
  const v1 = mounts.some((m) => m.type === "cgroup")
  const kind = mounts.length === 0 ? "none" : v1 ? (unified === undefined ? "v1" : "hybrid") : "v2"
  return {
    kind: versions.size === 0 ? "none" : kind,
    controllers,
    missing: (controller) =>
      mounts.length === 0
        ? "no cgroup file system is mounted"
        : unified !== undefined && !v1
          ? `neither ${unified.folder} nor a cgroup above it has ${controller} in its cgroup.subtree_control`
          : `neither a version 1 hierarchy for ${controller} is mounted nor does version 2 have it`
  }
}
