/** Runs native/names/names.c, the responder for a network's names, as a unit of the supervisor's. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native, programPath } from "../system/addon.ts"
import { makeSocketPair } from "../system/pipe.ts"
import { attempt } from "../util/fromThrowing.ts"
import { confined } from "./proxy.ts"

export interface Names {
  /** The socket to the responder. */
  readonly socket: number
  /** The names of a container, by its number on the network. */
  readonly add: (number: number, names: ReadonlyArray<string>, addresses: ReadonlyArray<string>) => void
  readonly remove: (number: number) => void
}

/** What a container that the responder serves has in its resolv.conf. */
export const RESOLVER = "127.0.0.11"

export const makeNames = (berth: Berth, network: string): Effect.Effect<Names, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const [ours, theirs] = yield* attempt(makeSocketPair)
    yield* Effect.addFinalizer(() => Effect.sync(() => native().close(ours)))
    const plan = Plan.make([
      { op: "process", namespaces: flagsOf(["pid", "network", "ipc", "uts"]) },
      { op: "stdio", stdin: "control", stdout: null, stderr: null },
      ...confined,
      {
        op: "exec",
        program: null,
        paths: [programPath("berth-names")],
        arguments: ["berth-names", berth.supervisor.folder],
        environment: []
      }
    ])
    const unit = scopedUnit(berth, berth.supervisor.nextId(), `names of ${network}`, plan, {
      control: theirs
    })
    yield* Effect.ensuring(
      unit,
      Effect.sync(() => native().close(theirs))
    )
    // A responder that does not read is dead or stopped, and takes the names with it.
    const tell = (message: string): void => void native().send(ours, new TextEncoder().encode(message), [])
    return {
      socket: ours,
      add: (number, names, addresses) => {
        for (const name of names) tell(`name ${number} ${name} ${addresses.join(" ")}`)
      },
      remove: (number) => tell(`leave ${number}`)
    }
  })
