/** Runs native/proxy/proxy.c, as a unit of the supervisor's: it connects in the network namespace that it is in. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type * as Plan from "../../Plan.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { ECONNRESET, EPIPE } from "../util/errno.ts"
import { abstractName, LOOPBACK } from "./address.ts"
import { startHelper } from "./helper.ts"
import { notRunning, whenReady, withoutRoot } from "./socket.ts"

const ANSWER_BYTES_MAX = 64

const failed = (syscall: string, errno: number): BerthError =>
  new OperationFailed({ operation: "a message to the proxy", index: -1, syscall, errno, hint: "" })

/** Waits for the proxy's answer to a message. */
const answer = (socket: number): Effect.Effect<void, BerthError> =>
  Effect.flatMap(whenReady(socket, EPOLLIN, failed), () => {
    const [length] = native().receive(socket, new Uint8Array(ANSWER_BYTES_MAX))
    return length > 0 ? Effect.void : Effect.fail(failed("recvmsg", length < 0 ? -length : ECONNRESET))
  })

/** Where a proxy connects to, as native/proxy/proxy.c reads it. */
export interface Target {
  readonly verb: "add" | "datagrams" | "outbound"
  readonly text: string
  /** The descriptor of the root in which a path is resolved. */
  readonly root?: number
}

/** Where each connection was going to before it was redirected. */
export const wherever: Target = { verb: "outbound", text: "" }

/** A port, at the first of the addresses that accepts a connection, or that a UDP socket has. */
export const toPort = (addresses: ReadonlyArray<string>, port: number, protocol = "tcp"): Target => ({
  verb: protocol === "tcp" ? "add" : "datagrams",
  text: addresses.map((host) => `v${host.includes(":") ? 6 : 4}:${port}:${host}`).join(" ")
})

/** A Unix socket of a container, by its path or its abstract name; throws. */
export const toPath = (container: Served, path: string): Target => {
  if (abstractName(path) !== undefined) return { verb: "add", text: `abstract:${path.slice(1)}` }
  const { root } = container.state
  if (root < 0) throw withoutRoot(container, path)
  return { verb: "add", text: `unix:${path}`, root }
}

/** A proxy, which ends with the scope. */
export interface Proxy {
  /**
   * Has it serve a bound socket, which it takes: it accepts connections from when something listens at the target, at once
   * if something does already when this succeeds; datagrams it passes on. Gives the number of the socket.
   */
  readonly add: (bound: number, target: Target) => Effect.Effect<number, BerthError>
  /** Sends another message with descriptors, which stay open here. */
  readonly tell: (
    verb: string,
    text: string,
    descriptors?: ReadonlyArray<number>
  ) => Effect.Effect<void, BerthError>
  /** Sets the faults of a socket's connections, in the proxy's terms. After the proxy's end it does nothing. */
  readonly toxic: (id: number, text: string) => Effect.Effect<void, BerthError>
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
  Effect.gen(function* () {
    const { socket } = yield* startHelper(berth, { program: "berth-proxy", ...options })
    const turn = yield* Effect.makeSemaphore(1)
    let id = 0
    let ended = false
    // One message at a time, to the end: an answer that nobody has read would be taken for the next one.
    const inTurn = <A, E>(effect: Effect.Effect<A, E>) => turn.withPermits(1)(Effect.uninterruptible(effect))
    yield* Effect.addFinalizer(() => inTurn(Effect.sync(() => (ended = true))))
    const ask = (message: string, descriptors: ReadonlyArray<number> = []): Effect.Effect<void, BerthError> =>
      Effect.suspend(() => {
        // The scope may have closed while a fiber still uses the proxy: the socket's number may be another file's by now.
        if (ended) return Effect.fail(failed("sendmsg", EPIPE))
        const sent = native().send(socket, new TextEncoder().encode(message), descriptors)
        return sent < 0 ? Effect.fail(failed("sendmsg", -sent)) : answer(socket)
      })
    return {
      add: (bound, { root, text, verb }) =>
        inTurn(
          Effect.suspend(() => {
            const own = ++id
            return Effect.as(ask(`${verb} ${own} ${text}`, root === undefined ? [bound] : [bound, root]), own)
          })
        ).pipe(Effect.ensuring(Effect.sync(() => native().close(bound)))),
      tell: (verb, text, descriptors) =>
        inTurn(Effect.suspend(() => ask(`${verb} ${++id} ${text}`, descriptors))),
      toxic: (id, text) => inTurn(Effect.suspend(() => (ended ? Effect.void : ask(`toxic ${id} ${text}`))))
    }
  })

/** Has a proxy serve sockets, each of which it takes out of the list, and gives their numbers. */
export const addAll = (
  proxy: Proxy,
  left: Array<number>,
  target: Target
): Effect.Effect<ReadonlyArray<number>, BerthError> =>
  Effect.gen(function* () {
    const ids: Array<number> = []
    while (left.length > 0) ids.push(yield* proxy.add(left.shift()!, target))
    return ids
  })

/** What has servers: a container, or the network namespace that the containers of a pod share, which has no root. */
export interface Served {
  readonly id: string
  readonly state: Pick<Container["state"], "addresses" | "berth" | "kinds" | "pidfd" | "root">
}

/** The addresses at which the servers are looked for. */
export const addressesIn = ({ state }: Served): ReadonlyArray<string> => [
  ...state.addresses.slice(0, 2),
  ...LOOPBACK
]

/** Runs a proxy that connects to servers of a container. */
export const makeProxy = (container: Served): Effect.Effect<Proxy, BerthError, Scope.Scope> =>
  Effect.suspend(() => {
    const { berth, kinds, pidfd } = container.state
    if (isContainer(container) && (pidfd < 0 || native().signal(pidfd, 0) < 0))
      return Effect.fail(notRunning(container))
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
