/** A runner of a fleet: `fleetMember.ts FOLDER OPTIONS`, with a Berth in the folder. Prints its address, and runs until it is killed. */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fleet from "../../lib/fleet.ts"
import { berthIn } from "./effect.ts"

const [folder, options] = process.argv.slice(2) as [string, string]
const { database, token, ...rest } = JSON.parse(options)

Fleet.serve({
  allow: { hostImage: true },
  ...rest,
  token: Redacted.make(token),
  ...(database === undefined ? {} : { database: Redacted.make(database) })
}).pipe(
  Effect.tap(({ address }) => Effect.sync(() => console.log(address))),
  Effect.zipRight(Effect.never),
  Effect.scoped,
  Effect.provide(berthIn(folder)),
  Effect.runPromise
)
