/** Hints for operations of a plan that the kernel refuses. */
import type * as Plan from "../../Plan.ts"
import { EACCES, EAGAIN, EINVAL, ELOOP, ENODEV, ENOENT, ENOSPC, EPERM } from "../util/errno.ts"
import { isFolder } from "../util/readFile.ts"

const isOverlay = (
  operation: Plan.Operation
): operation is Extract<Plan.Operation, { readonly op: "overlay" | "overlay-memory" }> =>
  operation.op === "overlay" || operation.op === "overlay-memory"

/** The hint for a refused operation; empty if there is none. */
export const hint = (operation: Plan.Operation, errno: number): string => {
  if ((operation.op === "mount" || operation.op === "bind") && operation.pinned === 1 && errno === ELOOP)
    return `${operation.target} is a symbolic link in this root, and another container could redirect its protection through it: replace it with a folder`
  if (operation.op === "bind" && errno === ENOENT) return "The source of a bind mount must exist on the host"
  if ((operation.op === "tree" || operation.op === "filesystem") && errno === ELOOP)
    return "A symbolic link is in the path to a volume, and Berth follows none there: remove the volume, or what replaced its folder"
  if ((operation.op === "scratch" || operation.op === "overlay") && errno === ENOSPC)
    return "The disk is full: make room on the filesystem of Berth's folder"
  if (operation.op === "tree" && operation.mapped === 1 && errno === EINVAL)
    return "The file system of this volume has no idmapped mounts in this kernel (in memory since Linux 6.3): use the volume in containers without userns"
  if (operation.op === "filesystem" && operation.image !== "" && (errno === ENODEV || errno === EPERM))
    return "This machine does not allow file systems in files, which limit a size on disk: load the modules loop and ext4, allow loop devices, or leave out the size"
  const noFolder = isOverlay(operation) ? operation.lower.find((folder) => !isFolder(folder)) : undefined
  if (noFolder !== undefined)
    return `${noFolder} is not a folder: get the image again (Image.pull, load or fromStore) to unpack the layer again`
  if (isOverlay(operation) && operation.options.includes("userxattr") && errno === EINVAL)
    return "The kernel refuses layers with mounts below them to non-root users: unmount them, or use another folder"
  if (
    isOverlay(operation) &&
    operation.options.includes("userxattr") &&
    (errno === EPERM || errno === ENODEV)
  )
    return "This kernel does not allow overlay mounts in a user namespace: use Linux 5.11 or later with its overlay module loaded (modprobe overlay), or run as root; Berth.doctor says which it is"
  if ((operation.op === "files" || operation.op === "owner") && errno === EINVAL)
    return `The user namespace has no user ${operation.uid} or no group ${operation.gid}: use ids that it maps`
  if (operation.op === "take-proc" && errno === ENOENT)
    return "The container whose pid namespace is joined must have the procfs of that namespace at /proc"
  if (operation.op === "rlimit" && errno === EPERM)
    return "Raising a hard limit needs CAP_SYS_RESOURCE: choose at most the current hard limit"
  if (operation.op === "seccomp" && errno === EINVAL)
    return 'This kernel lacks seccomp filters, or one of these flags (notifications need Linux 5.0, killable waiting 5.19): use a newer kernel, or seccomp: "unconfined"'
  if (operation.op === "process" && errno === EINVAL)
    return "This kernel lacks one of these namespaces: leave it out, or use another kernel"
  if (operation.op === "process" && errno === ENOSPC)
    return "The limit in /proc/sys/user/max_*_namespaces is reached: raise it, or end other containers"
  if ((operation.op === "process" || operation.op === "fork") && errno === EAGAIN)
    return "The limit of processes (pids.max or RLIMIT_NPROC) is reached: raise it, or end other processes"
  if (operation.op === "apparmor" && errno === ENOENT)
    return "No profile with this name is loaded: load it with Security.appArmor"
  if (operation.op === "cgroup-create" && errno === EACCES)
    return "This cgroup is not delegated to your user: have it delegated, or run as root"
  return ""
}
