/** A connection to a container, as a stream and a sink. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../BerthError.ts"
import type { Address, Connection, DatagramAddress } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { native } from "../system/addon.ts"
import { duplicate, Input, Output } from "../system/pipe.ts"
import { onlyHere } from "../util/elsewhere.ts"
import { ECONNREFUSED } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import { beginConnect, connectDatagrams, connected, refused } from "./socket.ts"

/**
 * A connected socket. Each half waits for a descriptor of its own, as epoll(7) has one entry for each. It gets the descriptor when it is
 * first used: two more for each connection took a tenth of the time of `Container.connect`.
 */
export class Socket implements Connection {
  private readonly container: Container
  /** The address of datagrams; undefined for a stream. */
  private readonly datagrams: string | undefined
  private fd: number
  private input: Output | undefined
  private output: Input | undefined

  constructor(container: Container, fd: number, datagrams?: string) {
    this.container = container
    this.datagrams = datagrams
    this.fd = fd
  }

  get stream(): Connection["stream"] {
    return Stream.unwrap(
      attempt(() => {
        const isDatagrams = this.datagrams !== undefined
        this.input ??= new Output(this.fd < 0 ? -1 : duplicate(this.fd), this.container.id, isDatagrams)
        return this.input.stream
      })
    ).pipe(Stream.mapError(this.explain))
  }

  get sink(): Connection["sink"] {
    const write = Sink.forEach((bytes: Uint8Array) => this.write(bytes))
    const end = Effect.sync(() => this.fd < 0 || native().shutdown(this.fd))
    // Datagrams have no end, and more may follow.
    return this.datagrams === undefined ? Sink.ensuring(write, end) : write
  }

  write(bytes: Uint8Array): Effect.Effect<void, BerthError> {
    return Effect.flatten(
      attempt(() => {
        // After a refusal, a server may listen by now.
        if (this.output === undefined || (this.datagrams !== undefined && this.output.closed))
          this.output = new Input(this.fd < 0 ? -1 : duplicate(this.fd))
        return this.output.write(bytes)
      })
    ).pipe(Effect.mapError(this.explain))
  }

  /** Nothing tells that nobody listens for datagrams before one has been sent. */
  private readonly explain = (error: BerthError): BerthError =>
    this.datagrams !== undefined && error._tag === "OperationFailed" && error.errno === ECONNREFUSED
      ? refused(this.container, this.datagrams, ECONNREFUSED)
      : error

  close(): void {
    this.input?.close()
    this.output?.close()
    native().close(this.fd)
    this.fd = -1
  }
}

/**
 * Closes a socket with the scope. `Effect.acquireRelease` would copy every FiberRef for the release: that took more than half of the
 * time of `Container.connect`.
 */
const closing = (
  scope: Scope.Scope,
  container: Container,
  fd: number,
  datagrams?: string
): Effect.Effect<Socket> => {
  const socket = new Socket(container, fd, datagrams)
  const close = Effect.sync(() => socket.close())
  return Effect.as(Scope.addFinalizer(scope, close), socket)
}

export const open = (
  container: Container,
  address: Address | DatagramAddress
): Effect.Effect<Socket, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.scope, (scope) =>
      Effect.flatten(
        attempt(() => {
          if (typeof address === "object" && "protocol" in address) {
            const { address: datagrams, fd } = connectDatagrams(container, address)
            return closing(scope, container, fd, datagrams)
          }
          const connecting = beginConnect(container, address)
          const { fd, result } = connecting
          if (result === 0) return closing(scope, container, fd)
          // The scope gets the socket once it is connected: nothing would tell who waits for it that it has been closed.
          return restore(connected(container, connecting)).pipe(
            Effect.onError(() => Effect.sync(() => native().close(fd))),
            Effect.zipRight(closing(scope, container, fd))
          )
        })
      )
    )
  )

/** A socket that has been accepted, as a connection; the scope closes it. */
export const accepted = (
  container: Container,
  fd: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.uninterruptible(Effect.flatMap(Effect.scope, (scope) => closing(scope, container, fd)))

const elsewhereOr = (container: Container, address: Address | DatagramAddress) => {
  const { elsewhere } = container.state
  if (elsewhere === undefined) return open(container, address)
  return typeof address === "object" && "protocol" in address
    ? onlyHere(container, "UDP to a container")
    : elsewhere.connect(address)
}

/** See `Container.connect`. */
export const connect: {
  (
    address: Address | DatagramAddress
  ): (container: Container) => Effect.Effect<Connection, BerthError, Scope.Scope>
  (
    container: Container,
    address: Address | DatagramAddress
  ): Effect.Effect<Connection, BerthError, Scope.Scope>
} = dual(2, (container: Container, address: Address | DatagramAddress) =>
  elsewhereOr(container, address).pipe(
    spanIfObserved("berth.Container.connect", { "container.id": container.id })
  )
)
