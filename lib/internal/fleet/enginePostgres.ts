/** The record of workflows in a Postgres, which programs of several machines share. */
import type { MessageStorage } from "@effect/cluster/MessageStorage"
import type { RunnerStorage } from "@effect/cluster/RunnerStorage"
import type { ShardingConfig } from "@effect/cluster/ShardingConfig"
import * as SqlMessageStorage from "@effect/cluster/SqlMessageStorage"
import * as SqlRunnerStorage from "@effect/cluster/SqlRunnerStorage"
import { SqlClient } from "@effect/sql/SqlClient"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import * as Database from "./database.ts"

/** The tables of the engine begin with it. */
const prefix = "berth_workflow"

export const storage = (
  database: Redacted.Redacted<string>,
  config: Layer.Layer<ShardingConfig>
): Effect.Effect<Context.Context<MessageStorage | RunnerStorage>, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const sql = yield* Database.connect(database)
    return yield* Layer.mergeAll(
      SqlMessageStorage.layerWith({ prefix }),
      SqlRunnerStorage.layerWith({ prefix })
    ).pipe(
      Layer.provide(Layer.merge(config, Layer.succeed(SqlClient, sql))),
      Layer.buildWithScope(scope),
      Database.exclusively(sql),
      Effect.mapError(Database.failed(database))
    )
  })
