import type * as HttpClient from "@effect/platform/HttpClient"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Dispatcher } from "undici"
import { Berth } from "./Berth.ts"
import type { BerthError, Unsupported } from "./BerthError.ts"
import type { Publishable, PublishedPath, PublishedPort } from "./Connection.ts"
import type { Container } from "./Container.ts"
import * as captures from "./internal/network/capture.ts"
import * as exposing from "./internal/network/expose.ts"
import * as hosts from "./internal/network/hosts.ts"
import * as joining from "./internal/network/join.ts"
import * as internal from "./internal/network/network.ts"
import * as leaving from "./internal/network/outbound.ts"
import * as partitions from "./internal/network/partition.ts"
import * as pods from "./internal/network/pod.ts"
import * as shapes from "./internal/network/shape.ts"
import * as toxics from "./internal/network/toxic.ts"
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
  /**
   * The IPv4 addresses of its containers: a range of 16 bits, such as `"10.5.0.0/16"`. It may be one that the host uses, as nothing of
   * the network is on the host; with `outbound`, none that has a whole network of the host or addresses of `allow` within, as containers could
   * not reach these. Default: one between 10.128.0.0/16 and 10.227.0.0/16.
   */
  readonly range?: string
  /** Whether its containers have IPv6 addresses. Default: true if the kernel has IPv6. */
  readonly ipv6?: boolean
  /** What its containers may reach outside of it. Default: `"none"`. */
  readonly outbound?: Outbound
  /**
   * The servers that are asked for the names of other machines, with `outbound`: addresses, with a port or without, as
   * `"[2001:db8::53]:5353"`. Default: those of this machine's /etc/resolv.conf.
   */
  readonly dns?: ReadonlyArray<string>
}

/**
 * What the containers of a network may reach outside of it by TCP, and by name. UDP and ICMP leave the network with `"pasta"` alone.
 *
 * - `"none"`: nothing, and names of other machines do not exist.
 * - `"proxy"`: every address that this program reaches, but for those below.
 * - `"pasta"`: the same, and by UDP and by echo requests of ICMP (ping) as well, which pasta(1) of Debian's package `passt` passes on. All
 *   such networks of a Berth share one pasta, which ends with the Berth; if it ends before, a warning says so, and the next one starts after
 *   a second. It needs /dev/net/tun, a default route of this machine, and for ICMP a range of groups in net.ipv4.ping_group_range (icmp(7)) that
 *   pasta is in: as root, that of nobody, 65534; without root, the program's. For UDP and ICMP, the addresses of this machine are those that it has when the network is made.
 * - `{ allow }`: what the entries name, each of which may end with a port: names (`registry.example.com`), all names below one
 *   (`*.example.org:443`), addresses and ranges (`10.0.0.0/8`, `[2001:db8::]/32:443`). Other names do not exist. An address that a name of the
 *   list had once stays allowed.
 *
 * Refused in any case are this machine's loopback, to which `Network.expose` is the way, and the network's own range. Refused
 * unless an entry names the very address are the other addresses of this machine; unless one names the address or a range within, those that are
 * link-local, multicast or reserved, and those at which clouds hand out credentials, such as 169.254.169.254.
 *
 * A container on several networks leaves by the first of them. It has at most 1024 connections of IPv4, and as many of IPv6, at a time.
 *
 * A process of the program's own network namespace makes the connections (see `refusals` for those that it refuses). A container that
 * connects to a refused address sees the connection accepted, and reset at once.
 *
 * @since 0.2.0
 * @category models
 */
export type Outbound = "none" | "proxy" | "pasta" | { readonly allow: ReadonlyArray<string> }

/**
 * A connection that was reset in place of being made.
 *
 * @since 0.2.0
 * @category models
 */
export interface Refusal {
  /** `outbound` does not allow it, or its container had 1024 connections already. */
  readonly reason: "NotAllowed" | "TooMany"
  /** The id of the container; undefined if it has left the network. */
  readonly container: string | undefined
  /** Where it was going to. */
  readonly address: string
  readonly port: number
}

/**
 * @since 0.2.0
 * @category guards
 */
export const isNetwork: (u: unknown) => u is Network = internal.isNetwork

/**
 * Makes a network, which is there until the scope closes. Its containers reach each other, and outside what `outbound` allows.
 *
 * Fails with `OperationFailed` where the kernel lacks veth(4), with `Unsupported` where `outbound` needs NAT of nf_tables that the kernel
 * lacks, or `"pasta"` a program that is missing or too old, and with `InvalidOption` for a wrong entry of `outbound`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const network = yield* Network.make({ outbound: { allow: ["registry.example.com:443", "*.example.org"] } })
 * const db = yield* Container.start(postgres, { network, name: "db" })
 */
export const make = (options: NetworkOptions = {}): Effect.Effect<Network, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => internal.make(berth, options)).pipe(Effect.withSpan("berth.Network.make"))

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
  readonly ports?: ReadonlyArray<Publishable> | undefined
}

/**
 * @since 0.2.0
 * @category guards
 */
export const isPod: (u: unknown) => u is Pod = internal.isPod

/**
 * Makes a pod, which is there until the scope closes. A container is in it by its option `network`, from its start to its end.
 * It cannot have `userns`, or names of its own.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const pod = yield* Network.pod({ network, name: "web", ports: ["8080:80"] })
 * const server = yield* Container.start(nginx, { network: pod })
 * const cache = yield* Container.start(redis, { network: pod }) // the server reaches it at localhost:6379
 */
export const pod: (options?: PodOptions) => Effect.Effect<Pod, BerthError, Berth | Scope.Scope> = Effect.fn(
  "berth.Network.pod"
)(function* (options: PodOptions = {}) {
  const holder = yield* Namespace.make(["network"])
  return yield* pods.make(yield* Berth, holder, options)
})

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
 * What `Network.expose` takes.
 *
 * @since 0.2.0
 * @category models
 */
export interface ExposeOptions {
  /**
   * Where a server of this program, or of any other, listens: a TCP port on this machine's loopback, 127.0.0.1 or ::1, or a Unix socket,
   * by its path or, after `@`, by its name in the abstract namespace.
   */
  readonly host: number | { readonly path: string }
  /** The name by which the network's containers find it. */
  readonly name: string
  /** The port that containers use. Default: `host`, if that is a port. */
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
 * Has the containers of a network reach one server of this machine by a name, and nothing else of this machine, until the scope
 * closes. The containers may run already. The port refuses connections until something listens on the port `host`; one that
 * leads to a Unix socket breaks connections instead. The server sees connections that come from its own loopback address, 127.0.0.1 or ::1.
 *
 * Containers that have `host-gateway` in their `extraHosts` reach the port by that name as well; of several exposed ports with the same
 * number, the first.
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

/**
 * `fetch` to a server of a network, by a name that its containers know: of a container, an alias, or what `expose` has given a name. The
 * program connects from inside the network: no port is published. The response is the runtime's own; its body can be read until the scope
 * closes.
 *
 * Fails with `InvalidOption` for a host that the network does not know, and with `NetworkError` where nothing listens, or no response
 * comes.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const response = yield* Network.fetch(network, "http://api:8080/health")
 */
export const fetch: {
  (
    url: string | URL,
    init?: RequestInit
  ): (network: Network) => Effect.Effect<Response, BerthError, Scope.Scope>
  (network: Network, url: string | URL, init?: RequestInit): Effect.Effect<Response, BerthError, Scope.Scope>
} = hosts.fetch

/**
 * An `@effect/platform` HttpClient whose requests go where those of `Network.fetch` go.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const program = HttpClient.get("http://api:8080/health").pipe(Effect.provide(Network.httpClient(network)))
 */
export const httpClient: (network: Network) => Layer.Layer<HttpClient.HttpClient> = hosts.httpClient

/**
 * A dispatcher of undici's whose connections go where those of `Network.fetch` go, until the scope closes: for clients that take one, and
 * for undici's `fetch` and `request`. Bun has none, and it fails with `Unsupported` there.
 *
 * @since 0.2.0
 * @category network
 * @example
 * const dispatcher = yield* Network.dispatcher(network)
 * const response = yield* Effect.promise(() => request("http://api:8080/health", { dispatcher }))
 */
export const dispatcher: (network: Network) => Effect.Effect<Dispatcher, Unsupported, Scope.Scope> =
  hosts.dispatcher

/**
 * The connections that `outbound` refuses: the last 256 before, and those to come, until the network closes. A flood may lose some.
 *
 * Fails with `InvalidOption` for a network without `outbound`, which does not see them.
 *
 * @since 0.2.0
 * @category network
 * @example
 * yield* Network.refusals(network).pipe(Stream.runForEach(({ address, port }) => Console.log(address, port)), Effect.forkScoped)
 */
export const refusals: (network: Network) => Stream.Stream<Refusal, BerthError> = leaving.refusals

/**
 * @since 0.2.0
 * @category models
 */
export interface PartitionOptions {
  /** Drops only what `a` sends to `b`: `b` still reaches `a`, as far as no answer is needed. Default: false. */
  readonly oneWay?: boolean
}

/**
 * Keeps containers of a network apart until the scope closes: packets between a container of `a` and one of `b` are dropped, without a
 * word to their senders (a rule of ip-rule(8) for each pair). Connections stop, and go on afterwards once TCP sends again.
 * Partitions may overlap. The network of the program itself is not affected: `Container.connect` and published ports
 * reach each container.
 *
 * Fails with `InvalidOption` for a container that is not on the network, or in both groups.
 *
 * @since 0.2.0
 * @category chaos
 * @example
 * yield* Effect.scoped(Effect.zipRight(Network.partition(network, leader, [follower, other]), check))
 */
export const partition: {
  (
    a: Container | ReadonlyArray<Container>,
    b: Container | ReadonlyArray<Container>,
    options?: PartitionOptions
  ): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (
    network: Network,
    a: Container | ReadonlyArray<Container>,
    b: Container | ReadonlyArray<Container>,
    options?: PartitionOptions
  ): Effect.Effect<void, BerthError, Scope.Scope>
} = partitions.partition

/**
 * What `Network.rate` takes: bits a second, as a number or as text like `"10mbit"` (`bit`, `kbit`, `mbit` and `gbit`, of 1000 each).
 *
 * @since 0.2.0
 * @category models
 */
export interface Rates {
  /** What the container sends. */
  readonly up?: number | string
  /** What the container receives. */
  readonly down?: number | string
}

/**
 * Limits how fast a container sends to and receives from a network, until the scope closes: tc-tbf(8). Packets wait for about
 * a tenth of a second; what comes then is dropped, as by a slow router, and TCP finds the rate. The limit is outside the reach of the
 * container. Its loopback, `Container.connect` and published ports are not limited.
 *
 * Fails with `InvalidOption` for another rate than from 8kbit to 100gbit, a container that is not on the network, or a direction that has a
 * rate already; with `Unsupported` where the kernel lacks sch_tbf.
 *
 * @since 0.2.0
 * @category chaos
 * @example
 * yield* Network.rate(network, phone, { down: "10mbit", up: "1mbit" })
 */
export const rate: {
  (container: Container, rates: Rates): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (network: Network, container: Container, rates: Rates): Effect.Effect<void, BerthError, Scope.Scope>
} = shapes.rate

/**
 * What `Network.impair` does to packets.
 *
 * @since 0.2.0
 * @category models
 */
export interface Impairment {
  /** How long each packet is kept back, one hour at most. */
  readonly delay?: Duration.DurationInput
  /** By how much the delay varies, up and down. Packets may overtake each other. */
  readonly jitter?: Duration.DurationInput
  /** The share of packets that are lost, from 0 to 1. */
  readonly loss?: number
  /** The share that arrives twice. */
  readonly duplicate?: number
  /** The share of which one bit is wrong. */
  readonly corrupt?: number
  /** What the container sends (`"up"`), receives (`"down"`), or both: then a `delay` adds twice to a round trip. Default: `"both"`. */
  readonly direction?: "up" | "down" | "both"
}

/**
 * Makes the link of a container to a network a bad one until the scope closes: tc-netem(8). It can be together with a rate.
 * The container's loopback, `Container.connect` and published ports are not affected.
 *
 * Fails with `InvalidOption` for a value out of its range, a container that is not on the network, or a direction that is impaired already;
 * with `Unsupported` where the kernel lacks sch_netem.
 *
 * @since 0.2.0
 * @category chaos
 * @example
 * yield* Network.impair(network, phone, { delay: "80 millis", jitter: "20 millis", loss: 0.01 })
 */
export const impair: {
  (
    container: Container,
    impairment: Impairment
  ): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (
    network: Network,
    container: Container,
    impairment: Impairment
  ): Effect.Effect<void, BerthError, Scope.Scope>
} = shapes.impair

/**
 * @since 0.2.0
 * @category models
 */
export interface CaptureStatistics {
  /** The number of packets in the capture. */
  readonly packets: number
  /** How many are missing, because what came before them had not been read. */
  readonly dropped: number
}

/**
 * A capture that is written to a file.
 *
 * @since 0.2.0
 * @category models
 */
export interface FileCapture {
  /** Until now, or, once the scope has closed, until then. */
  readonly statistics: Effect.Effect<CaptureStatistics>
}

/**
 * A capture.
 *
 * @since 0.2.0
 * @category models
 */
export interface Capture extends FileCapture {
  /**
   * The bytes of a pcap file, which tcpdump(8) and Wireshark read: whole Ethernet frames, with times in nanoseconds. It ends when the
   * capture's scope closes or the container's, after the packets until then. It can be read once, and keeps the program alive while it
   * is read.
   */
  readonly stream: Stream.Stream<Uint8Array, BerthError>
}

/**
 * Captures what a container sends and receives on a network, from now until the scope closes. The socket (packet(7)) is at the network's
 * end of the container's interface: nothing in the container can see or stop it. The kernel keeps 8 MiB of
 * packets that are not read yet, and without root as many as net.core.rmem_max allows; it drops further ones, and the container
 * is not slowed down. Dropped packets are counted, and logged as a warning when the scope closes. Needs no root.
 *
 * Checksums may look wrong and packets larger than the link allows: the kernel leaves both to hardware, which is not there.
 *
 * Fails with `InvalidOption` for a container that is not on the network.
 *
 * @since 0.2.0
 * @category sight
 * @example
 * const { stream } = yield* Network.capture(network, api)
 */
export const capture: {
  (container: Container): (network: Network) => Effect.Effect<Capture, BerthError, Scope.Scope>
  (network: Network, container: Container): Effect.Effect<Capture, BerthError, Scope.Scope>
} = captures.capture

/**
 * The same to a file of the host, which is replaced if it exists, and is complete once the scope has closed.
 *
 * Fails also with `OperationFailed` if the file cannot be opened; a file that cannot be written later is told by a warning.
 *
 * @since 0.2.0
 * @category sight
 * @example
 * yield* Network.captureToFile(network, api, "api.pcap")
 */
export const captureToFile: {
  (
    container: Container,
    path: string
  ): (network: Network) => Effect.Effect<FileCapture, BerthError, Scope.Scope>
  (network: Network, container: Container, path: string): Effect.Effect<FileCapture, BerthError, Scope.Scope>
} = captures.captureToFile

/**
 * Faults of connections. Times are at most an hour.
 *
 * @since 0.2.0
 * @category models
 */
export interface ToxicOptions {
  /**
   * The delay of each byte and of the end of a connection. Each direction of a connection has at most 512 KiB on its way, so that a
   * delay of a second also limits the rate to 512 KiB a second.
   */
  readonly latency?: Duration.DurationInput
  /** The most that a delay is shorter or longer than `latency`, at random. The order of bytes stays. */
  readonly jitter?: Duration.DurationInput
  /** The bytes of each connection that pass in a second, as a number or as text like `"64KiB"`. */
  readonly rate?: number | string
  /** When a connection breaks, for both of its ends (ECONNRESET): after so many bytes of a direction, or after some time. */
  readonly reset?: { readonly bytes?: number | string; readonly after?: Duration.DurationInput }
  /** Whether nothing passes, neither bytes nor ends nor resets: to each end the other one seems to be silent. Default false. */
  readonly halfOpen?: boolean
  /** `"up"` is from who has connected to the server, `"down"` back. Default: `"both"`. */
  readonly direction?: "both" | "up" | "down"
}

/**
 * The connections that `Network.toxic` gives faults: those of a published TCP port or path, those of an exposed port, or those that
 * leave a network by its `outbound`.
 *
 * @since 0.2.0
 * @category models
 */
export type ToxicTarget = PublishedPort | PublishedPath | ExposedPort | Network

/**
 * Gives connections faults, until the scope closes. The faults apply to the connections that exist, from now on, and to
 * new ones; afterwards the connections go on without faults. Of several faults at a time the delays add up, and the lowest limit counts.
 * A network stands for all connections that its containers make to other machines; containers of the network still reach each other
 * without faults (see `rate` and `impair` for these).
 *
 * Fails with `InvalidOption` for a wrong option, and for something that is no target.
 *
 * @since 0.2.0
 * @category faults
 * @example
 * const port = yield* Container.publish(db, 5432)
 * yield* Effect.scoped(Effect.zipRight(Network.toxic(port, { latency: "200 millis", jitter: "50 millis" }), check))
 */
export const toxic: {
  (options: ToxicOptions): (target: ToxicTarget) => Effect.Effect<void, BerthError, Scope.Scope>
  (target: ToxicTarget, options: ToxicOptions): Effect.Effect<void, BerthError, Scope.Scope>
} = toxics.toxic
