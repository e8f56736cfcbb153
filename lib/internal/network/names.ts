/**
 * The responder for names, native/names/names.c: one for each Berth, which starts with the first network and ends with the Berth.
 * It knows which names each network has, and which networks each container is on.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { EPOLLOUT, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { EAGAIN } from "../util/errno.ts"
import { startOnce } from "../util/startOnce.ts"
import { startHelper } from "./helper.ts"

/** What a container that the responder serves has in its resolv.conf. */
export const RESOLVER = "127.0.0.11"

/** As many networks one container can see: VIEW_MAX of native/names/table.h. */
export const NETWORKS_MAX = 64

/** The responder reads messages of 8192 bytes at most: names beyond these go into another one. */
export const NAMES_MAX_BYTES = 7000

export interface Responder {
  /** The socket to the responder; -1 once the Berth is closed. */
  readonly socket: () => number
  /** The responder's process, in whose network namespace it asks other servers. */
  readonly pidfd: () => number
  /** Sends a message, of one line or several, in the order of the calls. To a responder that has ended it does nothing. */
  readonly tell: (message: string) => void
  /** A number that no network and no container of this Berth has. */
  readonly nextNumber: () => number
}

const start = (at: Pick<Berth, "supervisor">): Effect.Effect<Responder, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { pidfd, socket } = yield* startHelper(at, {
      program: "berth-names",
      name: "the responder for names",
      place: [{ op: "process", namespaces: flagsOf(["pid", "network", "ipc", "uts"]) }, { op: "loopback" }]
    })
    let open = true
    let number = 0
    // What the kernel's buffer had no room for: many containers that leave at once have more to say than it takes.
    const waiting: Array<Uint8Array> = []
    let cancel: (() => void) | number = 0
    const flush = (): void => {
      while (waiting.length > 0) {
        if (native().send(socket, waiting[0]!, []) === -EAGAIN) {
          cancel = Loop.watch(socket, EPOLLOUT, flush)
          return
        }
        waiting.shift()
      }
    }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        open = false
        if (waiting.length > 0 && typeof cancel !== "number") cancel()
      })
    )
    return {
      socket: () => (open ? socket : -1),
      pidfd,
      tell: (message) => {
        if (!open) return
        waiting.push(new TextEncoder().encode(message))
        if (waiting.length === 1) flush()
      },
      nextNumber: () => ++number
    }
  })

/** Starts the responder when it is first asked for; it ends with the scope. */
export const makeResponder = (
  at: Pick<Berth, "supervisor">
): Effect.Effect<Effect.Effect<Responder, BerthError>, never, Scope.Scope> => startOnce(start(at))

/** The names of a network. */
export interface Names {
  /** The number of the network. */
  readonly network: number
  readonly responder: Responder
  /** The messages that give names to the owner of a number on the network. */
  readonly introductions: (
    owner: number,
    names: ReadonlyArray<string>,
    addresses: ReadonlyArray<string>
  ) => ReadonlyArray<string>
  readonly remove: (owner: number) => void
  /** Has it ask a server, in the responder's network namespace, for what it does not know. */
  readonly forward: (address: string, port: number) => void
}

const inMessages = (names: ReadonlyArray<string>): ReadonlyArray<string> => {
  const lists: Array<string> = []
  for (const name of names) {
    const last = lists.at(-1)
    if (last === undefined || last.length + name.length > NAMES_MAX_BYTES) lists.push(name)
    else lists[lists.length - 1] = `${last},${name}`
  }
  return lists
}

export const makeNames = (berth: Berth): Effect.Effect<Names, BerthError, Scope.Scope> =>
  Effect.flatMap(berth.responder, (responder) => {
    const network = responder.nextNumber()
    const names: Names = {
      network,
      responder,
      introductions: (owner, given, addresses) =>
        inMessages(given).map((list) => `name ${network} ${owner} ${list} ${addresses.join(" ")}`),
      remove: (owner) => responder.tell(`forget ${network} ${owner}`),
      forward: (address, port) => responder.tell(`forward ${network} ${address} ${port}`)
    }
    return Effect.as(
      Effect.addFinalizer(() => Effect.sync(() => responder.tell(`forget ${network}`))),
      names
    )
  })
