/** Converts errors of node:fs and `inRoot` to `@effect/platform`'s, by the rules of platform-node's FileSystem. */
import type { PlatformError, SystemErrorReason } from "@effect/platform/Error"
import { BadArgument, SystemError } from "@effect/platform/Error"
import { describeErrno } from "../util/errno.ts"
import { errnoOf, Failure } from "./rooted.ts"

/** The reason of an errno by its name, as in platform-node. */
export const reasons: Readonly<Record<string, SystemErrorReason>> = {
  ENOENT: "NotFound",
  EACCES: "PermissionDenied",
  EEXIST: "AlreadyExists",
  EISDIR: "BadResource",
  ENOTDIR: "BadResource",
  EBUSY: "Busy",
  ELOOP: "BadResource"
}

/** An error without a system call is about an argument, unless `always`. */
export const platformError =
  (method: string, path: string | number, always = false) =>
  (error: unknown): PlatformError => {
    const { code = "", message, syscall } = error as NodeJS.ErrnoException
    const number = errnoOf(error)
    if (number === undefined && !always && !code.startsWith("ERR_FS_"))
      return new BadArgument({ module: "FileSystem", method, cause: error })
    // The path in an error of node:fs is one of Berth's own descriptors.
    const hint = error instanceof Failure && error.hint !== "" ? `: ${error.hint}` : ""
    const description =
      number === undefined
        ? message
        : `${code}: ${describeErrno(number)}, ${syscall ?? method} '${path}'${hint}`
    return new SystemError({
      reason: reasons[code] ?? "Unknown",
      module: "FileSystem",
      method,
      pathOrDescriptor: path,
      ...(syscall === undefined ? {} : { syscall }),
      description,
      cause: error
    })
  }
