import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type { Report } from "../support/attackedOperations.ts"
import { allowTime, suite } from "../support/effect.ts"
import { ended, program } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const MAX_MILLIS = 240_000
// Attempts that end at their limits leave some 100 MB of uncollected garbage, up to 400 in Deno on a busy machine.
// An attack that fills memory passes this in seconds.
const GROWN_BYTES_MAX = 1024 ** 3

/** Runs test/support/attackedOperations.ts, which has to end by itself. */
const reportOf = async (...args: ReadonlyArray<string>): Promise<Report> => {
  const child = program("attackedOperations.ts", args)
  const timer = setTimeout(() => child.kill("SIGKILL"), MAX_MILLIS)
  const end = await ended(child)
  clearTimeout(timer)
  assert.equal(end.signal, null, `the operations did not end in ${MAX_MILLIS} ms`)
  assert.equal(end.code, 0, end.stdout)
  return JSON.parse(end.stdout)
}

suite("operations on a container that attacks", (effect, folder) => {
  allowTime(MAX_MILLIS)
  for (const { name, options } of modes)
    effect(
      `${name}: every operation on a container that attacks ends, fills no memory, and disturbs no other container`,
      function* () {
        const place = `${folder()}/operations-${name}`
        fs.mkdirSync(place, { recursive: true })
        const marker = `${place}/marker`
        fs.writeFileSync(marker, "unchanged")
        const { died, disturbed, grown, unavailable } = yield* Effect.promise(() =>
          reportOf(place, JSON.stringify(options))
        )
        assert.deepEqual({ died, disturbed }, { died: [], disturbed: [] })
        assert.ok(unavailable.length <= 2, unavailable.join("\n"))
        assert.ok(grown <= GROWN_BYTES_MAX, `the program grew by ${grown} bytes`)
        assert.equal(fs.readFileSync(marker, "utf8"), "unchanged")
      },
      { skip: whyNoBusybox }
    )
})
