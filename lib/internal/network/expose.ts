/** Ports of the program's machine that containers of one network reach by a name. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { ExposedPort, ExposeOptions, Network } from "../../Network.ts"
import { AT_FDCWD, native, O_DIRECTORY, O_PATH } from "../system/addon.ts"
import { EADDRINUSE } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { whole } from "../util/whole.ts"
import { abstractName, candidates, LOOPBACK, parsePort } from "./address.ts"
import { checkFree, parseName } from "./network.ts"
import { addAll, startProxy, type Target, toPort } from "./proxy.ts"
import { bindInside, hostAddressesOf, ownAddress, type Router } from "./router.ts"
import { shape } from "./toxic.ts"

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

/**
 * The same port at the addresses that stand for this machine. The first of several exposed ports with one number has it, as each name has
 * addresses of its own; throws.
 */
const bindOfHost = (router: Router, port: number): Array<number> => {
  try {
    return bindAll(router, hostAddressesOf(router), port)
  } catch (error) {
    if (error instanceof OperationFailed && error.errno === EADDRINUSE) return []
    throw error
  }
}

/** Sockets that are closed with the scope, but for those that are taken out of the list. */
const scoped = (bind: () => Array<number>) =>
  Effect.acquireRelease(attempt(bind), (fds) => Effect.sync(() => fds.forEach((fd) => native().close(fd))))

/** A server of this machine: a port of its loopback, or the path of a Unix socket, which is resolved below `root`; throws. */
const targetOf = (host: ExposeOptions["host"], root: number): Target => {
  if (typeof host !== "object") return toPort(LOOPBACK, parsePort("host", host))
  if (abstractName(host.path) !== undefined) return { verb: "add", text: `abstract:${host.path.slice(1)}` }
  return { verb: "add", text: `unix:${host.path}`, root }
}

/** The root of this program, whose paths the proxy gets. */
const openRoot = Effect.acquireRelease(
  attempt(() => {
    const fd = native().openIn(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0, 0)
    if (fd >= 0) return fd
    throw new OperationFailed({ operation: "open /", index: -1, syscall: "openat2", errno: -fd, hint: "" })
  }),
  (fd) => Effect.sync(() => native().close(fd))
)

/** See `Network.expose`. */
export const expose: {
  (options: ExposeOptions): (network: Network) => Effect.Effect<ExposedPort, BerthError, Scope.Scope>
  (network: Network, options: ExposeOptions): Effect.Effect<ExposedPort, BerthError, Scope.Scope>
} = dual(2, (network: Network, options: ExposeOptions) =>
  Effect.gen(function* () {
    const { berth, exposed, names, router } = network.state
    const target = yield* Effect.flatMap(openRoot, (root) => attempt(() => targetOf(options.host, root)))
    const port = yield* attempt(() => parsePort("port", options.port ?? (options.host as number)))
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
    const left = yield* scoped(() => bindAll(router, addresses, port))
    const ofHost = yield* scoped(() => bindOfHost(router, port))
    const proxy = yield* startProxy(berth, {
      name: `proxy of ${name} on network ${network.name}`,
      place: [{ op: "process", namespaces: 0 }]
    })
    const ids = [...(yield* addAll(proxy, left, target)), ...(yield* addAll(proxy, ofHost, target))]
    yield* Effect.acquireRelease(
      Effect.sync(() => names.introductions(number, [name], addresses).forEach(names.responder.tell)),
      () => Effect.sync(() => names.remove(number))
    )
    return shape({ name, port, addresses }, proxy, ids)
  }).pipe(whole, Effect.withSpan("berth.Network.expose", { attributes: { network: network.name } }))
)
