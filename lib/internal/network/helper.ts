/** Runs a program of the native part that serves containers, native/proxy or native/names, as a unit of the supervisor's. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native } from "../system/addon.ts"
import { programPath } from "../system/nativePart.ts"
import { makeSocketPair } from "../system/pipe.ts"
import { attempt } from "../util/fromThrowing.ts"

/** The program has no capabilities, and gains none by its execution. */
const confined: ReadonlyArray<Plan.Operation> = [
  { op: "session" },
  { op: "bounding", capabilities: 0 },
  { op: "capabilities", effective: 0, permitted: 0, inheritable: 0, ambient: 0 },
  { op: "no-new-privileges" }
]

export interface Helper {
  /** The socket to its standard input, with which it ends. */
  readonly socket: number
  readonly pidfd: () => number
}

/** Starts the program, which ends at the latest with the scope. */
export const startHelper = (
  berth: Pick<Berth, "supervisor">,
  options: {
    readonly program: "berth-proxy" | "berth-names"
    /** The name of its unit in messages. */
    readonly name: string
    /** The clone, and the namespaces that it joins. */
    readonly place: ReadonlyArray<Plan.Operation>
    readonly descriptors?: Readonly<Record<string, number>>
  }
): Effect.Effect<Helper, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { descriptors, name, place, program } = options
    const [ours, theirs] = yield* Effect.acquireRelease(attempt(makeSocketPair), ([socket]) =>
      Effect.sync(() => native().close(socket))
    )
    const plan = Plan.make([
      ...place,
      { op: "stdio", stdin: "control", stdout: null, stderr: null },
      ...confined,
      {
        op: "exec",
        program: null,
        paths: [programPath(program)],
        // The folder says, in a list of processes, whose program it is.
        arguments: [program, berth.supervisor.folder],
        environment: []
      }
    ])
    const { pidfd } = yield* Effect.ensuring(
      scopedUnit(berth, berth.supervisor.nextId(), name, plan, { ...descriptors, control: theirs }),
      Effect.sync(() => native().close(theirs))
    )
    return { socket: ours, pidfd }
  })
