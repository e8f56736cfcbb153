/**
 * A network: a namespace that routes between its containers. Each container has a pair of interfaces (veth(4)) with one end
 * there, its own address, and routes and neighbours that are all fixed: no container is asked for an address, and no answer
 * is believed. The kernel is the teardown: the interfaces go with their namespaces.
 */
import { randomBytes } from "node:crypto"
import { existsSync } from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption, OperationFailed } from "../../BerthError.ts"
import type { Kind } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import type { Ids } from "../ids/idMaps.ts"
import { explain, flagsOf, idMap } from "../ids/namespaceFlags.ts"
import type { Unit } from "../supervisor/connection.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native } from "../system/addon.ts"
import type { SocketAddress } from "./address.ts"
import * as netlink from "./netlink.ts"
import { SOCK_STREAM } from "./socket.ts"

const AF_NETLINK = 16
const SOCK_RAW = 3

/** So many milliseconds an address stays unused when its container is gone, whose interfaces the kernel removes later. */
const QUARANTINE_MS = 2000

/** The number of the network itself, and that of the program's machine, at which ports are exposed; those of containers follow. */
const ROUTER_NUMBER = 1
const HOST_NUMBER = 2

const LOOPBACK_INDEX = 1

/** The interfaces of a network are numbered from here, those of a container from the second. */
const ROUTER_INDEX = 1000
const CONTAINER_INDEX = 100

/** The interface of a container in the router's namespace. */
export const near = (number: number) => ({ index: ROUTER_INDEX + number, name: `v${number}` })

/** Its other end, in the container's namespace. */
export const far = (place: number) => ({ index: CONTAINER_INDEX + place, name: `eth${place}` })

/** Nobody has them: they are the next hop of every container. */
const GATEWAYS = [netlink.ip("169.254.1.1"), netlink.ip("fe80::1")] as const

/** The numbers of a network's containers: the lowest that has been free for a while. */
class Numbers {
  /** How many hold each number: its container, and the rules that name it. */
  private readonly holders = new Map<number, number>()
  private readonly freed: Array<readonly [number: number, since: number]> = []
  private readonly size: number
  private next = HOST_NUMBER + 1

  constructor(size: number) {
    this.size = size
  }

  take(): number | undefined {
    const [oldest] = this.freed
    const reused = oldest !== undefined && performance.now() - oldest[1] > QUARANTINE_MS
    const number = reused ? this.freed.shift()![0] : this.next
    if (!reused && this.next++ >= this.size) return undefined
    this.hold(number)
    return number
  }

  /** Keeps the number from others until it has been given back once more. */
  hold(number: number): void {
    this.holders.set(number, (this.holders.get(number) ?? 0) + 1)
  }

  give(number: number): void {
    const left = this.holders.get(number)! - 1
    if (left > 0) {
      this.holders.set(number, left)
      return
    }
    this.holders.delete(number)
    this.freed.push([number, performance.now()])
  }
}

/** The addresses of a network: a range of IPv4 of 16 bits, and one of IPv6 of 64. */
export interface Range {
  /** `10.128` */
  readonly prefix4: string
  /** `fd00:1234:5678:9abc`, or undefined without IPv6. */
  readonly prefix6: string | undefined
}

/** What a network keeps to itself. */
export interface Router {
  readonly namespace: NetworkNamespace
  readonly range: Range
  /** How many bytes a packet has at most; undefined for the kernel's own limit, 1500. */
  readonly mtu: number | undefined
  readonly numbers: Numbers
  /** The numbers whose rules are there: they stay, for the next container of that number. */
  readonly ruled: Set<number>
  /** The same for IPv4: see `checkByRules`. */
  readonly ruled4: Set<number>
}

// Ranges differ between the networks of a program, as a container may be on several.
let ranges = randomBytes(1)[0]!

const LOWEST = 128
const COUNT = 100

const nextPrefix4 = (): string => `10.${LOWEST + (ranges++ % COUNT)}`

/**
 * A range of IPv4, if possible none that is taken, and one of the unique local addresses of IPv6 (RFC 4193), written as
 * inet_ntop(3) writes it.
 */
export const nextRange = (isTaken: (prefix4: string) => boolean = () => false) => {
  const id = randomBytes(8)
  let prefix4 = nextPrefix4()
  for (let tried = 1; tried < COUNT && isTaken(prefix4); tried++) prefix4 = nextPrefix4()
  const groups = [0xfd00 | id.readUInt8(0), id.readUInt16BE(2), id.readUInt16BE(4), id.readUInt16BE(6)]
  return {
    prefix4,
    prefix6: groups.map((group) => group.toString(16)).join(":")
  }
}

/** The range of a network without options. */
export const usualRange = (): Range => {
  const next = nextRange()
  return hasIPv6() ? next : { ...next, prefix6: undefined }
}

export const hasIPv6 = (): boolean => existsSync("/proc/sys/net/ipv6")

const BITS = 16

const address4 = ({ prefix4 }: Range, number: number): string =>
  `${prefix4}.${(number >> 8) & 0xff}.${number & 0xff}`

const address6 = ({ prefix6 }: Range, number: number): string | undefined =>
  prefix6 === undefined ? undefined : `${prefix6}::${number.toString(16)}`

export const addressesOf = (range: Range, number: number): ReadonlyArray<string> => {
  const sixth = address6(range, number)
  return sixth === undefined ? [address4(range, number)] : [address4(range, number), sixth]
}

/** Locally administered, and never the same in two places of one network. */
const mac = (side: number, number: number): ReadonlyArray<number> => [
  0x02,
  side,
  0,
  (number >> 16) & 0xff,
  (number >> 8) & 0xff,
  number & 0xff
]

const sysctl = (key: string, value: string) => ({ op: "sysctl", key, value }) as const

/** Sends messages in the namespace of the process that performs it. */
export const netlinkOperation = (messages: ReadonlyArray<ReadonlyArray<number>>): Plan.Operation => ({
  op: "netlink",
  socket: null,
  messages: netlink.concat(messages),
  pidAt: -1
})

/** The supervisor sends fewer than 256 messages at a time. */
const MESSAGES_MAX = 128

/** The same for many messages. */
export const netlinkOperations = (
  messages: ReadonlyArray<ReadonlyArray<number>>
): ReadonlyArray<Plan.Operation> =>
  Array.from({ length: Math.ceil(messages.length / MESSAGES_MAX) }, (_, k) =>
    netlinkOperation(messages.slice(k * MESSAGES_MAX, (k + 1) * MESSAGES_MAX))
  )

/** Performs operations in a network namespace: of a descriptor of it, or of the pidfd of a process; `name` is for messages. */
export const perform = (
  berth: Pick<Berth, "supervisor">,
  namespace: number,
  name: string,
  operations: ReadonlyArray<Plan.Operation>,
  descriptors: Readonly<Record<string, number>> = {}
): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const plan = Plan.make([
      { op: "process", namespaces: flagsOf(["pid"]) },
      { op: "join", process: "process", namespaces: flagsOf(["network"]) },
      ...operations,
      { op: "exit" }
    ])
    return Effect.scoped(
      Effect.asVoid(
        scopedUnit(berth, berth.supervisor.nextId(), name, plan, { ...descriptors, process: namespace })
      )
    )
  })

/** The namespace of a network. No process is in it: it ends with the last descriptor of it, and of a socket in it. */
export interface NetworkNamespace {
  readonly range: Range
  /** -1 once its scope has closed. */
  readonly fd: number
}

const namespaceOf = (unit: Unit, range: Range): NetworkNamespace => ({
  range,
  get fd() {
    return unit.root()
  }
})

/** Has a namespace route, and believe no packet whose sender is elsewhere (rp_filter: ip-sysctl.rst). */
const routing = (range: Range): ReadonlyArray<Plan.Operation> => [
  // For the interfaces to come: the one for all interfaces waits for whatever the kernel does with others.
  sysctl("net/ipv4/conf/default/forwarding", "1"),
  sysctl("net/ipv4/conf/all/rp_filter", "0"),
  sysctl("net/ipv4/conf/default/rp_filter", "1"),
  sysctl("net/ipv4/conf/all/accept_redirects", "0"),
  sysctl("net/ipv4/conf/all/send_redirects", "0"),
  // No container has a process here: without root, the program binds any port for what it exposes.
  sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
  ...(range.prefix6 === undefined
    ? hasIPv6()
      ? ["all", "default"].map((name) => sysctl(`net/ipv6/conf/${name}/disable_ipv6`, "1"))
      : []
    : [
        sysctl("net/ipv6/conf/all/forwarding", "1"),
        sysctl("net/ipv6/conf/default/accept_ra", "0"),
        sysctl("net/ipv6/conf/default/accept_redirects", "0")
      ]),
  netlinkOperation([
    netlink.up(LOOPBACK_INDEX),
    ...[ROUTER_NUMBER, HOST_NUMBER]
      .flatMap((number) => addressesOf(range, number))
      .map((text) => netlink.address(LOOPBACK_INDEX, netlink.ip(text)))
  ])
]

/** Makes the namespace of a network in one unit, whose process ends at once; the unit keeps the descriptor. */
const namespaceBy = (
  berth: Pick<Berth, "supervisor">,
  range: Range,
  kinds: ReadonlyArray<Kind>,
  operations: ReadonlyArray<Plan.Operation>
): Effect.Effect<NetworkNamespace, BerthError, Scope.Scope> => {
  const plan = Plan.make([
    { op: "process", namespaces: flagsOf(kinds) },
    ...operations,
    { op: "send-network" },
    { op: "exit" }
  ])
  return scopedUnit(berth, berth.supervisor.nextId(), "network", plan, {}).pipe(
    Effect.mapBoth({ onFailure: explain(kinds), onSuccess: (unit) => namespaceOf(unit, range) })
  )
}

/** All of it in the one unit, as each further unit would add a millisecond to a start with a network of its own. */
export const makeNamespace = (
  berth: Pick<Berth, "supervisor">,
  range: Range
): Effect.Effect<NetworkNamespace, BerthError, Scope.Scope> =>
  // Without root, sysctls need a procfs, and that a pid namespace of its own.
  namespaceBy(berth, range, ["network", "pid"], routing(range))

/** The same, owned by a user namespace of its own with these ids: whoever is in that has rights over this network alone. */
export const makeOwnedNamespace = (
  berth: Pick<Berth, "supervisor">,
  range: Range,
  ids: Ids
): Effect.Effect<NetworkNamespace, BerthError, Scope.Scope> =>
  Effect.tap(namespaceBy(berth, range, ["network", "user"], [idMap(ids)]), ({ fd }) =>
    perform(berth, fd, "network", routing(range))
  )

const noFreeAddress = ({ range }: Router): InvalidOption =>
  new InvalidOption({
    option: "network",
    value: `${range.prefix4}.0.0/16`,
    expected: "a network with a free address: all are in use"
  })

/** Addresses that the network itself has. */
export interface OwnAddress {
  readonly number: number
  readonly addresses: ReadonlyArray<string>
}

/** Gives the network's namespace addresses of its own range, until the scope closes. */
export const ownAddress = (
  berth: Berth,
  router: Router
): Effect.Effect<OwnAddress, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      const number = router.numbers.take()
      if (number === undefined) return Effect.fail(noFreeAddress(router))
      const addresses = addressesOf(router.range, number)
      const add = addresses.map((text) => netlink.address(LOOPBACK_INDEX, netlink.ip(text)))
      return perform(berth, router.namespace.fd, "address of a network", [netlinkOperation(add)]).pipe(
        Effect.tapError(() => Effect.sync(() => router.numbers.give(number))),
        Effect.as({ number, addresses })
      )
    }),
    ({ addresses, number }) => {
      const remove = addresses.map((text) => netlink.removeAddress(LOOPBACK_INDEX, netlink.ip(text)))
      // A number whose addresses stay is not given to a container. The addresses of a network that is gone are gone as well.
      return perform(berth, router.namespace.fd, "address of a network", [netlinkOperation(remove)]).pipe(
        Effect.tap(() => Effect.sync(() => router.numbers.give(number))),
        Effect.ignore
      )
    }
  )

/** A socket in the network's namespace, which no container enters, bound to one of its addresses; throws. */
export const bindInside = (router: Router, { bytes, family, text }: SocketAddress): number => {
  const failed = (syscall: string, errno: number): BerthError =>
    new OperationFailed({ operation: `bind ${text} on a network`, index: -1, syscall, errno, hint: "" })
  const fd = socketIn(router.namespace.fd, family, SOCK_STREAM)
  if (fd < 0) throw failed("socket", -fd)
  const bound = native().bind(fd, bytes)
  if (bound >= 0) return fd
  native().close(fd)
  throw failed("bind", -bound)
}

/** The addresses of the network itself. */
export const gatewaysOf = ({ range }: Router): ReadonlyArray<string> => addressesOf(range, ROUTER_NUMBER)

/** The addresses that stand for the program's machine: nothing but exposed ports is there. */
export const hostAddressesOf = ({ range }: Router): ReadonlyArray<string> => addressesOf(range, HOST_NUMBER)

/** The number of the container that has an address of the network. */
export const numberOf = (address: string): number =>
  address.includes(":")
    ? Number.parseInt(address.slice(address.lastIndexOf(":") + 1), 16)
    : address.split(".").reduce((number, byte) => ((number << 8) | Number(byte)) & 0xffff, 0)

/** How a container is on a network. */
export interface Attachment {
  readonly number: number
  readonly place: number
  readonly addresses: ReadonlyArray<string>
  /** What gives the container its interface. */
  readonly operations: ReadonlyArray<Plan.Operation>
  readonly descriptors: Readonly<Record<string, number>>
  /** What has the container reach all other addresses by the interface. */
  readonly defaultRoute: Plan.Operation
  /** Closes the socket that the operations need; a second time it does nothing. */
  readonly close: () => void
}

/** What rp_filter does for IPv4: packets that come in by an interface have its container's address, or go nowhere. */
const rules = (number: number, from: string): ReadonlyArray<ReadonlyArray<number>> => {
  const { bytes, family } = netlink.ip(from)
  const { name } = near(number)
  return [
    netlink.rule({ priority: 100, family, interface: name, from: { bytes, family }, action: "route" }),
    netlink.rule({ priority: 101, family, interface: name, action: "drop" })
  ]
}

/**
 * Has rules check the senders of a container's IPv4 packets in place of rp_filter, which would drop the packets from whoever
 * cannot be answered. The rules stay, as those of IPv6 do.
 */
export const checkByRules = (router: Router, number: number): ReadonlyArray<Plan.Operation> => {
  const address = address4(router.range, number)
  const checks = router.ruled4.has(number) ? [] : [netlinkOperation(rules(number, address))]
  return [...checks, sysctl(`net/ipv4/conf/${near(number).name}/rp_filter`, "0")]
}

/**
 * Operations that give a container an interface on a network: `place` is the interface's place among its own, `isDefault` whether
 * it reaches all other addresses by this interface. Throws.
 */
export const attach = (router: Router, place: number, isDefault: boolean): Attachment => {
  const number = router.numbers.take()
  if (number === undefined) throw noFreeAddress(router)
  const socket = socketIn(router.namespace.fd, AF_NETLINK, SOCK_RAW)
  if (socket < 0) {
    router.numbers.give(number)
    throw new OperationFailed({
      operation: "attach to a network",
      index: -1,
      syscall: "socket",
      errno: -socket,
      hint: ""
    })
  }
  const { range } = router
  const addresses = addressesOf(range, number).map(netlink.ip)
  const outer = { ...near(number), mac: mac(1, number) }
  const inner = { ...far(place), mac: mac(0, number) }
  const pair = netlink.veth(outer, inner, router.mtu)
  const sixth = address6(range, number)
  const outside = [
    pair.bytes,
    ...addresses.flatMap((one) => [
      netlink.hostRoute(outer.index, one),
      netlink.neighbor(outer.index, one, inner.mac)
    ]),
    ...(sixth === undefined || router.ruled.has(number) ? [] : rules(number, sixth))
  ]
  const gateway = ({ family }: netlink.Ip): netlink.Ip => GATEWAYS[family === 2 ? 0 : 1]
  const route = (one: netlink.Ip, toAll: boolean): ReadonlyArray<number> => {
    const [to, length] = toAll
      ? [one, 0]
      : one.family === 2
        ? [netlink.ip(`${range.prefix4}.0.0`), BITS]
        : [netlink.ip(`${range.prefix6}::`), 64]
    return netlink.gatewayRoute(inner.index, to, length, gateway(one), one)
  }
  const inside = [
    // Loopback as well: the sockets of names are bound there.
    netlink.up(LOOPBACK_INDEX),
    netlink.up(inner.index),
    ...addresses.flatMap((one) => [
      netlink.address(inner.index, one),
      netlink.neighbor(inner.index, gateway(one), outer.mac),
      route(one, isDefault)
    ])
  ]
  const name = `network${place}`
  let open = true
  return {
    number,
    place,
    addresses: addressesOf(range, number),
    operations: [
      { op: "netlink", socket: name, messages: netlink.concat(outside), pidAt: pair.pidAt },
      netlinkOperation(inside),
      { op: "netlink", socket: name, messages: netlink.concat([netlink.look(outer.index)]), pidAt: -1 }
    ],
    descriptors: { [name]: socket },
    defaultRoute: netlinkOperation(addresses.map((one) => route(one, true))),
    close: () => {
      if (open) native().close(socket)
      open = false
    }
  }
}

export const makeRouter = (namespace: NetworkNamespace, mtu?: number): Router => ({
  namespace,
  range: namespace.range,
  mtu,
  numbers: new Numbers(2 ** BITS - 1),
  ruled: new Set(),
  ruled4: new Set()
})

/** Removes a container's interface: the kernel removes its other end with it, and all routes by both. */
export const detach = (
  berth: Berth,
  { namespace }: Router,
  { number }: Attachment
): Effect.Effect<void, BerthError> =>
  perform(berth, namespace.fd, "an interface of a network", [
    netlinkOperation([netlink.remove(near(number).index)])
  ])
