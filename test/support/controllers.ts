/** The cgroup controllers that tests can use on this machine. */
import * as fs from "node:fs"
import type { Cgroup } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"

export const tree = detect()

const isWritable = (folder: string): boolean => {
  try {
    fs.accessSync(folder, fs.constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** Why a controller cannot be used here, or false: the machine lacks it, or it is not delegated to a non-root user. */
export const without = (controller: string): string | false => {
  const hierarchy = tree.controllers[controller]
  if (hierarchy === undefined) return `no ${controller}: ${tree.missing(controller)}`
  return process.getuid?.() === 0 || isWritable(hierarchy.folder)
    ? false
    : `${controller} is not delegated: ${hierarchy.folder} cannot be written to`
}

/** The folder of a cgroup in the hierarchy of a controller. */
export const folderOf = (cgroup: Cgroup.Cgroup, controller: string) =>
  cgroup.folders.find(({ controllers }) => controllers.includes(controller))!

/** The contents of a cgroup's file, whose name depends on the version of the controller's hierarchy. */
export const fileOf = (cgroup: Cgroup.Cgroup, controller: string, v1: string, v2: string): string => {
  const { path, version } = folderOf(cgroup, controller)
  return fs.readFileSync(`${path}/${version === 1 ? v1 : v2}`, "utf8").trim()
}

/** The number of a disk of this machine, or undefined. */
export const disk: string | undefined = [
  ...fs.readFileSync("/proc/partitions", "utf8").matchAll(/^ +(\d+) +(\d+) +\d+ (vda|sda|nvme0n1)$/gm)
]
  .map(([, major, minor]) => `${major}:${minor}`)
  .at(0)
