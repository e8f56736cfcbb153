/** Servers of this program whose sockets are inside a container. */

import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import {
  type BerthError,
  InvalidOption,
  isBerthError,
  NetworkError,
  OperationFailed
} from "../../BerthError.ts"
import type { Connection, Listening, ListenOptions } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { openIn } from "../files/namespaceRoot.ts"
import {
  EPOLLIN,
  native,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  RESOLVE_BENEATH,
  RESOLVE_IN_ROOT
} from "../system/addon.ts"
import { here, onlyHere } from "../util/elsewhere.ts"
import { EADDRINUSE, EADDRNOTAVAIL, EAGAIN, ENOENT, ENOTDIR } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { invalid } from "../util/validate.ts"
import { AF_UNIX, abstractName, candidates, portOf, type SocketAddress, unix } from "./address.ts"
import { accepted } from "./connection.ts"
import { makeSocket, whenReady, withoutRoot } from "./socket.ts"

/** Connections that are handled at a time; others wait in the kernel's queue. */
const CONNECTIONS_MAX = 1024

/** How long a server waits after a connection that it could not accept. */
const REFUSED = "20 millis"

/** What `sun_path` of unix(7) has room for beside `/proc/self/fd/N/`. */
const NAME_BYTES_MAX = 80

/** Any process of the container may connect. */
const MODE = 0o666

interface Bound extends Listening {
  readonly fd: number
  /** Removes the file of a Unix socket. */
  readonly remove: () => void
}

const failed = (container: Container, address: string, syscall: string, errno: number): BerthError => {
  const subject = `container ${container.id}`
  const error = (reason: NetworkError["reason"], detail: string): BerthError =>
    new NetworkError({ reason, subject, address, errno, detail })
  if (errno === EADDRINUSE)
    return error("AddressInUse", "a socket in the container has it; choose another one")
  if (errno === EADDRNOTAVAIL) return error("Unreachable", "the container does not have the address")
  if (errno === ENOENT || errno === ENOTDIR)
    return new InvalidOption({ option: "path", value: address, expected: "a path in a folder that exists" })
  return new OperationFailed({
    operation: `listen at ${address} in ${subject}`,
    index: -1,
    syscall,
    errno,
    hint: ""
  })
}

const bind = (container: Container, { bytes, family, text }: SocketAddress): number => {
  const fd = makeSocket(container, family)
  const bound = native().bind(fd, bytes)
  if (bound >= 0) return fd
  native().close(fd)
  throw failed(container, text, "bind", -bound)
}

const bindAddress = (container: Container, address: SocketAddress): Bound => {
  const fd = bind(container, address)
  const remove = (): void => {}
  if (address.family === AF_UNIX) return { fd, remove, address: address.text, port: undefined }
  const name = new Uint8Array(28)
  native().socketAddress(fd, name)
  const port = portOf(name)
  return { fd, remove, port, address: address.text.replace(/\d+$/, String(port)) }
}

/** The folder is resolved in the container's root and then kept, so that nothing leads out of it; the name is no link (unix(7)). */
const bindPath = (container: Container, at: string): Bound => {
  const { root } = container.state
  if (root < 0) throw withoutRoot(container, at)
  const name = path.basename(at)
  if (at.endsWith("/") || name === "." || name === ".." || Buffer.byteLength(name) > NAME_BYTES_MAX)
    invalid("path", at, `a path that ends in a name, of at most ${NAME_BYTES_MAX} bytes`)
  const folder = openIn(root, path.dirname(at), O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT, 0)
  if (folder < 0) throw failed(container, at, "openat2", -folder)
  const inFolder = `/proc/self/fd/${folder}/${name}`
  let fd = -1
  let made = -1
  try {
    fd = bind(container, { ...unix(inFolder), text: at })
    made = openIn(folder, name, O_PATH | O_NOFOLLOW, RESOLVE_BENEATH, 0)
    if (made < 0) throw failed(container, at, "openat2", -made)
    const found = fs.statSync(`/proc/self/fd/${made}`)
    // A process of the container may have put another file there by now.
    if (!found.isSocket()) throw failed(container, at, "bind", EADDRINUSE)
    fs.chmodSync(`/proc/self/fd/${made}`, MODE)
    const remove = (): void => {
      const there = fs.lstatSync(inFolder, { throwIfNoEntry: false })
      if (there?.dev === found.dev && there.ino === found.ino) fs.unlinkSync(inFolder)
      native().close(folder)
    }
    return { fd, remove, address: at, port: undefined }
  } catch (error) {
    if (fd >= 0) native().close(fd)
    native().close(folder)
    throw error
  } finally {
    if (made >= 0) native().close(made)
  }
}

const bindUnix = (container: Container, at: string): Bound => {
  const name = abstractName(at)
  return name === undefined ? bindPath(container, at) : bindAddress(container, name)
}

/** A socket inside the container that listens; throws. */
const listening = (container: Container, given: number | ListenOptions): Bound => {
  const options = typeof given === "number" ? { port: given } : given
  const bound =
    "path" in options
      ? bindUnix(container, options.path)
      : bindAddress(container, candidates({ host: "127.0.0.1", ...options }, 0)[0]!)
  const result = native().listen(bound.fd)
  if (result >= 0) return bound
  native().close(bound.fd)
  bound.remove()
  throw failed(container, bound.address, "listen", -result)
}

/** Accepts connections, and runs the handler with each of them, until the scope closes. */
const serve = <E, R>(
  container: Container,
  { address, fd }: Bound,
  handler: (connection: Connection) => Effect.Effect<unknown, E, R>
) =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const places = yield* Effect.makeSemaphore(CONNECTIONS_MAX)
    const handle = (taken: number) =>
      Effect.scoped(
        Effect.flatMap(accepted(container, taken), (connection) => Effect.interruptible(handler(connection)))
      ).pipe(
        Effect.catchAllCause((cause) =>
          Cause.isInterruptedOnly(cause)
            ? Effect.void
            : Effect.logWarning(`a connection to ${address} in container ${container.id} has failed`, cause)
        ),
        Effect.ensuring(places.release(1))
      )
    const ready = whenReady(fd, EPOLLIN, (syscall, errno) => failed(container, address, syscall, errno))
    const next = Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(restore(places.take(1)), () => {
        const taken = native().accept(fd)
        if (taken >= 0) return Effect.forkIn(handle(taken), scope)
        // It was gone again, or there is no descriptor for it at this moment.
        const later = taken === -EAGAIN ? ready : Effect.sleep(REFUSED)
        return Effect.zipRight(places.release(1), restore(later))
      })
    )
    yield* Effect.forkScoped(Effect.forever(next))
  })

/** See `Container.listen`. */
export const listen: {
  <E, R>(
    address: number | ListenOptions,
    handler: (connection: Connection) => Effect.Effect<unknown, E, R>
  ): (container: Container) => Effect.Effect<Listening, BerthError, R | Scope.Scope>
  <E, R>(
    container: Container,
    address: number | ListenOptions,
    handler: (connection: Connection) => Effect.Effect<unknown, E, R>
  ): Effect.Effect<Listening, BerthError, R | Scope.Scope>
} = dual(
  3,
  <E, R>(
    container: Container,
    given: number | ListenOptions,
    handler: (connection: Connection) => Effect.Effect<unknown, E, R>
  ) =>
    Effect.gen(function* () {
      const bound = yield* Effect.acquireRelease(
        attempt(() => listening(container, given)),
        ({ fd, remove }) =>
          Effect.zipRight(
            Effect.sync(() => native().close(fd)),
            Effect.ignoreLogged(Effect.try(remove))
          )
      )
      yield* serve(container, bound, handler)
      const { address, port } = bound
      return { address, port }
    }).pipe(
      here(container, "a server inside a container"),
      Effect.withSpan("berth.Container.listen", { attributes: { "container.id": container.id } })
    )
)

/** See `Container.netServer`. */
export const netServer = (
  container: Container,
  address: number | ListenOptions,
  onConnection?: (socket: net.Socket) => void
): net.Server => {
  const server = net.createServer(onConnection)
  try {
    if (container.state.elsewhere !== undefined) throw onlyHere(container, "a server inside a container")
    const { fd, remove } = listening(container, address)
    native().disown(fd)
    server.on("close", remove)
    // The runtime listens on the socket that there is: it is never given an address, with which it would make one on the host.
    server.listen({ fd })
  } catch (error) {
    if (!isBerthError(error)) throw error
    setImmediate(() => server.emit("error", error))
  }
  return server
}
