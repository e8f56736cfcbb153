/** The JavaScript end of native/supervisor/protocol.h: units are started, told of, and released over one socket. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { identity } from "effect/Function"
import * as Option from "effect/Option"
import type { BerthError } from "../../BerthError.ts"
import { NotReleased, OperationFailed, SupervisorError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { useNamespace } from "../files/namespaceRoot.ts"
import { EPOLLIN, EPOLLOUT, native, programPath } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { E2BIG, EAGAIN, EMFILE, EPIPE, ETIMEDOUT, errnoName } from "../util/errno.ts"
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
  REPLY_READY,
  REPLY_RELEASED,
  REPLY_STARTED,
  REPLY_UNMAPPED,
  REQUEST_BYTES,
  REQUEST_MAPPED,
  REQUEST_RELEASE,
  REQUEST_START,
  type Reply,
  readReply
} from "./protocol.ts"

/** What could not be given back. */
export interface Leftover {
  readonly syscall: string
  readonly errno: number
}

export interface Unit {
  readonly id: number
  /** 0 where the unit has no process. */
  readonly pid: number
  /** The pidfd of its process, owned by the unit; -1 where it has none, or has been released. */
  readonly pidfd: () => number
  /** Its root, owned by the unit; -1 where it has none of its own, or has been released. */
  readonly root: () => number
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** Kills what runs in it and gives back all that it owns; runs once, and waits until nothing is left. */
  readonly release: Effect.Effect<Leftover | undefined>
}

export interface Supervisor {
  readonly pid: number
  /** The folder for what units keep on disk. */
  readonly folder: string
  readonly nextId: () => number
  /**
   * Starts a unit; descriptors are sent by the names that the plan has for them, and stay the caller's. To be called where
   * it cannot be interrupted: `interruptible` is around the wait for the process to execute its command, and what has been
   * made is released when that is interrupted, or takes too long.
   */
  readonly start: (
    id: number,
    plan: Plan.Plan,
    descriptors: Readonly<Record<string, number>>,
    interruptible?: Interruptible
  ) => Effect.Effect<Unit, BerthError>
  /** Of every unit that has not been released. */
  readonly plans: () => ReadonlyArray<Plan.Plan>
  /** Closes the connection and waits until the supervisor has given everything back and is gone. */
  readonly stop: Effect.Effect<void>
}

/** What `Effect.uninterruptibleMask` gives. */
export type Interruptible = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** What has to be done before a plan may run, where something has. */
export interface Guard {
  readonly missing: (plan: Plan.Plan) => ReadonlyArray<string>
  readonly hold: (missing: ReadonlyArray<string>) => Effect.Effect<void, BerthError>
}

const SIGKILL = 9
const SIGCONT = 18

/** A supervisor that has not answered for so long may have been stopped by somebody, and is set going again. */
const PATIENCE_MILLIS = 200
/** How long things may take, in milliseconds; tests have less. */
export const limits = {
  /** A start: a lease on the command's file holds up its execution for 45 seconds, fcntl(2). */
  start: 60_000,
  /** A release: what is left then, the supervisor goes on with, or a sweep. */
  release: 30_000,
  /** The supervisor's end: it goes on alone then. */
  end: 20_000
}

interface Pending {
  readonly plan: Plan.Plan
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** Of its process and its root, or of its root alone: -1 where there is none, before the start and after the release. */
  descriptors: readonly [number, number]
  pid: number
  /** The supervisor owns nothing of it any more. */
  gone: boolean
  started: ((result: Effect.Effect<void, BerthError>) => void) | undefined
  released: ((leftover: Leftover | undefined) => void) | undefined
  /** When its start or its release is given up, in milliseconds since 1970. */
  deadline: number
}

const closeAll = (descriptors: ReadonlyArray<number>): void => {
  for (const fd of descriptors) if (fd >= 0) native().closeRoot(fd)
}

const refused = (syscall: string, errno: number, operation = "start"): OperationFailed =>
  new OperationFailed({ operation, index: -1, syscall, errno, hint: "" })

const failureOf = (plan: Plan.Plan, reply: Reply): OperationFailed => {
  const operation = plan.operations[reply.operation]
  if (operation === undefined) return refused(reply.syscall(), reply.errno)
  return new OperationFailed({
    operation: Plan.printOperation(operation),
    index: reply.operation,
    syscall: reply.syscall(),
    errno: reply.errno,
    hint: hint(operation, reply.errno)
  })
}

/** The connection over a started supervisor's socket. Replies are handled in plain callbacks: they are on the path of every start. */
class Connection {
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
  private readonly pidfd: number

  constructor(
    socket: number,
    pidfd: number,
    onReady: (reply: Reply | undefined, lost?: OperationFailed) => void
  ) {
    this.socket = socket
    this.pidfd = pidfd
    this.onReady = onReady
    this.listen()
    this.expect()
  }

  /** Looks after a while whether the supervisor has answered: one timer for all that it is asked meanwhile. */
  private expect(): void {
    if (this.patience !== undefined) return
    this.patience = setTimeout(() => {
      this.patience = undefined
      const now = Date.now()
      let waiting = this.onReady !== undefined
      for (const unit of this.units.values()) {
        waiting ||= unit.started !== undefined || unit.released !== undefined
        if (now < unit.deadline) continue
        unit.started?.(Effect.fail(tookTooLong()))
        // It stays known: whoever waits for its end is told when it comes.
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
    // Not at once: whoever makes a connection does not have it yet.
    else queueMicrotask(() => this.end(refused("epoll_ctl", -cancel, "supervisor")))
  }

  private serve(): void {
    if (this.closed) return
    while (!this.gone) {
      const [n, first, second] = native().receive(this.socket, this.reply)
      if (n === -EAGAIN) break
      // The descriptors that came along are lost, as this program may open no more files: the reply itself is there.
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

  send(bytes: Uint8Array, descriptors: ReadonlyArray<number>, sent: (n: number) => void): void {
    this.expect()
    const n = this.unsent.length > 0 ? -EAGAIN : native().send(this.socket, bytes, descriptors)
    if (n !== -EAGAIN) return sent(n)
    this.unsent.push({ bytes, descriptors, sent })
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
        // Whoever has asked for it releases it.
        if (lost !== undefined) return unit.started?.(Effect.fail(lost))
        if (reply.errno !== 0) return unit.started?.(Effect.fail(refused(reply.syscall(), reply.errno)))
        unit.pid = reply.pid
        unit.descriptors = reply.descriptors
        return unit.started?.(Effect.void)
      case REPLY_FAILED:
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

  /** The supervisor is gone: whatever it owned is dying with it, and nobody waits any longer. */
  private end(why?: OperationFailed): void {
    if (this.gone) return
    this.gone = true
    const error = gone("it has ended, and its containers end with it")
    this.onReady?.(undefined, why)
    for (const { sent } of this.unsent.splice(0)) sent(-32)
    for (const unit of this.units.values()) {
      unit.started?.(Effect.fail(error))
      // One that has changed its parent-death signal does not end by itself.
      if (unit.pid > 0) native().signal(unit.descriptors[0], SIGKILL)
      unit.released?.(undefined)
      Deferred.unsafeDone(unit.ended, Exit.fail(error))
    }
    this.units.clear()
  }
}

const nothing = new Uint8Array(0)

const tookTooLong = (): OperationFailed =>
  new OperationFailed({
    operation: "start",
    index: -1,
    syscall: "execve",
    errno: ETIMEDOUT,
    hint: `The process did not execute its command within ${limits.start / 1000} seconds, which its container can hold up: stop the container, or look at its processes`
  })

const gone = (detail: string): SupervisorError => new SupervisorError({ reason: "Gone", detail })

const beginUnit = (
  connection: Connection,
  guard: Guard,
  id: number,
  unit: Pending,
  descriptors: Readonly<Record<string, number>>
): Effect.Effect<void, BerthError> =>
  Effect.async<void, BerthError>((resume) => {
    if (connection.gone) return resume(Effect.fail(gone("it is no longer running")))
    const { plan } = unit
    const missing = guard.missing(plan)
    if (missing.length > 0) {
      const again = beginUnit(connection, guard, id, unit, descriptors)
      return resume(Effect.zipRight(guard.hold(missing), again))
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
    unit.deadline = Date.now() + limits.start
    unit.started = (result) => {
      unit.started = undefined
      Loop.release()
      resume(result)
    }
    connection.units.set(id, unit)
    Loop.retain()
    connection.send(message, large ? [memfd, ...fds] : fds, (n) => {
      if (large) native().close(memfd)
      if (n >= 0) return
      connection.units.delete(id)
      unit.gone = true
      unit.started?.(Effect.fail(n === -EPIPE ? gone("it is no longer running") : refused("sendmsg", -n)))
    })
  })

/** Releases a unit that may not have started yet, for `limits.release` at the most. */
const releaseUnit = (
  connection: Connection,
  id: number,
  unit: Pending
): Effect.Effect<Leftover | undefined> =>
  Effect.async<Leftover | undefined>((resume) => {
    const finish = (leftover: Leftover | undefined): void => {
      unit.released = undefined
      // A number that outlived its descriptor could be somebody else's by then.
      closeAll(unit.descriptors)
      unit.descriptors = [-1, -1]
      Loop.release()
      resume(Effect.succeed(leftover))
    }
    unit.started?.(Effect.void)
    Loop.retain()
    if (connection.gone || unit.gone || !connection.units.has(id)) return finish(undefined)
    unit.released = finish
    unit.deadline = Date.now() + limits.release
    connection.send(encodeRequest(REQUEST_RELEASE, id, 0, nothing), [], (n) => {
      if (n < 0) finish(undefined)
    })
  })

const startUnit = (
  connection: Connection,
  guard: Guard,
  id: number,
  plan: Plan.Plan,
  descriptors: Readonly<Record<string, number>>,
  interruptible: Interruptible
): Effect.Effect<Unit, BerthError> =>
  Effect.suspend(() => {
    const pending: Pending = {
      plan,
      ended: Deferred.unsafeMake(FiberId.none),
      pid: 0,
      descriptors: [-1, -1],
      gone: false,
      started: undefined,
      released: undefined,
      deadline: 0
    }
    return interruptible(beginUnit(connection, guard, id, pending, descriptors)).pipe(
      Effect.tapErrorCause(() => releaseUnit(connection, id, pending)),
      Effect.map(() => unitOf(connection, id, pending))
    )
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

/** Waits until a pidfd says that its process has ended, for this long at the most: whether it has. */
const awaitEnd = (pidfd: number, millis: number): Effect.Effect<boolean> =>
  Effect.async<void>((resume) => {
    const going = setInterval(() => native().signal(pidfd, SIGCONT), PATIENCE_MILLIS)
    const cancel = Loop.watch(pidfd, EPOLLIN, () => {
      clearInterval(going)
      resume(Effect.void)
    })
    if (typeof cancel === "number") {
      clearInterval(going)
      return resume(Effect.void)
    }
    return Effect.sync(() => {
      clearInterval(going)
      cancel()
    })
    // A scope that closes cannot be interrupted, and would wait for it all the same.
  }).pipe(Effect.interruptible, Effect.timeoutOption(millis), Effect.map(Option.isSome))

/**
 * Starts a supervisor that owns `folder`, whose lock (a descriptor, which becomes the supervisor's) is held. With the mode
 * `ranges` it waits in a user namespace of its own until `map` has given that its ids.
 */
export const start = (
  folder: string,
  lock: number,
  mode: "root" | "single-id" | "ranges",
  map: (pid: number) => Effect.Effect<void, BerthError>,
  guard: Guard
): Effect.Effect<Supervisor, BerthError> =>
  Effect.async<Supervisor, BerthError>((resume) => {
    const addon = native()
    const notStarted = (detail: string) => new SupervisorError({ reason: "NotStarted", detail })
    const program = programPath("berth-supervisor")
    const [ours, theirs] = addon.socketpair()
    if (ours < 0) {
      addon.close(lock)
      return resume(Effect.fail(refused("socketpair", -ours, "supervisor")))
    }
    const [pid, pidfd] = addon.startSupervisor(program, folder, [theirs, lock], mode)
    addon.close(theirs)
    addon.close(lock)
    if (pid < 0) {
      addon.close(ours)
      return resume(
        Effect.fail(
          pid === -EMFILE
            ? refused("clone", EMFILE, "supervisor")
            : notStarted(`${program} cannot be executed: ${errnoName(-pid)}`)
        )
      )
    }
    let unitId = 0
    const awaited = Effect.suspend(() => awaitEnd(pidfd, limits.end))
    const reap = (): void => {
      addon.reap(pidfd)
      addon.close(pidfd)
    }
    const end = Effect.flatMap(awaited, (ended) => {
      if (ended) reap()
      // It stays a zombie otherwise, once it has ended.
      else if (typeof Loop.watch(pidfd, EPOLLIN, reap) === "number") reap()
      Loop.release()
      return ended
        ? Effect.void
        : Effect.logWarning(
            new NotReleased({
              resource: `supervisor ${pid} of ${folder}`,
              syscall: "waitid",
              errno: ETIMEDOUT
            })
          )
    })
    let unmapped: Effect.Effect<never, BerthError> | undefined
    Loop.retain()
    const connection: Connection = new Connection(ours, pidfd, (reply, lost) => {
      if (reply?.type === REPLY_UNMAPPED) {
        // It has not been waited for, so its pid is its own even where it has been killed.
        Effect.runCallback(map(pid), {
          onExit: (exit) => {
            if (Exit.isSuccess(exit))
              return connection.send(encodeRequest(REQUEST_MAPPED, 0, 0, nothing), [], () => {})
            unmapped = Effect.failCause(exit.cause)
            connection.close()
          }
        })
        return
      }
      Loop.release()
      if (reply?.type === REPLY_READY && lost === undefined && reply.errno === 0) {
        const forgetNamespace = useNamespace(reply.descriptors[0])
        return resume(
          Effect.succeed({
            pid,
            folder,
            nextId: () => ++unitId,
            start: (id, plan, descriptors, interruptible = identity) =>
              startUnit(connection, guard, id, plan, descriptors, interruptible),
            plans: () => [...connection.units.values()].map((unit) => unit.plan),
            stop: Effect.suspend(() => {
              Loop.retain()
              forgetNamespace()
              connection.close()
              return end
            })
          })
        )
      }
      Loop.retain()
      connection.close()
      const error =
        lost ??
        (reply === undefined
          ? notStarted("it ended before it was ready")
          : refused(reply.syscall(), reply.errno, "supervisor"))
      resume(Effect.zipRight(end, unmapped ?? Effect.fail(error)))
    })
  })
