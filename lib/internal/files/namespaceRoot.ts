/**
 * Repeats a system call that the kernel has refused to this process, as root of a supervisor's user namespace
 * (native/addon/as_root.c). Without root, the files of a container's other users belong to ids of the user's ranges
 * (subuid(5)), and their modes keep this process out. The root of the namespace has rights over these ids and no
 * others. The files that it makes belong to the user.
 */

import * as Ids from "../ids/idMaps.ts"
import { native } from "../system/addon.ts"
import { EACCES, EPERM } from "../util/errno.ts"

/**
 * The ids of the user namespaces of the supervisors of this program, by the descriptors of the namespaces. All the namespaces
 * belong to one user, so those that have an id have the same rights over its files, and every Berth may use any of them.
 */
const namespaces = new Map<number, Ids.Ids>()

/** Uses the namespace until the returned function is called, which closes the descriptor. -1 stands for no namespace. */
export const useNamespace = (namespace: number, ids: Ids.Ids): (() => void) => {
  if (namespace < 0) return () => {}
  namespaces.set(namespace, ids)
  return () => {
    if (namespaces.delete(namespace)) native().close(namespace)
  }
}

const isRefused = (result: number): boolean => result === -EACCES || result === -EPERM

const orAsRoot = (result: number, again: (namespace: number, ids: Ids.Ids) => number): number => {
  if (!isRefused(result)) return result
  for (const [namespace, ids] of namespaces) {
    const second = again(namespace, ids)
    if (!isRefused(second)) return second
  }
  return result
}

/** openat2(2), as `native().openIn`. */
export const openIn = (
  folder: number,
  path: string | Uint8Array,
  flags: number,
  resolve: number,
  mode: number
): number =>
  orAsRoot(native().openIn(folder, path, flags, resolve, mode), (namespace) =>
    native().openAsRoot(namespace, folder, path, flags, resolve, mode)
  )

/** getxattr(2), as `native().xattr`. */
export const xattr = (fd: number, name: string, bytes: Uint8Array): number =>
  orAsRoot(native().xattr(fd, name, bytes), (namespace) => native().xattrAsRoot(namespace, fd, name, bytes))

/** As `native().inotify`. */
export const inotify = (fd: number, mask: number): number =>
  orAsRoot(native().inotify(fd, mask), (namespace) => native().inotifyAsRoot(namespace, fd, mask))

/** As `native().socketIn`. */
export const socketIn = (pidfd: number, family: number, type: number): number =>
  orAsRoot(native().socketIn(-1, pidfd, family, type), (namespace) =>
    native().socketIn(namespace, pidfd, family, type)
  )

/** As `native().access`. */
export const access = (fd: number, mode: number): number =>
  orAsRoot(native().access(fd, mode), (namespace) =>
    native().changeAsRoot(namespace, changes.nothing, fd, "", -1, "", mode, 0)
  )

/** `enum change` of native/addon/as_root.h. */
export const changes = {
  mkdir: 0,
  unlink: 1,
  rename: 2,
  link: 3,
  symlink: 4,
  mode: 5,
  owner: 6,
  times: 7,
  nothing: 8
} as const

/** Makes the change only as root of the namespaces: 0, or -errno, which is -EACCES if there is no namespace. */
export const change = (
  which: Exclude<keyof typeof changes, "owner">,
  folder: number,
  name: string,
  rest: {
    readonly other?: number
    readonly text?: string
    readonly a?: number
    readonly b?: number
  }
): number =>
  orAsRoot(-EACCES, (namespace) =>
    native().changeAsRoot(
      namespace,
      changes[which],
      folder,
      name,
      rest.other ?? -1,
      rest.text ?? "",
      rest.a ?? 0,
      rest.b ?? 0
    )
  )

/** Whether a namespace has an id of the host; -1 means no change, chown(2). */
const has = (ranges: Ids.Ids["uids"], id: number): boolean =>
  id === -1 || ranges.some(({ host, size }) => id >= host && id - host < size)

/** chown(2) with ids of the host, after a refusal: as root of a namespace that has both ids. */
export const chown = (fd: number, uid: number, gid: number): number =>
  orAsRoot(-EPERM, (namespace, { gids, uids }) =>
    has(uids, uid) && has(gids, gid)
      ? native().changeAsRoot(
          namespace,
          changes.owner,
          fd,
          "",
          -1,
          "",
          Ids.inside(uids, uid),
          Ids.inside(gids, gid)
        )
      : -EPERM
  )
