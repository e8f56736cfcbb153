/**
 * A network: a namespace that routes between its containers. Each container has a pair of interfaces (veth(4)) with one end
 * there, its own address, and routes and neighbours that are all fixed: no container is asked for an address, and no answer
 * is believed. The kernel is the teardown: the interfaces go with their namespaces.
 */
import { existsSync } from "node:fs"
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption, OperationFailed } from "../../BerthError.ts"
import type * as Namespace from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native } from "../system/addon.ts"
import * as netlink from "./netlink.ts"

const AF_NETLINK = 16
const SOCK_RAW = 3

/** So many milliseconds an address stays unused when its container is gone, whose interfaces the kernel removes later. */
const QUARANTINE_MS = 2000

/** The interfaces of a network are numbered from here, those of a container from the second. */
const ROUTER_INDEX = 1000
const CONTAINER_INDEX = 100

/** Nobody has them: they are the next hop of every container. */
const GATEWAY = { 4: "169.254.1.1", 6: "fe80::1" } as const

/** The numbers of a network's containers: the lowest that has been free for a while. */
class Numbers {
  private readonly used = new Set<number>()
  private readonly freed: Array<readonly [number: number, since: number]> = []
  private readonly size: number
  private next = 2

  constructor(size: number) {
    this.size = size
  }

  take(): number | undefined {
    const [oldest] = this.freed
    const reused = oldest !== undefined && performance.now() - oldest[1] > QUARANTINE_MS
    const number = reused ? this.freed.shift()![0] : this.next
    if (!reused && this.next++ >= this.size) return undefined
    this.used.add(number)
    return number
  }

  give(number: number): void {
    if (this.used.delete(number)) this.freed.push([number, performance.now()])
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
  readonly holder: Namespace.Namespace
  readonly range: Range
  readonly numbers: Numbers
  /** The numbers whose rules are there: they stay, for the next container of that number. */
  readonly ruled: Set<number>
}

const hasIPv6 = (): boolean => existsSync("/proc/sys/net/ipv6")

const BITS = 16

const address4 = ({ prefix4 }: Range, number: number): string =>
  `${prefix4}.${(number >> 8) & 0xff}.${number & 0xff}`

const address6 = ({ prefix6 }: Range, number: number): string | undefined =>
  prefix6 === undefined ? undefined : `${prefix6}::${number.toString(16)}`

const addressesOf = (range: Range, number: number): ReadonlyArray<string> => {
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

/** Has the namespace route, and believe no packet whose sender is elsewhere (rp_filter: ip-sysctl.rst). */
export const configure = (
  berth: Berth,
  holder: Namespace.Namespace,
  range: Range
): Effect.Effect<void, BerthError> => {
  const own = addressesOf(range, 1).map((text) => netlink.address(1, netlink.ip(text)))
  const plan = Plan.make([
    { op: "process", namespaces: flagsOf(["pid"]) },
    { op: "join", process: "holder", namespaces: flagsOf(["network"]) },
    sysctl("net/ipv4/ip_forward", "1"),
    sysctl("net/ipv4/conf/all/rp_filter", "1"),
    sysctl("net/ipv4/conf/all/accept_redirects", "0"),
    sysctl("net/ipv4/conf/all/send_redirects", "0"),
    ...(range.prefix6 === undefined
      ? []
      : [
          sysctl("net/ipv6/conf/all/forwarding", "1"),
          sysctl("net/ipv6/conf/default/accept_ra", "0"),
          sysctl("net/ipv6/conf/default/accept_redirects", "0")
        ]),
    { op: "netlink", socket: null, messages: netlink.concat(own), pidAt: -1 },
    { op: "exit" }
  ])
  const name = "configuration of a network"
  return Effect.scoped(
    Effect.asVoid(scopedUnit(berth, berth.supervisor.nextId(), name, plan, { holder: holder.pidfd }))
  )
}

/** How a container is on a network. */
export interface Attachment {
  readonly number: number
  readonly place: number
  readonly addresses: ReadonlyArray<string>
  readonly operations: ReadonlyArray<Plan.Operation>
  readonly descriptors: Readonly<Record<string, number>>
  /** Closes the socket that the operations need; a second time it does nothing. */
  readonly close: () => void
}

/** IPv6 has no rp_filter: packets that come in by an interface have its container's address, or go nowhere. */
const rules = (number: number, from: string): ReadonlyArray<ReadonlyArray<number>> => {
  const { bytes, family } = netlink.ip(from)
  const name = `v${number}`
  return [
    netlink.rule({ priority: 100, family, interface: name, from: { bytes, family }, action: "route" }),
    netlink.rule({ priority: 101, family, interface: name, action: "drop" })
  ]
}

/** Operations that give a container an interface on a network: `place` is the interface's place among its own. Throws. */
export const attach = (router: Router, place: number): Attachment => {
  const number = router.numbers.take()
  if (number === undefined)
    throw new InvalidOption({
      option: "network",
      value: `${router.range.prefix4}.0.0/16`,
      expected: "a network with a free address: all are in use"
    })
  const socket = socketIn(router.holder.pidfd, AF_NETLINK, SOCK_RAW)
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
  const near = { index: ROUTER_INDEX + number, name: `v${number}`, mac: mac(1, number) }
  const far = { index: CONTAINER_INDEX + place, name: `eth${place}`, mac: mac(0, number) }
  const pair = netlink.veth(near, far)
  const sixth = address6(range, number)
  const outside = [
    pair.bytes,
    ...addresses.flatMap((one) => [
      netlink.hostRoute(near.index, one),
      netlink.neighbor(near.index, one, far.mac)
    ]),
    ...(sixth === undefined || router.ruled.has(number) ? [] : rules(number, sixth))
  ]
  const inside = [
    // Loopback as well: the sockets of names are bound there.
    netlink.up(1),
    netlink.up(far.index),
    ...addresses.flatMap((one) => {
      const gateway = netlink.ip(one.family === 2 ? GATEWAY[4] : GATEWAY[6])
      const [to, length] =
        place === 0
          ? [one, 0]
          : one.family === 2
            ? [netlink.ip(`${range.prefix4}.0.0`), BITS]
            : [netlink.ip(`${range.prefix6}::`), 64]
      return [
        netlink.address(far.index, one),
        netlink.neighbor(far.index, gateway, near.mac),
        netlink.gatewayRoute(far.index, to, length, gateway, one)
      ]
    })
  ]
  const name = `network${place}`
  let open = true
  return {
    number,
    place,
    addresses: addressesOf(range, number),
    operations: [
      { op: "netlink", socket: name, messages: netlink.concat(outside), pidAt: pair.pidAt },
      { op: "netlink", socket: null, messages: netlink.concat(inside), pidAt: -1 },
      { op: "netlink", socket: name, messages: netlink.concat([netlink.look(near.index)]), pidAt: -1 }
    ],
    descriptors: { [name]: socket },
    close: () => {
      if (open) native().close(socket)
      open = false
    }
  }
}

export const makeRouter = (holder: Namespace.Namespace, range: Range): Router => ({
  holder,
  range: hasIPv6() ? range : { ...range, prefix6: undefined },
  numbers: new Numbers(2 ** BITS - 1),
  ruled: new Set()
})
