/** The database in which a fleet keeps its state: a Postgres, by its address. */

import { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { InvalidOption } from "../../BerthError.ts"
import { FleetError } from "../../FleetError.ts"

/** `host:port/name`: no password gets into an error. */
const subjectOf = (database: Redacted.Redacted<string>): string => {
  const { hostname, pathname, port } = new URL(Redacted.value(database))
  return `${hostname}:${port || 5432}${pathname}`
}

const detailOf = (error: unknown): string => {
  const cause = error instanceof Error ? (error.cause ?? error) : error
  if (!(cause instanceof Error)) return String(cause)
  // A name with several addresses has an error for each.
  return cause instanceof AggregateError
    ? cause.errors.map((each) => detailOf(each)).join("; ")
    : cause.message
}

export const failed =
  (database: Redacted.Redacted<string>) =>
  (error: unknown): FleetError =>
    new FleetError({
      reason: "Database",
      subject: subjectOf(database),
      detail: `the database of the fleet does not answer: ${detailOf(error)}; look whether it runs, and whether its address, user and password are right`,
      cause: error
    })

/** Connects to the database, until the scope closes. */
export const connect = (
  database: Redacted.Redacted<string>
): Effect.Effect<SqlClient, FleetError | InvalidOption, Scope.Scope> =>
  Effect.gen(function* () {
    const text = Redacted.value(database)
    if (!/^postgres(?:ql)?:\/\//.test(text) || !URL.canParse(text))
      return yield* new InvalidOption({
        option: "database",
        value: "what it is set to",
        expected: "the address of a Postgres: postgres://user:password@host:5432/name"
      })
    const context = yield* Effect.mapError(
      Layer.build(PgClient.layer({ url: database, applicationName: "berth", connectTimeout: "5 seconds" })),
      failed(database)
    )
    return Context.get(context, SqlClient)
  })

/** A number for pg_advisory_lock(): the bytes of "berth". */
const LOCK = 0x6265727468

/** Runs what makes tables, one program at a time: two that make the same table fail, also with `if not exists`. */
export const exclusively =
  (sql: SqlClient) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError, R> =>
    Effect.scoped(
      Effect.gen(function* () {
        const connection = yield* sql.reserve
        yield* Effect.acquireRelease(connection.executeRaw(`select pg_advisory_lock(${LOCK})`, []), () =>
          Effect.ignore(connection.executeRaw(`select pg_advisory_unlock(${LOCK})`, []))
        )
        return yield* effect
      })
    ) as Effect.Effect<A, E | SqlError, R>
