/** A TCP connection inside a container's network namespace, whose socket comes out as a descriptor: no port, no bridge. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../BerthError.ts"
import type { Container } from "../Container.ts"
import { flags } from "../Namespace.ts"
import * as Plan from "../Plan.ts"
import { native } from "./native.ts"
import { Input, Output } from "./pipe.ts"
import { scopedUnit } from "./unit.ts"

export interface Connection {
  readonly input: Output
  readonly output: Input
}

/** Connects to a port on the container's loopback. Fails with `OperationFailed` of connect(2) where nobody listens. */
export const connect = (
  container: Container,
  port: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { berth, kinds, pidfd } = container.state
    const [ours, theirs] = native().socketpair()
    yield* Effect.addFinalizer(() => Effect.sync(() => native().close(ours)))
    const own = kinds.includes("network") ? flags.network | (kinds.includes("user") ? flags.user : 0) : 0
    const plan = Plan.make([
      { op: "process", namespaces: 0, shared: 0 },
      ...(own === 0 ? [] : [{ op: "join", process: "container", namespaces: own } as const]),
      { op: "connect", socket: "connection", port }
    ])
    const descriptors = { container: pidfd, connection: theirs }
    yield* Effect.ensuring(
      scopedUnit(berth, berth.supervisor.nextId(), `connection to ${container.id}`, plan, descriptors),
      Effect.sync(() => native().close(theirs))
    )
    const [, fd] = native().receive(ours, new Uint8Array(1))
    const connection = {
      input: new Output(fd, container.id),
      output: new Input(fd < 0 ? -1 : native().duplicate(fd))
    }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        connection.input.close()
        connection.output.close()
      })
    )
    return connection
  })
