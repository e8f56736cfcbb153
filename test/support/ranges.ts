/**
 * Networks on a machine that has routes: a program in a network namespace of its own. Its argument is an empty folder. It prints the message
 * of each network that cannot be made, or its range, as one line of JSON.
 */
import { execFileSync } from "node:child_process"
import * as Effect from "effect/Effect"
import { Network } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const ip = (text: string) => execFileSync("ip", text.split(" "))

ip("link add lead type veth peer name nowhere")
ip("link set lead up")
ip("address add 10.5.3.1/24 dev lead")
// All ranges that a network without the option may have, but for one.
for (let k = 128; k < 228; k++) if (k !== 200) ip(`route add 10.${k}.7.0/24 dev lead`)
ip("route add 172.16.0.0/12 dev lead")

const make = (options: Network.NetworkOptions) =>
  Effect.scoped(Network.make(options)).pipe(
    Effect.map(({ range }) => range),
    Effect.catchTag("InvalidOption", ({ message }) => Effect.succeed(message))
  )

const all = Effect.all([
  make({ range: "10.5.0.0/16", outbound: "proxy" }),
  make({ range: "10.5.0.0/16" }),
  make({ range: "172.17.0.0/16", outbound: "proxy" }),
  make({ outbound: "proxy" }),
  make({ range: "10.6.0.0/16", outbound: { allow: ["10.0.0.0/8", "10.6.1.0/24:443"] } })
])
console.log(JSON.stringify(await Effect.runPromise(Effect.provide(all, berthIn(process.argv[2]!)))))
