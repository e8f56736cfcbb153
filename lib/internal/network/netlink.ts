/** Messages of rtnetlink(7), as the kernel reads them. Every interface has a number that is chosen here, so none is looked up. */
import { littleEndian, v4Bytes, v6Bytes } from "./address.ts"

/** Bytes in the machine's own order. */
export class Writer {
  private readonly parts: Array<number> = []

  u8(...values: ReadonlyArray<number>): this {
    this.parts.push(...values)
    return this
  }

  u16(value: number): this {
    const low = value & 0xff
    const high = (value >> 8) & 0xff
    if (littleEndian) this.parts.push(low, high)
    else this.parts.push(high, low)
    return this
  }

  u32(value: number): this {
    const low = value & 0xffff
    const high = value >>> 16
    return littleEndian ? this.u16(low).u16(high) : this.u16(high).u16(low)
  }

  u64(value: number): this {
    const [low, high] = [value % 2 ** 32, Math.floor(value / 2 ** 32)]
    return littleEndian ? this.u32(low).u32(high) : this.u32(high).u32(low)
  }

  get bytes(): Bytes {
    return this.parts
  }
}

export type Bytes = ReadonlyArray<number>

const u32 = (value: number): Bytes => new Writer().u32(value).bytes
const encoder = new TextEncoder()

export const text = (value: string): Bytes => [...encoder.encode(value), 0]

/** Each begins on a multiple of 4: NLMSG_ALIGN and RTA_ALIGN. */
const aligned = (length: number): number => (length + 3) & ~3

// Each start on a network encodes about twenty messages. Spreads, flat() and arrays that grow take several times as long as this.
const joined = (parts: ReadonlyArray<Bytes>): Bytes => {
  let length = 0
  for (const part of parts) length += aligned(part.length)
  const all = new Array<number>(length)
  let at = 0
  for (const part of parts) {
    for (let k = 0; k < part.length; k++) all[at++] = part[k]!
    while (at % 4 !== 0) all[at++] = 0
  }
  return all
}

export const attribute = (type: number, value: Bytes): Bytes =>
  joined([new Writer().u16(value.length + 4).u16(type).bytes, value])

export const nested = (type: number, ...attributes: ReadonlyArray<Bytes>): Bytes =>
  attribute(type, joined(attributes))

const NLM_F_REQUEST = 0x001
const NLM_F_ACK = 0x004
export const NLM_F_REPLACE = 0x100
const NLM_F_EXCL = 0x200
export const NLM_F_CREATE = 0x400

export const message = (
  type: number,
  flags: number,
  header: Bytes,
  ...attributes: ReadonlyArray<Bytes>
): Bytes => {
  const length = attributes.reduce((sum, { length }) => sum + length, 16 + aligned(header.length))
  const head = new Writer()
    .u32(length)
    .u16(type)
    .u16(NLM_F_REQUEST | NLM_F_ACK | flags)
  return joined([head.u32(0).u32(0).bytes, header, ...attributes])
}

const CREATE_FLAGS = NLM_F_CREATE | NLM_F_EXCL

const AF_INET = 2
const AF_INET6 = 10

/** An IP address with its family. */
export interface Ip {
  readonly family: number
  readonly bytes: Bytes
}

export const ip = (address: string): Ip =>
  address.includes(":")
    ? { family: AF_INET6, bytes: v6Bytes(address) }
    : { family: AF_INET, bytes: v4Bytes(address) }

/** `struct ifinfomsg`. */
const interfaceHeader = (index: number, flags: number, change: number): Bytes =>
  new Writer().u8(0, 0).u16(0).u32(index).u32(flags).u32(change).bytes

const IFF_UP = 1

export interface Veth {
  readonly index: number
  readonly name: string
  /** A MAC address of 6 bytes. */
  readonly mac: Bytes
}

const IFLA_NUM_TX_QUEUES = 31
const IFLA_NUM_RX_QUEUES = 32

/**
 * One queue for each direction. Veth takes no lock for a queue, so that more do not make it faster. Without these the kernel makes one for
 * each CPU, with files in sysfs, which takes longer than all else here: 0.3 of 0.45 ms with two CPUs.
 */
const oneQueue: ReadonlyArray<Bytes> = [
  attribute(IFLA_NUM_TX_QUEUES, u32(1)),
  attribute(IFLA_NUM_RX_QUEUES, u32(1))
]

/**
 * A pair of interfaces (veth(4)): `near` in the namespace of the socket, up, and `far` in that of a process. The pid is
 * filled in by who sends it, 4 bytes at the offset.
 */
export const veth = (near: Veth, far: Veth): { readonly bytes: Bytes; readonly pidAt: number } => {
  const describe = ({ mac, name }: Veth): ReadonlyArray<Bytes> => [
    attribute(3, text(name)),
    attribute(1, mac),
    ...oneQueue
  ]
  const process = attribute(19, u32(0))
  const peer = joined([interfaceHeader(far.index, 0, 0), ...describe(far), process])
  const bytes = message(
    16,
    CREATE_FLAGS,
    interfaceHeader(near.index, IFF_UP, IFF_UP),
    ...describe(near),
    nested(18, attribute(1, text("veth")), nested(2, attribute(1, peer)))
  )
  return { bytes, pidAt: bytes.length - 4 }
}

/** Takes an interface up. */
export const up = (index: number): Bytes => message(16, 0, interfaceHeader(index, IFF_UP, IFF_UP))

/**
 * Asks for an interface, which needs no privileges. The kernel first finishes what it has put off since the other end of a pair
 * went up (linkwatch): until then it drops what is sent by the interface. Since Linux 6.8.
 */
export const look = (index: number): Bytes => message(18, 0, interfaceHeader(index, 0, 0))

/** Removes an interface, and with a veth the other end of the pair. */
export const remove = (index: number): Bytes => message(17, 0, interfaceHeader(index, 0, 0))

const IFA_F_NODAD = 0x02

/** Gives an interface an address, of which nobody else is asked first. */
export const address = (index: number, { bytes, family }: Ip): Bytes =>
  message(
    20,
    CREATE_FLAGS,
    new Writer().u8(family, bytes.length * 8, 0, 0).u32(index).bytes,
    attribute(2, bytes),
    attribute(1, bytes),
    attribute(8, u32(family === AF_INET6 ? IFA_F_NODAD : 0))
  )

/** Takes an address from an interface. */
export const removeAddress = (index: number, { bytes, family }: Ip): Bytes =>
  message(
    21,
    0,
    new Writer().u8(family, bytes.length * 8, 0, 0).u32(index).bytes,
    attribute(2, bytes),
    attribute(1, bytes)
  )

const RT_TABLE_MAIN = 254
const RTPROT_STATIC = 4
const RT_SCOPE_UNIVERSE = 0
const RT_SCOPE_LINK = 253
const RTN_UNICAST = 1
const RTN_PROHIBIT = 8
const RTNH_F_ONLINK = 4

/** The route to one host. */
export const hostRoute = (index: number, { bytes, family }: Ip): Bytes =>
  message(
    24,
    CREATE_FLAGS,
    new Writer()
      .u8(family, bytes.length * 8, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST)
      .u32(0).bytes,
    attribute(1, bytes),
    attribute(4, u32(index))
  )

/** The route to a range of addresses, or, with a length of 0, to all others, by a gateway that is on the link. */
export const gatewayRoute = (index: number, to: Ip, length: number, gateway: Ip, source: Ip): Bytes =>
  message(
    24,
    CREATE_FLAGS,
    new Writer()
      .u8(to.family, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST)
      .u32(RTNH_F_ONLINK).bytes,
    ...(length === 0 ? [] : [attribute(1, to.bytes)]),
    attribute(4, u32(index)),
    attribute(5, gateway.bytes),
    attribute(7, source.bytes)
  )

/** Refuses packets to a range of addresses, which their senders are told at once, but for those to smaller ranges with routes of their own. */
export const refuse = ({ bytes, family }: Ip, length: number): Bytes =>
  message(
    24,
    NLM_F_CREATE | NLM_F_REPLACE,
    new Writer()
      .u8(family, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_PROHIBIT)
      .u32(0).bytes,
    attribute(1, bytes)
  )

const NUD_PERMANENT = 0x80

/** Who has an address on a link: nobody is asked, and no answer is believed. */
export const neighbor = (index: number, { bytes, family }: Ip, mac: Bytes): Bytes =>
  message(
    28,
    CREATE_FLAGS,
    new Writer().u8(family, 0).u16(0).u32(index).u16(NUD_PERMANENT).u8(0, 0).bytes,
    attribute(1, bytes),
    attribute(2, mac)
  )

const FR_ACT_TO_TBL = 1
const FR_ACT_BLACKHOLE = 6

/** A rule for packets that come in by an interface, from an address or from any: ip-rule(8). */
export interface Rule {
  readonly priority: number
  readonly family: number
  readonly interface?: string
  readonly from?: Ip
  readonly to?: Ip
  readonly action: "route" | "drop"
}

const ruleMessage = (type: number, flags: number, options: Rule): Bytes => {
  const { action, family, from, priority, to } = options
  const size = (one: Ip | undefined): number => (one === undefined ? 0 : one.bytes.length * 8)
  const routed = action === "route"
  return message(
    type,
    flags,
    new Writer()
      .u8(family, size(to), size(from), 0, routed ? RT_TABLE_MAIN : 0, 0, 0)
      .u8(routed ? FR_ACT_TO_TBL : FR_ACT_BLACKHOLE)
      .u32(0).bytes,
    attribute(6, u32(priority)),
    ...(to === undefined ? [] : [attribute(1, to.bytes)]),
    ...(from === undefined ? [] : [attribute(2, from.bytes)]),
    ...(options.interface === undefined ? [] : [attribute(3, text(options.interface))])
  )
}

export const rule = (options: Rule): Bytes => ruleMessage(32, NLM_F_CREATE, options)

/** Removes one rule that is equal. */
export const removeRule = (options: Rule): Bytes => ruleMessage(33, 0, options)

export const concat = (messages: ReadonlyArray<Bytes>): Uint8Array => new Uint8Array(joined(messages))
