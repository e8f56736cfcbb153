/** The JavaScript end of native/supervisor/protocol.h: starts and releases units, and reports their ends. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { identity } from "effect/Function"
import type { BerthError } from "../../BerthError.ts"
import { OperationFailed, SupervisorError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { EPOLLIN, EPOLLOUT, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { duplicate } from "../system/pipe.ts"
import { E2BIG, EAGAIN, EMFILE, EPIPE, ETIMEDOUT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { hint } from "./hints.ts"
import {
  type Ended,
  encodeRequest,
  MESSAGE_BYTES_MAX,
  PLAN_BYTES_MAX,
  REPLY_BYTES,
  REPLY_ENDED,
  REPLY_EXITED,
  REPLY_FAILED,
  REPLY_RELEASED,
  REPLY_SHARED,
  REPLY_STARTED,
  REPLY_UNMAPPED,
  REQUEST_ATTACH,
  REQUEST_BYTES,
  REQUEST_RELEASE,
  REQUEST_RENEW,
  REQUEST_SHARE,
  REQUEST_START,
  type Reply,
  readReply
} from "./protocol.ts"

/** The reason why a unit was not released completely. */
export interface Leftover {
  readonly syscall: string
  readonly errno: number
}

export interface Unit {
  readonly id: number
  /** 0 if the unit has no process. */
  readonly pid: number
  /** The pidfd of its process, which the unit owns; -1 without a process and after the release. */
  readonly pidfd: () => number
  /** Its root, which the unit owns; -1 without a root of its own and after the release. */
  readonly root: () => number
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** Kills its processes and releases all that it owns; runs once, and waits until nothing is left. */
  readonly release: Effect.Effect<Leftover | undefined>
}

export interface Supervisor {
  readonly pid: number
  /** The folder for the files of units. */
  readonly folder: string
  readonly nextId: () => number
  /**
   * Starts a unit. Descriptors are sent under the names that the plan has for them, and the caller keeps them. Call it in an
   * uninterruptible region: `interruptible` wraps the wait until the process executes its command. If that is interrupted, or
   * takes too long, the unit is released.
   */
  readonly start: (
    id: number,
    plan: Plan.Plan,
    descriptors: Readonly<Record<string, number>>,
    interruptible?: Interruptible
  ) => Effect.Effect<Unit, BerthError>
  /** The plans of all units that have not been released. */
  readonly plans: () => ReadonlyArray<Plan.Plan>
  /** Whether the connection is open at this moment. */
  readonly isRunning: () => boolean
  /** Lets it live for so many milliseconds, and no longer unless it is told again: it then ends as `stop` ends it. */
  readonly renew: (millis: number) => void
  /**
   * Closes the connection and waits until the supervisor has released everything and ended. A supervisor with leases is not waited
   * for: it ends after its last connection.
   */
  readonly stop: Effect.Effect<void>
}

/** A connection to a supervisor with leases, which others may have as well. */
export interface Leased extends Supervisor {
  /**
   * Keeps the unit of a process for all connections, until the last one closes, and gives its number. It is not released before. The
   * supervisor gets its root and the read ends of its outputs, which it empties when this connection is gone.
   */
  readonly share: (pid: number, descriptors: ReadonlyArray<number>) => Effect.Effect<number, BerthError>
  /** A unit that another connection has shared. Its release gives back its descriptors alone. Call it in an uninterruptible region. */
  readonly attach: (unit: number, interruptible?: Interruptible) => Effect.Effect<Unit, BerthError>
}

/** The parameter of `Effect.uninterruptibleMask`'s body. */
export type Interruptible = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Layers that must be recorded as used before a plan may run. */
export interface Guard {
  readonly missing: (plan: Plan.Plan) => ReadonlyArray<string>
  readonly hold: (missing: ReadonlyArray<string>) => Effect.Effect<void, BerthError>
}

const SIGKILL = 9
export const SIGCONT = 18

/** A supervisor that has not answered for so long may have been stopped by a signal, and gets SIGCONT. */
export const PATIENCE_MILLIS = 200

/** Time limits, in milliseconds. */
export interface TimeLimits {
  /** A start, until the command is executed. */
  readonly start: number
  /** A release: the supervisor, or a sweep, then goes on with the rest. */
  readonly release: number
  /** The end of the supervisor, which is not waited for any longer. */
  readonly end: number
}

/** A lease on the command's file holds up its execution for 45 seconds, fcntl(2). */
export const timeLimits: TimeLimits = { start: 60_000, release: 30_000, end: 20_000 }

interface Pending {
  readonly plan: Plan.Plan
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** The descriptors of its process and root, or of its root alone; -1 before the start and after the release. */
  descriptors: readonly [number, number]
  pid: number
  /** Whether the supervisor owns no part of it any more. */
  gone: boolean
  started: ((result: Effect.Effect<void, BerthError>) => void) | undefined
  shared: ((result: Effect.Effect<void, BerthError>) => void) | undefined
  released: ((leftover: Leftover | undefined) => void) | undefined
  /** The time limit of its start or its release, in milliseconds since 1970. */
  deadline: number
}

const closeAll = (descriptors: ReadonlyArray<number>): void => {
  for (const fd of descriptors) if (fd >= 0) native().closeRoot(fd)
}

export const refused = (syscall: string, errno: number, operation = "start"): OperationFailed =>
  new OperationFailed({ operation, index: -1, syscall, errno, hint: "" })

const failureOf = (plan: Plan.Plan, reply: Reply): OperationFailed => {
  const operation = plan.operations[reply.operation]
  if (operation === undefined) return refused(reply.syscall(), reply.errno)
  const text = reply.text()
  return new OperationFailed({
    operation: Plan.printOperation(operation),
    index: reply.operation,
    syscall: reply.syscall(),
    errno: reply.errno,
    ...(text === "" ? {} : { text }),
    hint: hint(operation, reply.errno)
  })
}

/** The connection to a supervisor. Replies are handled in plain callbacks, because they are on the path of every start. */
export class Connection {
  readonly units = new Map<number, Pending>()
  private readonly reply = new Uint8Array(REPLY_BYTES)
  private readonly view = new DataView(this.reply.buffer)
  private readonly unsent: Array<{
    bytes: Uint8Array
    descriptors: ReadonlyArray<number>
    sent: (n: number) => void
  }> = []
  private onReady: ((reply: Reply | undefined, lost?: OperationFailed) => void) | undefined
  private cancel: () => void = () => {}
  gone = false
  private closed = false
  private patience: NodeJS.Timeout | undefined
  private readonly socket: number
  /** Of the supervisor; -1 until it is known. */
  pidfd: number
  readonly limits: TimeLimits

  constructor(
    socket: number,
    pidfd: number,
    limits: TimeLimits,
    onReady: (reply: Reply | undefined, lost?: OperationFailed) => void
  ) {
    this.socket = socket
    this.pidfd = pidfd
    this.limits = limits
    this.onReady = onReady
    this.listen()
    this.expect()
  }

  /** Checks after a while whether the supervisor has answered: one timer for all requests. */
  private expect(): void {
    if (this.patience !== undefined) return
    this.patience = setTimeout(() => {
      this.patience = undefined
      const now = Date.now()
      let waiting = this.onReady !== undefined
      for (const unit of this.units.values()) {
        waiting ||= unit.started !== undefined || unit.released !== undefined
        if (now < unit.deadline) continue
        unit.started?.(Effect.fail(tookTooLong(this.limits.start)))
        // The unit stays known, so that its end is still reported.
        unit.released?.({ syscall: "release", errno: ETIMEDOUT })
      }
      if (!waiting || this.gone) return
      native().signal(this.pidfd, SIGCONT)
      this.expect()
    }, PATIENCE_MILLIS)
    this.patience.unref()
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    clearTimeout(this.patience)
    this.cancel()
    native().close(this.socket)
    this.end()
  }

  private listen(): void {
    const events = this.unsent.length > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN
    this.cancel()
    const cancel = Loop.watch(this.socket, events, () => this.serve())
    if (typeof cancel !== "number") this.cancel = cancel
    // Deferred, because the constructor has not returned yet.
    else queueMicrotask(() => this.end(refused("epoll_ctl", -cancel, "supervisor")))
  }

  private serve(): void {
    if (this.closed) return
    while (!this.gone) {
      const [n, first, second] = native().receive(this.socket, this.reply)
      if (n === -EAGAIN) break
      // The descriptors in the message are lost, because this program may open no more files; the reply itself is valid.
      const lost = n === -EMFILE ? refused("recvmsg", EMFILE) : undefined
      if (n !== REPLY_BYTES && lost === undefined) return this.end()
      this.handle(readReply(this.view, [first, second]), lost)
    }
    while (this.unsent.length > 0) {
      const { bytes, descriptors, sent } = this.unsent[0]!
      const n = native().send(this.socket, bytes, descriptors)
      if (n === -EAGAIN) break
      this.unsent.shift()
      sent(n)
    }
    if (!this.closed && !this.gone) this.listen()
  }

  /** Looks at the socket, because the loop may not have reported its end yet. */
  isOpen(): boolean {
    this.serve()
    return !this.gone
  }

  send(bytes: Uint8Array, descriptors: ReadonlyArray<number>, sent: (n: number) => void): void {
    this.expect()
    const n = this.unsent.length > 0 ? -EAGAIN : native().send(this.socket, bytes, descriptors)
    if (n !== -EAGAIN) return sent(n)
    // Their owners may close them while the message waits.
    const copies = descriptors.map((fd) => (fd < 0 ? fd : native().duplicate(fd)))
    this.unsent.push({
      bytes,
      descriptors: copies,
      sent: (n) => {
        closeAll(copies)
        sent(n)
      }
    })
    this.listen()
  }

  private handle(reply: Reply, lost: OperationFailed | undefined): void {
    const unit = this.units.get(reply.id)
    if (this.onReady !== undefined && unit === undefined) {
      const ready = this.onReady
      if (reply.type !== REPLY_UNMAPPED) this.onReady = undefined
      return ready(reply, lost)
    }
    if (unit === undefined) {
      closeAll(reply.descriptors)
      return
    }
    switch (reply.type) {
      case REPLY_STARTED:
        // The caller of the start releases it.
        if (lost !== undefined) return unit.started?.(Effect.fail(lost))
        if (reply.errno !== 0) return unit.started?.(Effect.fail(refused(reply.syscall(), reply.errno)))
        unit.pid = reply.pid
        unit.descriptors = reply.descriptors
        return unit.started?.(Effect.void)
      case REPLY_SHARED:
        return unit.shared?.(Effect.void)
      case REPLY_FAILED:
        if (unit.shared !== undefined) return unit.shared(Effect.fail(failureOf(unit.plan, reply)))
        this.units.delete(reply.id)
        unit.gone = true
        unit.released?.(undefined)
        return unit.started?.(Effect.fail(failureOf(unit.plan, reply)))
      case REPLY_ENDED:
        this.units.delete(reply.id)
        unit.gone = true
        unit.released?.(undefined)
        return Deferred.unsafeDone(unit.ended, Exit.succeed(reply.ended))
      case REPLY_EXITED:
        return Deferred.unsafeDone(unit.ended, Exit.succeed(reply.ended))
      case REPLY_RELEASED:
        this.units.delete(reply.id)
        unit.gone = true
        return unit.released?.(
          reply.errno === 0 ? undefined : { syscall: reply.syscall(), errno: reply.errno }
        )
    }
  }

  /** The supervisor is gone: all that it owned dies with it, and every waiting request ends. */
  private end(why?: OperationFailed): void {
    if (this.gone) return
    this.gone = true
    const error = gone("it has ended, and its containers end with it")
    this.onReady?.(undefined, why)
    for (const { sent } of this.unsent.splice(0)) sent(-32)
    for (const unit of this.units.values()) {
      unit.started?.(Effect.fail(error))
      unit.shared?.(Effect.fail(error))
      // A process that has changed its parent-death signal does not end by itself.
      if (unit.pid > 0) native().signal(unit.descriptors[0], SIGKILL)
      unit.released?.(undefined)
      Deferred.unsafeDone(unit.ended, Exit.fail(error))
    }
    this.units.clear()
  }
}

export const nothing = new Uint8Array(0)

const tookTooLong = (millis: number): OperationFailed =>
  new OperationFailed({
    operation: "start",
    index: -1,
    syscall: "execve",
    errno: ETIMEDOUT,
    hint: `The process did not come to execute its command within ${millis / 1000} seconds: processes of a container can hold up new ones; stop the container, or look at its processes`
  })

const gone = (detail: string): SupervisorError => new SupervisorError({ reason: "Gone", detail })

const notRunning = (): SupervisorError => gone("it is no longer running")

/** Asks for a unit, and waits until it is started. `sent` is called when the message has left. */
const ask = (
  connection: Connection,
  id: number,
  unit: Pending,
  message: Uint8Array,
  fds: ReadonlyArray<number>,
  resume: (result: Effect.Effect<void, BerthError>) => void,
  sent: () => void = () => {}
): void => {
  unit.deadline = Date.now() + connection.limits.start
  unit.started = (result) => {
    unit.started = undefined
    Loop.release()
    resume(result)
  }
  connection.units.set(id, unit)
  Loop.retain()
  connection.send(message, fds, (n) => {
    sent()
    if (n >= 0) return
    connection.units.delete(id)
    unit.gone = true
    unit.started?.(Effect.fail(n === -EPIPE ? notRunning() : refused("sendmsg", -n)))
  })
}

/** Whoever has a descriptor may close it while something is waited for; its number is another file's then. */
const withDuplicates = (
  descriptors: Readonly<Record<string, number>>,
  use: (duplicates: Readonly<Record<string, number>>) => Effect.Effect<void, BerthError>
): Effect.Effect<void, BerthError> => {
  const made: Record<string, number> = {}
  const make = attempt(() => {
    for (const [name, fd] of Object.entries(descriptors)) made[name] = duplicate(fd)
    return made
  })
  const close = Effect.sync(() => Object.values(made).forEach((fd) => native().close(fd)))
  return Effect.ensuring(Effect.flatMap(make, use), close)
}

const beginUnit = (
  connection: Connection,
  guard: Guard,
  id: number,
  unit: Pending,
  descriptors: Readonly<Record<string, number>>
): Effect.Effect<void, BerthError> =>
  Effect.async<void, BerthError>((resume) => {
    if (connection.gone) return resume(Effect.fail(notRunning()))
    const { plan } = unit
    const missing = guard.missing(plan)
    if (missing.length > 0) {
      const again = (held: typeof descriptors) => beginUnit(connection, guard, id, unit, held)
      return resume(withDuplicates(descriptors, (held) => Effect.zipRight(guard.hold(missing), again(held))))
    }
    const encoded = Plan.encode(plan)
    if (encoded.bytes.length > PLAN_BYTES_MAX) {
      const operation = `plan of ${encoded.bytes.length} bytes`
      const hint = "Pass large data by a file or stdin, not as arguments or environment"
      return resume(
        Effect.fail(new OperationFailed({ operation, index: -1, syscall: "sendmsg", errno: E2BIG, hint }))
      )
    }
    const fds = encoded.descriptors.map((name) => descriptors[name] ?? -1)
    const large = encoded.bytes.length + REQUEST_BYTES > MESSAGE_BYTES_MAX
    const memfd = large ? native().memfd(encoded.bytes) : -1
    if (large && memfd < 0) return resume(Effect.fail(refused("memfd_create", -memfd)))
    const message = large
      ? encodeRequest(REQUEST_START, id, encoded.bytes.length, nothing)
      : encodeRequest(REQUEST_START, id, 0, encoded.bytes)
    ask(connection, id, unit, message, large ? [memfd, ...fds] : fds, resume, () => {
      if (large) native().close(memfd)
    })
  })

/** Releases a unit that may not have started yet, for as long as a release may take. */
const releaseUnit = (
  connection: Connection,
  id: number,
  unit: Pending
): Effect.Effect<Leftover | undefined> =>
  Effect.async<Leftover | undefined>((resume) => {
    const finish = (leftover: Leftover | undefined): void => {
      unit.released = undefined
      // A number that outlived its descriptor could become the number of another one. The close of a root may wait, that of a
      // pidfd does not.
      const [first, second] = unit.descriptors
      if (unit.pid > 0 && first >= 0) native().close(first)
      else closeAll([first])
      closeAll([second])
      unit.descriptors = [-1, -1]
      Loop.release()
      resume(Effect.succeed(leftover))
    }
    unit.started?.(Effect.void)
    Loop.retain()
    if (connection.gone || unit.gone || !connection.units.has(id)) return finish(undefined)
    unit.released = finish
    unit.deadline = Date.now() + connection.limits.release
    connection.send(encodeRequest(REQUEST_RELEASE, id, 0, nothing), [], (n) => {
      if (n < 0) finish(undefined)
    })
  })

const pendingOf = (plan: Plan.Plan): Pending => ({
  plan,
  ended: Deferred.unsafeMake(FiberId.none),
  pid: 0,
  descriptors: [-1, -1],
  gone: false,
  started: undefined,
  shared: undefined,
  released: undefined,
  deadline: 0
})

/** The unit, once `begin` has got it. */
const got = (
  connection: Connection,
  id: number,
  pending: Pending,
  begin: Effect.Effect<void, BerthError>
): Effect.Effect<Unit, BerthError> =>
  Effect.matchCauseEffect(begin, {
    onFailure: (cause) => Effect.zipRight(releaseUnit(connection, id, pending), Effect.failCause(cause)),
    onSuccess: () => Effect.succeed(unitOf(connection, id, pending))
  })

/** See `Supervisor.start`. */
export const startUnit = (
  connection: Connection,
  guard: Guard,
  id: number,
  plan: Plan.Plan,
  descriptors: Readonly<Record<string, number>>,
  interruptible: Interruptible = identity
): Effect.Effect<Unit, BerthError> =>
  Effect.suspend(() => {
    const pending = pendingOf(plan)
    return got(connection, id, pending, interruptible(beginUnit(connection, guard, id, pending, descriptors)))
  })

/** See `Leased.attach`. */
export const attachUnit = (
  connection: Connection,
  id: number,
  interruptible: Interruptible = identity
): Effect.Effect<Unit, BerthError> =>
  Effect.suspend(() => {
    const pending = pendingOf(Plan.make([]))
    const begin = Effect.async<void, BerthError>((resume) => {
      if (connection.gone) return resume(Effect.fail(notRunning()))
      ask(connection, id, pending, encodeRequest(REQUEST_ATTACH, id, 0, nothing), [], resume)
    })
    return got(connection, id, pending, interruptible(begin))
  })

/** See `Supervisor.renew`. */
export const renew = (connection: Connection, millis: number): void => {
  if (!connection.gone) connection.send(encodeRequest(REQUEST_RENEW, millis, 0, nothing), [], () => {})
}

/** See `Leased.share`. */
export const shareUnit = (
  connection: Connection,
  pid: number,
  descriptors: ReadonlyArray<number>
): Effect.Effect<number, BerthError> =>
  Effect.async<number, BerthError>((resume) => {
    const [id, unit] = [...connection.units].find(([, { gone, pid: its }]) => its === pid && !gone) ?? []
    if (id === undefined || unit === undefined) return resume(Effect.fail(notRunning()))
    unit.shared = (result) => {
      unit.shared = undefined
      Loop.release()
      resume(Effect.as(result, id))
    }
    Loop.retain()
    connection.send(encodeRequest(REQUEST_SHARE, id, 0, nothing), descriptors, (n) => {
      if (n < 0) unit.shared?.(Effect.fail(n === -EPIPE ? notRunning() : refused("sendmsg", -n)))
    })
  })

const unitOf = (connection: Connection, id: number, pending: Pending): Unit => {
  const { pid } = pending
  let released = false
  return {
    id,
    pid,
    pidfd: () => (pid > 0 && !released ? pending.descriptors[0] : -1),
    root: () => (released ? -1 : pending.descriptors[pid > 0 ? 1 : 0]),
    ended: pending.ended,
    release: Effect.suspend(() => {
      if (released) return Effect.succeed(undefined)
      released = true
      return releaseUnit(connection, id, pending)
    })
  }
}
