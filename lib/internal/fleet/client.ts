/** A program's connection to one runner: its session, its lease, and the calls that go there. */
import { randomUUID } from "node:crypto"
import * as Socket from "@effect/platform/Socket"
import * as RpcClient from "@effect/rpc/RpcClient"
import { RpcClientError } from "@effect/rpc/RpcClientError"
import type * as RpcGroup from "@effect/rpc/RpcGroup"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, isBerthError } from "../../BerthError.ts"
import { type FleetError, RunnerLost } from "../../FleetError.ts"
import type { Identity } from "../../fleet.ts"
import type { ExitStatus } from "../../Process.ts"
import { RUNNER_BYTES_MAX, serialization } from "./frames.ts"
import { type Description, type Room, Rpcs, VERSION } from "./protocol.ts"
import { ANSWERED, RENEWED } from "./session.ts"
import * as Transport from "./transport.ts"

export type Calls = RpcClient.RpcClient<RpcGroup.Rpcs<typeof Rpcs>, RpcClientError>

/** What a program is told of a process that it has started. */
export interface Life {
  readonly ended: (status: ExitStatus) => void
  readonly failed: (error: BerthError) => void
}

/** A runner that a program has a session with. */
export interface Link {
  readonly description: Description
  /** As it was told last. */
  room: Room
  /** The starts of this program that the room may not have yet. */
  starting: number
  /** What this program has there and has not ended, by its id. */
  readonly lives: Map<string, Life>
  /** Fails once the session is over. */
  readonly lost: Deferred.Deferred<never, RunnerLost>
  /** Takes note of the room, unless a newer one is known. */
  readonly setRoom: (room: Room) => void
  /** Calls a procedure of the runner. */
  readonly call: <A, E>(
    use: (calls: Calls) => Effect.Effect<A, E | RpcClientError>
  ) => Effect.Effect<A, E | RunnerLost>
  readonly listen: <A, E>(
    use: (calls: Calls) => Stream.Stream<A, E | RpcClientError>
  ) => Stream.Stream<A, E | RunnerLost>
}

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

/** What a procedure failed with, or that the runner is gone. */
const orLost =
  (name: string) =>
  <E>(error: E | RpcClientError): E | RunnerLost =>
    error instanceof RpcClientError
      ? new RunnerLost({
          runner: name,
          detail: `the connection to it broke: ${reasonOf(error.cause)}; what this program had there ends`,
          cause: error
        })
      : error

/** Renews the lease. A runner that does not answer for the time of a lease has ended what the program had there. */
const renewing = (calls: Calls, { leaseMillis, name }: Description): Effect.Effect<never, RunnerLost> =>
  calls.renew().pipe(
    Effect.mapError(orLost(name)),
    Effect.timeoutFail({
      duration: leaseMillis * ANSWERED,
      onTimeout: () =>
        new RunnerLost({
          runner: name,
          detail: `it has not answered for ${Math.round(leaseMillis * ANSWERED)} ms; by now it has ended what this program had there`
        })
    }),
    Effect.catchAll((error) =>
      error._tag === "RunnerLost"
        ? Effect.fail(error)
        : Effect.fail(new RunnerLost({ runner: name, detail: error.message, cause: error }))
    ),
    Effect.zipRight(Effect.sleep(leaseMillis * RENEWED)),
    Effect.forever
  )

/** Begins a session with the runner at this address, until the scope closes; `onRoom` is called with each change of its room. */
export const link = (
  address: Transport.Address,
  identity: Identity,
  onRoom: () => void
): Effect.Effect<Link, FleetError | BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = yield* Transport.client(address, identity)
    // A connection is a session: one that breaks is not made again.
    const protocol = yield* RpcClient.makeProtocolSocket({ retrySchedule: Schedule.stop }).pipe(
      Effect.provideService(Socket.Socket, socket),
      Effect.provideService(RpcSerialization.RpcSerialization, serialization(RUNNER_BYTES_MAX))
    )
    const calls: Calls = yield* RpcClient.make(Rpcs, { spanPrefix: "berth.fleet" }).pipe(
      Effect.provideService(RpcClient.Protocol, protocol)
    )
    const lost = yield* Deferred.make<never, RunnerLost>()
    const lives = new Map<string, Life>()
    const lose = (error: RunnerLost): Effect.Effect<boolean> =>
      Effect.suspend(() => {
        const all = [...lives.values()]
        lives.clear()
        for (const { failed } of all) failed(error)
        return Deferred.fail(lost, error)
      })
    const first = yield* Deferred.make<Link, BerthError>()
    let made: Link | undefined
    const name = (): string => made?.description.name ?? Transport.print(address)
    const over = (error: BerthError): Effect.Effect<unknown> => {
      const why =
        error._tag === "RunnerLost"
          ? error
          : new RunnerLost({ runner: name(), detail: error.message, cause: error })
      return Effect.zipRight(lose(why), Deferred.fail(first, error))
    }
    const session = calls.session({ version: VERSION, clockMillis: Date.now(), client: randomUUID() })
    yield* Stream.runForEach(session, (event): Effect.Effect<unknown> => {
      switch (event._tag) {
        case "Hello":
          made = linkOf(calls, event.runner, event.room, { lives, lost, lose, onRoom })
          return Deferred.succeed(first, made)
        case "Changed":
          return Effect.sync(() => made?.setRoom(event.room))
        case "Ended":
          return Effect.sync(() => taken(lives, event.id)?.ended(event.status))
        case "Failed":
          return Effect.sync(() => taken(lives, event.id)?.failed(event.error))
      }
    }).pipe(
      Effect.mapError((error) => orLost(name())(error)),
      Effect.matchCauseEffect({
        onSuccess: () => over(new RunnerLost({ runner: name(), detail: "it has ended" })),
        onFailure: (cause) => {
          const [error] = Cause.failures(cause)
          return over(
            isBerthError(error)
              ? error
              : new RunnerLost({ runner: name(), detail: reasonOf(Cause.squash(cause)) })
          )
        }
      }),
      Effect.forkScoped
    )
    const link = yield* Deferred.await(first)
    yield* renewing(calls, link.description).pipe(Effect.catchAll(lose), Effect.forkScoped)
    // Whoever closes the scope has ended what it had there.
    yield* Effect.addFinalizer(() =>
      lose(new RunnerLost({ runner: link.description.name, detail: "the program has left its fleet" }))
    )
    return link
  })

const taken = (lives: Map<string, Life>, id: string): Life | undefined => {
  const life = lives.get(id)
  lives.delete(id)
  return life
}

interface Parts extends Pick<Link, "lives" | "lost"> {
  readonly lose: (error: RunnerLost) => Effect.Effect<boolean>
  readonly onRoom: () => void
}

const linkOf = (
  calls: Calls,
  description: Description,
  first: Room,
  { lives, lose, lost, onRoom }: Parts
): Link => {
  const toLost = orLost(description.name)
  /** The end of the calls, when the link's scope closes, would interrupt whoever makes them. */
  const endedBy = <E>(cause: Cause.Cause<E>): Effect.Effect<never, E | RunnerLost> =>
    Cause.isInterruptedOnly(cause) ? Deferred.await(lost) : Effect.failCause(cause)
  const call: Link["call"] = (use) => {
    const called = Effect.tapError(Effect.mapError(use(calls), toLost), (error) =>
      error instanceof RunnerLost ? lose(error) : Effect.void
    )
    return Effect.suspend(() =>
      isDone(lost)
        ? Deferred.await(lost)
        : // Both can be interrupted also in a finalizer: the one that comes second would be waited for.
          Effect.raceFirst(
            Effect.interruptible(Effect.catchAllCause(called, endedBy)),
            Effect.interruptible(Deferred.await(lost))
          )
    ) as never
  }
  const listen: Link["listen"] = (use) =>
    Stream.suspend(() =>
      isDone(lost)
        ? Stream.fromEffect(Deferred.await(lost))
        : Stream.mapError(use(calls), toLost).pipe(
            Stream.interruptWhenDeferred(lost),
            Stream.catchAllCause((cause) => Stream.fromEffect(endedBy(cause)))
          )
    ) as never
  const link: Link = {
    description,
    room: first,
    starting: 0,
    lives,
    lost,
    setRoom: (room) => {
      if (room.serial < link.room.serial) return
      link.room = room
      onRoom()
    },
    call,
    listen
  }
  return link
}

const isDone = (lost: Link["lost"]): boolean => Effect.runSync(Deferred.isDone(lost))

export const isOver = ({ lost }: Link): boolean => isDone(lost)
