/** Failures of steps, with their places. */
import { statfsSync } from "node:fs"
import type { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import { storageDetail } from "../disk/files.ts"
import { failedAs } from "../files/fileFailure.ts"
import { printPlatform } from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import { ENOENT, ENOEXEC } from "../util/errno.ts"
import type { Run } from "./node.ts"

type Step = Pick<Run, "place" | "text">

export const failure = (
  { place, text }: Step,
  reason: BuildFailed["reason"],
  detail: string,
  cause: unknown
): BuildFailed => new BuildFailed({ reason, step: text, place, detail, exitCode: undefined, log: [], cause })

/** What an error says of the disk that has a folder; undefined for any other error. */
export const diskDetail = (error: unknown, folder: string): string | undefined => {
  const code = (error as { readonly code?: unknown } | undefined)?.code
  return code === "ENOSPC" || code === "EDQUOT" || code === "EROFS"
    ? storageDetail(code, "", folder)
    : undefined
}

/** A disk is full, or read-only. */
export class DiskFull extends Error {}

/** Gives the failure of a disk, and an image of another platform, the place of the step that they stopped. */
export const inPlace =
  (step: Step) =>
  (error: BerthError): BerthError =>
    error._tag === "ImageError" && (error.reason === "Storage" || error.reason === "Platform")
      ? failure(step, error.reason, error.message, error)
      : error

/** The failure of a command that cannot be executed, with the place of its step. */
export const notExecuted =
  ({ place, text }: Step, { config }: Image) =>
  (error: BerthError): BerthError => {
    if (error._tag !== "CommandFailed") return error
    const { errno, exitCode, message } = error
    const own = printPlatform(hostPlatform())
    const its = printPlatform(config)
    const isOther = its !== own && (errno === ENOEXEC || errno === ENOENT)
    const detail = isOther
      ? `${message}. The image is for ${its}, and this machine for ${own}: to run its programs, install an emulator that is in binfmt_misc with the flag F, such as the package qemu-user-static`
      : message
    const reason = isOther && errno === ENOEXEC ? "Platform" : "Command"
    return new BuildFailed({ reason, step: text, place, detail, exitCode, log: [], cause: error })
  }

/** The failure of a step that writes files of Berth's folder. */
export const failedStep =
  ({ folder }: Berth, step: Step) =>
  (error: unknown): BerthError => {
    const detail = diskDetail(error, folder)
    if (detail !== undefined) return failure(step, "Storage", detail, error)
    return failedAs(step.place === undefined ? step.text : `${step.place}: ${step.text}`)(error)
  }

/** A command that finds less room than this has found none. */
const BYTES_MIN = 1024 * 1024

/** Says that the disk which has Berth's folder is full; undefined if it is not. */
export const fullDisk = ({ folder }: Berth): string | undefined => {
  try {
    const { bavail, bsize, ffree, files } = statfsSync(folder)
    const isFull = bavail * bsize < BYTES_MIN || (files > 0 && ffree === 0)
    return isFull ? storageDetail("ENOSPC", "", folder) : undefined
  } catch {
    return undefined
  }
}
