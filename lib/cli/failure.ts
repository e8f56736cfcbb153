/** What a failure is for the caller: an exit code and one line. */
import { stripVTControlCharacters } from "node:util"
import { BerthError } from "../promise.ts"
import { ExitCode } from "./exitCode.ts"

/** The exit code of a command that failed with this error. */
export const exitCodeOf = (error: unknown, runs: boolean): number => {
  if (!(error instanceof BerthError)) return runs ? ExitCode.run : ExitCode.other
  if (runs) return error._tag === "CommandFailed" ? error.exitCode : ExitCode.run
  if ("reason" in error && error.reason === "NotFound") return ExitCode.notFound
  switch (error._tag) {
    case "InvalidOption":
    case "InvalidData":
      return ExitCode.commandLine
    case "Unsupported":
    case "CgroupError":
    case "SupervisorError":
      return ExitCode.machine
    case "RegistryError":
      return ExitCode.registry
    default:
      return ExitCode.other
  }
}

/** What a terminal would obey, in a text that an image or a registry may have written, is left out. */
export const messageOf = (error: unknown): string =>
  stripVTControlCharacters(error instanceof Error ? error.message : String(error))

/** The failure as one JSON document. Its cause, of which a container's environment may be a part, is for `--debug` alone. */
export const jsonOf = (error: unknown, exitCode: number, debug: boolean): string => {
  const fields = error instanceof BerthError ? JSON.parse(JSON.stringify(error)) : {}
  const { _id, cause, ...own } = fields
  return JSON.stringify({
    error: { ...own, message: messageOf(error), ...(debug ? { cause } : {}) },
    exitCode
  })
}
