/** The networks of `berth/promise`, and what a box does on them, as types. */
import type * as net from "node:net"
import type { Dispatcher } from "undici"
import type * as Connection from "../../Connection.ts"
import type * as Network from "../../Network.ts"
import type { Abortable, Box, Closable, Input } from "../../promise.ts"

/**
 * Connections that can be given faults.
 *
 * @since 0.2.0
 * @category models
 */
export interface Faulty {
  /**
   * Gives the connections latency, a rate, resets or silence, until the result is closed, or what it was called on: see
   * `Network.toxic`. Of a network, these are the connections that leave it by its `outbound`. A UDP port has no connections.
   */
  readonly toxic: (options: Network.ToxicOptions) => Promise<Closable>
}

/**
 * A connection between the program and a container.
 *
 * @since 0.2.0
 * @category models
 */
export interface BoxConnection {
  /** The received bytes, until the other end ends its half. They can be read once. */
  readonly stream: AsyncIterable<Uint8Array>
  /** Sends all of the input, and then the end of this half of the connection. */
  readonly send: (input: Input, options?: Abortable) => Promise<void>
}

/**
 * The connections between the program and a container, without ports and with them.
 *
 * @since 0.2.0
 * @category models
 */
export interface BoxNetwork {
  /** Connects to a server in the container, until the result or the box is closed: see `Container.connect`. */
  readonly connect: (
    address: Connection.Address | Connection.DatagramAddress,
    options?: Abortable
  ) => Promise<BoxConnection & Closable>
  /** A socket of `node:net` to a server in the container, for a client that takes one: see `Container.netSocket`. */
  readonly netSocket: (address: Connection.Address) => net.Socket
  /**
   * Listens inside the container, until the result or the box is closed: see `Container.listen`. Each connection is closed when what the
   * handler returns has settled.
   */
  readonly listen: (
    address: number | Connection.ListenOptions,
    handler: (connection: BoxConnection) => unknown
  ) => Promise<Connection.Listening & Closable>
  /** A server of `node:net` inside the container: see `Container.netServer`. */
  readonly netServer: (
    address: number | Connection.ListenOptions,
    onConnection?: (socket: net.Socket) => void
  ) => net.Server
  /** `fetch` to a server in the container: see `Container.fetch`. A response can be read until the box closes. */
  readonly fetch: (url: string | URL, init?: RequestInit) => Promise<Response>
  /**
   * Has a port or a Unix socket of the host lead into the container, until the result or the box is closed: see
   * `Container.publish`.
   */
  readonly publish: {
    (port: Connection.PublishPathOptions): Promise<Connection.PublishedPath & Faulty & Closable>
    (port: number | string | Connection.PublishOptions): Promise<Connection.PublishedPort & Faulty & Closable>
  }
  /** The port of the host that leads to a port of the container, as `ports` of its start has made it: see `Container.published`. */
  readonly published: (port: number, protocol?: "tcp" | "udp") => Promise<Connection.PublishedPort & Faulty>
}

/**
 * A network, and what its containers can do.
 *
 * @since 0.2.0
 * @category models
 */
export interface OpenNetwork extends Network.Network, NetworkFaults {
  /** Has its containers reach a port of this machine by a name, until the result or the network is closed: see `Network.expose`. */
  readonly expose: (options: Network.ExposeOptions) => Promise<Network.ExposedPort & Faulty & Closable>
  /** `fetch` to a server of the network by its name there: see `Network.fetch`. A response can be read until the network closes. */
  readonly fetch: (url: string | URL, init?: RequestInit) => Promise<Response>
  /** A dispatcher of undici's with the same connections, until the network is closed: see `Network.dispatcher`. */
  readonly dispatcher: () => Promise<Dispatcher>
  /** The connections that `outbound` refuses: see `Network.refusals`. */
  readonly refusals: () => AsyncIterable<Network.Refusal>
  /** Has a running container or a pod join it, until the result, or the network, is closed: see `Network.join`. */
  readonly join: (box: Box | Network.Pod, options?: Network.JoinOptions & Abortable) => Promise<Closable>
  /** Has a container or a pod leave it: see `Network.leave`. */
  readonly leave: (box: Box | Network.Pod) => Promise<void>
}

/**
 * A network that exists until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosableNetwork extends OpenNetwork, Closable {}

/**
 * A pod that exists until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosablePod extends Network.Pod, Closable, Pick<BoxNetwork, "published"> {}

/**
 * A capture: see `Network.captureToFile`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosableCapture extends Closable {
  readonly statistics: () => Promise<Network.CaptureStatistics>
}

/**
 * A capture that the program reads: see `Network.capture`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ReadableCapture extends ClosableCapture {
  /** The bytes of a pcap file. They end when the capture is closed, after the packets until then. */
  readonly stream: AsyncIterable<Uint8Array>
}

/**
 * What a network does to its containers, each until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface NetworkFaults extends Faulty {
  /** Keeps boxes apart: see `Network.partition`. */
  readonly partition: (
    a: Box | ReadonlyArray<Box>,
    b: Box | ReadonlyArray<Box>,
    options?: Network.PartitionOptions
  ) => Promise<Closable>
  /** Limits how fast a box sends and receives: see `Network.rate`. */
  readonly rate: (box: Box, rates: Network.Rates) => Promise<Closable>
  /** Delays, loses, duplicates and damages packets of a box: see `Network.impair`. */
  readonly impair: (box: Box, impairment: Network.Impairment) => Promise<Closable>
  /** Captures the packets of a box: see `Network.capture`. */
  readonly capture: (box: Box) => Promise<ReadableCapture>
  /** The same to a file: see `Network.captureToFile`. */
  readonly captureToFile: (box: Box, path: string) => Promise<ClosableCapture>
}
