/** The engine of durable workflows: that of @effect/cluster, whose state is in a database or in a file. */
import { randomBytes } from "node:crypto"
import * as os from "node:os"
import * as ClusterWorkflowEngine from "@effect/cluster/ClusterWorkflowEngine"
import { RunnerAddress } from "@effect/cluster/RunnerAddress"
import * as RunnerHealth from "@effect/cluster/RunnerHealth"
import * as Runners from "@effect/cluster/Runners"
import * as Sharding from "@effect/cluster/Sharding"
import * as ShardingConfig from "@effect/cluster/ShardingConfig"
import type { WorkflowEngine } from "@effect/workflow/WorkflowEngine"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { EngineOptions } from "../../fleetWorkflow.ts"
import { later } from "../util/later.ts"

// Each needs packages of its own.
const postgres = later(() => import("./enginePostgres.ts"))
const file = later(() => import("./engineFile.ts"))

/** Executions are divided into these parts, each of which one program has. All programs must have the same number. */
const PARTS = 64

/**
 * Programs do not speak to each other: a message is in the database, where the program that it is for finds it. So they need no
 * address; the one that each has here is only a name.
 */
const configOf = (lease: Duration.Duration) =>
  ShardingConfig.layer({
    runnerAddress: Option.some(
      RunnerAddress.make({ host: `${os.hostname()}-${randomBytes(8).toString("hex")}`, port: 1 })
    ),
    shardsPerGroup: PARTS,
    // A lock of Postgres lives as long as its connection, which a machine that is cut off may have for hours.
    shardLockDisableAdvisory: true,
    shardLockExpiration: lease,
    shardLockRefreshInterval: Duration.unsafeDivide(lease, 4),
    refreshAssignmentsInterval: Duration.unsafeDivide(lease, 4),
    entityMessagePollInterval: "1 second"
  })

export const make = ({
  database,
  lease = "10 seconds"
}: EngineOptions): Effect.Effect<Context.Context<WorkflowEngine>, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const config = configOf(Duration.decode(lease))
    const storage = yield* Redacted.value(database).startsWith("file:")
      ? file(({ storage }) => storage(database, config))
      : postgres(({ storage }) => storage(database, config))
    return yield* Layer.build(
      ClusterWorkflowEngine.layer.pipe(
        Layer.provide(Sharding.layer),
        Layer.provide(Runners.layerNoop),
        Layer.provide(RunnerHealth.layerNoop),
        Layer.provide(Layer.succeedContext(storage)),
        Layer.provide(config)
      )
    )
  })
