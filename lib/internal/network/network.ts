/** Networks as values, and the containers on them. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { StartOptions } from "../../Container.ts"
import type { Namespace } from "../../Namespace.ts"
import type { Network, NetworkOptions, TypeId as PublicTypeId } from "../../Network.ts"
import { attempt } from "../util/fromThrowing.ts"
import { makeNames, type Names, NETWORKS_MAX, RESOLVER, type Responder } from "./names.ts"
import { type Attachment, attach, configure, makeRouter, type Router } from "./router.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Network") as PublicTypeId

export const isNetwork = (u: unknown): u is Network => hasProperty(u, TypeId)

/** A network namespace that is on networks: a container's. */
export interface Station {
  /** The id of the container. */
  readonly container: string
  /** Its name on each of its networks, besides the id. */
  readonly name: string | undefined
  /** Its interfaces, by their places. */
  readonly interfaces: Map<number, Interface>
  /** The number under which it asks for names, once it has the sockets for that. */
  asker: number | undefined
}

/** An interface on a network. */
export interface Interface {
  readonly network: Network
  readonly attachment: Attachment
}

export interface State {
  readonly router: Router
  readonly names: Names
  /** The containers on it, by their numbers there. */
  readonly members: Map<number, Station>
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

// Ranges differ between the networks of a program, as a container may be on several.
let ranges = randomBytes(1)[0]!

const LOWEST = 128
const COUNT = 100

/** A range of IPv4, and one of the unique local addresses of IPv6 (RFC 4193), written as inet_ntop(3) writes it. */
const nextRange = () => {
  const id = randomBytes(8)
  const groups = [0xfd00 | id.readUInt8(0), id.readUInt16BE(2), id.readUInt16BE(4), id.readUInt16BE(6)]
  return {
    prefix4: `10.${LOWEST + (ranges++ % COUNT)}`,
    prefix6: groups.map((group) => group.toString(16)).join(":")
  }
}

const parseName = (option: string, name: string): string => {
  if (/^(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$/i.test(name) && name.length <= 253)
    return name.toLowerCase()
  const expected = "a host name: labels of letters, digits, - and _, at most 253 characters"
  throw new InvalidOption({ option, value: JSON.stringify(name), expected })
}

export const make = (
  berth: Berth,
  holder: Namespace,
  options: NetworkOptions
): Effect.Effect<Network, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const name = yield* attempt(() =>
      parseName("name", options.name ?? `net-${randomBytes(4).toString("hex")}`)
    )
    const router = makeRouter(holder, nextRange())
    yield* configure(berth, holder, router.range)
    const names = yield* makeNames(berth)
    const state: State = { router, names, members: new Map() }
    return Object.assign(Object.create(Proto), { name, range: `${router.range.prefix4}.0.0/16`, state })
  })

/** What a start makes of its networks. */
export interface Joined {
  /** Undefined without any. */
  readonly station: Station | undefined
  readonly operations: Attachment["operations"]
  readonly descriptors: Attachment["descriptors"]
  readonly addresses: ReadonlyArray<string>
  /** The addresses of name servers. */
  readonly nameservers: ReadonlyArray<string>
  /** Says that the operations have been performed. */
  readonly done: () => void
  readonly leave: () => void
}

export const none: Joined = {
  station: undefined,
  operations: [],
  descriptors: {},
  addresses: [],
  nameservers: [],
  done: () => {},
  leave: () => {}
}

/** The networks that the option of a start names. */
export const networksOf = ({ network }: StartOptions): ReadonlyArray<Network> =>
  network === undefined || typeof network === "string" ? [] : isNetwork(network) ? [network] : network

const check = (networks: ReadonlyArray<Network>): void => {
  networks.forEach((network, place) => {
    if (!isNetwork(network) || networks.indexOf(network) !== place || place >= NETWORKS_MAX)
      throw new InvalidOption({
        option: "network",
        value: String(network),
        expected: `"none", "host", a network of Network.make, or a list of at most ${NETWORKS_MAX} networks without repetition`
      })
  })
}

const checkFree = (network: Network, name: string): void => {
  for (const member of network.state.members.values())
    if (member.name === name) {
      const expected = `another name: container ${member.container} has it on network ${network.name}; an alias may be shared`
      throw new InvalidOption({ option: "name", value: JSON.stringify(name), expected })
    }
}

const parseAliases = (aliases: ReadonlyArray<string> = []): ReadonlyArray<string> =>
  aliases.map((alias) => parseName("aliases", alias))

const numbersOf = ({ interfaces }: Station): ReadonlyArray<number> =>
  [...interfaces.values()].map(({ network }) => network.state.names.network)

/** Takes an address on a network, and names for it; throws, and then has taken none. */
const enter = (station: Station, network: Network, aliases: ReadonlyArray<string>): Interface => {
  const { members, names, router } = network.state
  const { container, interfaces, name } = station
  if (name !== undefined) checkFree(network, name)
  let place = 0
  while (interfaces.has(place)) place++
  const attachment = attach(router, place)
  const entered = { network, attachment }
  interfaces.set(place, entered)
  members.set(attachment.number, station)
  names.add(
    attachment.number,
    [...(name === undefined ? [] : [name]), ...aliases, container],
    attachment.addresses
  )
  return entered
}

/** Gives the address back, which nobody may use any more. */
const exit = (station: Station, { attachment, network: { state } }: Interface): void => {
  attachment.close()
  station.interfaces.delete(attachment.place)
  state.members.delete(attachment.number)
  state.names.remove(attachment.number)
  state.router.numbers.give(attachment.number)
}

/** The operation by which a station gets the sockets on which it asks for names. */
const serve = (station: Station, { nextNumber, socket }: Responder) => {
  station.asker = nextNumber()
  return {
    operation: {
      op: "name-sockets",
      responder: "names",
      message: ["serve", station.asker, ...numbersOf(station)].join(" ")
    } as const,
    descriptors: { names: socket() }
  }
}

/** Takes an address on each network; throws, and then has taken none. */
export const join = (container: string, options: StartOptions): Joined => {
  const networks = networksOf(options)
  check(networks)
  const name = options.name === undefined ? undefined : parseName("name", options.name)
  const aliases = parseAliases(options.aliases)
  const station: Station = { container, name, interfaces: new Map(), asker: undefined }
  const leave = (): void => {
    for (const entered of [...station.interfaces.values()]) exit(station, entered)
    if (station.asker !== undefined) networks[0]!.state.names.responder.tell(`leave ${station.asker}`)
  }
  try {
    const attachments = networks.map((network) => enter(station, network, aliases).attachment)
    const first = networks[0]
    const served = first === undefined ? undefined : serve(station, first.state.names.responder)
    return {
      station,
      operations: [
        ...attachments.flatMap(({ operations }) => operations),
        ...(served === undefined ? [] : [served.operation])
      ],
      descriptors: Object.assign(
        { ...served?.descriptors },
        ...attachments.map(({ descriptors }) => descriptors)
      ),
      addresses: attachments.flatMap(({ addresses }) => addresses),
      nameservers: first === undefined ? [] : [RESOLVER],
      done: () => {
        for (const { attachment, network } of station.interfaces.values()) {
          attachment.close()
          network.state.router.ruled.add(attachment.number)
        }
      },
      leave
    }
  } catch (error) {
    leave()
    throw error
  }
}
