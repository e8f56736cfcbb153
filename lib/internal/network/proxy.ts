/** Runs native/proxy/proxy.c in a container's network namespace, as a unit of the supervisor's. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { ECONNRESET } from "../util/errno.ts"
import { startHelper } from "./helper.ts"

const ANSWER_BYTES_MAX = 64

/** The targets as the proxy reads them: the container's addresses on networks, and loopback. */
const targetsOf = ({ state }: Container, port: number): string =>
  [...state.addresses.slice(0, 2), "127.0.0.1", "::1"]
    .map((host) => `v${host.includes(":") ? 6 : 4}:${port}:${host}`)
    .join(" ")

const failed = (syscall: string, errno: number): BerthError =>
  new OperationFailed({ operation: "a message to the proxy", index: -1, syscall, errno, hint: "" })

/** Waits for the proxy's answer to a message. */
const answer = (socket: number): Effect.Effect<void, BerthError> =>
  Effect.async((resume) => {
    Loop.retain()
    const end = (result: Effect.Effect<void, BerthError>): void => {
      Loop.release()
      resume(result)
    }
    const cancel = Loop.watch(socket, EPOLLIN, () => {
      const [length] = native().receive(socket, new Uint8Array(ANSWER_BYTES_MAX))
      end(length > 0 ? Effect.void : Effect.fail(failed("recvmsg", length < 0 ? -length : ECONNRESET)))
    })
    if (typeof cancel === "number") end(Effect.fail(failed("epoll_ctl", -cancel)))
    return Effect.sync(() => {
      if (typeof cancel === "number") return
      cancel()
      Loop.release()
    })
  })

/** A proxy, which ends with the scope. */
export interface Proxy {
  /**
   * Has it accept on a bound socket, which it takes, from when something listens on the port: at once, if something does
   * already when this succeeds.
   */
  readonly add: (bound: number, port: number) => Effect.Effect<void, BerthError>
}

export const makeProxy = (container: Container): Effect.Effect<Proxy, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { berth, kinds, pidfd } = container.state
    const own = kinds.includes("network") ? kinds.filter((kind) => kind === "network" || kind === "user") : []
    const socket = yield* startHelper(berth, {
      program: "berth-proxy",
      name: `proxy of container ${container.id}`,
      place: [
        { op: "process", namespaces: 0 },
        ...(own.length === 0 ? [] : [{ op: "join", process: "container", namespaces: flagsOf(own) } as const])
      ],
      descriptors: { container: pidfd }
    })
    let id = 0
    return {
      add: (bound, port) =>
        Effect.suspend(() => {
          const message = new TextEncoder().encode(`add ${++id} ${targetsOf(container, port)}`)
          const sent = native().send(socket, message, [bound])
          native().close(bound)
          return sent < 0 ? Effect.fail(failed("sendmsg", -sent)) : answer(socket)
        })
    }
  })
