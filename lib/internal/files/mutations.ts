/**
 * Changes of a single name in an opened folder, or of the file of a descriptor: as node:fs makes them and, if they are
 * refused, as root of a user namespace (namespaceRoot.ts).
 */
import * as fs from "node:fs"
import { native, O_NOFOLLOW } from "../system/addon.ts"
import { EACCES, EEXIST, EINVAL, ENOENT, ENOTDIR, EPERM } from "../util/errno.ts"
import * as asRoot from "./namespaceRoot.ts"
import * as inRoot from "./rooted.ts"
import * as walking from "./walk.ts"

const orAsRoot = (syscall: string, path: string, first: () => void, again: () => number): void => {
  try {
    first()
  } catch (error) {
    if (!inRoot.isErrno(error, EACCES, EPERM)) throw error
    const result = again()
    if (result === -EACCES || result === -EPERM) throw error
    if (result < 0) inRoot.fail(-result, syscall, path)
  }
}

const AT_REMOVEDIR = 0x200

export const mkdir = (at: inRoot.Place, mode: number): void =>
  orAsRoot(
    "mkdir",
    at.path,
    () => fs.mkdirSync(at.at, { mode }),
    () => asRoot.change("mkdir", at.folder, at.name, { a: mode & 0o7777 })
  )

export const unlink = (at: inRoot.Place): void =>
  orAsRoot(
    "unlink",
    at.path,
    () => fs.unlinkSync(at.at),
    () => asRoot.change("unlink", at.folder, at.name, {})
  )

export const rmdir = (at: inRoot.Place): void =>
  orAsRoot(
    "rmdir",
    at.path,
    () => fs.rmdirSync(at.at),
    () => asRoot.change("unlink", at.folder, at.name, { a: AT_REMOVEDIR })
  )

export const rename = (old: inRoot.Place, made: inRoot.Place): void =>
  orAsRoot(
    "rename",
    old.path,
    () => fs.renameSync(old.at, made.at),
    () => asRoot.change("rename", old.folder, old.name, { other: made.folder, text: made.name })
  )

export const link = (existing: inRoot.Place, made: inRoot.Place): void =>
  orAsRoot(
    "link",
    existing.path,
    () => fs.linkSync(existing.at, made.at),
    () => asRoot.change("link", existing.folder, existing.name, { other: made.folder, text: made.name })
  )

export const symlink = (target: string, at: inRoot.Place): void =>
  orAsRoot(
    "symlink",
    at.path,
    () => fs.symlinkSync(target, at.at),
    () => asRoot.change("symlink", at.folder, at.name, { text: target })
  )

export const chmod = (fd: number, mode: number, path: string): void =>
  orAsRoot(
    "chmod",
    path,
    () => fs.chmodSync(inRoot.via(fd), mode),
    () => asRoot.change("mode", fd, "", { a: mode & 0o7777 })
  )

/** With the ids of the host. */
export const chown = (fd: number, uid: number, gid: number, path: string): void =>
  orAsRoot(
    "chown",
    path,
    () => fs.chownSync(inRoot.via(fd), uid, gid),
    () => asRoot.chown(fd, uid, gid)
  )

const micros = (time: number | Date): number =>
  Math.floor(typeof time === "number" ? time * 1e6 : time.getTime() * 1000)

export const utimes = (fd: number, atime: number | Date, mtime: number | Date, path: string): void =>
  orAsRoot(
    "utime",
    path,
    () => fs.utimesSync(inRoot.via(fd), atime, mtime),
    () => asRoot.change("times", fd, "", { a: micros(atime), b: micros(mtime) })
  )

/** The target of a link, with U+FFFD for bytes that are not UTF-8. */
export const readLink = (at: inRoot.Place): string => {
  inRoot.checkLink(at)
  try {
    return fs.readlinkSync(at.at)
  } catch (error) {
    if (!inRoot.isErrno(error, EACCES)) throw error
    return inRoot.using(inRoot.openPlace(at), (fd) =>
      fs.statSync(inRoot.via(fd)).isSymbolicLink()
        ? inRoot.linkText(fd, at.path)
        : inRoot.fail(EINVAL, "readlink", at.path)
    )
  }
}

/** lstat(2) of an entry that must exist. */
export const statusOf = (at: inRoot.Place): fs.Stats =>
  inRoot.statusOf(at) ?? inRoot.fail(ENOENT, "lstat", at.path)

/**
 * mkdir(2); with `recursive`, also makes the folders on the way, and succeeds if the folder exists. `made` gets the path of each folder
 * that was missing.
 */
export const makeFolder = (
  root: number,
  path: string,
  mode: number,
  recursive: boolean,
  made: (at: string) => void = () => {}
): void => {
  const one = (at: string): void => {
    inRoot.inFolder(root, at, EEXIST, "mkdir", (name) => mkdir(name, mode))
    made(at)
  }
  const isFolder = (at: string): boolean => {
    try {
      native().close(inRoot.open(root, at, inRoot.O_FOLDER, "mkdir"))
      return true
    } catch (error) {
      if (inRoot.isErrno(error, ENOTDIR)) return false
      throw error
    }
  }
  if (!recursive) return one(path)
  const missing = [path]
  for (let attempt = 0; missing.length > 0; attempt++) {
    const at = missing.at(-1)!
    try {
      one(at)
      missing.pop()
    } catch (error) {
      if (inRoot.isErrno(error, EEXIST)) {
        if (!isFolder(at)) throw missing.length === 1 ? error : new inRoot.Failure(ENOTDIR, "mkdir", path)
        missing.pop()
      } else if (inRoot.isErrno(error, ENOENT) && at !== "" && attempt < inRoot.PATH_MAX) {
        const { folder } = inRoot.split(at)
        if (folder === "." || folder === "/") throw error
        missing.push(folder)
      } else throw error
    }
  }
}

/** Removes an entry; a folder with all its contents. */
export const removeTree = async (at: inRoot.Place, signal: AbortSignal): Promise<void> => {
  if (!statusOf(at).isDirectory()) return unlink(at)
  // An entry that the container has removed in the meantime counts as removed.
  const unlessGone = (body: () => void): void => {
    try {
      body()
    } catch (error) {
      if (!inRoot.isErrno(error, ENOENT)) throw error
    }
  }
  const namesIn = (folder: number, path: string) => walking.textsOf(folder, path, signal)
  const { folder: top, name } = at
  const state = inRoot.split(at.path).folder
  for await (const { enter, folder, name: inside, state: above } of walking.walk({
    top,
    state,
    names: [name],
    namesIn,
    signal
  })) {
    const path = inRoot.join(above, inside)
    const place = inRoot.place(folder, inside, path)
    unlessGone(() => {
      if (!statusOf(place).isDirectory()) return unlink(place)
      const fd = inRoot.openPlace(place, inRoot.O_FOLDER | O_NOFOLLOW)
      enter(fd, path, (again) => unlessGone(() => rmdir(inRoot.place(again, inside, path))))
    })
  }
}
