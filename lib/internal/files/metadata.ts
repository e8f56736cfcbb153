/** The metadata of a file, read and set by a descriptor of any kind, including links. */
import * as fs from "node:fs"
import { native } from "../system/addon.ts"
import { EPERM } from "../util/errno.ts"
import * as asRoot from "./namespaceRoot.ts"
import * as inRoot from "./rooted.ts"

export interface Metadata {
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly seconds: number
  readonly nanoseconds: number
  readonly xattrs: ReadonlyArray<readonly [name: string, value: Uint8Array]>
}

// Linux's limits for a list of attributes and for one value (xattr(7)).
const XATTR_BYTES_MAX = 64 * 1024
const ENOTSUP = 95
const ENODATA = 61
const scratch = new Uint8Array(XATTR_BYTES_MAX)
const utf8 = new TextDecoder()

/** Attributes that a storage driver writes about its own files do not count as metadata. */
export const isKept = (name: string): boolean => !/^(trusted|user)\.overlay\./.test(name)

export const xattrsOf = (
  fd: number,
  path: string,
  isWanted: (name: string) => boolean = isKept
): Metadata["xattrs"] => {
  const length = native().xattrs(fd, scratch)
  if (length === -ENOTSUP) return []
  if (length < 0) return inRoot.fail(-length, "listxattr", path)
  const names = utf8.decode(scratch.subarray(0, length)).split("\0").slice(0, -1)
  return names.filter(isWanted).flatMap((name): Metadata["xattrs"] => {
    const n = asRoot.xattr(fd, name, scratch)
    if (n === -ENODATA) return []
    return n < 0 ? inRoot.fail(-n, "getxattr", path) : [[name, scratch.slice(0, n)]]
  })
}

export const metadataOf = (fd: number, status: fs.Stats, path: string): Metadata => {
  const [seconds, nanoseconds] = native().modified(fd)
  const { mode, uid, gid } = status
  return { mode: mode & 0o7777, uid, gid, seconds, nanoseconds, xattrs: xattrsOf(fd, path) }
}

/**
 * In an order in which no step undoes another: setting an owner clears set-user-ID bits and capabilities. A user without the right
 * to give files away stays the owner, as with tar, unless `gives` lets root of a user namespace give them to ids of the user's.
 */
export const setMetadata = (fd: number, metadata: Metadata, path: string, gives = false): void => {
  const via = inRoot.via(fd)
  const now = fs.statSync(via)
  const { gid, mode, uid } = metadata
  let isGiven = true
  if (now.uid !== uid || now.gid !== gid) {
    try {
      fs.chownSync(via, uid, gid)
    } catch (error) {
      if (process.geteuid?.() === 0 || !inRoot.isErrno(error, EPERM)) throw error
      isGiven = false
    }
  }
  if (!now.isSymbolicLink()) fs.chmodSync(via, mode)
  for (const [name, value] of metadata.xattrs) {
    const result = native().setXattr(fd, name, value)
    if (result < 0 && result !== -ENOTSUP) inRoot.fail(-result, `setxattr ${name}`, path)
  }
  const result = native().setModified(fd, metadata.seconds, metadata.nanoseconds)
  if (result < 0) inRoot.fail(-result, "utimensat", path)
  // Last, because the file is no longer this user's afterwards.
  if (isGiven || !gives) return
  const given = asRoot.chown(fd, uid, gid)
  if (given < 0) inRoot.fail(-given, "chown", path)
  if (!now.isSymbolicLink()) asRoot.change("mode", fd, "", { a: mode })
}
