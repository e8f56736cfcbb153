import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Workflow from "@effect/workflow/Workflow"
import * as WorkflowEngine from "@effect/workflow/WorkflowEngine"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Fleet from "../../lib/fleet.ts"
import * as FleetWorkflow from "../../lib/fleetWorkflow.ts"
import { Berth, type BerthError } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { runner, token } from "../support/fleets.ts"
import { startRegistry, whyNoServer, withoutDockerConfig } from "../support/registry.ts"

const folderOf = Effect.map(Berth.Berth, ({ folder }) => folder)

/** Runs a workflow whose only execution is this effect, with the engine in memory. */
const executed = <A, R>(
  body: Effect.Effect<A, BerthError.BerthError, R>,
  place: Parameters<typeof FleetWorkflow.layerArtifacts>[0]
) => {
  const workflow = Workflow.make({
    name: "test",
    payload: {},
    idempotencyKey: () => "",
    success: Schema.Unknown,
    error: FleetWorkflow.Failure
  })
  return workflow.execute().pipe(
    Effect.map((result) => result as A),
    Effect.provide(
      workflow
        .toLayer(() => body)
        .pipe(
          Layer.provideMerge(WorkflowEngine.layerMemory),
          Layer.provide(FleetWorkflow.layerArtifacts(place))
        )
    )
  )
}

const build = FleetWorkflow.activity({
  name: "build",
  image: "host",
  command: [
    "sh",
    "-c",
    'mkdir -p /tmp/out/a && echo "$GREETING" > /tmp/out/a/file && echo one > /tmp/one; echo built'
  ],
  env: { GREETING: "hello" },
  outputs: { all: "/tmp/out", one: "/tmp/one" }
})

const check = (name: string, { all, one }: Readonly<Record<"all" | "one", FleetWorkflow.Artifact>>) =>
  FleetWorkflow.activity({
    name,
    image: "host",
    command: ["sh", "-c", "cat a/file one"],
    cwd: "/tmp/in/put",
    inputs: { "/tmp/in/put": all, "/tmp/in/put/": one }
  })

const twoSteps = Effect.gen(function* () {
  const { outputs, stdout } = yield* build
  assert.equal(stdout, "built\n")
  return (yield* check("check", outputs)).stdout
})

suite("steps of a workflow", (effect) => {
  withoutDockerConfig()

  effect("the files that a step makes are found by the next one, in a folder", function* () {
    const folder = `${yield* folderOf}/artifacts`
    assert.equal(yield* executed(twoSteps, { folder }), "hello\none\n")
    assert.deepEqual(fs.readdirSync(`${folder}/blobs/sha256`).length, 2)
  })

  effect(
    "they are found by another machine in a registry",
    function* () {
      const registry = yield* Effect.acquireRelease(
        Effect.promise(() => startRegistry()),
        ({ stop }) => Effect.promise(stop)
      )
      const first = yield* runner({ name: "first" })
      const second = yield* runner({ name: "second" })
      const steps = Effect.gen(function* () {
        const { outputs } = yield* build.pipe(Fleet.on({ runner: "first" }))
        return (yield* check("check", outputs).pipe(Fleet.on({ runner: "second" }))).stdout
      })
      const stdout = yield* executed(steps, `${registry.host}/team/ci`).pipe(
        Effect.provide(Fleet.layer({ runners: [first, second], token }))
      )
      assert.equal(stdout, "hello\none\n")
    },
    { skip: whyNoServer }
  )

  effect("a step that fails is an error that the engine records, with its output", function* () {
    const step = FleetWorkflow.activity({
      name: "fails",
      image: "host",
      command: ["sh", "-c", "echo no >&2; exit 3"]
    })
    const error = yield* failure("NonZeroExit", executed(step, { folder: `${yield* folderOf}/artifacts` }))
    assert.deepEqual([error.exitCode, error.stderr], [3, "no\n"])
  })

  effect("output above the limit is dropped, and an archive above its limit refused", function* () {
    const folder = `${yield* folderOf}/artifacts`
    const long = FleetWorkflow.activity({
      name: "long",
      image: "host",
      command: ["echo", "12345"],
      maxOutputBytes: 3
    })
    const { stdout, truncated } = yield* executed(long, { folder })
    assert.deepEqual([stdout, truncated], ["123", true])
    const large = FleetWorkflow.activity({
      name: "large",
      image: "host",
      command: ["sh", "-c", "head -c 100000 /dev/zero > /tmp/zeros"],
      outputs: { zeros: "/tmp/zeros" },
      maxArtifactBytes: 1000
    })
    const error = yield* failure("ImageError", executed(large, { folder }))
    assert.equal(error.reason, "TooLarge")
    assert.deepEqual(
      fs.readdirSync(`${folder}/blobs/sha256`).filter((name) => name.startsWith("partial")),
      []
    )
  })

  effect(
    "an output that is not there, and an artifact that is not there or was changed, are named",
    function* () {
      const folder = `${yield* folderOf}/changed`
      const nothing = FleetWorkflow.activity({
        name: "nothing",
        image: "host",
        command: ["true"],
        outputs: { file: "/tmp/nothing" }
      })
      assert.match((yield* failure("OperationFailed", executed(nothing, { folder }))).message, /tmp\/nothing/)
      const { outputs } = yield* executed(build, { folder })
      const blob = `${folder}/blobs/sha256/${outputs.one.digest.slice("sha256:".length)}`
      const bytes = fs.readFileSync(blob)
      fs.writeFileSync(
        blob,
        bytes.map((byte) => byte ^ 1)
      )
      const changed = yield* failure("ImageError", executed(check("check", outputs), { folder }))
      assert.equal(changed.reason, "DigestMismatch")
      fs.rmSync(blob)
      const gone = yield* failure("ImageError", executed(check("check", outputs), { folder }))
      assert.equal(gone.reason, "NotFound")
      const wrong = { digest: "sha256:../../../../etc/passwd", size: 1 }
      yield* failure("ImageError", executed(check("check", { all: wrong, one: wrong }), { folder }))
    }
  )
})
