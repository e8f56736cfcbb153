/** Runs native/names/names.c, the responder for a network's names, as a unit of the supervisor's. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { native } from "../system/addon.ts"
import { startHelper } from "./helper.ts"

export interface Names {
  /** The socket to the responder. */
  readonly socket: number
  /** The names of a container, by its number on the network. */
  readonly add: (number: number, names: ReadonlyArray<string>, addresses: ReadonlyArray<string>) => void
  readonly remove: (number: number) => void
  /** A process in the network namespace from which the responder asks other servers. */
  readonly pidfd: () => number
  /** Has it ask a server in its own network namespace for all that it does not know. */
  readonly forward: (address: string, port: number) => void
}

/** What a container that the responder serves has in its resolv.conf. */
export const RESOLVER = "127.0.0.11"

export const makeNames = (berth: Berth, network: string): Effect.Effect<Names, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { pidfd, socket } = yield* startHelper(berth, {
      program: "berth-names",
      name: `names of ${network}`,
      place: [{ op: "process", namespaces: flagsOf(["pid", "network", "ipc", "uts"]) }, { op: "loopback" }]
    })
    // A responder that does not read is dead or stopped, and takes the names with it.
    const tell = (message: string): void => void native().send(socket, new TextEncoder().encode(message), [])
    return {
      socket,
      pidfd,
      forward: (address, port) => tell(`forward ${address} ${port}`),
      add: (number, names, addresses) => {
        for (const name of names) tell(`name ${number} ${name} ${addresses.join(" ")}`)
      },
      remove: (number) => tell(`leave ${number}`)
    }
  })
