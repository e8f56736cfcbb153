/** The program `berth`: its arguments, signals, failures and exit code. */
import process from "node:process"
import { inspect } from "node:util"
import * as CliConfig from "@effect/cli/CliConfig"
import * as Command from "@effect/cli/Command"
import type { ValidationError } from "@effect/cli/ValidationError"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import * as NodeTerminal from "@effect/platform-node/NodeTerminal"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Call, makeRoot } from "./commands.ts"
import { ExitCode } from "./exitCode.ts"
import { adviceOn, helpOf } from "./help.ts"
import { print, remark } from "./invocation.ts"

/** The signals that ask a program to end. */
const signals = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGTERM: 15 } as const
type Signal = keyof typeof signals

/** As of a program that SIGPIPE ends. */
const BROKEN_PIPE = 128 + 13

/** Completions go to the standard output; what is wrong with arguments, `main` prints. */
const quiet = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Console.consoleWith((console) => Effect.withConsole(effect, { ...console, error: () => Effect.void }))

/** The exit code of the program with these arguments. */
export const main = async (words: ReadonlyArray<string>, version: string): Promise<number> => {
  const separator = words.indexOf("--")
  const own = separator < 0 ? words : words.slice(0, separator)
  const command = separator < 0 ? [] : words.slice(separator + 1)
  const name = own.find((word) => !word.startsWith("-"))
  const runs = name === "run"
  if (own.length === 0 || own.includes("--help") || own.includes("-h")) {
    print(helpOf(name))
    return 0
  }

  let exitCode = 0
  const stop = new AbortController()
  const end = (code: number): void => {
    exitCode = code
    stop.abort()
  }
  let take = (signal: Signal): void => end(128 + signals[signal])
  for (const signal of Object.keys(signals) as ReadonlyArray<Signal>) process.on(signal, () => take(signal))
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") remark(`the output cannot be written: ${error.message}`)
    end(error.code === "EPIPE" ? BROKEN_PIPE : ExitCode.other)
  })
  process.stderr.on("error", () => {})

  const call: Call = async ({ debug, folder, json }, body) => {
    const takeSignals = (other: (signal: Signal) => void): void => {
      take = other
    }
    try {
      exitCode = (await body({ json, folder, command, signal: stop.signal, takeSignals })) ?? 0
    } catch (error) {
      // Whatever aborted the command has set its exit code.
      if (stop.signal.aborted) return
      const { exitCodeOf, jsonOf, messageOf } = await import("./failure.ts")
      exitCode = exitCodeOf(error, runs)
      if (json) process.stderr.write(`${jsonOf(error, exitCode, debug)}\n`)
      else remark(debug ? inspect(error, { depth: 8 }) : messageOf(error))
    }
  }

  const cli = Command.run(makeRoot(call), { name: "berth", version })
  const services = Layer.mergeAll(
    NodeFileSystem.layer,
    NodePath.layer,
    NodeTerminal.layer,
    CliConfig.layer({ isCaseSensitive: true })
  )
  const parsed = await Effect.runPromise(
    cli(["node", "berth", ...own]).pipe(quiet, Effect.provide(services), Effect.either)
  )
  if (parsed._tag === "Left") {
    remark(adviceOn(parsed.left as ValidationError, name, own))
    return runs ? ExitCode.run : ExitCode.commandLine
  }
  return exitCode
}
