/**
 * A program that runs a workflow of five steps: `workflow.ts OPTIONS`. Each step says its number to a server of the test, waits for a line
 * of it, and adds its number to the text of the step before. The odd ones run on the runner `one`, the even ones on those with the label
 * `even`. Prints the text of the last step.
 */
import { NodeContext } from "@effect/platform-node"
import * as Workflow from "@effect/workflow/Workflow"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Fleet from "../../lib/fleet.ts"
import * as FleetWorkflow from "../../lib/fleetWorkflow.ts"

interface Options {
  readonly database: string
  readonly runners: ReadonlyArray<string>
  readonly token: string
  /** The place of artifacts. */
  readonly place: Parameters<typeof FleetWorkflow.layerArtifacts>[0]
  readonly lease: string
  /** The port of the test's server. */
  readonly port: number
}

const { database, lease, place, port, runners, token }: Options = JSON.parse(process.argv[2]!)

const script = `set -e
exec 3<>/dev/tcp/127.0.0.1/${port}
echo $1 >&3
read -r _ <&3
mkdir -p /tmp/made
{ [ ! -e /tmp/before/text ] || cat /tmp/before/text; echo $1; } > /tmp/made/text
cat /tmp/made/text`

const step = (number: number, before: FleetWorkflow.Artifact | undefined) =>
  FleetWorkflow.activity({
    name: `step-${number}`,
    image: "host",
    command: ["bash", "-c", script, "bash", String(number)],
    network: "host",
    ...(before === undefined ? {} : { inputs: { "/tmp/before": before } }),
    outputs: { made: "/tmp/made" }
  }).pipe(Fleet.on(number % 2 === 1 ? { runner: "one" } : { labels: { even: "yes" } }))

const five = Workflow.make({
  name: "five",
  payload: { commit: Schema.String },
  idempotencyKey: ({ commit }) => commit,
  success: Schema.String,
  error: FleetWorkflow.Failure
})

const steps = five.toLayer(() =>
  Effect.gen(function* () {
    let last = yield* step(1, undefined)
    for (const number of [2, 3, 4, 5]) last = yield* step(number, last.outputs.made)
    return last.stdout
  })
)

const engine = FleetWorkflow.layerEngine({
  database: Redacted.make(database),
  lease: lease as Duration.DurationInput
})

five.execute({ commit: "a" }).pipe(
  Effect.tap((text) => Effect.sync(() => console.log(JSON.stringify(text)))),
  Effect.provide(
    steps.pipe(
      Layer.provideMerge(engine),
      Layer.provide(FleetWorkflow.layerArtifacts(place)),
      Layer.provide(Fleet.layer({ runners, token: Redacted.make(token) })),
      Layer.provide(NodeContext.layer)
    )
  ),
  Effect.runPromise
)
