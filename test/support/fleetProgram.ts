/**
 * A program of a fleet: `fleetProgram.ts ADDRESS TOKEN`. Starts a container on the runner there, prints its id and its process as JSON, and
 * prints how it ended. The end of its input ends it.
 */

import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fleet from "../../lib/fleet.ts"
import { Container, Image } from "../../lib/index.ts"

const [address, token] = process.argv.slice(2) as [string, string]

const program = Effect.gen(function* () {
  const image = yield* Image.pull("host")
  const box = yield* Container.start(image, { command: ["sleep", "1000"], limits: { memory: "64MiB" } })
  console.log(JSON.stringify({ id: box.id, pid: box.pid }))
  const input = Effect.async<string>((resume) => {
    process.stdin.resume().on("end", () => resume(Effect.succeed("input")))
  })
  const end = Effect.match(box.exit, {
    onFailure: ({ _tag }) => _tag,
    onSuccess: ({ exitCode }) => `exit ${exitCode}`
  })
  console.log(yield* Effect.race(end, input))
})

await Effect.runPromise(
  program.pipe(
    Effect.scoped,
    Effect.provide(Fleet.layer({ runners: [address], token: Redacted.make(token) })),
    Effect.provide(NodeFileSystem.layer)
  )
)
// The input would keep it alive.
process.exit(0)
