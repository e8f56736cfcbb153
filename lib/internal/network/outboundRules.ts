/**
 * What containers of a network may reach outside of it: an allow-list as the rules of native/proxy/outbound.h, of which the first
 * that matches decides, and as the names of native/names/allowed.h.
 */
import * as net from "node:net"
import { InvalidOption } from "../../BerthError.ts"
import type { Outbound } from "../../Network.ts"
import { littleEndian, v4Bytes, v6Bytes } from "./address.ts"
import { netLines } from "./holders.ts"

/** A range of addresses in CIDR notation. */
export interface Range {
  readonly address: string
  readonly bits: number
}

const range = (cidr: string): Range => {
  const [address = "", bits] = cidr.split("/")
  return { address, bits: Number(bits) }
}

const bytesOf = ({ address }: Range): ReadonlyArray<number> =>
  address.includes(":") ? v6Bytes(address) : v4Bytes(address)

const bitAt = (bytes: ReadonlyArray<number>, at: number): number => (bytes[at >> 3]! >> (7 - (at & 7))) & 1

const isWithin = (inner: Range, outer: Range): boolean => {
  const [a, b] = [bytesOf(inner), bytesOf(outer)]
  if (a.length !== b.length || inner.bits < outer.bits) return false
  for (let at = 0; at < outer.bits; at++) if (bitAt(a, at) !== bitAt(b, at)) return false
  return true
}

/** Never allowed: what the program has on its loopback is for `Network.expose`. The rest are other spellings of IPv4. */
const loopback = ["127.0.0.0/8", "0.0.0.0/8", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96"].map(range)

/** Link-local, multicast, reserved and broadcast addresses, and those at which clouds hand out the credentials of a machine. */
const special = [
  "169.254.0.0/16",
  "224.0.0.0/4",
  "240.0.0.0/4",
  "100.100.100.200/32",
  "168.63.129.16/32",
  "192.0.0.192/32",
  "fe80::/10",
  "fec0::/10",
  "ff00::/8",
  "fd00:ec2::/32",
  "fd20:ce::254/128"
].map(range)

const hex = (high: number, low: number): string => ((high << 8) | low).toString(16)

/** Ranges of IPv6 that lead to one of IPv4: by a NAT64 (RFC 6052) and by 6to4 (RFC 3056). */
const embedded = (of: Range): ReadonlyArray<Range> => {
  const [a, b, c, d] = bytesOf(of) as [number, number, number, number]
  return [
    { address: `64:ff9b::${hex(a, b)}:${hex(c, d)}`, bits: 96 + of.bits },
    { address: `2002:${hex(a, b)}:${hex(c, d)}::`, bits: 16 + of.bits }
  ]
}

const withEmbedded = (ranges: ReadonlyArray<Range>): ReadonlyArray<Range> =>
  ranges.flatMap((one) => (one.address.includes(":") ? [one] : [one, ...embedded(one)]))

/** What is refused whoever asks: the ranges `own`, this machine's loopback, and special addresses. */
export const refusedRanges = (own: ReadonlyArray<string>): ReadonlyArray<Range> =>
  withEmbedded([...own.map(range), ...loopback, ...special])

interface Allowed extends Range {
  readonly port: number
}

/** Everything that leaves a network, as the rules say it. */
export interface Rules {
  readonly rules: ReadonlyArray<string>
  /** Names and ports that may be asked for; undefined where all may. */
  readonly names: ReadonlyArray<string> | undefined
}

const EXPECTED =
  'a name ("registry.example.com", "*.example.org"), an address or a range ("10.0.0.0/8", "2001:db8::/32"), each with a port or without ("[2001:db8::1]:443")'

const refuse = (entry: unknown, index: number, expected = EXPECTED): never => {
  throw new InvalidOption({ option: `outbound.allow[${index}]`, value: JSON.stringify(entry), expected })
}

const parsePort = (entry: string, index: number, port: string | undefined): number => {
  if (port === undefined) return 0
  const number = Number(port)
  return number >= 1 && number <= 65535 ? number : refuse(entry, index, "a port, from 1 to 65535")
}

const parseRange = (entry: string, index: number, text: string, port: number): Allowed => {
  const [address = "", length, ...more] = text.split("/")
  const most = net.isIPv4(address) ? 32 : 128
  const bits = length === undefined ? most : /^\d{1,3}$/.test(length) ? Number(length) : -1
  if (bits < 0 || bits > most || more.length > 0) refuse(entry, index)
  const given = { address, bits, port }
  const bytes = bytesOf(given)
  for (let at = bits; at < most; at++)
    if (bitAt(bytes, at) === 1) refuse(entry, index, `a range whose address is zero after its ${bits} bits`)
  const never = loopback.find((one) => isWithin(given, one))
  if (never !== undefined)
    refuse(
      entry,
      index,
      "an address of another machine; Network.expose leads to a port of this one's loopback"
    )
  return given
}

const NAME = /^(?:\*\.)?(?=[a-z0-9_])[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$/i

const isAddress = (text: string): boolean => net.isIP(text.split("/", 1)[0]!) !== 0 && !text.includes("%")

const parseEntry = (entry: string, index: number): Allowed | string => {
  if (typeof entry !== "string") return refuse(entry, index)
  const bracketed = /^\[([^\]]*)\](\/\d+)?(?::(\d{1,5}))?$/.exec(entry)
  const plain = /^([^:[\]]*)(?::(\d{1,5}))?$/.exec(entry)
  const [text, port] =
    bracketed !== null
      ? [`${bracketed[1]}${bracketed[2] ?? ""}`, bracketed[3]]
      : plain !== null
        ? [plain[1]!, plain[2]]
        : [entry, undefined]
  const number = parsePort(entry, index, port)
  if (isAddress(text)) return parseRange(entry, index, text, number)
  const name = text.replace(/\.$/, "").toLowerCase()
  // A name of digits alone at its end is a wrong address.
  if (bracketed !== null || !NAME.test(name) || name.length > 253 || /(^|\.)\d+$/.test(name))
    return refuse(entry, index)
  return `${name} ${number}`
}

/** The bytes of a number of 32 bits in a file of /proc/net, which are in the machine's own order. */
const procBytes = (text: string): ReadonlyArray<number> => {
  const bytes = [0, 2, 4, 6].map((at) => Number.parseInt(text.slice(at, at + 2), 16))
  return littleEndian ? bytes.reverse() : bytes
}

/** The IPv4 routes of the program's machine: proc(5). */
const hostRoutes = (): ReadonlyArray<Range & { readonly link: string }> =>
  netLines("route").flatMap(([link, to, , , , , , mask]) => {
    if (link === undefined || to === undefined || mask === undefined) return []
    const bits = procBytes(mask).reduce((sum, byte) => sum + byte.toString(2).replaceAll("0", "").length, 0)
    return [{ link, address: procBytes(to).join("."), bits }]
  })

/** What is outside in the range of 16 bits with these first two bytes, where containers could not reach it; undefined for nothing known. */
export const hiddenBy = (prefix4: string, outbound: Outbound): string | undefined => {
  const own = range(`${prefix4}.0.0/16`)
  const route = hostRoutes().find((one) => isWithin(one, own))
  if (route !== undefined)
    return `${route.address}/${route.bits}, to which this machine has a route by ${route.link}`
  const allow = typeof outbound === "object" && Array.isArray(outbound.allow) ? outbound.allow : []
  const entries = allow.map(parseEntry).filter((entry) => typeof entry !== "string")
  const entry = entries.find((one) => isWithin(one, own))
  return entry === undefined ? undefined : `${entry.address}/${entry.bits}, which outbound allows`
}

const ENTRIES_MAX = 1000

/** The rules for a network with its own ranges; throws. */
export const rulesOf = (outbound: Exclude<Outbound, "none" | "pasta">, own: ReadonlyArray<string>): Rules => {
  if (outbound !== "proxy" && typeof outbound !== "object")
    throw new InvalidOption({
      option: "outbound",
      value: JSON.stringify(outbound),
      expected: '"none", "proxy", "pasta" or { allow: [...] }'
    })
  if (typeof outbound === "object" && Object.keys(outbound).some((key) => key !== "allow"))
    throw new InvalidOption({
      option: "outbound",
      value: JSON.stringify(outbound),
      expected: '{ allow: [...] } and no other field: "pasta" has no list, as it leads to every address'
    })
  const allow = outbound === "proxy" ? undefined : outbound.allow
  if (allow !== undefined && (!Array.isArray(allow) || allow.length > ENTRIES_MAX))
    throw new InvalidOption({
      option: "outbound.allow",
      value: Array.isArray(allow) ? `${allow.length} entries` : String(allow),
      expected: `a list of at most ${ENTRIES_MAX} entries`
    })
  const entries = allow?.map(parseEntry)
  const refused = withEmbedded(special)
  const ranges = entries?.filter((entry) => typeof entry !== "string") ?? []
  const names = entries?.filter((entry) => typeof entry === "string")
  const isSingle = ({ address, bits }: Range): boolean => bits === (address.includes(":") ? 128 : 32)
  const isExplicit = (one: Range): boolean => isSingle(one) || refused.some((outer) => isWithin(one, outer))
  const allowing = ({ address, bits, port }: Allowed): string => `allow ${address}/${bits} ${port}`
  const refusing = ({ address, bits }: Range): string => `refuse ${address}/${bits} 0`
  return {
    rules: [
      ...[...own.map(range), ...withEmbedded(loopback)].map(refusing),
      ...ranges.filter(isExplicit).map(allowing),
      ...refused.map(refusing),
      "refuse-own",
      ...(entries === undefined
        ? ["allow 0.0.0.0/0 0", "allow ::/0 0"]
        : [...ranges.filter((one) => !isExplicit(one)).map(allowing), "allow-learned"])
    ],
    names
  }
}
