/** The runners of a fleet in its database: each one says there that it is alive, and clients read who is. */
import * as os from "node:os"
import type { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import * as Database from "./database.ts"
import type { Description } from "./protocol.ts"
import { type Address, print } from "./transport.ts"

type Url = Redacted.Redacted<string>

/** How often a runner says that it is alive, and a client looks who is. */
const PERIOD_MILLIS = 2000

/** A runner that has not said it for so long is not looked for. The clock is the database's. */
const ALIVE_SECONDS = 10

const ANSWER_MILLIS = 3000

export const table = (sql: SqlClient) => sql`
  create table if not exists berth_fleet_runners (
    address text primary key,
    name text not null,
    labels jsonb not null,
    heartbeat timestamptz not null
  )`

/** What a runner writes each time. */
export const beat = (
  sql: SqlClient,
  address: string,
  { labels, name }: Pick<Description, "labels" | "name">
): Effect.Effect<unknown, SqlError> => sql`
  insert into berth_fleet_runners (address, name, labels, heartbeat)
  values (${address}, ${name}, ${JSON.stringify(labels)}::jsonb, now())
  on conflict (address) do update set name = excluded.name, labels = excluded.labels, heartbeat = now()`

/** What a client reads each time: the addresses of the runners that are alive. */
export const alive = (sql: SqlClient): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(
    sql<{ readonly address: string }>`
      select address from berth_fleet_runners
      where heartbeat > now() - ${ALIVE_SECONDS} * interval '1 second' order by address`,
    (rows) => rows.map(({ address }) => address)
  )

/** Asks a database again and again, on a connection that is made anew when it fails. Succeeds after the first answer. */
const asking = (
  database: Url,
  query: (sql: SqlClient) => Effect.Effect<unknown, SqlError>
): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const first = yield* Deferred.make<void, BerthError>()
    const answered = <A, E>(effect: Effect.Effect<A, E>) =>
      Effect.disconnect(effect).pipe(
        Effect.timeoutFail({
          duration: ANSWER_MILLIS,
          onTimeout: () => new Error(`no answer within ${ANSWER_MILLIS} ms`)
        }),
        Effect.mapError(Database.failed(database))
      )
    const connection = Effect.scoped(
      Effect.gen(function* () {
        const sql = yield* Database.connect(database)
        yield* answered(Database.exclusively(sql)(table(sql)))
        return yield* answered(query(sql)).pipe(
          Effect.zipRight(Deferred.succeed(first, undefined)),
          Effect.zipRight(Effect.sleep(PERIOD_MILLIS)),
          Effect.forever
        )
      })
    )
    yield* connection.pipe(
      Effect.tapError((error) => Effect.zipRight(Effect.logDebug(error), Deferred.fail(first, error))),
      Effect.retry(Schedule.spaced(PERIOD_MILLIS)),
      Effect.forkScoped
    )
    yield* Deferred.await(first)
  })

/** Where clients on other machines reach what listens on all addresses of this one. */
const reached = (bound: Address): string =>
  print("host" in bound && /^(?:0\.0\.0\.0|::)$/.test(bound.host) ? { ...bound, host: os.hostname() } : bound)

/** Has a runner found by its clients, until the scope closes. */
export const register = (
  database: Url,
  bound: Address,
  runner: Pick<Description, "labels" | "name">
): Effect.Effect<void, BerthError, Scope.Scope> => {
  const address = reached(bound)
  const forget = Effect.scoped(
    Effect.flatMap(
      Database.connect(database),
      (sql) => sql`delete from berth_fleet_runners where address = ${address}`
    )
  )
  return Effect.zipRight(
    Effect.addFinalizer(() =>
      forget.pipe(Effect.interruptible, Effect.disconnect, Effect.timeout(ANSWER_MILLIS), Effect.ignore)
    ),
    asking(database, (sql) => beat(sql, address, runner))
  )
}

/** Gives the addresses of the runners that are alive to `found`, now and from then on, until the scope closes. */
export const watch = (
  database: Url,
  found: (addresses: ReadonlyArray<string>) => Effect.Effect<void>
): Effect.Effect<void, BerthError, Scope.Scope> =>
  asking(database, (sql) => Effect.flatMap(alive(sql), found))
