/** What every command has: its common options, and the ways to its caller. */
import process from "node:process"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { BerthError, Session } from "../promise.ts"

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

/** Runs an effect. A signal to this program interrupts it, and this waits for the end of the interruption. */
export const settled = async <A>(
  effect: Effect.Effect<A, BerthError>,
  { signal }: Invocation
): Promise<A> => {
  const exit = await Effect.runPromiseExit(effect, { signal })
  if (Exit.isSuccess(exit)) return exit.value
  throw Cause.squash(exit.cause)
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

/** Rows below their headings, in columns. */
export const tableOf = (
  headings: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>
): ReadonlyArray<string> => {
  const all = [headings, ...rows]
  const widths = headings.map((_, column) => Math.max(...all.map((row) => row[column]!.length)))
  return all.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join("  ")
      .trimEnd()
  )
}

export const printTable = (
  headings: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>
): void => tableOf(headings, rows).forEach(print)

/** `1.5 MB` */
export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`
