/** Connections of the program to the hosts of a network, by the names that its containers know. */
import * as net from "node:net"
import type * as HttpClient from "@effect/platform/HttpClient"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Dispatcher } from "undici"
import {
  type BerthError,
  InvalidOption,
  NetworkError,
  OperationFailed,
  Unsupported
} from "../../BerthError.ts"
import type { Network } from "../../Network.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import { socketAddress } from "./address.ts"
import * as http from "./fetch.ts"
import { isOpen } from "./member.ts"
import { socketOf } from "./netSocket.ts"
import { isNetwork } from "./network.ts"
import { hostAddressesOf } from "./router.ts"
import { beginOn, type Connecting, firstOf, reasons, SOCK_STREAM } from "./socket.ts"

const NAMES_SHOWN = 20

/** The addresses of a host; throws. Of several containers with one alias, any may be the first. */
const addressesOf = (network: Network, host: string): ReadonlyArray<string> => {
  if (!isOpen(network))
    throw new InvalidOption({
      option: "network",
      value: String(network),
      expected: "a network whose scope is open"
    })
  if (net.isIP(host) !== 0) return [host]
  const { exposed, members, router } = network.state
  const name = host.toLowerCase().replace(/\.$/, "")
  const links = [...members.values()].flatMap(({ interfaces }) =>
    [...interfaces.values()].filter((link) => link.network === network)
  )
  const found = links.filter(({ names }) => names.includes(name))
  const first = Math.floor(Math.random() * found.length)
  if (found.length > 0)
    return [...found.slice(first), ...found.slice(0, first)].flatMap(({ attachment }) => attachment.addresses)
  if (exposed.has(name)) return hostAddressesOf(router)
  const known = [...links.flatMap(({ names }) => names.slice(0, -1)), ...exposed].slice(0, NAMES_SHOWN)
  throw new InvalidOption({
    option: "url",
    value: JSON.stringify(host),
    expected: `a host of network ${network.name}: ${known.length === 0 ? "it has no names yet" : known.join(", ")}`
  })
}

const begin = (network: Network, host: string, address: string, port: number): Connecting => {
  const to = socketAddress(address, port)
  const failed = (syscall: string, errno: number): BerthError => {
    const known = reasons[errno as keyof typeof reasons]
    const operation = `connect to ${host} on network ${network.name}`
    if (known === undefined) return new OperationFailed({ operation, index: -1, syscall, errno, hint: "" })
    const [reason, detail] = known
    return new NetworkError({
      reason,
      subject: `network ${network.name}`,
      address: `${host}:${port}`,
      errno,
      detail
    })
  }
  const fd = socketIn(network.state.router.namespace.fd, to.family, SOCK_STREAM)
  if (fd < 0) throw failed("socket", -fd)
  return beginOn(fd, to, (errno) => failed("connect", errno))
}

const dialIn =
  (network: Network): http.Dial =>
  (host, port) =>
    socketOf(() => firstOf(addressesOf(network, host), (address) => begin(network, host, address, port)))

/** A `fetch` to the hosts of a network. */
export const fetcher = (network: Network): Effect.Effect<http.Fetch, never, Scope.Scope> =>
  http.fetchOver(dialIn(network))

/** See `Network.fetch`. */
export const fetch: {
  (
    url: string | URL,
    init?: RequestInit
  ): (network: Network) => Effect.Effect<Response, BerthError, Scope.Scope>
  (network: Network, url: string | URL, init?: RequestInit): Effect.Effect<Response, BerthError, Scope.Scope>
} = dual(
  (args) => isNetwork(args[0]),
  (network: Network, given: string | URL, init: RequestInit = {}) =>
    Effect.gen(function* () {
      const url = yield* http.parseUrl(given)
      const request = yield* fetcher(network)
      return yield* http.fetchBy(`network ${network.name}`, request, url, init)
    }).pipe(Effect.withSpan("berth.Network.fetch", { attributes: { network: network.name } }))
)

/** See `Network.httpClient`. */
export const httpClient = (network: Network): Layer.Layer<HttpClient.HttpClient> =>
  http.clientOf(fetcher(network))

/** See `Network.dispatcher`. */
export const dispatcher = (network: Network): Effect.Effect<Dispatcher, Unsupported, Scope.Scope> =>
  "Bun" in globalThis
    ? new Unsupported({
        feature: "Network.dispatcher in Bun",
        why: "its undici takes no dispatcher",
        hint: "Use Network.fetch or Network.httpClient"
      })
    : http.dispatcher(dialIn(network))
