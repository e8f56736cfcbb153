/** The disk space of a folder. */
import type { Stats } from "node:fs"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"

/** The unit of stat(2)'s blocks on every file system. */
const BLOCK_BYTES = 512

const orNothing = async <A>(promise: Promise<A>, nothing: A): Promise<A> => {
  try {
    return await promise
  } catch {
    // Removed in the meantime, or not readable for this user.
    return nothing
  }
}

const measure = async (root: string): Promise<number> => {
  const linked = new Set<string>()
  let bytes = 0
  const add = (stats: Stats): void => {
    const inode = `${stats.dev}:${stats.ino}`
    if (!stats.isDirectory() && stats.nlink > 1) {
      if (linked.has(inode)) return
      linked.add(inode)
    }
    bytes += stats.blocks * BLOCK_BYTES
  }
  const folders = [root]
  const top = await orNothing(fs.lstat(root), undefined)
  if (top !== undefined) add(top)
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const entries = await orNothing(fs.readdir(folder, { withFileTypes: true }), [])
    for (let i = 0; i < entries.length; i += 64) {
      const paths = entries.slice(i, i + 64).map((entry) => `${folder}/${entry.name}`)
      for (const [j, stats] of (
        await Promise.all(paths.map((path) => orNothing(fs.lstat(path), undefined)))
      ).entries()) {
        if (stats === undefined) continue
        add(stats)
        if (stats.isDirectory()) folders.push(paths[j]!)
      }
    }
  }
  return bytes
}

/** The disk space of a folder in bytes. Hard links count once, links are not followed, unreadable entries are 0. */
export const diskUsage = (folder: string): Effect.Effect<number> => Effect.promise(() => measure(folder))
