/**
 * Networks of containers, and sockets inside them: a program that holds a container needs no port of the host's to talk to it.
 *
 * @since 0.2.0
 */
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { BerthError } from "./BerthError.ts"

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
