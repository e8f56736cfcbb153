/** Starts a supervisor, or connects to one with leases: native/supervisor/supervisor.c, lease.h. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { type BerthError, NotReleased, SupervisorError } from "../../BerthError.ts"
import { useNamespace } from "../files/namespaceRoot.ts"
import * as Ids from "../ids/idMaps.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { programPath } from "../system/nativePart.ts"
import { EMFILE, ETIMEDOUT, errnoName } from "../util/errno.ts"
import {
  attachUnit,
  Connection,
  type Guard,
  type Leased,
  nothing,
  PATIENCE_MILLIS,
  refused,
  renew,
  SIGCONT,
  type Supervisor,
  shareUnit,
  startUnit,
  type TimeLimits,
  timeLimits
} from "./connection.ts"
import { encodeRequest, REPLY_READY, REPLY_UNMAPPED, REQUEST_MAPPED, type Reply } from "./protocol.ts"

/** Waits, for this long at most, until a pidfd reports the end of its process; returns whether it ended. */
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
    // The region of a closing scope cannot be interrupted, and would wait without a limit.
  }).pipe(Effect.interruptible, Effect.timeoutOption(millis), Effect.map(Option.isSome))

export interface Options {
  /** Whether it has root's rights, or a user namespace of its own: of the user alone, or with ranges of ids as well. */
  readonly mode: "root" | "single-id" | "ranges"
  /** The ids of its user namespace. With the mode `ranges` it waits until these are written. */
  readonly ids: Ids.Ids
  readonly guard: Guard
  readonly limits?: Partial<TimeLimits> | undefined
}

/** The supervisor behind a connection that is ready. Units have ids above `first`. */
const supervisorOf = (
  connection: Connection,
  guard: Guard,
  folder: string,
  { id: first, pid }: Reply,
  stop: Effect.Effect<void>
): Leased => {
  let unitId = first
  return {
    pid,
    folder,
    nextId: () => ++unitId,
    start: (id, plan, descriptors, interruptible) =>
      startUnit(connection, guard, id, plan, descriptors, interruptible),
    plans: () => [...connection.units.values()].map((unit) => unit.plan),
    isRunning: () => connection.isOpen(),
    renew: (millis) => renew(connection, millis),
    stop,
    share: (pid, descriptors) => shareUnit(connection, pid, descriptors),
    attach: (id, interruptible) => attachUnit(connection, id, interruptible)
  }
}

/** The supervisor with leases behind a connection that is ready. */
const leasedOf = (
  connection: Connection,
  { guard, ids }: Pick<Options, "guard" | "ids">,
  folder: string,
  reply: Reply
): Leased => {
  const [pidfd, namespace] = reply.descriptors
  const forgetNamespace = useNamespace(namespace, ids)
  connection.pidfd = pidfd
  const stop = Effect.sync(() => {
    forgetNamespace()
    connection.close()
    native().close(pidfd)
  })
  return supervisorOf(connection, guard, folder, reply, stop)
}

const readyOf = (reply: Reply | undefined, lost: BerthError | undefined): Reply | undefined =>
  reply?.type === REPLY_READY && lost === undefined && reply.errno === 0 ? reply : undefined

/** Connects to a supervisor with leases by a socket, which becomes the connection's. */
export const connect = (
  socket: number,
  folder: string,
  options: Pick<Options, "guard" | "ids" | "limits">
): Effect.Effect<Leased, BerthError> =>
  Effect.async<Leased, BerthError>((resume) => {
    Loop.retain()
    const connection: Connection = new Connection(
      socket,
      -1,
      { ...timeLimits, ...options.limits },
      (reply, lost) => {
        Loop.release()
        const ready = readyOf(reply, lost)
        if (ready !== undefined) return resume(Effect.succeed(leasedOf(connection, options, folder, ready)))
        connection.close()
        resume(Effect.fail(lost ?? new SupervisorError({ reason: "Gone", detail: "it let nobody in" })))
      }
    )
    return Effect.sync(() => connection.close())
  })

/**
 * Starts a supervisor that owns `folder`, whose lock (a descriptor, which becomes the supervisor's) is held. With a `gate`, a file that
 * is locked by this process, it has leases, of which this connection is the first.
 */
const startWith = (
  folder: string,
  lock: number,
  { guard, ids, limits: given, mode }: Options,
  gate: string
): Effect.Effect<Leased, BerthError> =>
  Effect.async<Leased, BerthError>((resume) => {
    const limits = { ...timeLimits, ...given }
    const addon = native()
    const notStarted = (detail: string) => new SupervisorError({ reason: "NotStarted", detail })
    const program = programPath("berth-supervisor")
    const [ours, theirs] = addon.socketpair()
    if (ours < 0) {
      addon.close(lock)
      return resume(Effect.fail(refused("socketpair", -ours, "supervisor")))
    }
    const [pid, pidfd] = addon.startSupervisor(program, folder, [theirs, lock], mode, gate)
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
    const awaited = Effect.suspend(() => awaitEnd(pidfd, limits.end))
    const reap = (): void => {
      addon.reap(pidfd)
      addon.close(pidfd)
    }
    const end: Effect.Effect<void> = Effect.flatMap(awaited, (ended) => {
      if (ended) reap()
      // Otherwise it would stay a zombie after its end.
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
    const connection: Connection = new Connection(ours, gate === "" ? pidfd : -1, limits, (reply, lost) => {
      if (reply?.type === REPLY_UNMAPPED) {
        // Nobody has waited for the supervisor, so the pid is its own even if it was killed.
        Effect.runCallback(Ids.writeMaps(reply.pid, ids), {
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
      const ready = readyOf(reply, lost)
      if (ready !== undefined) {
        if (gate !== "") {
          const supervisor = leasedOf(connection, { guard, ids }, folder, ready)
          Loop.retain()
          return resume(Effect.as(end, supervisor))
        }
        const forgetNamespace = useNamespace(ready.descriptors[0], ids)
        const stop = Effect.suspend(() => {
          Loop.retain()
          forgetNamespace()
          connection.close()
          return end
        })
        return resume(Effect.succeed(supervisorOf(connection, guard, folder, ready, stop)))
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

export const start = (
  folder: string,
  lock: number,
  options: Options
): Effect.Effect<Supervisor, BerthError> => startWith(folder, lock, options, "")

/** Starts a supervisor with leases. */
export const startLeased = startWith
