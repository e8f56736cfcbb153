/**
 * Repeats a system call that the kernel has refused to this process as root of a supervisor's user namespace
 * (native/addon/as_root.c). Without root, the files of a container's other users belong to ids of the user's ranges (subuid(5)),
 * and their modes keep this process out. The root of the namespace has rights over these ids and no others. The files that it
 * makes belong to the user.
 */

import { native } from "../system/addon.ts"
import { EACCES, EPERM } from "../util/errno.ts"

/** Descriptors of the user namespaces of the supervisors of this program. */
const namespaces = new Set<number>()

/** Uses the namespace until the returned function is called, which closes the descriptor. -1 stands for no namespace. */
export const useNamespace = (namespace: number): (() => void) => {
  if (namespace < 0) return () => {}
  namespaces.add(namespace)
  return () => {
    if (namespaces.delete(namespace)) native().close(namespace)
  }
}

const isRefused = (result: number): boolean => result === -EACCES || result === -EPERM

const orAsRoot = (result: number, again: (namespace: number) => number): number => {
  if (!isRefused(result)) return result
  for (const namespace of namespaces) {
    const second = again(namespace)
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

/** Makes the change as root of the namespaces alone: 0, or -errno, which is -EACCES where there is no namespace. */
export const change = (
  which: keyof typeof changes,
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
