/** Sockets of a container's network namespace, which stay in it whoever has their descriptor. */
import * as Effect from "effect/Effect"
import {
  type BerthError,
  ContainerError,
  InvalidOption,
  NetworkError,
  OperationFailed
} from "../../BerthError.ts"
import type { Address, DatagramAddress } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { openIn, socketIn } from "../files/namespaceRoot.ts"
import { EPOLLOUT, native, O_PATH, RESOLVE_IN_ROOT } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { isContainer } from "../typeIds.ts"
import {
  ECONNREFUSED,
  ECONNRESET,
  EHOSTUNREACH,
  EINPROGRESS,
  ENETUNREACH,
  ENOENT,
  ESRCH,
  ETIMEDOUT
} from "../util/errno.ts"
import { abstractName, hostsOf, parsePort, type SocketAddress, socketAddress, unix } from "./address.ts"
import { ended, lastLog } from "./circumstances.ts"
import type { Served } from "./proxy.ts"

export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2

const failed = (container: Container, syscall: string, errno: number): BerthError =>
  errno === ESRCH
    ? new ContainerError({
        reason: "NotRunning",
        container: container.id,
        detail: `${ended(container)}, and nothing can connect to it`,
        log: lastLog(container)
      })
    : new OperationFailed({
        operation: `a socket in container ${container.id}`,
        index: -1,
        syscall,
        errno,
        hint: ""
      })

/** A socket in the network namespace of a container; throws. */
export const makeSocket = (container: Container, family: number, type = SOCK_STREAM): number => {
  const { kinds, pidfd } = container.state
  if (pidfd < 0) throw notRunning(container)
  const fd = socketIn(kinds.includes("network") ? pidfd : -1, family, type)
  if (fd < 0) throw failed(container, "socket", -fd)
  return fd
}

/** Reasons of a `NetworkError`, with what they say, by errno of connect(2). */
export const reasons = {
  [ECONNREFUSED]: ["Refused", "nothing listens there"],
  [ENOENT]: ["Refused", "there is no such socket"],
  [ETIMEDOUT]: ["TimedOut", "the server did not accept the connection in time; its queue may be full"],
  [ECONNRESET]: ["Reset", "the server broke the connection"],
  [ENETUNREACH]: ["Unreachable", "the container's network has no route to it"],
  [EHOSTUNREACH]: ["Unreachable", "the container's network has no such host"]
} as const

/** The error of a connection that failed. */
export const refused = (container: Container, address: string, errno: number): BerthError => {
  const known = reasons[errno as keyof typeof reasons]
  if (known === undefined) return failed(container, "connect", errno)
  const [reason, detail] = known
  const log = lastLog(container)
  return new NetworkError({ reason, subject: `container ${container.id}`, address, errno, detail, log })
}

/** The error of what needs a container that runs. */
export const notRunning = (container: Container): BerthError => failed(container, "setns", ESRCH)

/** The error of a path in what has no root of its own, or none any more. */
export const withoutRoot = (container: Served, path: string): BerthError =>
  isContainer(container) && container.state.pidfd < 0
    ? notRunning(container)
    : new InvalidOption({
        option: "path",
        value: JSON.stringify(path),
        expected: "a port or an abstract name, as there is no root of its own in which a path could be"
      })

/** A path is resolved in the container's root, whatever its links say (CVE-2024-21626 has their kind of attack). */
const inRoot = <A>(container: Container, path: string, use: (address: SocketAddress) => A): A => {
  const { root } = container.state
  const fd = root < 0 ? -ESRCH : openIn(root, path, O_PATH, RESOLVE_IN_ROOT, 0)
  if (fd < 0) throw root < 0 ? withoutRoot(container, path) : refused(container, path, -fd)
  try {
    return use({ ...unix(`/proc/self/fd/${fd}`), text: path })
  } finally {
    native().close(fd)
  }
}

/** A socket that is connected, or on its way. */
export interface Connecting {
  readonly fd: number
  readonly address: string
  /** 0, or -EINPROGRESS. */
  readonly result: number
}

/** Begins to connect a socket, which it closes if that fails at once; throws what `failed` makes of the error then. */
export const beginOn = (
  fd: number,
  { bytes, text }: SocketAddress,
  failed: (errno: number) => BerthError
): Connecting => {
  const begun = native().connect(fd, bytes)
  const result = begun === -EINPROGRESS ? native().connected(fd) : begun
  if (result === 0 || result === -EINPROGRESS) return { fd, address: text, result }
  native().close(fd)
  throw failed(-result)
}

const begin = (container: Container, address: SocketAddress, type = SOCK_STREAM): Connecting =>
  beginOn(makeSocket(container, address.family, type), address, (errno) =>
    refused(container, address.text, errno)
  )

/**
 * Begins to connect; throws where that fails at once. On one machine it nearly always succeeds or fails at once: only a
 * server whose queue is full lets it wait.
 */
export const beginConnect = (container: Container, address: Address): Connecting => {
  const given = typeof address === "number" ? { port: address } : address
  if ("path" in given) {
    const name = abstractName(given.path)
    return name === undefined
      ? inRoot(container, given.path, (found) => begin(container, found))
      : begin(container, name)
  }
  const port = parsePort("port", given.port)
  return firstOf(hostsOf(given, container.state.addresses), (host) =>
    begin(container, socketAddress(host, port))
  )
}

/** What `begin` gives for the first host for which it does not throw; else throws its first error. */
export const firstOf = (hosts: ReadonlyArray<string>, begin: (host: string) => Connecting): Connecting => {
  let first: unknown
  for (const host of hosts)
    try {
      return begin(host)
    } catch (error) {
      first ??= error
    }
  throw first
}

/** A socket for datagrams, which has an address to send to at once: nobody is asked whether something listens there. Throws. */
export const connectDatagrams = (container: Container, { host, port, protocol }: DatagramAddress) => {
  if (protocol !== "udp")
    throw new InvalidOption({
      option: "protocol",
      value: String(protocol),
      expected: '"udp", or nothing for TCP'
    })
  const [first] = hostsOf({ port, ...(host === undefined ? {} : { host }) }, container.state.addresses)
  return begin(container, socketAddress(first!, parsePort("port", port)), SOCK_DGRAM)
}

/** Waits until a socket is ready for `events` of epoll(7). */
export const whenReady = (
  fd: number,
  events: number,
  failed: (syscall: string, errno: number) => BerthError
): Effect.Effect<void, BerthError> =>
  Effect.async((resume) => {
    Loop.retain()
    const cancel = Loop.watch(fd, events, () => {
      Loop.release()
      resume(Effect.void)
    })
    if (typeof cancel === "number") {
      Loop.release()
      return resume(Effect.fail(failed("epoll_ctl", -cancel)))
    }
    return Effect.sync(() => {
      cancel()
      Loop.release()
    })
  })

/** Waits until a socket that has begun to connect is connected. */
export const connected = (
  container: Container,
  { address, fd, result }: Connecting
): Effect.Effect<void, BerthError> =>
  result === 0
    ? Effect.void
    : Effect.flatMap(
        whenReady(fd, EPOLLOUT, (syscall, errno) => failed(container, syscall, errno)),
        () => {
          const error = native().connected(fd)
          return error === 0 ? Effect.void : Effect.fail(refused(container, address, -error))
        }
      )
