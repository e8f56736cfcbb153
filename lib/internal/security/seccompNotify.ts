/** Answers to the system calls that a container's seccomp policy asks about: seccomp_unotify(2), Linux 5.0. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { SystemCall, SystemCallAnswer } from "../../Security.ts"
import { EPOLLHUP, EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { makeSocketPair, takeDescriptor } from "../system/pipe.ts"
import { ENOENT, ENOSYS } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"

export type Handler = (call: SystemCall) => Effect.Effect<SystemCallAnswer>

// struct seccomp_notif and struct seccomp_notif_resp of linux/seccomp.h.
const REQUEST_BYTES = 80
const ANSWER_BYTES = 24
const CONTINUE = 1n

/** AUDIT_ARCH_* of this machine's own calls, whose names libseccomp knows. */
const ownArchitecture: Readonly<Record<string, number>> = {
  x64: 0xc000003e,
  arm64: 0xc00000b7,
  riscv64: 0xc00000f3
}

const readCall = (view: DataView): SystemCall & { readonly id: bigint } => {
  const number = view.getInt32(16, true)
  const own = view.getUint32(20, true) === ownArchitecture[process.arch]
  return {
    id: view.getBigUint64(0, true),
    pid: view.getUint32(8, true),
    number,
    name: own ? native().seccompName(number) : "",
    args: Array.from({ length: 6 }, (_, index) => view.getBigUint64(32 + index * 8, true))
  }
}

const encodeAnswer = (id: bigint, answer: SystemCallAnswer): Uint8Array => {
  const bytes = new Uint8Array(ANSWER_BYTES)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, id, true)
  if (answer === "continue") view.setUint32(20, Number(CONTINUE), true)
  else if ("errno" in answer) view.setInt32(16, -answer.errno, true)
  else view.setBigInt64(8, BigInt(answer.value), true)
  return bytes
}

const readable = (fd: number): Effect.Effect<number> =>
  Effect.async<number>((resume) => {
    const cancel = Loop.watch(fd, EPOLLIN, (events) => resume(Effect.succeed(events)))
    if (typeof cancel === "number") return resume(Effect.succeed(EPOLLHUP))
    return Effect.sync(cancel)
  })

const answerOne = (
  listener: number,
  handler: Handler,
  call: SystemCall & { readonly id: bigint }
): Effect.Effect<void> =>
  Effect.suspend(() => handler(call)).pipe(
    Effect.catchAllCause((cause) =>
      Effect.as(Effect.logWarning(`onSystemCall failed: ${Cause.pretty(cause)}`), { errno: ENOSYS } as const)
    ),
    // The process that asked may be gone by now: ENOENT.
    Effect.map((answer) => void native().seccompAnswer(listener, encodeAnswer(call.id, answer)))
  )

/** Until no process has the filter any more. */
const serve = (listener: number, handler: Handler): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const bytes = new Uint8Array(REQUEST_BYTES)
    const view = new DataView(bytes.buffer)
    for (;;) {
      const events = yield* readable(listener)
      if ((events & EPOLLIN) === 0) return
      // The kernel only accepts a request that is filled with zeros.
      const error = native().seccompReceive(listener, bytes.fill(0))
      if (error === 0) yield* Effect.forkScoped(answerOne(listener, handler, readCall(view)))
      else if (error !== -ENOENT) return
    }
  })

interface Attended {
  /** The socket to which the listener is sent. */
  readonly socket: number
  /** Closes `socket`, after the child has sent the listener. */
  readonly close: Effect.Effect<void>
  /** Throws if the listener was sent and could not be received. */
  readonly taken: () => void
}

/**
 * Answers the calls of a listener while the scope is open; calls that wait when it closes, and later ones, fail with
 * ENOSYS.
 */
export const attend = (handler: Handler): Effect.Effect<Attended, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const [ours, theirs] = yield* attempt(makeSocketPair)
    let listener = -1
    let failure: unknown
    const take = (): void => {
      if (listener >= 0 || failure !== undefined) return
      try {
        listener = takeDescriptor(ours)
      } catch (error) {
        failure = error
      }
    }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        native().close(ours)
        if (listener >= 0) native().close(listener)
      })
    )
    yield* Effect.forkScoped(
      Effect.flatMap(readable(ours), () => {
        take()
        return listener < 0 ? Effect.void : serve(listener, handler)
      })
    )
    return {
      socket: theirs,
      close: Effect.sync(() => void native().close(theirs)),
      taken: () => {
        take()
        if (failure !== undefined) throw failure
      }
    }
  })
