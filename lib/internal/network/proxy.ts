/** Runs native/proxy/proxy.c, as a unit of the supervisor's: it connects in the network namespace that it is in. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type * as Plan from "../../Plan.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { ECONNRESET } from "../util/errno.ts"
import { LOOPBACK } from "./address.ts"
import { startHelper } from "./helper.ts"

const ANSWER_BYTES_MAX = 64

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
   * already when this succeeds. The connections go to the first of the addresses that accepts one.
   */
  readonly add: (
    bound: number,
    addresses: ReadonlyArray<string>,
    port: number
  ) => Effect.Effect<void, BerthError>
  /** Has it pass on the datagrams of a bound UDP socket, which it takes. */
  readonly addDatagrams: Proxy["add"]
}

/** Runs a proxy that connects in the network namespace of `place`. */
export const startProxy = (
  berth: Berth,
  options: {
    readonly name: string
    readonly place: ReadonlyArray<Plan.Operation>
    readonly descriptors?: Readonly<Record<string, number>>
  }
): Effect.Effect<Proxy, BerthError, Scope.Scope> =>
  Effect.map(startHelper(berth, { program: "berth-proxy", ...options }), (socket) => {
    let id = 0
    const add =
      (verb: string): Proxy["add"] =>
      (bound, addresses, port) =>
        Effect.suspend(() => {
          const targets = addresses.map((host) => `v${host.includes(":") ? 6 : 4}:${port}:${host}`)
          const message = new TextEncoder().encode(`${verb} ${++id} ${targets.join(" ")}`)
          const sent = native().send(socket, message, [bound])
          native().close(bound)
          return sent < 0 ? Effect.fail(failed("sendmsg", -sent)) : answer(socket)
        })
    return { add: add("add"), addDatagrams: add("datagrams") }
  })

/** The addresses at which a container's servers are looked for. */
export const addressesIn = ({ state }: Container): ReadonlyArray<string> => [
  ...state.addresses.slice(0, 2),
  ...LOOPBACK
]

/** Runs a proxy that connects to servers of a container. */
export const makeProxy = (container: Container): Effect.Effect<Proxy, BerthError, Scope.Scope> =>
  Effect.suspend(() => {
    const { berth, kinds, pidfd } = container.state
    const own = kinds.includes("network") ? kinds.filter((kind) => kind === "network" || kind === "user") : []
    return startProxy(berth, {
      name: `proxy of container ${container.id}`,
      place: [
        { op: "process", namespaces: 0 },
        ...(own.length === 0 ? [] : [{ op: "join", process: "container", namespaces: flagsOf(own) } as const])
      ],
      descriptors: { container: pidfd }
    })
  })
