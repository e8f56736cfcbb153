/** Ports of the program's machine that containers of one network reach by a name. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { ExposedPort, ExposeOptions, Network } from "../../Network.ts"
import { native } from "../system/addon.ts"
import { attempt } from "../util/fromThrowing.ts"
import { candidates, LOOPBACK, parsePort } from "./address.ts"
import { checkFree, parseName } from "./network.ts"
import { startProxy, toPort } from "./proxy.ts"
import { bindInside, ownAddress, type Router } from "./router.ts"

const bindAll = (router: Router, addresses: ReadonlyArray<string>, port: number): Array<number> => {
  const fds: Array<number> = []
  try {
    for (const host of addresses) fds.push(bindInside(router, candidates({ host, port })[0]!))
  } catch (error) {
    fds.forEach((fd) => native().close(fd))
    throw error
  }
  return fds
}

/** See `Network.expose`. */
export const expose: {
  (options: ExposeOptions): (network: Network) => Effect.Effect<ExposedPort, BerthError, Scope.Scope>
  (network: Network, options: ExposeOptions): Effect.Effect<ExposedPort, BerthError, Scope.Scope>
} = dual(2, (network: Network, options: ExposeOptions) =>
  Effect.gen(function* () {
    const { berth, exposed, names, router } = network.state
    const host = yield* attempt(() => parsePort("host", options.host))
    const port = yield* attempt(() => parsePort("port", options.port ?? host))
    const name = yield* Effect.acquireRelease(
      attempt(() => {
        const name = parseName("name", options.name)
        checkFree([network], name)
        exposed.add(name)
        return name
      }),
      (name) => Effect.sync(() => exposed.delete(name))
    )
    const { addresses, number } = yield* ownAddress(berth, router)
    const left = yield* Effect.acquireRelease(
      attempt(() => bindAll(router, addresses, port)),
      (fds) => Effect.sync(() => fds.forEach((fd) => native().close(fd)))
    )
    const proxy = yield* startProxy(berth, {
      name: `proxy of ${name} on network ${network.name}`,
      place: [{ op: "process", namespaces: 0 }]
    })
    while (left.length > 0) yield* proxy.add(left.shift()!, toPort(LOOPBACK, host))
    yield* Effect.acquireRelease(
      Effect.sync(() => names.add(number, [name], addresses)),
      () => Effect.sync(() => names.remove(number))
    )
    return { name, port, addresses }
  }).pipe(Effect.withSpan("berth.Network.expose", { attributes: { network: network.name } }))
)
