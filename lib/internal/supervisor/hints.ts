/** What to do about an operation of a plan that the kernel has refused. */
import type * as Plan from "../../Plan.ts"
import { EACCES, EAGAIN, EINVAL, ELOOP, ENODEV, ENOENT, ENOSPC, EPERM } from "../util/errno.ts"
import { isFolder } from "../util/readFile.ts"

const isOverlay = (
  operation: Plan.Operation
): operation is Extract<Plan.Operation, { readonly op: "overlay" | "overlay-memory" }> =>
  operation.op === "overlay" || operation.op === "overlay-memory"

/** Empty where there is nothing to say. */
export const hint = (operation: Plan.Operation, errno: number): string => {
  if ((operation.op === "mount" || operation.op === "bind") && operation.pinned === 1 && errno === ELOOP)
    return `${operation.target} is a symbolic link in this root, through which another container could redirect its protection: make it a folder`
  if (operation.op === "bind" && errno === ENOENT) return "The source of a bind mount must exist on the host"
  const noFolder = isOverlay(operation) ? operation.lower.find((folder) => !isFolder(folder)) : undefined
  if (noFolder !== undefined)
    return `${noFolder} is not a folder: get the image again (Image.pull, load or fromStore), which restores the layer`
  if (isOverlay(operation) && operation.options.includes("userxattr") && errno === EINVAL)
    return "Without root, the kernel refuses a layer with mounts below it: unmount them, or use another folder"
  if (
    isOverlay(operation) &&
    operation.options.includes("userxattr") &&
    (errno === EPERM || errno === ENODEV)
  )
    return "This kernel refuses overlays in user namespaces: use Linux 5.11 or later with its overlay module loaded (modprobe overlay), or run as root; Berth.doctor says which it is"
  if (operation.op === "take-proc" && errno === ENOENT)
    return "The container whose pid namespace is joined must have the procfs of that namespace at /proc"
  if (operation.op === "rlimit" && errno === EPERM)
    return "Raising a hard limit needs CAP_SYS_RESOURCE: ask for no more than the present one"
  if (operation.op === "seccomp" && errno === EINVAL)
    return 'This kernel lacks seccomp filters, or one of these flags (Linux 5.0 notifies, 5.19 waits killable): set seccomp: "unconfined" to start without'
  if (operation.op === "process" && errno === EINVAL)
    return "This kernel lacks one of these namespaces: see namespaces(7), and leave it out"
  if (operation.op === "process" && errno === ENOSPC)
    return "The limit of namespaces (/proc/sys/user/max_*_namespaces) is reached: raise it, or end containers"
  if ((operation.op === "process" || operation.op === "fork") && errno === EAGAIN)
    return "The limit of processes (pids.max or RLIMIT_NPROC) is reached: raise it, or end processes"
  if (operation.op === "apparmor" && errno === ENOENT)
    return "No profile of this name is loaded: load it with Security.appArmor"
  if (operation.op === "cgroup-create" && errno === EACCES)
    return "This cgroup is not delegated to your user: have it delegated, or run as root"
  return ""
}
