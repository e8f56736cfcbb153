/** `cgroups.ts FOLDER`: prints, as JSON, the cgroups of this program and its supervisor, and one that it makes. */
import * as Effect from "effect/Effect"
import { Berth, Cgroup } from "../../lib/index.ts"
import { unifiedOf } from "../../lib/internal/cgroup/tree.ts"
import { berthIn } from "./effect.ts"

const [folder] = process.argv.slice(2) as [string]

const said = await Effect.runPromise(
  Effect.gen(function* () {
    const berth = yield* Berth.Berth
    const cgroup = yield* Cgroup.make({ memory: "64MiB" })
    const { memory } = yield* Cgroup.stats(cgroup)
    return {
      own: unifiedOf("self"),
      supervisor: unifiedOf(berth.supervisor.pid),
      cgroup: cgroup.folders.find(({ controllers }) => controllers.includes("memory"))?.path,
      limit: memory.limit
    }
  }).pipe(Effect.scoped, Effect.provide(berthIn(folder)))
)
process.stdout.write(JSON.stringify(said))
