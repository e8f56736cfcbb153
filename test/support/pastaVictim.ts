/**
 * A program with a network that has pasta, for who kills it: it prints the pids of itself, of its supervisor and of pasta as one line of
 * JSON, and waits. It is to run in a network namespace of its own. Its argument is an empty folder.
 */
import { execFileSync } from "node:child_process"
import * as Effect from "effect/Effect"
import { Berth, Network } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"
import { pastasOf } from "./pastas.ts"

const ip = (text: string) => execFileSync("ip", text.split(" "))

ip("link add lead type veth peer name nowhere")
ip("address add 10.99.0.1/24 dev lead")
ip("link set lead up")
ip("link set nowhere up")
ip("route add default via 10.99.0.2")

const main = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  yield* Network.make({ outbound: "pasta" })
  const [pasta] = pastasOf(supervisor.pid)
  console.log(JSON.stringify({ program: process.pid, supervisor: supervisor.pid, pasta }))
  yield* Effect.promise(() => new Promise((resolve) => process.stdin.once("end", resolve).resume()))
})

await Effect.runPromise(main.pipe(Effect.scoped, Effect.provide(berthIn(process.argv[2]!))))
