/** Turns an error of the kernel or of the runtime in an operation on files into `OperationFailed`. */
import { type BerthError, InvalidOption, isBerthError, OperationFailed } from "../../BerthError.ts"
import { EIO, ENOENT, ENOSPC, ENOTDIR } from "../util/errno.ts"
import * as inRoot from "./rooted.ts"

const hints: Readonly<Record<number, string>> = {
  [ENOSPC]: "The disk is full: make room on the filesystem of the target",
  [ENOENT]: "The source and the folder to copy into must exist",
  [inRoot.EISDIR]: "A folder has the name of the file, and was left as it is: remove it, or use another name",
  [ENOTDIR]: "A file has the name of the folder, and was left as it is: remove it, or use another name"
}

export const failedAs =
  (operation: string) =>
  (error: unknown): BerthError => {
    if (isBerthError(error)) return error
    const errno = inRoot.errnoOf(error)
    if (errno === undefined && error instanceof TypeError)
      return new InvalidOption({
        option: "path",
        value: operation,
        expected: "text without NUL",
        cause: error
      })
    const { syscall = "copy", path, message } = error as NodeJS.ErrnoException
    const at = error instanceof inRoot.Failure && path !== undefined ? `${operation}: ${path}` : operation
    const hint = errno === undefined ? message : (hints[errno] ?? "")
    return new OperationFailed({ operation: at, index: -1, syscall, errno: errno ?? EIO, hint, cause: error })
  }
