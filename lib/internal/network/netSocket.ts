/** A connection to a container as a socket of node:net, for libraries that take one. */
import * as net from "node:net"
import { isBerthError, NetworkError } from "../../BerthError.ts"
import type { Address } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { EPOLLOUT, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { beginConnect, type Connecting } from "./socket.ts"

/**
 * A runtime's socket for a descriptor. Bun adopts one by `connect` alone. No runtime is ever given a socket that is not
 * connecting yet: Deno and Bun would connect a new one on the host.
 */
const adopt = (fd: number): net.Socket => {
  native().disown(fd)
  return "Bun" in globalThis
    ? net.connect({ fd } as never)
    : new net.Socket({ fd, readable: true, writable: true })
}

/** Tells listeners of `connect` once the socket is connected. */
const tellWhenConnected = (socket: net.Socket, fd: number): void => {
  const copy = native().duplicate(fd)
  const tell = (): void => {
    native().close(copy)
    if (!socket.destroyed) socket.emit("connect")
  }
  if (copy < 0) return
  if (typeof Loop.watch(copy, EPOLLOUT, tell) === "number") tell()
}

const open = (begin: () => Connecting): net.Socket => {
  try {
    const { fd, result } = begin()
    const socket = adopt(fd)
    if (result === 0) setImmediate(() => socket.destroyed || socket.emit("connect"))
    else tellWhenConnected(socket, fd)
    return socket
  } catch (error) {
    if (!isBerthError(error)) throw error
    const socket = new net.Socket()
    // Where a client expects errors of a server, with the code that it knows.
    const code = error instanceof NetworkError && error.reason === "Refused" ? "ECONNREFUSED" : undefined
    setImmediate(() => socket.destroy(code === undefined ? error : Object.assign(error, { code })))
    return socket
  }
}

/** A socket for what `begin` begins to connect; what it throws, the socket's event `error` gives. */
export const socketOf = (begin: () => Connecting): net.Socket => {
  const socket = open(begin)
  let told = false
  socket.once("connect", () => {
    told = true
  })
  // A client that is given a socket calls this with an address of its own: the socket is where it has to be already. One
  // that calls it late waits for an event which it has missed.
  socket.connect = ((...given: ReadonlyArray<unknown>) => {
    const listener = given.at(-1)
    if (typeof listener === "function") socket.once("connect", listener as () => void)
    if (told) setImmediate(() => socket.destroyed || socket.emit("connect"))
    return socket
  }) as never
  return socket
}

/** See `Container.netSocket`. */
export const netSocket = (container: Container, address: Address): net.Socket =>
  container.state.elsewhere?.netSocket(address) ?? socketOf(() => beginConnect(container, address))
