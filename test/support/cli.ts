/** Runs `berth`, the program, as another process. */
import type { SpawnOptions } from "node:child_process"
import { type Ended, ended, program } from "./program.ts"

/** Starts it with these arguments. */
export const startBerth = (args: ReadonlyArray<string>, options: SpawnOptions = {}) =>
  program("bin.ts", args, { stdio: ["ignore", "pipe", "pipe"], ...options })

/** Its whole output and its exit code; it reads `input`, if there is any. */
export const berth = (
  args: ReadonlyArray<string>,
  { input, ...options }: SpawnOptions & { readonly input?: string | Uint8Array } = {}
): Promise<Ended> => {
  const stdin = input === undefined ? "ignore" : "pipe"
  const child = startBerth(args, { stdio: [stdin, "pipe", "pipe"], ...options })
  if (input !== undefined) child.stdin!.end(input)
  return ended(child)
}

/** The JSON documents of an output that has one in each line. */
export const events = (output: string): ReadonlyArray<Readonly<Record<string, unknown>>> =>
  output
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
