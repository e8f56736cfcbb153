/**
 * Networks of containers, and sockets inside them: a program that holds a container needs no port of the host's to talk to it.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as internal from "./internal/network/network.ts"
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
