// A pipeline of continuous integration as a durable workflow: build, test in parallel shards, publish. Each step runs in a container, and its
// files are kept by their digest, so that the next step finds them on whichever machine it runs.
//
//   tsx examples/ci.ts COMMIT
//
// Without more, all runs in this program. On a fleet whose state is in a Postgres, start `berth runner --database-file FILE` on each machine,
// and set
//   FLEET_DATABASE   postgres://user:password@host:5432/name, in which the runners are found and the workflow is recorded: a program that is
//                    killed is continued by the next one with the same commit, without the steps that have ended
//   FLEET_TOKEN      the token of the runners
//   FLEET_ARTIFACTS  a repository for the files of steps, such as registry.example.com/team/ci
import * as os from "node:os"
import { NodeContext, NodeRuntime } from "@effect/platform-node"
import { Workflow, WorkflowEngine } from "@effect/workflow"
import { Berth } from "berth"
import * as Fleet from "berth/fleet"
import * as FleetWorkflow from "berth/fleet/workflow"
import { Console, Effect, Layer, Redacted, Schema } from "effect"

const { FLEET_ARTIFACTS, FLEET_DATABASE, FLEET_TOKEN = "" } = process.env
const image = "host" // in a fleet, the image of your tools: registry.example.com/team/tools:1
const SHARDS = 3

const Pipeline = Workflow.make({
  name: "pipeline",
  payload: { commit: Schema.String },
  idempotencyKey: ({ commit }) => commit,
  success: Schema.Struct({ package: FleetWorkflow.Artifact, log: Schema.String }),
  error: FleetWorkflow.Failure
})

const build = (commit: string) =>
  FleetWorkflow.activity({
    name: "build",
    image,
    command: ["sh", "-c", 'mkdir -p /tmp/app && echo "echo $COMMIT" > /tmp/app/run && echo built'],
    env: { COMMIT: commit },
    outputs: { app: "/tmp/app" }
  })

const test = (app: FleetWorkflow.Artifact, shard: number) =>
  FleetWorkflow.activity({
    name: `test ${shard} of ${SHARDS}`,
    image,
    command: ["sh", "-c", 'test -n "$(sh run)" && echo "shard $SHARD is green"'],
    env: { SHARD: String(shard) },
    cwd: "/tmp/app",
    inputs: { "/tmp/app": app }
  })

const publish = (app: FleetWorkflow.Artifact) =>
  FleetWorkflow.activity({
    name: "publish",
    image,
    command: ["tar", "-czf", "/tmp/app.tar.gz", "-C", "/tmp/app", "."],
    inputs: { "/tmp/app": app },
    outputs: { package: "/tmp/app.tar.gz" }
  })

const PipelineLive = Pipeline.toLayer(({ commit }) =>
  Effect.gen(function* () {
    const built = yield* build(commit)
    const { app } = built.outputs
    const shards = Array.from({ length: SHARDS }, (_, index) => test(app, index + 1))
    const tested = yield* Effect.all(shards, { concurrency: "unbounded" })
    const published = yield* publish(app)
    return {
      package: published.outputs.package,
      log: [built, ...tested].map(({ stdout }) => stdout).join("")
    }
  })
)

const database = FLEET_DATABASE === undefined ? undefined : Redacted.make(FLEET_DATABASE)
const Where =
  database === undefined ? Berth.layer : Fleet.layer({ database, token: Redacted.make(FLEET_TOKEN) })
const Engine = database === undefined ? WorkflowEngine.layerMemory : FleetWorkflow.layerEngine({ database })
const Artifacts = FleetWorkflow.layerArtifacts(FLEET_ARTIFACTS || { folder: `${os.tmpdir()}/berth-ci` })

Pipeline.execute({ commit: process.argv[2] ?? "a1b2c3" }).pipe(
  Effect.tap((result) => Console.log(`${result.log}${result.package.digest}`)),
  Effect.provide(
    PipelineLive.pipe(
      Layer.provideMerge(Engine),
      Layer.provide([Artifacts, Where]),
      Layer.provide(NodeContext.layer)
    )
  ),
  NodeRuntime.runMain
)
