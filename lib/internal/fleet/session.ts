/** The sessions of a runner: what a client has there, for as long as it renews its lease. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Metric from "effect/Metric"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import { FleetError, RunnerLost } from "../../FleetError.ts"
import type { ExitStatus, Process } from "../../Process.ts"
import * as Metrics from "./metrics.ts"
import type { End } from "./protocol.ts"

/** Where the bytes of `write` go. */
export interface Entry {
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, BerthError>
  readonly end: Effect.Effect<void>
}

/** A process of a session; `release` waits until nothing of it is left. */
export interface Held {
  readonly process: Process
  readonly release: Effect.Effect<void>
}

/**
 * A lease has an order of ends. A client renews it six times, and gives its runner up when an answer has not come for five sixths: a whole
 * lease after the last one, at most. By then the runner has ended what the client had, and the supervisor of a runner that was stopped has
 * ended all: no container runs on two runners because its client has started it anew.
 */
export const RENEWED = 1 / 6
export const ANSWERED = 5 / 6
const ENDED = 3 / 4

/** How long a runner keeps what it does not hear of, in milliseconds. */
export const keptMillis = (leaseMillis: number): number => Math.floor(leaseMillis * ENDED)

export interface Session {
  readonly client: string
  readonly held: Map<string, Held>
  /** What is being started, by its id; done when it is held, or nothing is left of it. */
  readonly starting: Map<string, Deferred.Deferred<void>>
  /** The ends that the client has not been told of. */
  readonly ends: Queue.Queue<End>
  readonly entries: Map<string, Entry>
  /** Fails once the lease has ended. */
  readonly over: Deferred.Deferred<never, RunnerLost>
  /** The `serial` of the newest room that the client was told of. */
  told: number
  /** When the lease ends, by this machine's clock of monotonic time, in milliseconds. */
  deadline: number
}

export class Sessions {
  private readonly all = new Map<number, Session>()
  /** The connections whose lease has ended. */
  private readonly over = new Set<number>()
  private readonly runner: string
  private readonly leaseMillis: number
  private readonly clients: typeof Metrics.clients

  constructor(runner: string, leaseMillis: number) {
    this.runner = runner
    this.clients = Metrics.of(Metrics.clients, runner)
    this.leaseMillis = leaseMillis
  }

  /** The session of a connection. */
  of(connection: number): Effect.Effect<Session, FleetError | RunnerLost> {
    return Effect.suspend((): Effect.Effect<Session, FleetError | RunnerLost> => {
      const session = this.all.get(connection)
      if (this.over.has(connection)) return this.ended()
      if (session === undefined)
        return new FleetError({
          reason: "Unauthorized",
          subject: `runner ${this.runner}`,
          detail: "this connection has no session: begin one first"
        })
      return session.deadline < performance.now() ? this.ended() : Effect.succeed(session)
    })
  }

  /** Begins a session, which ends with the scope, or with its lease. */
  begin(connection: number, client: string): Effect.Effect<Session, FleetError, Scope.Scope> {
    const sessions = this
    return Effect.gen(function* () {
      const session: Session = {
        client,
        held: new Map(),
        starting: new Map(),
        ends: yield* Queue.unbounded<End>(),
        entries: new Map(),
        over: yield* Deferred.make<never, RunnerLost>(),
        told: 0,
        deadline: performance.now() + keptMillis(sessions.leaseMillis)
      }
      yield* Effect.acquireRelease(
        Effect.suspend(() => {
          if (sessions.all.has(connection))
            return new FleetError({
              reason: "Refused",
              subject: `runner ${sessions.runner}`,
              detail: "this connection has a session already"
            })
          sessions.all.set(connection, session)
          return Metric.increment(sessions.clients)
        }),
        () =>
          Effect.zipRight(
            sessions.end(connection, session),
            Effect.suspend(() => sessions.forget(connection, session))
          )
      )
      yield* Effect.forkScoped(sessions.watch(connection, session))
      return session
    })
  }

  /** A client that has been stopped may still send what it began before: its lease has ended, however it ended the session. */
  private forget(connection: number, session: Session): Effect.Effect<void> {
    this.all.delete(connection)
    if (performance.now() < session.deadline) this.over.delete(connection)
    return Metric.incrementBy(this.clients, -1)
  }

  renew(session: Session): void {
    session.deadline = performance.now() + keptMillis(this.leaseMillis)
  }

  private ended(): RunnerLost {
    return new RunnerLost({
      runner: this.runner,
      detail: `the lease of this program has ended, as nothing was heard of it for ${keptMillis(this.leaseMillis)} ms, and its containers with it`
    })
  }

  /**
   * Releases all that a session has, and what it is starting. Its scope, which closes meanwhile, does not cut this short.
   */
  private end(connection: number, session: Session): Effect.Effect<void> {
    const ids = Effect.sync(() => [...session.starting.keys(), ...session.held.keys()])
    const release = Effect.flatMap(ids, (all) =>
      Effect.forEach(all, (id) => releaseOf(session, id), { concurrency: "unbounded", discard: true })
    )
    this.over.add(connection)
    return Effect.uninterruptible(Effect.zipRight(Deferred.fail(session.over, this.ended()), release))
  }

  /** A client that comes back after its lease finds nothing: the session is over, whatever it sends. */
  private watch(connection: number, session: Session): Effect.Effect<void> {
    return Effect.suspend(() => {
      const left = session.deadline - performance.now()
      return left <= 0
        ? Effect.zipRight(
            Metric.increment(Metrics.of(Metrics.leasesEnded, this.runner)),
            this.end(connection, session)
          )
        : Effect.zipRight(Effect.sleep(left), this.watch(connection, session))
    })
  }
}

/**
 * Starts a process or a container under an id that the client has chosen. The session has it until its client releases it, or the session
 * ends; meanwhile the client is told of its end.
 */
export const hold = (
  session: Session,
  id: string,
  start: Effect.Effect<Process, BerthError, Scope.Scope>,
  also: (process: Process) => Effect.Effect<unknown, never, Scope.Scope>
): Effect.Effect<Process, BerthError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      if (session.held.has(id) || session.starting.has(id))
        return yield* new FleetError({
          reason: "Refused",
          subject: `session of ${session.client}`,
          detail: `it has something with the id ${JSON.stringify(id)} already`
        })
      const done = yield* Deferred.make<void>()
      session.starting.set(id, done)
      const scope = yield* Scope.make()
      const started = Effect.raceFirst(Scope.extend(start, scope), Deferred.await(session.over))
      return yield* restore(started).pipe(
        Effect.onError(() => Scope.close(scope, Exit.void)),
        Effect.tap((process) => held(session, id, process, scope, also)),
        Effect.ensuring(
          Effect.suspend(() => {
            session.starting.delete(id)
            return Deferred.succeed(done, undefined)
          })
        )
      )
    })
  )

const held = (
  session: Session,
  id: string,
  process: Process,
  scope: Scope.CloseableScope,
  also: (process: Process) => Effect.Effect<unknown, never, Scope.Scope>
): Effect.Effect<void> =>
  Effect.gen(function* () {
    const told = Effect.match(process.exit, {
      onFailure: (error): End => ({ _tag: "Failed", id, error }),
      onSuccess: (status): End => ({ _tag: "Ended", id, status })
    })
    const released = yield* Deferred.make<void>()
    session.held.set(id, {
      process,
      // A client that is lost while it waits for this leaves nothing half released.
      release: Effect.suspend(() => {
        const first = session.held.delete(id)
        return first ? Effect.intoDeferred(Scope.close(scope, Exit.void), released) : Deferred.await(released)
      }).pipe(Effect.uninterruptible)
    })
    yield* Scope.extend(also(process), scope)
    yield* Effect.flatMap(told, (end) => Queue.offer(session.ends, end)).pipe(
      Effect.interruptible,
      Effect.forkIn(scope)
    )
  })

/** How long the status of what was released is waited for. */
const STATUS_MILLIS = 1000

/** Removes what has this id, and waits until nothing of it is left. Gives how it ended, if it had begun. */
export const releaseOf = (session: Session, id: string): Effect.Effect<ExitStatus | undefined> =>
  Effect.suspend(() => {
    const starting = session.starting.get(id)
    return starting === undefined ? Effect.void : Deferred.await(starting)
  }).pipe(
    Effect.zipRight(
      Effect.suspend(() => {
        const has = session.held.get(id)
        if (has === undefined) return Effect.succeed(undefined)
        const status = has.process.exit.pipe(
          Effect.timeout(STATUS_MILLIS),
          Effect.orElseSucceed(() => undefined)
        )
        return Effect.zipRight(has.release, Effect.interruptible(status))
      })
    )
  )

/** A process or container of a session. */
export const heldOf = (session: Session, id: string): Effect.Effect<Held, ContainerError> =>
  Effect.suspend(() => {
    const held = session.held.get(id)
    return held === undefined ? Effect.fail(gone(id)) : Effect.succeed(held)
  })

export const entryOf = (session: Session, id: string): Effect.Effect<Entry, ContainerError> =>
  Effect.suspend(() => {
    const entry = session.entries.get(id)
    return entry === undefined ? Effect.fail(gone(id)) : Effect.succeed(entry)
  })

export const containerOf = (session: Session, id: string): Effect.Effect<Container, ContainerError> =>
  Effect.flatMap(heldOf(session, id), ({ process }) =>
    "base" in process.state ? Effect.succeed(process as Container) : Effect.fail(gone(id))
  )

const gone = (id: string): ContainerError =>
  new ContainerError({
    reason: "NotRunning",
    container: id.slice(0, 12),
    detail: "its runner has nothing of this name: its scope has closed"
  })
