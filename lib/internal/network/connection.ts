/** A connection to a container, as a stream and a sink. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import type { BerthError } from "../../BerthError.ts"
import type { Address, Connection } from "../../Connection.ts"
import type { Container } from "../../Container.ts"
import { native } from "../system/addon.ts"
import { duplicate, Input, Output } from "../system/pipe.ts"
import { attempt } from "../util/fromThrowing.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import { connectSocket } from "./socket.ts"

/** The two halves of a connection; each waits for a descriptor of its own, as epoll(7) has one entry for each. */
export interface Halves {
  readonly input: Output
  readonly output: Input
  /** Ends the sending half: shutdown(2). */
  readonly end: Effect.Effect<void>
}

const half = <A extends Input | Output>(fd: number, make: (copy: number) => A) =>
  Effect.acquireRelease(
    attempt(() => make(duplicate(fd))),
    (made) => Effect.sync(() => made.close())
  )

/** The halves of a connected socket, which whoever has it closes after them. */
const halvesOf = (container: Container, fd: number): Effect.Effect<Halves, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const input = yield* half(fd, (copy) => new Output(copy, container.id))
    const output = yield* half(fd, (copy) => new Input(copy))
    return { input, output, end: Effect.sync(() => native().shutdown(fd)) }
  })

export const open = (
  container: Container,
  address: Address
): Effect.Effect<Halves, BerthError, Scope.Scope> =>
  Effect.flatMap(connectSocket(container, address), (fd) => halvesOf(container, fd))

const asConnection = ({ end, input, output }: Halves): Connection => ({
  stream: input.stream,
  sink: Sink.ensuring(
    Sink.forEach((bytes: Uint8Array) => output.write(bytes)),
    end
  )
})

/** A socket that has been accepted, as a connection; the scope closes it. */
export const accepted = (
  container: Container,
  fd: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.zipRight(
    Effect.addFinalizer(() => Effect.sync(() => native().close(fd))),
    Effect.map(halvesOf(container, fd), asConnection)
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
