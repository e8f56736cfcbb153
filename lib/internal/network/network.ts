/** Networks as values, and the containers on them. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import type * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { StartOptions } from "../../Container.ts"
import type { Network, NetworkOptions, TypeId as PublicTypeId, Refusal } from "../../Network.ts"
import type { Operation } from "../../Plan.ts"
import { attempt } from "../util/fromThrowing.ts"
import { makeNames, type Names, RESOLVER } from "./names.ts"
import { openOutbound } from "./outbound.ts"
import { type Attachment, attach, makeRouter, type Router } from "./router.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Network") as PublicTypeId

export const isNetwork = (u: unknown): u is Network => hasProperty(u, TypeId)

/** A container on a network. */
export interface Member {
  readonly container: string
  readonly name: string | undefined
  /** The place of the network among those of the container. */
  readonly place: number
}

export interface State {
  readonly berth: Berth
  readonly router: Router
  readonly names: Names
  readonly members: Map<number, Member>
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
    const router = yield* makeRouter(berth, nextRange())
    const names = yield* makeNames(berth, name)
    const state: State = { berth, router, names, members: new Map(), exposed: new Set(), refusals: undefined }
    const range = `${router.range.prefix4}.0.0/16`
    const network: Network = Object.assign(Object.create(Proto), { name, range, state })
    state.refusals = yield* openOutbound(network, options)
    return network
  })

/** A container's interfaces on networks, until it is given back. */
export interface Joined {
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
    if (!isNetwork(network) || networks.indexOf(network) !== place)
      throw new InvalidOption({
        option: "network",
        value: String(network),
        expected: '"none", "host", a network of Network.make, or a list of networks without repetition'
      })
  })
}

/** A container asks one responder, which is that of its first network. */
const serve = (number: number): Operation => ({
  op: "name-sockets",
  responder: "names",
  message: `serve ${number}`
})

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

/** Takes an address on each network; throws, and then has taken none. */
export const join = (container: string, options: StartOptions): Joined => {
  const networks = networksOf(options)
  check(networks)
  const name = options.name === undefined ? undefined : parseName("name", options.name)
  if (name !== undefined) checkFree(networks, name)
  const aliases = (options.aliases ?? []).map((alias) => parseName("aliases", alias))
  const joined: Array<readonly [Network, Attachment]> = []
  const leave = (): void => {
    for (const [{ state }, { close, number }] of joined) {
      close()
      state.members.delete(number)
      state.names.remove(number)
      state.router.numbers.give(number)
    }
  }
  try {
    networks.forEach((network, place) => {
      const attachment = attach(network.state.router, place)
      joined.push([network, attachment])
      const { addresses, number } = attachment
      network.state.members.set(number, { container, name, place })
      network.state.names.add(
        number,
        [...(name === undefined ? [] : [name]), ...aliases, container],
        addresses
      )
    })
  } catch (error) {
    leave()
    throw error
  }
  const attachments = joined.map(([, attachment]) => attachment)
  const first = joined[0]
  return {
    operations: [
      ...attachments.flatMap(({ operations }) => operations),
      ...(first === undefined ? [] : [serve(first[1].number)])
    ],
    descriptors: Object.assign(
      first === undefined ? {} : { names: first[0].state.names.socket },
      ...attachments.map(({ descriptors }) => descriptors)
    ),
    addresses: attachments.flatMap(({ addresses }) => addresses),
    nameservers: first === undefined ? [] : [RESOLVER],
    done: () => {
      for (const [{ state }, { close, number }] of joined) {
        close()
        state.router.ruled.add(number)
      }
    },
    leave
  }
}
