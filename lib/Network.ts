/**
 * Networks of containers, and sockets inside them: a program that holds a container needs no port of the host's to talk to it.
 *
 * @since 0.2.0
 */
import type * as net from "node:net"
import type * as HttpClient from "@effect/platform/HttpClient"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Container } from "./Container.ts"
import * as connecting from "./internal/network/connection.ts"
import * as exposing from "./internal/network/expose.ts"
import * as http from "./internal/network/fetch.ts"
import * as joining from "./internal/network/join.ts"
import * as sockets from "./internal/network/netSocket.ts"
import * as internal from "./internal/network/network.ts"
import * as pods from "./internal/network/pod.ts"
import * as publishing from "./internal/network/publish.ts"
import * as Namespace from "./Namespace.ts"

/**
 * @since 0.2.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

/**
 * @since 0.2.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A network of containers, separate from the host's and from all other networks. Nothing is added to the host's interfaces, routes
 * or firewall.
 *
 * @since 0.2.0
 * @category models
 */
export interface Network extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly name: string
  /** The IPv4 addresses of its containers: `10.128.0.0/16`. */
  readonly range: string
  /** @internal */
  readonly state: internal.State
}

/**
 * @since 0.2.0
 * @category models
 */
export interface NetworkOptions {
  /** A name for messages. Default: a random one. */
  readonly name?: string
}

/**
 * @since 0.2.0
 * @category guards
 */
export const isNetwork: (u: unknown) => u is Network = internal.isNetwork

/**
 * Makes a network, which is there until the scope closes. Its containers reach each other by their addresses, and nothing else.
 *
 * Fails with `OperationFailed` where the kernel lacks veth(4).
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const network = yield* Network.make()
 * const db = yield* Container.start(postgres, { network, name: "db" })
 */
export const make = (options: NetworkOptions = {}): Effect.Effect<Network, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const holder = yield* Namespace.make(["network"])
    return yield* internal.make(yield* Berth, holder, options)
  }).pipe(Effect.withSpan("berth.Network.make"))

/**
 * @since 0.2.0
 * @category symbols
 */
export const PodTypeId: unique symbol = internal.PodTypeId

/**
 * @since 0.2.0
 * @category symbols
 */
export type PodTypeId = typeof PodTypeId

/**
 * Containers that share a network namespace: they reach each other at `localhost`, and have the same addresses and names on
 * networks. Everything else of the containers is their own.
 *
 * @since 0.2.0
 * @category models
 */
export interface Pod extends Inspectable.Inspectable {
  readonly [PodTypeId]: PodTypeId
  /** Its name on its networks. */
  readonly name: string
  /** @internal */
  readonly state: pods.State
}

/**
 * @since 0.2.0
 * @category models
 */
export interface PodOptions {
  /** The networks that it is on. Default: none; its containers then have loopback alone. */
  readonly network?: Network | ReadonlyArray<Network> | undefined
  /** Its name on its networks. Default: a random one. */
  readonly name?: string | undefined
  /** More names. */
  readonly aliases?: ReadonlyArray<string> | undefined
  /** Ports of the host that lead to servers of the pod's containers, as `Container.publish` makes them, until the scope closes. */
  readonly ports?: ReadonlyArray<number | string | PublishOptions> | undefined
}

/**
 * @since 0.2.0
 * @category guards
 */
export const isPod: (u: unknown) => u is Pod = internal.isPod

/**
 * Makes a pod, which is there until the scope closes. A container is in it by its option `network`, from its start to its end.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const pod = yield* Network.pod({ network, name: "web", ports: ["8080:80"] })
 * const server = yield* Container.start(nginx, { network: pod })
 * const cache = yield* Container.start(redis, { network: pod }) // the server reaches it at localhost:6379
 */
export const pod = (options: PodOptions = {}): Effect.Effect<Pod, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const holder = yield* Namespace.make(["network"])
    return yield* pods.make(yield* Berth, holder, options)
  }).pipe(Effect.withSpan("berth.Network.pod"))

/**
 * @since 0.2.0
 * @category models
 */
export interface JoinOptions {
  /** Names on this network, besides the container's name and id. */
  readonly aliases?: ReadonlyArray<string> | undefined
}

/**
 * Has a running container join a network, until the scope closes: it gets one more interface, addresses and names, and knows the
 * names of the network at once. `Container.connect` uses its new address; a port that was published before goes where it went.
 * The container's `/etc/hosts` stays as it is.
 *
 * Fails with `InvalidOption` for a container that has no network namespace of its own, that is on the network already, or whose
 * name is taken there; with `ContainerError` for one that has ended; and with `NetworkError` for one that was started without a
 * network if a process in it has port 53 of 127.0.0.11, at which names are asked for.
 *
 * @since 0.2.0
 * @category network
 * @example
 * yield* Network.join(network, box, { aliases: ["db"] })
 */
export const join: {
  (
    container: Container | Pod,
    options?: JoinOptions
  ): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (
    network: Network,
    container: Container | Pod,
    options?: JoinOptions
  ): Effect.Effect<void, BerthError, Scope.Scope>
} = joining.join

/**
 * Has a container leave a network: one of its start, or one that it has joined. Its interface, addresses and names there are gone
 * at once. Nothing goes over its connections on the network any more; they fail when their programs give them up.
 *
 * Fails with `InvalidOption` for a container that is not on the network.
 *
 * @since 0.2.0
 * @category network
 */
export const leave: {
  (container: Container | Pod): (network: Network) => Effect.Effect<void, BerthError>
  (network: Network, container: Container | Pod): Effect.Effect<void, BerthError>
} = joining.leave

/**
 * Where a server in a container listens: a TCP port, by default on the container's loopback, over IPv4 or else IPv6; or a
 * Unix socket, by its path in the container's root, or, after `@`, by its name in the abstract namespace.
 *
 * @since 0.2.0
 * @category models
 */
export type Address =
  | number
  | {
      readonly port: number
      /** `localhost` or an IP address. Default: `localhost`. */
      readonly host?: string
    }
  | { readonly path: string }

/**
 * A connection to a server in a container, closed with its scope.
 *
 * @since 0.2.0
 * @category models
 */
export interface Connection {
  /** The received bytes, until the server ends its half. Read it once. */
  readonly stream: Stream.Stream<Uint8Array, BerthError>
  /** Sends bytes; the end of the sink ends this half of the connection, and the server reads its end. */
  readonly sink: Sink.Sink<void, Uint8Array, never, BerthError>
}

/**
 * What `Container.publish` takes, besides a port of the container and Docker's text for one: `"8080:80"`, `"127.0.0.1:8080:80/udp"`,
 * `"80"`. Unlike Docker's, a text without an address is published on `localhost` alone; `"0.0.0.0:8080:80"` is for every address.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishOptions {
  /** The port of the server in the container. */
  readonly container: number
  /** The port of the host. Default: `0`, one that is free. */
  readonly host?: number
  /** The host's address: an IP address, or `localhost`, which is 127.0.0.1 and ::1. Default: `localhost`. */
  readonly hostname?: string
  /** Default: `"tcp"`. */
  readonly protocol?: "tcp" | "udp"
}

/**
 * A port of the host that leads into a container.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishedPort {
  readonly hostname: string
  readonly port: number
}

/**
 * Connects to a server in the container without a port of the host's: the socket is made inside the container's network
 * namespace (network_namespaces(7)). The connection is closed with its scope.
 *
 * Fails with `NetworkError` where nothing listens at the address, `InvalidOption` for a wrong one, `ContainerError` for a
 * container that has ended.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const { sink, stream } = yield* Container.connect(db, 5432)
 */
export const connect: {
  (address: Address): (container: Container) => Effect.Effect<Connection, BerthError, Scope.Scope>
  (container: Container, address: Address): Effect.Effect<Connection, BerthError, Scope.Scope>
} = connecting.connect

/**
 * The same as a socket of `node:net`, for a client that is given one. Its `connect` method stays on the connection that
 * there is, whatever address it is called with, and failures come as its event `error`. Whoever asks for a socket closes it.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const client = new pg.Client({ stream: () => Container.netSocket(db, 5432), user: "postgres", password: "x" })
 */
export const netSocket: (container: Container, address: Address) => net.Socket = sockets.netSocket

/**
 * `fetch` to a server on the container's loopback, at the URL's port, whatever its host name. The response is the runtime's
 * own; its body can be read until the scope closes.
 *
 * Fails with `NetworkError` where nothing listens, or no response comes.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const response = yield* Container.fetch(api, "http://localhost:8080/health")
 */
export const fetch: {
  (
    url: string | URL,
    init?: RequestInit
  ): (container: Container) => Effect.Effect<Response, BerthError, Scope.Scope>
  (
    container: Container,
    url: string | URL,
    init?: RequestInit
  ): Effect.Effect<Response, BerthError, Scope.Scope>
} = http.fetch

/**
 * An `@effect/platform` HttpClient whose requests go where those of `Container.fetch` go.
 *
 * @since 0.2.0
 * @category network
 */
export const httpClient: (container: Container) => Layer.Layer<HttpClient.HttpClient> = http.httpClient

/**
 * Has a port of the host lead to a server's port in the container, until the scope closes. Both 127.0.0.1 and ::1 have the port. A
 * TCP port refuses connections until the server listens.
 *
 * A UDP port drops datagrams while no socket of the container has the server's port. Answers go to the peer that asked; at most 1024
 * peers are known at a time, and one is forgotten when it has been idle for 60 seconds, or for longest when another comes.
 *
 * Fails with `NetworkError` for a port that is taken, naming its holder where that can be seen.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const { hostname, port } = yield* Container.publish(api, 8080)
 */
export const publish: {
  (
    port: number | string | PublishOptions
  ): (container: Container) => Effect.Effect<PublishedPort, BerthError, Scope.Scope>
  (
    container: Container,
    port: number | string | PublishOptions
  ): Effect.Effect<PublishedPort, BerthError, Scope.Scope>
} = publishing.publish

/**
 * What `Network.expose` takes.
 *
 * @since 0.2.0
 * @category models
 */
export interface ExposeOptions {
  /** The TCP port on this machine's loopback, 127.0.0.1 or ::1, on which a server of this program, or of any other, listens. */
  readonly host: number
  /** The name by which the network's containers find it. */
  readonly name: string
  /** The port that containers use. Default: `host`. */
  readonly port?: number
}

/**
 * A port of this machine that the containers of a network reach.
 *
 * @since 0.2.0
 * @category models
 */
export interface ExposedPort {
  readonly name: string
  readonly port: number
  /** The addresses of the name on the network. */
  readonly addresses: ReadonlyArray<string>
}

/**
 * Has the containers of a network reach one TCP port of this machine's loopback by a name, and nothing else of this machine,
 * until the scope closes. The containers may run already. The port refuses connections until something listens on `host`.
 * The server sees connections that come from its own loopback address, 127.0.0.1 or ::1.
 *
 * Fails with `InvalidOption` for a name that a container or another exposed port of the network has, and for a wrong port.
 *
 * @since 0.2.0
 * @category network
 * @example
 * yield* Network.expose(network, { host: 3000, name: "mock.test" }) // a container gets http://mock.test:3000
 */
export const expose: {
  (options: ExposeOptions): (network: Network) => Effect.Effect<ExposedPort, BerthError, Scope.Scope>
  (network: Network, options: ExposeOptions): Effect.Effect<ExposedPort, BerthError, Scope.Scope>
} = exposing.expose
