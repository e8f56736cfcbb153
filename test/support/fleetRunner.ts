/**
 * A runner in a process of its own: `fleetRunner.ts FOLDER LISTEN LEASE NAME`, with its token in BERTH_TEST_TOKEN and its database in
 * BERTH_TEST_DATABASE.
 */
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Fleet from "../../lib/fleet.ts"
import { Berth } from "../../lib/index.ts"

const [folder, listen, lease, name] = process.argv.slice(2)

const program = Effect.gen(function* () {
  const token = Redacted.make(process.env.BERTH_TEST_TOKEN!)
  const { address, ended } = yield* Fleet.serve({
    listen: listen!,
    token,
    name,
    lease: Number(lease),
    database: Redacted.make(process.env.BERTH_TEST_DATABASE!),
    allow: { hostImage: true }
  })
  const { supervisor } = yield* Berth.Berth
  console.log(JSON.stringify({ address, supervisor: supervisor.pid }))
  yield* ended
}).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(Berth.layerWith({ folder }), NodeContext.layer)))

const abort = new AbortController()
process.on("SIGTERM", () => abort.abort())
Effect.runPromise(program, { signal: abort.signal }).then(
  () => process.exit(3),
  () => process.exit(0)
)
