/** Ports of the host that lead into a container. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, NetworkError, OperationFailed } from "../../BerthError.ts"
import type {
  Publishable,
  PublishedPath,
  PublishedPort,
  PublishOptions,
  PublishPathOptions
} from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import type { Pod } from "../../Network.ts"
import { native } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { type ContainerElsewhere, onlyHere } from "../util/elsewhere.ts"
import { EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { invalid } from "../util/validate.ts"
import { whole } from "../util/whole.ts"
import { candidates, parsePort, portOf, type SocketAddress } from "./address.ts"
import { heldBy, portInodes } from "./holders.ts"
import { bindPath } from "./hostPath.ts"
import { isPod } from "./network.ts"
import { parseOnePort } from "./ports.ts"
import {
  addAll,
  addressesIn,
  makeProxy,
  type Proxy,
  type Served,
  type Target,
  toPath,
  toPort
} from "./proxy.ts"
import { SOCK_DGRAM, SOCK_STREAM } from "./socket.ts"
import { shape } from "./toxic.ts"

/** How many free ports of IPv4 are tried until the same one is free of IPv6. */
const ATTEMPTS = 32

type Protocol = "tcp" | "udp"

/** What is published: the container and the protocol. */
interface Subject {
  readonly container: Served
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
    const by = heldBy(portInodes(portOf(address.bytes), protocol))
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

/** The server in the container; throws. */
const targetOf = (container: Served, to: PublishOptions["container"], protocol: Protocol): Target => {
  if (typeof to !== "object") return toPort(addressesIn(container), parsePort("container", to), protocol)
  if (protocol === "udp") invalid("container", to, "a port: a Unix socket has no UDP")
  return toPath(container, to.path)
}

/** Starts the proxy, or gives the one that there is. */
type GetProxy = Effect.Effect<Proxy, BerthError, Scope.Scope>

/** The ports of the host by the container's: `80/tcp`. */
const ports = new WeakMap<Served["state"], Map<string, PublishedPort>>()

const keyOf = (port: number, protocol: Protocol): string => `${port}/${protocol}`

/** Lets `published` find a port until the scope closes. */
const remember = (
  container: Served,
  key: string,
  port: PublishedPort
): Effect.Effect<void, never, Scope.Scope> => {
  const known = ports.get(container.state) ?? new Map<string, PublishedPort>()
  ports.set(container.state, known.set(key, port))
  return Effect.addFinalizer(() =>
    Effect.sync(() => {
      if (known.get(key) === port) known.delete(key)
    })
  )
}

const publishPort = (
  container: Served,
  { container: to, host = 0, hostname, protocol = "tcp" }: PublishOptions,
  getProxy: GetProxy
): Effect.Effect<PublishedPort, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const target = yield* attempt(() => {
      if (protocol !== "tcp" && protocol !== "udp") invalid("protocol", protocol, '"tcp" or "udp"')
      parsePort("host", host, 0)
      if (hostname === "") invalid("hostname", hostname, "localhost or an IP address of this machine")
      return targetOf(container, to, protocol)
    })
    const [left, chosen] = yield* Effect.acquireRelease(
      attempt(() => bindAll({ container, protocol }, hostname, host)),
      ([fds]) => Effect.sync(() => fds.forEach((fd) => native().close(fd)))
    )
    const proxy = yield* getProxy
    const ids = yield* addAll(proxy, left, target)
    const published = {
      hostname: hostname === undefined || hostname === "localhost" ? "127.0.0.1" : hostname,
      port: chosen
    }
    if (typeof to === "number") yield* remember(container, keyOf(to, protocol), published)
    return protocol === "tcp" ? shape(published, proxy, ids) : published
  })

const publishPath = (
  container: Served,
  options: PublishPathOptions,
  getProxy: GetProxy
): Effect.Effect<PublishedPath, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { container: to, path } = options
    const target = yield* attempt(() => {
      for (const other of ["host", "hostname", "protocol"])
        if (other in options) invalid(other, (options as never)[other], "nothing beside `path`")
      return targetOf(container, to, "tcp")
    })
    const left = yield* bindPath(container, options)
    const proxy = yield* getProxy
    return shape({ path }, proxy, yield* addAll(proxy, left, target))
  })

/** The tunnel to a container of another machine begins at a port of this one. */
const publishElsewhere = (
  container: Container,
  elsewhere: ContainerElsewhere,
  options: PublishOptions | PublishPathOptions
): Effect.Effect<PublishedPort, BerthError, Scope.Scope> => {
  if ("path" in options) return Effect.fail(onlyHere(container, "a path that leads to a container"))
  const { container: to } = options
  return Effect.tap(elsewhere.publish(options), (published) =>
    typeof to === "number" ? remember(container, keyOf(to, "tcp"), published) : Effect.void
  )
}

const publishBy = (
  container: Served,
  given: Publishable,
  getProxy: GetProxy
): Effect.Effect<PublishedPort | PublishedPath, BerthError, Scope.Scope> =>
  Effect.flatMap(
    attempt(() => parseOnePort(given)),
    (options): Effect.Effect<PublishedPort | PublishedPath, BerthError, Scope.Scope> =>
      isContainer(container) && container.state.elsewhere !== undefined
        ? publishElsewhere(container, container.state.elsewhere, options)
        : "path" in options
          ? publishPath(container, options, getProxy)
          : publishPort(container, options, getProxy)
  ).pipe(whole, Effect.withSpan("berth.Container.publish", { attributes: { "container.id": container.id } }))

/** See `Container.publish`. */
export const publish = (
  container: Served,
  given: Publishable
): Effect.Effect<PublishedPort | PublishedPath, BerthError, Scope.Scope> =>
  publishBy(container, given, makeProxy(container))

/** The same of a TCP port, by a proxy that has been started before. */
export const publishFrom = (
  proxy: Proxy,
  container: Served,
  port: number
): Effect.Effect<PublishedPort, BerthError, Scope.Scope> =>
  publishPort(container, { container: port }, Effect.succeed(proxy)).pipe(whole)

/** Publishes all ports of a start, by one proxy. */
export const publishAll = (
  container: Served,
  list: ReadonlyArray<Publishable>
): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.flatMap(Effect.cached(makeProxy(container)), (getProxy) =>
    Effect.forEach(list, (given) => publishBy(container, given, getProxy), { discard: true })
  ).pipe(whole)

/** See `Container.published`. */
export const published: {
  (
    port: number,
    protocol?: Protocol
  ): (container: Container | Pod) => Effect.Effect<PublishedPort, BerthError>
  (container: Container | Pod, port: number, protocol?: Protocol): Effect.Effect<PublishedPort, BerthError>
} = dual(
  (args) => isContainer(args[0]) || isPod(args[0]),
  (container: Container | Pod, port: number, protocol: Protocol = "tcp") =>
    attempt(() => {
      const known = ports.get(container.state)
      const there = known === undefined || known.size === 0 ? "none" : [...known.keys()].join(", ")
      return (
        known?.get(keyOf(port, protocol)) ??
        invalid(
          "port",
          keyOf(port, protocol),
          `a port that is published; of ${isPod(container) ? `pod ${container.name}` : `container ${container.id}`}: ${there}`
        )
      )
    })
)
