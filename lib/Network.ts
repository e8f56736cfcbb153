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
import * as http from "./internal/network/fetch.ts"
import * as sockets from "./internal/network/netSocket.ts"
import * as internal from "./internal/network/network.ts"
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
 * What `Container.publish` takes.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishOptions {
  /** The TCP port of the server, on the container's loopback. */
  readonly container: number
  /** The port of the host. Default: `0`, one that is free. */
  readonly host?: number
  /** The host's address: an IP address, or `localhost`, which is 127.0.0.1 and ::1. Default: `localhost`. */
  readonly hostname?: string
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
 * In Node, Deno and Bun these take it: `pg` (`stream`), `postgres` (`socket`), `mysql2` (`stream`), `ioredis` (a `Connector`
 * whose `connect` gives it) and `tls.connect` (`socket`). For clients that take none, such as `redis` and `mongodb`, there is `publish`.
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
 * Has a port of the host lead to a TCP port on the container's loopback, until the scope closes. Both 127.0.0.1 and ::1
 * have the port, and it refuses connections until the container's server listens.
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
    port: number | PublishOptions
  ): (container: Container) => Effect.Effect<PublishedPort, BerthError, Scope.Scope>
  (container: Container, port: number | PublishOptions): Effect.Effect<PublishedPort, BerthError, Scope.Scope>
} = publishing.publish
