/**
 * Reads of files that are not this process's own: without root, those of a container's other users have owners of the
 * user's ranges (subuid(5)), and their modes hold. What is refused is tried again as root of the supervisors' user
 * namespaces (native/as_root.c), who has no rights but over the user's own ids. Nothing is ever made or written so.
 */
import { constants } from "node:fs"
import { EACCES } from "./errno.ts"
import { native } from "./native.ts"

const WRITES = constants.O_WRONLY | constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC

/** Descriptors of the user namespaces of this program's supervisors. */
const namespaces = new Set<number>()

/** Until the function that it gives is called, which closes the descriptor; -1 is none. */
export const useNamespace = (namespace: number): (() => void) => {
  if (namespace < 0) return () => {}
  namespaces.add(namespace)
  return () => {
    if (namespaces.delete(namespace)) native().close(namespace)
  }
}

const orAsRoot = (result: number, again: (namespace: number) => number): number => {
  if (result !== -EACCES) return result
  for (const namespace of namespaces) {
    const second = again(namespace)
    if (second >= 0) return second
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
): number => {
  const fd = native().openIn(folder, path, flags, resolve, mode)
  return (flags & WRITES) !== 0
    ? fd
    : orAsRoot(fd, (namespace) => native().openAsRoot(namespace, folder, path, flags, resolve))
}

/** getxattr(2), as `native().xattr`. */
export const xattr = (fd: number, name: string, bytes: Uint8Array): number =>
  orAsRoot(native().xattr(fd, name, bytes), (namespace) => native().xattrAsRoot(namespace, fd, name, bytes))
