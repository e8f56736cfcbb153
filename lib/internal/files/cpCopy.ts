/** The `copy` of `@effect/platform`'s FileSystem inside one root: the behaviour of cp of node:fs, by descriptors. */
import * as fs from "node:fs"
import * as path from "node:path/posix"
import type { CopyOptions } from "@effect/platform/FileSystem"
import { native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { EINVAL, ENOENT, ENOTDIR } from "../util/errno.ts"
import { copyContents } from "./archiveCopy.ts"
import * as changes from "./mutations.ts"
import * as inRoot from "./rooted.ts"
import { Descent, textsOf, walk } from "./walk.ts"

const identityOf = (at: inRoot.Place): string => inRoot.using(inRoot.openPlace(at), inRoot.identity)

const refuse = (at: inRoot.Place): never => inRoot.fail(EINVAL, "cp", at.path)

const copyFileTo = async (
  source: inRoot.Place,
  target: inRoot.Place,
  options: CopyOptions,
  signal: AbortSignal
): Promise<void> =>
  inRoot.using(inRoot.openPlace(source), async (from) => {
    const status = inRoot.checkContents(from, source.path, "cp")
    if (!status.isFile()) return refuse(source)
    const create = inRoot.O_WRONLY | inRoot.O_CREAT | inRoot.O_EXCL | O_NOFOLLOW
    await inRoot.using(inRoot.openPlace(target, create, "cp", 0o600), async (to) => {
      await copyContents(from, to, status.size, source.path, signal)
      changes.chmod(to, status.mode & 0o7777, target.path)
      if (options.preserveTimestamps === true) changes.utimes(to, status.atime, status.mtime, target.path)
    })
  })

const copyLink = (source: inRoot.Place, target: inRoot.Place, existing: fs.Stats | undefined): void => {
  const text = changes.readLink(source)
  if (existing?.isSymbolicLink() === true) changes.unlink(target)
  // Like cp of node:fs, makes a relative link absolute.
  changes.symlink(path.resolve("/", path.dirname(source.path), text), target)
}

/** A folder on both sides, by its path. */
interface Pair {
  readonly from: string
  readonly to: string
}

const copyTree = async (
  source: inRoot.Place,
  target: inRoot.Place,
  options: CopyOptions,
  signal: AbortSignal
): Promise<void> => {
  const into = new Descent(target.folder)
  const start: Pair = { from: path.dirname(source.path), to: path.dirname(target.path) }
  const namesIn = (fd: number, { from }: Pair) => textsOf(fd, from, signal)
  const walking = { top: source.folder, state: start, names: [source.name], namesIn, signal }
  try {
    for await (const { enter, folder, name, state } of walk(walking)) {
      const isFirst = state === start
      const from = isFirst ? source : inRoot.place(folder, name, inRoot.join(state.from, name))
      const to = isFirst ? target : inRoot.place(into.fd, name, inRoot.join(state.to, name))
      const status = changes.statusOf(from)
      const existing = inRoot.statusOf(to)
      if (existing !== undefined && identityOf(from) === identityOf(to)) refuse(to)
      if (existing !== undefined && status.isDirectory() !== existing.isDirectory()) refuse(to)
      if (status.isSymbolicLink()) copyLink(from, to, existing)
      else if (status.isFile()) {
        if (existing !== undefined && options.overwrite !== true) continue
        if (existing !== undefined) changes.unlink(to)
        await copyFileTo(from, to, options, signal)
      } else if (!status.isDirectory()) refuse(from)
      else {
        if (existing === undefined) changes.mkdir(to, 0o777)
        const flags = inRoot.O_FOLDER | O_NOFOLLOW
        const opened = inRoot.openPlace(from, flags)
        await inRoot.orClose(opened, async () => into.down(inRoot.openPlace(to, flags)))
        enter(opened, { from: from.path, to: to.path }, () => {
          if (existing === undefined) changes.chmod(into.fd, status.mode & 0o7777, to.path)
          into.up()
        })
      }
    }
  } finally {
    into.close()
  }
}

/** Whether this folder is one of the folders on the way to a path. */
const isBelow = (root: number, at: string, identity: string): boolean => {
  for (let folder = path.dirname(path.resolve("/", at)); ; folder = path.dirname(folder)) {
    try {
      if (inRoot.using(inRoot.open(root, folder, O_PATH), inRoot.identity) === identity) return true
    } catch (error) {
      if (!inRoot.isErrno(error, ENOENT, ENOTDIR)) throw error
    }
    if (folder === "/") return false
  }
}

export const copy = (
  root: number,
  from: string,
  to: string,
  options: CopyOptions,
  signal: AbortSignal
): Promise<void> =>
  inRoot.inFolder(root, from, EINVAL, "cp", async (source) => {
    if (isBelow(root, to, identityOf(source))) return refuse(source)
    native().close(openParent(root, to))
    await inRoot.inFolder(root, to, EINVAL, "cp", (target) => copyTree(source, target, options, signal))
  })

const openParent = (root: number, at: string): number => {
  const { folder } = inRoot.split(at)
  try {
    return inRoot.open(root, folder, inRoot.O_FOLDER, "cp")
  } catch (error) {
    if (!inRoot.isErrno(error, ENOENT)) throw error
  }
  changes.makeFolder(root, folder, 0o777, true)
  return inRoot.open(root, folder, inRoot.O_FOLDER, "cp")
}

const regular = (fd: number, path: string): fs.Stats => {
  const status = fs.statSync(inRoot.via(fd))
  if (!status.isFile()) inRoot.fail(status.isDirectory() ? inRoot.EISDIR : EINVAL, "copyfile", path)
  return inRoot.checkContents(fd, path, "copyfile")
}

/** Makes the file if it is missing, and opens the file at the path. */
const openTarget = async (root: number, at: string, mode: number): Promise<number> => {
  try {
    return inRoot.open(root, at, O_PATH, "copyfile")
  } catch (error) {
    if (!inRoot.isErrno(error, ENOENT)) throw error
  }
  const flags = inRoot.O_WRONLY | inRoot.O_CREAT
  await inRoot.fsClose(await inRoot.openFile(root, at, flags, mode))
  return inRoot.open(root, at, O_PATH, "copyfile")
}

/** copyFile of node:fs, for regular files only, so that it never blocks. */
export const copyFile = (root: number, from: string, to: string, signal: AbortSignal): Promise<void> =>
  inRoot.using(inRoot.open(root, from, O_PATH, "copyfile"), async (source) => {
    const { mode, size } = regular(source, from)
    await inRoot.using(await openTarget(root, to, mode & 0o7777), async (target) => {
      regular(target, to)
      if (inRoot.identity(source) === inRoot.identity(target)) return
      await copyContents(source, target, size, from, signal)
      changes.chmod(target, mode & 0o7777, to)
    })
  })
