/**
 * A program on a machine without /dev/net/tun that wants a network with pasta: it prints the error. It is to run in a mount namespace of its
 * own. Its argument is an empty folder.
 */
import { execFileSync } from "node:child_process"
import * as Effect from "effect/Effect"
import { Network } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

execFileSync("mount", ["-t", "tmpfs", "none", "/dev/net"])

const error = await Effect.runPromise(
  Effect.flip(Network.make({ outbound: "pasta" })).pipe(
    Effect.scoped,
    Effect.provide(berthIn(process.argv[2]!))
  )
)
console.log(`${error._tag}: ${error.message}`)
console.log(execFileSync("ls", ["/dev/net"], { encoding: "utf8" }))
