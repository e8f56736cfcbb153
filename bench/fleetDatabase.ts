/** What a fleet's database does: the time of a CPU that a runner's write and a program's read take in a Postgres with 1,000 runners. */
import { Container, Fixture } from "berth"
import { postgres } from "berth/fixtures"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Database from "../lib/internal/fleet/database.ts"
import * as Members from "../lib/internal/fleet/members.ts"
import { service } from "../test/support/services.ts"
import { unmeasured } from "./support.ts"

const RUNNERS = 1000
const WRITES = 4000
const READS = 400

const addressOf = (index: number): string => `tls://runner-${index}.example.com:7411`

/** Microseconds of a CPU, for a write and for a read. */
export const databaseCost = Effect.gen(function* () {
  const { image, missing } = yield* Effect.promise(() => service("postgres"))
  if (missing !== false) return yield* unmeasured(missing)
  const { container, url } = yield* Fixture.fork(postgres({ image }))
  const sql = yield* Database.connect(Redacted.make(url))
  yield* Members.table(sql)
  const beat = (index: number) =>
    Members.beat(sql, addressOf(index % RUNNERS), { name: `runner-${index % RUNNERS}`, labels: {} })
  yield* Effect.forEach(
    Array.from({ length: RUNNERS }, (_, index) => index),
    beat
  )
  const micros = Effect.map(Container.top(container), (all) =>
    all.reduce((sum, { systemMicros, userMicros }) => sum + systemMicros + userMicros, 0)
  )
  const each = <E>(count: number, query: (index: number) => Effect.Effect<unknown, E>) =>
    Effect.gen(function* () {
      const before = yield* micros
      yield* Effect.forEach(
        Array.from({ length: count }, (_, index) => index),
        query,
        { discard: true }
      )
      return ((yield* micros) - before) / count
    })
  return { write: yield* each(WRITES, beat), read: yield* each(READS, () => Members.alive(sql)) }
}).pipe(Effect.scoped, Effect.mapError(unmeasured))
