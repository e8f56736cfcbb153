/** What every command has: its common options, and the ways to its caller. */
import process from "node:process"
import type { Session } from "../promise.ts"

/** One call of the program `berth`. */
export interface Invocation {
  /** Whether the output is JSON. */
  readonly json: boolean
  /** Berth's folder, if it is not the default one. */
  readonly folder: string | undefined
  /** The words after `--`: the command inside a container. */
  readonly command: ReadonlyArray<string>
  /** Aborted by a signal to this program that no container gets, and when nobody reads its output any more. */
  readonly signal: AbortSignal
  /** Has `take` get the signals that ask this program to end, in place of ending it. */
  readonly takeSignals: (take: (signal: NodeJS.Signals) => void) => void
}

/** A Berth for one command. */
export const openBerth = async ({ folder, signal }: Invocation): Promise<Session> => {
  const { open } = await import("../promise.ts")
  return open({ folder, signal })
}

/** Writes a line to standard output. */
export const print = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

/** Writes a remark to standard error, which has no part of the result. */
export const remark = (text: string): void => {
  process.stderr.write(`berth: ${text}\n`)
}

/** Writes one JSON document in several lines, for a result. */
export const printJson = (value: unknown): void => print(JSON.stringify(value, null, 2))

/** Writes one JSON document in one line, for an event of a stream; `type` says which one it is. */
export const printEvent = (type: string, fields: object): void => print(JSON.stringify({ type, ...fields }))

/** Writes rows below their headings, in columns. */
export const printTable = (
  headings: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>
): void => {
  const all = [headings, ...rows]
  const widths = headings.map((_, column) => Math.max(...all.map((row) => row[column]!.length)))
  for (const row of all)
    print(
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd()
    )
}

/** `1.5 MB` */
export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`
