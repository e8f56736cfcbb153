/** Ports of the program's machine that containers of one network reach by a name. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { ExposedPort, ExposeOptions, Network } from "../../Network.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import { native } from "../system/addon.ts"
import { attempt } from "../util/fromThrowing.ts"
import { candidates, LOOPBACK, parsePort, type SocketAddress } from "./address.ts"
import { checkFree, parseName } from "./network.ts"
import { startProxy } from "./proxy.ts"
import { ownAddress } from "./router.ts"
import { SOCK_STREAM } from "./socket.ts"

/** A socket in the network's own namespace, which no container enters, bound to one of its addresses; throws. */
export const bindInside = (network: Network, { bytes, family, text }: SocketAddress): number => {
  const failed = (syscall: string, errno: number): BerthError =>
    new OperationFailed({
      operation: `bind ${text} on network ${network.name}`,
      index: -1,
      syscall,
      errno,
      hint: ""
    })
  const fd = socketIn(network.state.router.holder.pidfd, family, SOCK_STREAM)
  if (fd < 0) throw failed("socket", -fd)
  const bound = native().bind(fd, bytes)
  if (bound >= 0) return fd
  native().close(fd)
  throw failed("bind", -bound)
}

const bindAll = (network: Network, addresses: ReadonlyArray<string>, port: number): Array<number> => {
  const fds: Array<number> = []
  try {
    for (const host of addresses) fds.push(bindInside(network, candidates({ host, port })[0]!))
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
      attempt(() => bindAll(network, addresses, port)),
      (fds) => Effect.sync(() => fds.forEach((fd) => native().close(fd)))
    )
    const proxy = yield* startProxy(berth, {
      name: `proxy of ${name} on network ${network.name}`,
      place: [{ op: "process", namespaces: 0 }]
    })
    while (left.length > 0) yield* proxy.add(left.shift()!, LOOPBACK, host)
    yield* Effect.acquireRelease(
      Effect.sync(() => names.add(number, [name], addresses)),
      () => Effect.sync(() => names.remove(number))
    )
    return { name, port, addresses }
  }).pipe(Effect.withSpan("berth.Network.expose", { attributes: { network: network.name } }))
)
