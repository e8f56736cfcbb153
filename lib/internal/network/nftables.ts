/** Messages of nf_tables (nft(8)) over NETLINK_NETFILTER, as the kernel reads them: linux/netfilter/nf_tables.h has the numbers. */
import { attribute, type Bytes, type Ip, message, nested, text, Writer } from "./netlink.ts"

/** The numbers of nf_tables are in the order of the network. */
const be16 = (value: number): Bytes => [(value >> 8) & 0xff, value & 0xff]
const be32 = (value: number): Bytes => [...be16(value >>> 16), ...be16(value & 0xffff)]

const NFNL_SUBSYS_NFTABLES = 10
const NLM_F_REQUEST = 0x001
const NLM_F_APPEND = 0x800
const NLM_F_CREATE = 0x400

/** `struct nfgenmsg`. */
const header = (family: number, resource = 0): Bytes => [family, 0, ...be16(resource)]

/** The first and the last message of a batch, which the kernel performs whole or not at all. */
const mark = (type: number): Bytes => {
  const head = new Writer().u32(20).u16(type).u16(NLM_F_REQUEST).u32(0).u32(0)
  return [...head.bytes, ...header(0, NFNL_SUBSYS_NFTABLES)]
}

const create = (type: number, family: number, ...attributes: ReadonlyArray<Bytes>): Bytes =>
  message((NFNL_SUBSYS_NFTABLES << 8) | type, NLM_F_CREATE | NLM_F_APPEND, header(family), ...attributes)

const table = (family: number, name: string): Bytes => create(0, family, attribute(1, text(name)))

interface Hook {
  readonly number: number
  readonly priority: number
}

/** Where a chain may change the destination of a connection, before it is routed, and where its source, afterwards. */
const PRE_ROUTING: Hook = { number: 0, priority: -100 }
const POST_ROUTING: Hook = { number: 4, priority: 100 }

const natChain = (family: number, tableName: string, name: string, { number, priority }: Hook): Bytes =>
  create(
    3,
    family,
    attribute(1, text(tableName)),
    attribute(3, text(name)),
    nested(4, attribute(1, be32(number)), attribute(2, be32(priority))),
    attribute(7, text("nat"))
  )

const expression = (name: string, ...attributes: ReadonlyArray<Bytes>): Bytes =>
  nested(1, attribute(1, text(name)), nested(2, ...attributes))

const rule = (
  family: number,
  tableName: string,
  chain: string,
  ...expressions: ReadonlyArray<Bytes>
): Bytes =>
  create(6, family, attribute(1, text(tableName)), attribute(2, text(chain)), nested(4, ...expressions))

const REGISTERS = [1, 2] as const
const NFT_META_OIFNAME = 7
const NFT_META_L4PROTO = 16
const NFT_PAYLOAD_NETWORK_HEADER = 1
const NFT_CMP_EQ = 0
const NFT_CMP_NEQ = 1
const NFT_NAT_DNAT = 1
const IPPROTO_TCP = 6

const value = (bytes: Bytes): Bytes => attribute(1, bytes)
const register = (type: number, place: 0 | 1): Bytes => attribute(type, be32(REGISTERS[place]))
const compare = (how: number, bytes: Bytes): Bytes =>
  expression("cmp", register(1, 0), attribute(2, be32(how)), nested(3, value(bytes)))
const load = (place: 0 | 1, bytes: Bytes): Bytes =>
  expression("immediate", register(1, place), nested(2, value(bytes)))

const IFNAMSIZ = 16

/** Gives what leaves by an interface the address of the interface as its source, for versions of IP by their families. */
export const masquerade = (interfaceName: string, families: ReadonlyArray<number>): ReadonlyArray<Bytes> => {
  const name = [...text(interfaceName), ...new Array(IFNAMSIZ).fill(0)].slice(0, IFNAMSIZ)
  return [
    mark(0x10),
    ...families.flatMap((family) => [
      table(family, "berth"),
      natChain(family, "berth", "masquerade", POST_ROUTING),
      rule(
        family,
        "berth",
        "masquerade",
        expression("meta", register(1, 0), attribute(2, be32(NFT_META_OIFNAME))),
        compare(NFT_CMP_EQ, name),
        expression("masq")
      )
    ]),
    mark(0x11)
  ]
}

/** A listening socket of the network's namespace. */
export interface Listener {
  readonly address: Ip
  readonly port: number
  /** The bytes with which the addresses of the network begin. */
  readonly prefix: Bytes
}

/** Redirects the TCP connections that come in and go to no address of the network to a listener for each version of IP. */
export const redirect = (listeners: ReadonlyArray<Listener>): ReadonlyArray<Bytes> => [
  mark(0x10),
  ...listeners.flatMap(({ address: { bytes, family }, port, prefix }) => [
    table(family, "berth"),
    natChain(family, "berth", "outbound", PRE_ROUTING),
    rule(
      family,
      "berth",
      "outbound",
      expression("meta", register(1, 0), attribute(2, be32(NFT_META_L4PROTO))),
      compare(NFT_CMP_EQ, [IPPROTO_TCP]),
      // The destination's offset in the header of IPv4, and of IPv6.
      expression(
        "payload",
        register(1, 0),
        attribute(2, be32(NFT_PAYLOAD_NETWORK_HEADER)),
        attribute(3, be32(bytes.length === 4 ? 16 : 24)),
        attribute(4, be32(prefix.length))
      ),
      compare(NFT_CMP_NEQ, prefix),
      load(0, bytes),
      load(1, be16(port)),
      expression(
        "nat",
        attribute(1, be32(NFT_NAT_DNAT)),
        attribute(2, be32(family)),
        register(3, 0),
        register(5, 1)
      )
    )
  ]),
  mark(0x11)
]
