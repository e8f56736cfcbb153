/** A registry on loopback for benchmarks. */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { findProgram, Unmeasured } from "./support.ts"

/** A registry for as long as the scope is open; gives its address. */
export const registry = (folder: string): Effect.Effect<string, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    const program = findProgram("docker-registry")
    if (program === undefined) return yield* new Unmeasured({ message: "docker-registry is not installed" })
    fs.writeFileSync(
      `${folder}/registry.yml`,
      [
        "version: 0.1",
        "log: { level: info, formatter: text }",
        `storage: { filesystem: { rootdirectory: ${folder}/registry } }`,
        "http: { addr: '127.0.0.1:0' }"
      ].join("\n")
    )
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(program, ["serve", `${folder}/registry.yml`], { stdio: ["ignore", "pipe", "pipe"] })
      ),
      (started) =>
        Effect.async<void>((resume) => {
          started.on("exit", () => resume(Effect.void))
          started.kill()
        })
    )
    return yield* Effect.async<string, Unmeasured>((resume) => {
      let text = ""
      const data = (bytes: unknown): void => {
        text += String(bytes)
        const port = /listening on 127\.0\.0\.1:(\d+)/.exec(text)?.[1]
        if (port !== undefined) resume(Effect.succeed(`127.0.0.1:${port}`))
      }
      child.stdout!.on("data", data)
      child.stderr!.on("data", data)
      child.on("exit", () => resume(new Unmeasured({ message: text })))
    })
  })
