/** A TCP connection inside a container's network namespace, whose socket comes out as a descriptor: no port, no bridge. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import * as Plan from "../../Plan.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native } from "../system/addon.ts"
import { duplicate, Input, makeSocketPair, Output, takeDescriptor } from "../system/pipe.ts"
import { attempt } from "../util/fromThrowing.ts"

export interface Connection {
  readonly input: Output
  readonly output: Input
}

const connectBy = (
  container: Container,
  version: 4 | 6,
  port: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { berth, kinds, pidfd } = container.state
    const [ours, theirs] = yield* attempt(makeSocketPair)
    yield* Effect.addFinalizer(() => Effect.sync(() => native().close(ours)))
    const own = kinds.includes("network") ? kinds.filter((kind) => kind === "network" || kind === "user") : []
    const plan = Plan.make([
      { op: "process", namespaces: 0 },
      ...(own.length === 0 ? [] : [{ op: "join", process: "container", namespaces: flagsOf(own) } as const]),
      { op: "connect", socket: "connection", ipVersion: version, port }
    ])
    const descriptors = { container: pidfd, connection: theirs }
    yield* Effect.ensuring(
      scopedUnit(berth, berth.supervisor.nextId(), `connection to ${container.id}`, plan, descriptors),
      Effect.sync(() => native().close(theirs))
    )
    const fd = yield* attempt(() => takeDescriptor(ours))
    const input = new Output(fd, container.id)
    yield* Effect.addFinalizer(() => Effect.sync(() => input.close()))
    const output = new Input(yield* attempt(() => duplicate(fd)))
    yield* Effect.addFinalizer(() => Effect.sync(() => output.close()))
    return { input, output }
  })

/**
 * Connects to a port on the container's loopback, by IPv4 or else by IPv6. Fails with `OperationFailed` of connect(2)
 * if no process listens.
 */
export const connect = (
  container: Container,
  port: number
): Effect.Effect<Connection, BerthError, Scope.Scope> =>
  Effect.orElse(connectBy(container, 4, port), () => connectBy(container, 6, port))
