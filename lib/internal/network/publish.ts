/** Ports of the host that lead into a container. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, InvalidOption, NetworkError, OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { PublishedPort, PublishOptions } from "../../Network.ts"
import { native } from "../system/addon.ts"
import { EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { candidates, parsePort, portOf, type SocketAddress } from "./address.ts"
import { parseOnePort } from "./ports.ts"
import { addressesIn, makeProxy } from "./proxy.ts"
import { SOCK_DGRAM, SOCK_STREAM } from "./socket.ts"

/** How many free ports of IPv4 are tried until the same one is free of IPv6. */
const ATTEMPTS = 32

type Protocol = "tcp" | "udp"

/** The states, of proc(5), in which a socket has a port for itself: TCP_LISTEN, TCP_CLOSE. */
const HOLDING = { tcp: "0A", udp: "07" }

/** The processes that have a port, by /proc/net of proc(5), as far as this process may see them. */
const holdersOf = (port: number, protocol: Protocol): ReadonlyArray<string> => {
  const hex = port.toString(16).toUpperCase().padStart(4, "0")
  const inodes = [protocol, `${protocol}6`].flatMap((name) => {
    try {
      const lines = fs.readFileSync(`/proc/self/net/${name}`, "utf8").split("\n").slice(1)
      const words = lines.map((line) => line.trim().split(/\s+/))
      return words
        .filter(([, local, , state]) => local?.endsWith(`:${hex}`) && state === HOLDING[protocol])
        .map((fields) => `socket:[${fields[9]}]`)
    } catch {
      return [] // without IPv6
    }
  })
  if (inodes.length === 0) return []
  return fs.readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return []
    try {
      const links = fs.readdirSync(`/proc/${pid}/fd`).map((fd) => {
        try {
          return fs.readlinkSync(`/proc/${pid}/fd/${fd}`)
        } catch {
          return ""
        }
      })
      if (!links.some((link) => inodes.includes(link))) return []
      return [`${fs.readFileSync(`/proc/${pid}/comm`, "utf8").trim()} (pid ${pid})`]
    } catch {
      return [] // another user's, or gone
    }
  })
}

/** What is published: the container and the protocol. */
interface Subject {
  readonly container: Container
  readonly protocol: Protocol
}

const failed = (
  { container, protocol }: Subject,
  address: SocketAddress,
  syscall: string,
  errno: number
): BerthError => {
  const subject = `container ${container.id}`
  if (errno === EADDRINUSE) {
    const holders = holdersOf(portOf(address.bytes), protocol)
    const by = holders.length === 0 ? "" : ` by ${holders.join(", ")}`
    const detail = `the port is taken${by}; choose another one, or 0 for one that is free`
    return new NetworkError({ reason: "AddressInUse", subject, address: address.text, errno, detail })
  }
  if (errno === EADDRNOTAVAIL)
    return new NetworkError({
      reason: "Unreachable",
      subject,
      address: address.text,
      errno,
      detail: "this machine does not have the address; choose one that `ip address` lists"
    })
  return new OperationFailed({ operation: `publish ${address.text}`, index: -1, syscall, errno, hint: "" })
}

/** A socket that is bound on the host, and its port; throws. */
const bind = (subject: Subject, address: SocketAddress): readonly [fd: number, port: number] => {
  const type = subject.protocol === "tcp" ? SOCK_STREAM : SOCK_DGRAM
  const fd = native().socketIn(-1, -1, address.family, type)
  if (fd < 0) throw failed(subject, address, "socket", -fd)
  const bound = native().bind(fd, address.bytes)
  if (bound < 0) {
    native().close(fd)
    throw failed(subject, address, "bind", -bound)
  }
  const name = new Uint8Array(28)
  native().socketAddress(fd, name)
  return [fd, portOf(name)]
}

const isWithoutIPv6 = (error: unknown): boolean =>
  (error instanceof NetworkError && error.errno === EADDRNOTAVAIL) ||
  (error instanceof OperationFailed && error.errno === EAFNOSUPPORT)

const isTaken = (error: unknown): boolean => error instanceof NetworkError && error.errno === EADDRINUSE

/** The same port on all addresses of the host; throws. */
const bindAll = (
  subject: Subject,
  host: string | undefined,
  port: number
): readonly [Array<number>, number] => {
  for (let attempt = 1; ; attempt++) {
    const [first, second] = candidates({ port, ...(host === undefined ? {} : { host }) }, 0)
    const [fd, chosen] = bind(subject, first!)
    if (second === undefined) return [[fd], chosen]
    try {
      const sixth = candidates({ port: chosen, ...(host === undefined ? {} : { host }) })[1]!
      return [[fd, bind(subject, sixth)[0]], chosen]
    } catch (error) {
      if (isWithoutIPv6(error)) return [[fd], chosen]
      native().close(fd)
      if (port !== 0 || attempt === ATTEMPTS || !isTaken(error)) throw error
    }
  }
}

/** See `Container.publish`. */
export const publish: {
  (
    port: number | string | PublishOptions
  ): (container: Container) => Effect.Effect<PublishedPort, BerthError, Scope.Scope>
  (
    container: Container,
    port: number | string | PublishOptions
  ): Effect.Effect<PublishedPort, BerthError, Scope.Scope>
} = dual(2, (container: Container, given: number | string | PublishOptions) =>
  Effect.gen(function* () {
    const options = yield* attempt(() => parseOnePort(given))
    const { host = 0, hostname, protocol = "tcp" } = options
    if (protocol !== "tcp" && protocol !== "udp")
      return yield* Effect.fail(
        new InvalidOption({ option: "protocol", value: JSON.stringify(protocol), expected: '"tcp" or "udp"' })
      )
    const port = yield* attempt(() => parsePort("container", options.container))
    yield* attempt(() => parsePort("host", host, 0))
    if (hostname === "") {
      const expected = "localhost or an IP address of this machine"
      return yield* Effect.fail(new InvalidOption({ option: "hostname", value: '""', expected }))
    }
    const [left, chosen] = yield* Effect.acquireRelease(
      attempt(() => bindAll({ container, protocol }, hostname, host)),
      ([fds]) => Effect.sync(() => fds.forEach((fd) => native().close(fd)))
    )
    const proxy = yield* makeProxy(container)
    const add = protocol === "tcp" ? proxy.add : proxy.addDatagrams
    while (left.length > 0) yield* add(left.shift()!, addressesIn(container), port)
    return {
      hostname: hostname === undefined || hostname === "localhost" ? "127.0.0.1" : hostname,
      port: chosen
    }
  }).pipe(Effect.withSpan("berth.Container.publish", { attributes: { "container.id": container.id } }))
)
