/** Runners in the program of a test, and programs that use them. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fleet from "../../lib/fleet.ts"
import type { Berth } from "../../lib/index.ts"

export const token = Redacted.make(randomBytes(16).toString("hex"))

/** A runner on a free port of loopback, until the scope closes; gives its address. */
export const runner = (options: Partial<Fleet.RunnerOptions> = {}) =>
  Effect.map(
    Fleet.serve({ listen: "tcp://127.0.0.1:0", token, name: "one", allow: { hostImage: true }, ...options }),
    ({ address }) => address
  )

/** Runs a program with the runners at these addresses, as one of another machine would run. */
export const onFleet =
  (runners: ReadonlyArray<string>, options: Omit<Fleet.Options, "runners"> = {}) =>
  <A, E, R>(program: Effect.Effect<A, E, R | Berth.Berth>) =>
    Effect.provide(Effect.scoped(program), Fleet.layer({ runners, token, ...options }))
