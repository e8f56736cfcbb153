/**
 * Connections between the program and a container: to its servers, without a port of the host; of its clients, to servers of the
 * program; and by ports of the host. The functions are also in `Container`.
 *
 * @since 0.2.0
 */
import type * as net from "node:net"
import type * as HttpClient from "@effect/platform/HttpClient"
import type * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { BerthError } from "./BerthError.ts"
import type { Container } from "./Container.ts"
import * as connecting from "./internal/network/connection.ts"
import * as http from "./internal/network/fetch.ts"
import * as listening from "./internal/network/listen.ts"
import * as sockets from "./internal/network/netSocket.ts"
import * as publishing from "./internal/network/publish.ts"
import type { Pod } from "./Network.ts"

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
 * Where a server of UDP in a container listens. Without a host, this is the address of the container on its first network, or else
 * 127.0.0.1.
 *
 * @since 0.2.0
 * @category models
 */
export interface DatagramAddress {
  readonly port: number
  readonly protocol: "udp"
  /** `localhost` or an IP address. */
  readonly host?: string
}

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
 * What `Container.publish` takes: a TCP port of the container; Docker's text for one, `"8080:80"`, `"127.0.0.1:8080:80/udp"`, `"80"`;
 * or options. Unlike Docker's, a text without an address is published on `localhost` alone; `"0.0.0.0:8080:80"` is for every address.
 *
 * @since 0.2.0
 * @category models
 */
export type Publishable = number | string | PublishOptions | PublishPathOptions

/**
 * The options of a port of the host.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishOptions {
  /**
   * The port of the server in the container; or the path of its Unix socket in the container's root, which is resolved for each
   * connection, so that a server can start anew; or, after `@`, its name in the abstract namespace. The socket must be writable for
   * everybody, as those of Postgres and MySQL are, or for root of a container without `userns`. A server of a Unix socket sees a
   * connection that ends at once when it begins to listen: nothing else tells Berth.
   */
  readonly container: number | { readonly path: string }
  /** The port of the host. Default: `0`, one that is free. */
  readonly host?: number
  /** The host's address: an IP address, or `localhost`, which is 127.0.0.1 and ::1. Default: `localhost`. */
  readonly hostname?: string
  /** Default: `"tcp"`. */
  readonly protocol?: "tcp" | "udp"
}

/**
 * The options of a Unix socket of the host.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishPathOptions {
  /** The server in the container, as in `PublishOptions`. */
  readonly container: number | { readonly path: string }
  /**
   * An absolute path in a folder that exists, of at most 107 bytes. The file is removed with the scope. When the program is killed, the
   * file stays; the next `publish` to the path takes its place, as a socket that no process holds is in nobody's way.
   */
  readonly path: string
  /** The mode of the file, which says who may connect (unix(7)). Default: `0o600`, the program's own user. */
  readonly mode?: number
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
 * A Unix socket of the host that leads into a container.
 *
 * @since 0.2.0
 * @category models
 */
export interface PublishedPath {
  readonly path: string
}

/**
 * Connects to a server in the container without a port of the host's: the socket is made inside the container's network
 * namespace (network_namespaces(7)). The connection is closed with its scope.
 *
 * By UDP, each chunk that the sink takes is a datagram, of at most 65,507 bytes, and so is each element of the stream, which ends with the scope.
 *
 * Fails with `NetworkError` where nothing listens at the address (by UDP, the stream or the sink does so after the first datagram),
 * `InvalidOption` for a wrong one, `ContainerError` for a container that has ended.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const { sink, stream } = yield* Container.connect(db, 5432)
 * const dns = yield* Container.connect(server, { port: 53, protocol: "udp" })
 */
export const connect: {
  (
    address: Address | DatagramAddress
  ): (container: Container) => Effect.Effect<Connection, BerthError, Scope.Scope>
  (
    container: Container,
    address: Address | DatagramAddress
  ): Effect.Effect<Connection, BerthError, Scope.Scope>
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
 * Where a server of this program listens inside a container.
 *
 * @since 0.2.0
 * @category models
 */
export type ListenOptions =
  | {
      /** `0` takes one that is free. */
      readonly port: number
      /** An IP address of the container. Default: `127.0.0.1`; for containers on its networks, `0.0.0.0` or `::`. */
      readonly host?: string
    }
  | {
      /**
       * A path in the container's root, in a folder that exists: the file belongs to this program's user, every process of the container
       * may connect, and it is removed with the scope. Or, after `@`, a name in the abstract namespace.
       */
      readonly path: string
    }

/**
 * A server of this program inside a container.
 *
 * @since 0.2.0
 * @category models
 */
export interface Listening {
  /** `127.0.0.1:3000`, `/run/mock.sock`, `@mock`. */
  readonly address: string
  /** Undefined for a Unix socket. */
  readonly port: number | undefined
}

/**
 * Listens inside a container, until the scope closes: processes of the container connect to this program as to a server of their
 * own, and nothing of the host listens. Runs the handler with each connection, at most 1024 at a time, and closes the connection when
 * the handler ends. A handler that fails is logged as a warning. By default the server is on the container's loopback.
 *
 * Fails with `NetworkError` for an address that is taken or that the container lacks, `InvalidOption` for a wrong one, `ContainerError`
 * for a container that has ended.
 *
 * @since 0.2.0
 * @category network
 * @example
 * yield* Container.listen(box, 3000, ({ sink, stream }) => Stream.run(stream, sink))
 */
export const listen: {
  <E, R>(
    address: number | ListenOptions,
    handler: (connection: Connection) => Effect.Effect<unknown, E, R>
  ): (container: Container) => Effect.Effect<Listening, BerthError, R | Scope.Scope>
  <E, R>(
    container: Container,
    address: number | ListenOptions,
    handler: (connection: Connection) => Effect.Effect<unknown, E, R>
  ): Effect.Effect<Listening, BerthError, R | Scope.Scope>
} = listening.listen

/**
 * The same as a server of `node:net`, which listens when this returns; failures come as its event `error`. Whoever asks for a server
 * closes it. For HTTP, give its connections to a server of `node:http`, which does not listen itself; in Bun, whose server of
 * `node:http` takes no connections, use `Container.listen` or publish a port of this program to the container's network.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const web = http.createServer((_, response) => response.end("hello"))
 * const server = Container.netServer(box, 3000, (socket) => web.emit("connection", socket))
 */
export const netServer: (
  container: Container,
  address: number | ListenOptions,
  onConnection?: (socket: net.Socket) => void
) => net.Server = listening.netServer

/**
 * Has a port or a Unix socket of the host lead to a server in the container, until the scope closes. Both 127.0.0.1 and ::1 have
 * the port. It refuses connections until the server listens.
 *
 * A UDP port drops datagrams while no socket of the container has the server's port. Answers go to the peer that asked; at most 1024
 * peers are known at a time, and one is forgotten when it has been idle for 60 seconds, or for longest when another comes.
 *
 * Fails with `NetworkError` for a port or a path that is taken, naming its holder where that can be seen.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const { hostname, port } = yield* Container.publish(api, 8080)
 * const { path } = yield* Container.publish(db, { container: 5432, path: "/tmp/db.sock" })
 */
export const publish: {
  (port: PublishPathOptions): (container: Container) => Effect.Effect<PublishedPath, BerthError, Scope.Scope>
  (
    port: number | string | PublishOptions
  ): (container: Container) => Effect.Effect<PublishedPort, BerthError, Scope.Scope>
  (container: Container, port: PublishPathOptions): Effect.Effect<PublishedPath, BerthError, Scope.Scope>
  (
    container: Container,
    port: number | string | PublishOptions
  ): Effect.Effect<PublishedPort, BerthError, Scope.Scope>
} = dual(2, publishing.publish)

/**
 * The port of the host that leads to a port of the container, as `ports` of its start or `Container.publish` has made it; the newest of
 * several. For `ports` of `Network.pod`, give the pod. The protocol is `"tcp"` by default.
 *
 * Fails with `InvalidOption`, which lists the published ports, for one that is not published.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const api = yield* Container.start(image, { ports: [8080] })
 * const { hostname, port } = yield* Container.published(api, 8080)
 */
export const published: {
  (
    port: number,
    protocol?: "tcp" | "udp"
  ): (container: Container | Pod) => Effect.Effect<PublishedPort, BerthError>
  (
    container: Container | Pod,
    port: number,
    protocol?: "tcp" | "udp"
  ): Effect.Effect<PublishedPort, BerthError>
} = publishing.published
