/** Users and groups from the container's own passwd(5) and group(5), read without following links out of its root. */
import { statSync } from "node:fs"
import * as Effect from "effect/Effect"
import { type BerthError, ImageError } from "../../BerthError.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import {
  AT_FDCWD,
  native,
  O_DIRECTORY,
  O_PATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS
} from "../system/addon.ts"
import { EACCES, EAGAIN, EFBIG, ELOOP, ENOENT, ENOTDIR } from "../util/errno.ts"

export interface User {
  readonly uid: number
  readonly gid: number
  readonly groups: ReadonlyArray<number>
  readonly home: string
}

/** The limit in bytes: the files are read whole, and parsed on the program's own thread. */
const FILE_BYTES_MAX = 1024 * 1024

const tooLarge = (subject: string, path: string, cause?: unknown): ImageError => {
  const detail = `its /${path} is larger than ${FILE_BYTES_MAX} bytes, the limit for a file of users: make it smaller`
  return new ImageError({ reason: "TooLarge", subject, detail, cause })
}

const utf8 = new TextDecoder()

/**
 * The text of a regular file below a folder, with symbolic links resolved inside it; undefined if it does not exist,
 * null for another kind of file: in a layer, the whiteout of a removed file. It reads as many bytes as the file's size,
 * which is 0 for the files of /proc, and never blocks.
 */
const readBelow = (subject: string, folder: string, path: string): string | undefined | null => {
  const addon = native()
  const root = addon.openIn(AT_FDCWD, folder, O_PATH | O_DIRECTORY, 0, 0)
  if (root < 0) return undefined
  const found = addon.openIn(root, path, O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, 0)
  addon.close(root)
  if (found < 0) return found === -ENOENT || found === -ENOTDIR ? undefined : null
  return inRoot.using(found, (fd) => {
    const status = statSync(inRoot.via(fd))
    if (!status.isFile()) return null
    if (status.size > FILE_BYTES_MAX) throw tooLarge(subject, path)
    const opened = addon.openIn(AT_FDCWD, inRoot.via(fd), READING, 0, 0)
    return opened < 0 ? null : inRoot.using(opened, (file) => readText(file, status.size))
  })
}

const READING = inRoot.O_RDONLY | inRoot.O_NONBLOCK | inRoot.O_NOCTTY

const readText = (fd: number, size: number): string => {
  const bytes = new Uint8Array(size)
  let length = 0
  for (let n = 1; n > 0 && length < size; length += Math.max(n, 0))
    n = native().read(fd, bytes.subarray(length))
  return utf8.decode(bytes.subarray(0, length))
}

/** Reads a file of an image as in the union mount of its layers, lowest first. */
export const readMerged = (subject: string, folders: ReadonlyArray<string>, path: string): string => {
  for (const folder of folders.toReversed()) {
    const text = readBelow(subject, folder, path)
    if (text !== undefined) return text ?? ""
  }
  return ""
}

/**
 * Reads a file of a running container, which can be of any kind: on another thread, and "" if it is not a regular file
 * that can be opened at once.
 */
export const readInside = (subject: string, pid: number, path: string): Effect.Effect<string, BerthError> =>
  inRoot
    .promised(async (signal) => {
      const root = native().openIn(AT_FDCWD, `/proc/${pid}/root`, O_PATH | O_DIRECTORY, 0, 0)
      if (root < 0) return ""
      try {
        return await inRoot.using(root, () =>
          inRoot.using(inRoot.open(root, path, O_PATH), async (fd) =>
            utf8.decode(await inRoot.readWhole(fd, path, signal, FILE_BYTES_MAX))
          )
        )
      } catch (error) {
        if (inRoot.isErrno(error, EFBIG)) throw tooLarge(subject, path, error)
        if (inRoot.isErrno(error, ENOENT, ENOTDIR, ELOOP, EACCES, EAGAIN, inRoot.EISDIR)) return ""
        throw error
      }
    })
    .pipe(Effect.mapError(failedAs(`${subject}: read /${path}`)))

const ID_MAX = 2 ** 32 - 2

/** A canonical id: no sign, space or leading zero, at most 2^32 - 2. */
const parseId = (text: string): number | undefined => {
  if (!/^(0|[1-9]\d{0,9})$/.test(text)) return undefined
  const id = Number(text)
  return id <= ID_MAX ? id : undefined
}

/** The entries of the file, one after the other: there can be as many as the file has bytes. */
export function* records(text: string): Generator<ReadonlyArray<string>> {
  for (let at = 0; at < text.length; ) {
    const newline = text.indexOf("\n", at)
    const end = newline < 0 ? text.length : newline
    if (end > at && text[at] !== "#") {
      const line = text.slice(at, end)
      if (line.includes(":")) yield line.split(":")
    }
    at = end + 1
  }
}

const find = (
  text: string,
  isWanted: (record: ReadonlyArray<string>) => boolean
): ReadonlyArray<string> | undefined => {
  for (const record of records(text)) if (isWanted(record)) return record
  return undefined
}

/** Resolves `user[:group]` by these files; names or numbers, empty for root. A number need not be in them. */
export const resolve = (subject: string, user: string, passwd: string, group: string): User => {
  const [name = "", groupName, ...rest] = user.split(":")
  const missing = (what: string, given: string, file: string): never => {
    const detail = `${what} ${JSON.stringify(given)} is neither in the image's ${file} nor a number from 0 to ${ID_MAX}`
    throw new ImageError({ reason: "NoSuchUser", subject, detail })
  }
  if (rest.length > 0 || groupName === "" || (user !== "" && name === ""))
    return missing("user", user, "/etc/passwd")
  const wanted = name === "" ? "0" : name
  const number = parseId(wanted)
  const entry = find(passwd, (record) =>
    number === undefined ? record[0] === wanted : parseId(record[2] ?? "") === number
  )
  const uid = number ?? parseId(entry?.[2] ?? "")
  if (uid === undefined) return missing("user", name, "/etc/passwd")
  const named = groupName === undefined ? undefined : find(group, (record) => record[0] === groupName)
  const gid =
    groupName === undefined ? parseId(entry?.[3] ?? "0") : (parseId(groupName) ?? parseId(named?.[2] ?? ""))
  if (gid === undefined) return missing("group", groupName ?? entry?.[3] ?? "", "/etc/group")
  const memberOf: Array<number> = []
  if (groupName === undefined && entry !== undefined)
    for (const record of records(group)) {
      const id = parseId(record[2] ?? "")
      if (id !== undefined && id !== gid && record[3]?.split(",").includes(entry[0]!)) memberOf.push(id)
    }
  return { uid, gid, groups: memberOf, home: entry?.[5] || (uid === 0 ? "/root" : "/") }
}
