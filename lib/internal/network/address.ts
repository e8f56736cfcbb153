/** Addresses of sockets, as `struct sockaddr` of the kernel: ip(7), ipv6(7), unix(7). */
import * as net from "node:net"
import { InvalidOption } from "../../BerthError.ts"
import type { Address } from "../../Connection.ts"

export const AF_UNIX = 1
export const AF_INET = 2
export const AF_INET6 = 10

export const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1

/** `sun_path` of unix(7), with the NUL at its end. */
const UNIX_PATH_BYTES = 108

export interface SocketAddress {
  readonly family: number
  readonly bytes: Uint8Array
  /** `127.0.0.1:5432`, `[::1]:5432`, `@name`. */
  readonly text: string
}

/** `struct sockaddr` with its family, in the machine's own byte order. */
const withFamily = (family: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(length)
  bytes[littleEndian ? 0 : 1] = family
  return bytes
}

const setPort = (bytes: Uint8Array, port: number): void => {
  bytes[2] = port >> 8
  bytes[3] = port & 0xff
}

/** The 4 bytes of an address that `net.isIPv4` accepts. */
export const v4Bytes = (host: string): ReadonlyArray<number> => host.split(".").map(Number)

const v4 = (host: string, port: number): SocketAddress => {
  const bytes = withFamily(AF_INET, 16)
  setPort(bytes, port)
  bytes.set(v4Bytes(host), 4)
  return { family: AF_INET, bytes, text: `${host}:${port}` }
}

/** The 16 bytes of an address that `net.isIPv6` accepts. */
export const v6Bytes = (host: string): ReadonlyArray<number> => {
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(host)
  const hex = (a: string, b: string): string => (Number(a) * 256 + Number(b)).toString(16)
  const text =
    dotted === null ? host : `${dotted[1]}${hex(dotted[2]!, dotted[3]!)}:${hex(dotted[4]!, dotted[5]!)}`
  const [head = "", tail] = text.split("::")
  const groups = (part: string): ReadonlyArray<string> => (part === "" ? [] : part.split(":"))
  const before = groups(head)
  const after = tail === undefined ? [] : groups(tail)
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => "0")
  return [...before, ...zeros, ...after].flatMap((group) => {
    const value = Number.parseInt(group, 16)
    return [value >> 8, value & 0xff]
  })
}

const v6 = (host: string, port: number): SocketAddress => {
  const bytes = withFamily(AF_INET6, 28)
  setPort(bytes, port)
  bytes.set(v6Bytes(host), 8)
  return { family: AF_INET6, bytes, text: `[${host}]:${port}` }
}

/** A Unix socket at a path, or by a name that begins with a NUL in the abstract namespace. */
export const unix = (path: string): SocketAddress => {
  const name = new TextEncoder().encode(path)
  const bytes = withFamily(AF_UNIX, 2 + name.length + (path.startsWith("\0") ? 0 : 1))
  bytes.set(name, 2)
  return { family: AF_UNIX, bytes, text: path.replace(/^\0/, "@") }
}

/** The port of a `struct sockaddr_in` or `sockaddr_in6`. */
export const portOf = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getUint16(2)

export const parsePort = (option: string, port: number, lowest = 1): number => {
  if (Number.isInteger(port) && port >= lowest && port <= 65535) return port
  throw new InvalidOption({ option, value: String(port), expected: `a port, from ${lowest} to 65535` })
}

/** An abstract name (unix(7)), which belongs to a network namespace; undefined for a path, which belongs to a root. */
export const abstractName = (path: string): SocketAddress | undefined => {
  const bytes = Buffer.byteLength(path)
  if (path.includes("\0") || path.length < 2 || (!path.startsWith("/") && !path.startsWith("@")))
    throw new InvalidOption({
      option: "path",
      value: JSON.stringify(path),
      expected: "an absolute path in the container, or @ and the name of an abstract socket"
    })
  if (!path.startsWith("@")) return undefined
  if (bytes > UNIX_PATH_BYTES)
    throw new InvalidOption({ option: "path", value: path, expected: `at most ${UNIX_PATH_BYTES} bytes` })
  return unix(`\0${path.slice(1)}`)
}

export const LOOPBACK: ReadonlyArray<string> = ["127.0.0.1", "::1"]

type Port = Extract<Address, { readonly port: number }>

/** The hosts to try for a port, in order: without a host, the container's own addresses before loopback's. */
export const hostsOf = ({ host }: Port, own: ReadonlyArray<string> = []): ReadonlyArray<string> =>
  host === undefined ? [...own, ...LOOPBACK] : host === "localhost" ? LOOPBACK : [host]

/** The address of a port of a host; throws. */
export const socketAddress = (host: string, port: number): SocketAddress => {
  const version = host.includes("%") ? 0 : net.isIP(host)
  if (version === 0)
    throw new InvalidOption({
      option: "host",
      value: JSON.stringify(host),
      expected: "localhost or an IP address"
    })
  return version === 4 ? v4(host, port) : v6(host, port)
}

/** The addresses to try for a port, in order. */
export const candidates = (address: Port, lowest = 1): ReadonlyArray<SocketAddress> => {
  const port = parsePort("port", address.port, lowest)
  return hostsOf(address).map((host) => socketAddress(host, port))
}
