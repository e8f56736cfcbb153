/** Runs a script of this folder as another program, with the runtime that runs the test. */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process"
import { fileURLToPath } from "node:url"

export const root = fileURLToPath(new URL("../..", import.meta.url))

/** The folder where test/run.ts has put the scripts as JavaScript. */
export const bundled = process.env.BERTH_BUNDLED

/** The command that runs a script. */
export const commandOf = (script: string, args: ReadonlyArray<string>) => {
  const source = fileURLToPath(new URL(script, import.meta.url))
  const before =
    "Deno" in globalThis
      ? ["run", "--allow-all", "--no-check", source]
      : "Bun" in globalThis
        ? ["run", source]
        : bundled === undefined
          ? ["--import", "tsx", source]
          : [`${bundled}/test/support/${script.replace(/ts$/, "js")}`]
  return { command: process.execPath, args: [...before, ...args] }
}

export const program = (
  script: string,
  args: ReadonlyArray<string>,
  options: SpawnOptions = {}
): ChildProcess => {
  const made = commandOf(script, args)
  return spawn(made.command, made.args, { cwd: root, stdio: ["pipe", "pipe", "inherit"], ...options })
}

export interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}

/** The whole output of a program, and how it ended. */
export const ended = (child: ChildProcess): Promise<Ended> =>
  new Promise((resolve, reject) => {
    let stdout = ""
    let stderr = ""
    child.stdout?.on("data", (chunk) => {
      stdout += chunk
    })
    child.stderr?.on("data", (chunk) => {
      stderr += chunk
    })
    child.on("error", reject)
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }))
  })

/** The first whole line of a program's output. */
export const firstLine = (child: ChildProcess): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = ""
    child.stdout?.on("data", (chunk) => {
      text += chunk
      const end = text.indexOf("\n")
      if (end >= 0) resolve(text.slice(0, end))
    })
    child.on("exit", (code) => reject(new Error(`ended with ${code} after: ${text}`)))
  })
