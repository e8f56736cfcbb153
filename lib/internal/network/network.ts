/** Networks as values, and the containers on them. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type {
  Network,
  NetworkOptions,
  Pod,
  PodTypeId as PublicPodTypeId,
  TypeId as PublicTypeId,
  Refusal
} from "../../Network.ts"
import { attempt } from "../util/fromThrowing.ts"
import { whole } from "../util/whole.ts"
import { makeNames, NAMES_MAX_BYTES, type Names, NETWORKS_MAX, type Responder } from "./names.ts"
import { openOutbound } from "./outbound.ts"
import { hiddenBy } from "./outboundRules.ts"
import { UPLINK_MTU } from "./pasta.ts"
import {
  type Attachment,
  attach,
  hasIPv6,
  hostAddressesOf,
  makeNamespace,
  makeRouter,
  nextRange,
  type Range,
  type Router
} from "./router.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Network") as PublicTypeId

export const isNetwork = (u: unknown): u is Network => hasProperty(u, TypeId)

export const PodTypeId: PublicPodTypeId = Symbol.for("berth/Pod") as PublicPodTypeId

export const isPod = (u: unknown): u is Pod => hasProperty(u, PodTypeId)

/** What can be on networks: the network namespace of a container, or of a pod. */
export interface Station {
  /** The id of the container, or the name of the pod. */
  readonly container: string
  /** The name of the container on each of its networks, besides the id. */
  readonly name: string | undefined
  /** Its interfaces, by their places: interface 2 is eth2. */
  readonly interfaces: Map<number, Interface>
  /** Where it asks for names, and its number there, once it has the sockets for that. */
  asker: { readonly number: number; readonly responder: Responder } | undefined
  /** Held while it joins a network, or leaves one. */
  changing: Effect.Semaphore | undefined
  /** Whether it leaves all networks at its own end. */
  isReleased: boolean
  /** Whether that has begun: it joins no network any more. */
  isLeaving: boolean
}

/** An interface on a network. */
export interface Interface {
  readonly network: Network
  readonly attachment: Attachment
  /** The names of its addresses. */
  readonly names: ReadonlyArray<string>
  /** Whether the route to all other addresses is by this interface. */
  isDefault: boolean
}

export const makeStation = (container: string, name: string | undefined): Station => ({
  container,
  name,
  interfaces: new Map(),
  asker: undefined,
  changing: undefined,
  isReleased: false,
  isLeaving: false
})

/** The addresses of a station, those of its first interface first. */
export const addressesOf = ({ interfaces }: Station): ReadonlyArray<string> =>
  [...interfaces.keys()].sort((a, b) => a - b).flatMap((place) => interfaces.get(place)!.attachment.addresses)

/** The addresses that stand for the program's machine on the first network of a station. */
export const hostAddressesAt = ({ interfaces }: Station): ReadonlyArray<string> => {
  const first = interfaces.get(Math.min(...interfaces.keys()))
  return first === undefined ? [] : hostAddressesOf(first.network.state.router)
}

export interface State {
  readonly berth: Berth
  readonly router: Router
  readonly names: Names
  /** The containers on it, by their numbers there. */
  readonly members: Map<number, Station>
  /** The names of `Network.expose`. */
  readonly exposed: Set<string>
  /** Undefined without `outbound`. */
  refusals: PubSub.PubSub<Refusal> | undefined
}

const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Network) {
    const containers = [...this.state.members.values()].map(({ container }) => container)
    return { _id: "berth/Network", name: this.name, range: this.range, containers }
  },
  toString(this: Network) {
    return `Network(${this.name}, ${this.range}, ${this.state.members.size} containers)`
  },
  [Inspectable.NodeInspectSymbol](this: Network) {
    return this.toString()
  }
}

/** The range of the options: of addresses that a container can have, RFC 6890; undefined for the usual one. Throws. */
const rangeOf = ({ ipv6, outbound = "none", range }: NetworkOptions): Range | undefined => {
  const isUsual = range === undefined && (ipv6 === undefined || ipv6 === hasIPv6())
  if (isUsual && outbound === "none") return undefined
  const hidden = (prefix4: string) => (outbound === "none" ? undefined : hiddenBy(prefix4, outbound))
  const next = nextRange((prefix4) => hidden(prefix4) !== undefined)
  const prefix6 = (ipv6 ?? hasIPv6()) ? next.prefix6 : undefined
  if (ipv6 === true && !hasIPv6()) {
    const expected = "false or nothing, as this kernel has no IPv6 (/proc/sys/net/ipv6)"
    throw new InvalidOption({ option: "ipv6", value: "true", expected })
  }
  if (range === undefined) return { ...next, prefix6 }
  const [, first, second] = /^([1-9]\d{0,2})\.(0|[1-9]\d{0,2})\.0\.0\/16$/.exec(range) ?? []
  const [a, b] = [Number(first), Number(second)]
  const isUsable = a > 0 && a < 224 && b < 256 && a !== 127 && !(a === 169 && b === 254)
  const lost = isUsable ? hidden(`${a}.${b}`) : undefined
  if (isUsable && lost === undefined) return { prefix4: `${a}.${b}`, prefix6 }
  const expected =
    lost === undefined
      ? 'an IPv4 range of 16 bits, such as "10.5.0.0/16", that is not loopback, link-local, multicast or reserved'
      : `another range, because the containers could not reach ${lost}`
  throw new InvalidOption({ option: "range", value: JSON.stringify(range), expected })
}

export const parseName = (option: string, name: string): string => {
  if (/^(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$/i.test(name) && name.length <= 253)
    return name.toLowerCase()
  const expected = "a host name: labels of letters, digits, - and _, at most 253 characters"
  throw new InvalidOption({ option, value: JSON.stringify(name), expected })
}

export const make = (
  berth: Berth,
  options: NetworkOptions
): Effect.Effect<Network, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const name = yield* attempt(() =>
      parseName("name", options.name ?? `net-${randomBytes(4).toString("hex")}`)
    )
    const range = yield* attempt(() => rangeOf(options))
    const namespace = yield* range === undefined ? berth.usualNamespace : makeNamespace(berth, range)
    const router = makeRouter(namespace, options.outbound === "pasta" ? UPLINK_MTU : undefined)
    const names = yield* makeNames(berth)
    const state: State = { berth, router, names, members: new Map(), exposed: new Set(), refusals: undefined }
    // The kernel removes the interfaces with the network's namespace.
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const station of [...state.members.values()]) {
          for (const one of [...station.interfaces.values()])
            if (one.network.state === state) exit(station, one)
          see(station)
        }
      })
    )
    const network: Network = Object.assign(Object.create(Proto), {
      name,
      range: `${router.range.prefix4}.0.0/16`,
      state
    })
    state.refusals = yield* openOutbound(network, options)
    return network
  }).pipe(whole)

export const checkFree = (networks: ReadonlyArray<Network>, name: string): void => {
  for (const network of networks) {
    const { exposed, members } = network.state
    const member = [...members.values()].find((member) => member.name === name)
    const holder = member === undefined ? "an exposed port" : `container ${member.container}`
    if (member === undefined && !exposed.has(name)) continue
    const expected = `another name: ${holder} has it on network ${network.name}; an alias may be shared`
    throw new InvalidOption({ option: "name", value: JSON.stringify(name), expected })
  }
}

const checkNetwork = ({ asker, container, interfaces }: Station, network: Network): void => {
  const refuse = (expected: string): never => {
    throw new InvalidOption({ option: "network", value: String(network), expected })
  }
  const { names, router } = network.state
  if (router.namespace.fd < 0) refuse("a network whose scope is open")
  const responder = asker?.responder ?? [...interfaces.values()][0]?.network.state.names.responder
  if (responder !== undefined && responder !== names.responder)
    refuse(`a network of the same Berth as the other networks of ${container}`)
  if (interfaces.size >= NETWORKS_MAX) refuse(`at most ${NETWORKS_MAX} networks of one container`)
  for (const one of interfaces.values()) {
    if (one.network === network) refuse(`another network, as ${container} is on this one already`)
    if (one.network.range === network.range)
      refuse(`a network of another range than that of ${one.network.name}, which ${container} is on already`)
  }
}

/** An interface, and the messages to the network's responder that give names to its addresses. */
interface Entered {
  readonly one: Interface
  readonly introductions: ReadonlyArray<string>
}

/** Takes an address on a network; throws, and then has taken none. */
export const enter = (station: Station, network: Network, aliases: ReadonlyArray<string>): Entered => {
  const { members, names, router } = network.state
  const { container, interfaces, name } = station
  checkNetwork(station, network)
  if (name !== undefined) checkFree([network], name)
  let place = 0
  while (interfaces.has(place)) place++
  const isDefault = ![...interfaces.values()].some((one) => one.isDefault)
  const attachment = attach(router, place, isDefault)
  const given = [...(name === undefined ? [] : [name]), ...aliases, container]
  const one: Interface = { network, attachment, names: given, isDefault }
  interfaces.set(place, one)
  members.set(attachment.number, station)
  return { one, introductions: names.introductions(attachment.number, given, attachment.addresses) }
}

/** Gives the address back, which nobody may use any more; a second time it does nothing. */
export const exit = ({ interfaces }: Station, left: Interface): void => {
  const { attachment, network } = left
  if (interfaces.get(attachment.place) !== left) return
  attachment.close()
  interfaces.delete(attachment.place)
  network.state.members.delete(attachment.number)
  network.state.names.remove(attachment.number)
  network.state.router.numbers.give(attachment.number)
}

/**
 * The operation by which a station gets the sockets on which it asks for names. What fits of the introductions goes with the sockets, so that
 * a start wakes the responder once.
 */
export const serve = (station: Station, responder: Responder, introductions: ReadonlyArray<string> = []) => {
  const number = responder.nextNumber()
  station.asker = { number, responder }
  const fits = introductions.reduce((bytes, { length }) => bytes + length, 0) < NAMES_MAX_BYTES
  if (!fits) introductions.forEach(responder.tell)
  return {
    operation: {
      op: "name-sockets",
      responder: "names",
      message: [`serve ${number}${networksSeen(station)}`, ...(fits ? introductions : [])].join("\n")
    } as const,
    descriptors: { names: responder.socket() }
  }
}

const networksSeen = ({ interfaces }: Station): string =>
  [...interfaces.values()].map(({ network }) => ` ${network.state.names.network}`).join("")

/** Has the responder know which networks a station is on. */
export const see = (station: Station): void =>
  station.asker?.responder.tell(`see ${station.asker.number}${networksSeen(station)}`)

/** Has the responder close the sockets of a station, which would keep its network namespace. */
export const stopAsking = (station: Station): void => {
  station.asker?.responder.tell(`leave ${station.asker.number}`)
  station.asker = undefined
}
