/** Users and groups by the container's own passwd(5) and group(5), read without following anything out of its root. */
import { readFileSync, statSync } from "node:fs"
import { ImageError } from "../BerthError.ts"
import { ENOENT, ENOTDIR } from "./errno.ts"
import { AT_FDCWD, native, O_DIRECTORY, O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS } from "./native.ts"

export interface User {
  readonly uid: number
  readonly gid: number
  readonly groups: ReadonlyArray<number>
  readonly home: string
}

/** passwd and group files are read whole: past this they are not files of users. */
const FILE_BYTES_MAX = 4 * 1024 * 1024

/**
 * The text of a regular file below a folder, symbolic links resolved inside it; undefined where there is none, null
 * where something else is in its place: in a layer, the whiteout that says it is gone.
 */
const readBelow = (folder: string, path: string): string | undefined | null => {
  const addon = native()
  const root = addon.openIn(AT_FDCWD, folder, O_PATH | O_DIRECTORY, 0, 0)
  if (root < 0) return undefined
  const fd = addon.openIn(root, path, O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, 0)
  addon.close(root)
  if (fd < 0) return fd === -ENOENT || fd === -ENOTDIR ? undefined : null
  try {
    const status = statSync(`/proc/self/fd/${fd}`)
    return status.isFile() && status.size <= FILE_BYTES_MAX
      ? readFileSync(`/proc/self/fd/${fd}`, "utf8")
      : null
  } finally {
    addon.close(fd)
  }
}

/** Reads a file as the union mount of these folders, lowest first, would show it. */
export const readMerged = (folders: ReadonlyArray<string>, path: string): string => {
  for (const folder of folders.toReversed()) {
    const text = readBelow(folder, path)
    if (text !== undefined) return text ?? ""
  }
  return ""
}

const ID_MAX = 2 ** 32 - 2

/** An id as the files write it, and nothing else: no sign, no space, no leading zero, no more than 2^32 - 2. */
const parseId = (text: string): number | undefined => {
  if (!/^(0|[1-9]\d{0,9})$/.test(text)) return undefined
  const id = Number(text)
  return id <= ID_MAX ? id : undefined
}

const records = (text: string): ReadonlyArray<ReadonlyArray<string>> =>
  text.split("\n").flatMap((line) => (line === "" || line.startsWith("#") ? [] : [line.split(":")]))

/** `user[:group]` by these files; names or numbers, empty for root. A number need not be in them. */
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
  const entry = records(passwd).find((record) =>
    number === undefined ? record[0] === wanted : parseId(record[2] ?? "") === number
  )
  const uid = number ?? parseId(entry?.[2] ?? "")
  if (uid === undefined) return missing("user", name, "/etc/passwd")
  const groups = records(group)
  const named = groups.find((record) => record[0] === groupName)
  const gid =
    groupName === undefined ? parseId(entry?.[3] ?? "0") : (parseId(groupName) ?? parseId(named?.[2] ?? ""))
  if (gid === undefined) return missing("group", groupName ?? entry?.[3] ?? "", "/etc/group")
  const memberOf =
    groupName !== undefined || entry === undefined
      ? []
      : groups.flatMap((record) => {
          const id = parseId(record[2] ?? "")
          return id !== undefined && id !== gid && record[3]?.split(",").includes(entry[0]!) ? [id] : []
        })
  return { uid, gid, groups: memberOf, home: entry?.[5] || (uid === 0 ? "/root" : "/") }
}
