/** A program on a terminal of script(1), whose user types and resizes it. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as Effect from "effect/Effect"
import { waitUntil } from "./containers.ts"
import { root } from "./program.ts"

/** Types into the command, which has to show its terminal's size, echo lines, notice Ctrl-C and resizes, and exit as it is told. */
export const typedOnTerminal = (command: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const words = command.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ")
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn("script", ["-qfec", `tty; stty rows 12 cols 34; exec ${words}`, "/dev/null"], {
          cwd: root,
          env: { ...process.env, SHELL: "/bin/sh" },
          stdio: ["pipe", "pipe", "inherit"]
        })
      ),
      (started) => Effect.sync(() => started.kill())
    )
    const exited = new Promise<number | null>((resolve) => child.on("exit", resolve))
    let text = ""
    child.stdout.on("data", (bytes) => {
      text += bytes
    })
    const says = (what: RegExp) => waitUntil(`${what} on the terminal`, () => what.test(text))
    yield* says(/12 34\r+\n/)
    child.stdin.write("echo hello\n")
    yield* says(/\nhello\r+\n/)
    child.stdin.write("\x03")
    yield* says(/interrupted\r+\n/)
    spawn("stty", ["-F", /^\/dev\/\S+/.exec(text)![0], "rows", "13", "cols", "35"])
    yield* says(/13 35\r+\n/)
    child.stdin.write("exit 7\n")
    assert.equal(yield* Effect.promise(() => exited), 7)
  })
