/** A connection to a container, as a stream and a sink. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import type { BerthError } from "../../BerthError.ts"
import type { Address, Connection } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { native } from "../system/addon.ts"
import { duplicate, Input, Output } from "../system/pipe.ts"
import { attempt } from "../util/fromThrowing.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import { beginConnect, connected } from "./socket.ts"

/** The two halves of a connection; each waits for a descriptor of its own, as epoll(7) has one entry for each. */
export interface Halves {
  readonly input: Output
  readonly output: Input
  /** Ends the sending half: shutdown(2). */
  readonly end: Effect.Effect<void>
}

interface Opened extends Halves {
  readonly close: () => void
}

/** The halves of a socket, which closes with them; throws, and then has closed it. */
const halvesOf = (container: Container, fd: number): Opened => {
  const input = new Output(-1, container.id)
  const output = new Input(-1)
  const close = (): void => {
    input.close()
    output.close()
    native().close(fd)
  }
  try {
    input.open(duplicate(fd))
    output.open(duplicate(fd))
  } catch (error) {
    close()
    throw error
  }
  return { input, output, end: Effect.sync(() => native().shutdown(fd)), close }
}

/**
 * Closes the halves of a socket with the scope. `Effect.acquireRelease` would copy every FiberRef for the release: with one for each
 * descriptor, that took more than half of the time of `Container.connect`.
 */
const closing = (scope: Scope.Scope, container: Container, fd: number): Effect.Effect<Halves, BerthError> =>
  Effect.flatMap(
    attempt(() => halvesOf(container, fd)),
    (opened) => Effect.as(Scope.addFinalizer(scope, Effect.sync(opened.close)), opened)
  )

export const open = (
  container: Container,
  address: Address
): Effect.Effect<Halves, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.scope, (scope) =>
      Effect.flatten(
        attempt(() => {
          const connecting = beginConnect(container, address)
          const { fd, result } = connecting
          const opened = closing(scope, container, fd)
          if (result === 0) return opened
          // The scope gets the socket once it is connected: nothing would tell who waits for it that it has been closed.
          return restore(connected(container, connecting)).pipe(
            Effect.onError(() => Effect.sync(() => native().close(fd))),
            Effect.zipRight(opened)
          )
        })
      )
    )
  )

const asConnection = ({ end, input, output }: Halves): Connection => ({
  get stream() {
    return input.stream
  },
  get sink() {
    const write = Sink.forEach((bytes: Uint8Array) => output.write(bytes))
    return Sink.ensuring(write, end)
  }
})

/** A socket that has been accepted, as a connection; the scope closes it. */
export const accepted = (
  container: Container,
  fd: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.map(
    Effect.uninterruptible(Effect.flatMap(Effect.scope, (scope) => closing(scope, container, fd))),
    asConnection
  )

/** See `Container.connect`. */
export const connect: {
  (address: Address): (container: Container) => Effect.Effect<Connection, BerthError, Scope.Scope>
  (container: Container, address: Address): Effect.Effect<Connection, BerthError, Scope.Scope>
} = dual(2, (container: Container, address: Address) =>
  Effect.map(open(container, address), asConnection).pipe(
    spanIfObserved("berth.Container.connect", { "container.id": container.id })
  )
)
