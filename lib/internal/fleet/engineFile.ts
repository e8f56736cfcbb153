/** The record of workflows in a file of SQLite, which one program has at a time. */
import * as fs from "node:fs"
import { fileURLToPath, pathToFileURL } from "node:url"
import type { MessageStorage } from "@effect/cluster/MessageStorage"
import * as RunnerStorage from "@effect/cluster/RunnerStorage"
import type { ShardingConfig } from "@effect/cluster/ShardingConfig"
import * as SqlMessageStorage from "@effect/cluster/SqlMessageStorage"
import { SqlClient } from "@effect/sql/SqlClient"
import * as LibsqlClient from "@effect/sql-libsql/LibsqlClient"
// Under Deno the package itself has no files.
import { createClient } from "@libsql/client/sqlite3"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import { FleetError } from "../../FleetError.ts"
import { holderOf, tryLock } from "../disk/fileLock.ts"
import { describeErrno, EAGAIN } from "../util/errno.ts"

const pathOf = (database: string): Effect.Effect<string, InvalidOption> =>
  Effect.try({
    try: () => fileURLToPath(database),
    catch: (cause) =>
      new InvalidOption({
        option: "database",
        value: JSON.stringify(database),
        expected: "file:/path of a file of this machine",
        cause
      })
  })

const failed =
  (path: string) =>
  (error: unknown): FleetError => {
    const cause = error instanceof Error ? (error.cause ?? error) : error
    return new FleetError({
      reason: "Database",
      subject: path,
      detail: `the file cannot be used as a database: ${cause instanceof Error ? cause.message : cause}`,
      cause: error
    })
  }

/**
 * Has the file for this program alone until the scope closes. The lock is that of a file beside it: SQLite's own locks of a file are lost
 * when the program closes any descriptor of it (fcntl(2)).
 */
const locked = (path: string): Effect.Effect<void, FleetError, Scope.Scope> =>
  Effect.gen(function* () {
    const beside = `${path}-lock`
    const fd = yield* Effect.acquireRelease(
      Effect.try({ try: () => fs.openSync(beside, "a", 0o600), catch: failed(path) }),
      (fd) => Effect.sync(() => fs.closeSync(fd))
    )
    const errno = tryLock(fd, "exclusive")
    if (errno === EAGAIN)
      return yield* new FleetError({
        reason: "Database",
        subject: path,
        detail: `${holderOf(beside)} has it: a file is for one program at a time; end that program, or give both a Postgres`
      })
    if (errno !== 0) return yield* failed(path)(new Error(`flock: ${describeErrno(errno)}`))
  })

export const storage = (
  database: Redacted.Redacted<string>,
  config: Layer.Layer<ShardingConfig>
): Effect.Effect<Context.Context<MessageStorage | RunnerStorage.RunnerStorage>, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const path = yield* pathOf(Redacted.value(database))
    yield* locked(path)
    const liveClient = yield* Effect.acquireRelease(
      Effect.try({
        // The identifiers of the engine have 64 bits.
        try: () => createClient({ url: pathToFileURL(path).href, intMode: "bigint" }),
        catch: failed(path)
      }),
      (made) => Effect.sync(() => made.close())
    )
    const client = yield* Layer.buildWithScope(LibsqlClient.layer({ liveClient }), scope)
    const sql = Context.get(client, SqlClient)
    // A program that is killed, or a machine that loses its power, loses nothing that was recorded.
    yield* Effect.mapError(sql`pragma journal_mode = wal`, failed(path))
    // Nobody else has executions: those of a program that was killed are this one's at once.
    return yield* Layer.merge(SqlMessageStorage.layer, RunnerStorage.layerMemory).pipe(
      Layer.provide(Layer.merge(config, Layer.succeedContext(client))),
      Layer.buildWithScope(scope),
      Effect.mapError(failed(path))
    )
  })
