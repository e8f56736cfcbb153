/** What becomes of an error of the kernel's or of the runtime's in an operation on files. */
import { type BerthError, InvalidOption, isBerthError, OperationFailed } from "../../BerthError.ts"
import { EIO, ENOENT, ENOTDIR } from "../util/errno.ts"
import * as inRoot from "./rooted.ts"

const hints: Readonly<Record<number, string>> = {
  [ENOENT]: "Both the source and the folder to copy into have to be there",
  [inRoot.EISDIR]: "A folder is in the place of a file: nothing of it was replaced",
  [ENOTDIR]: "A file is in the place of a folder: nothing of it was replaced"
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
