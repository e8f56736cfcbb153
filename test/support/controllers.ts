/** The cgroup controllers that tests can have here. */
import * as fs from "node:fs"
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

/** Why there is no such controller, if so: the machine lacks it, or without root it has not been delegated. */
export const without = (controller: string): string | false => {
  const hierarchy = tree.controllers[controller]
  if (hierarchy === undefined) return `no ${controller}: ${tree.missing(controller)}`
  return process.getuid?.() === 0 || isWritable(hierarchy.folder)
    ? false
    : `${controller} is not delegated: ${hierarchy.folder} cannot be written to`
}
