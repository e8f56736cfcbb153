/** A step of a workflow: a command in a container of its own, with files of the steps before it. */
import * as Activity from "@effect/workflow/Activity"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption, isBerthError, NonZeroExit } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type { ActivityOptions, Artifact, Artifacts, Step } from "../../fleetWorkflow.ts"
import * as Image from "../../Image.ts"
import { printWords } from "../util/commandTemplate.ts"
import * as Store from "./artifacts.ts"
import { Failure } from "./protocol.ts"

/** Holds the container while files come, the command runs and files go. */
const HOLDER = ["sleep", "2147483647"]

/** How much of each output the engine records, if the step does not say. */
const OUTPUT_BYTES = 64 * 1024

const ARTIFACT_BYTES_MAX = 16 * 1024 ** 3

export const ArtifactSchema = Schema.Struct({ digest: Schema.String, size: Schema.Number })

const StepSchema = Schema.Struct({
  stdout: Schema.String,
  stderr: Schema.String,
  truncated: Schema.Boolean,
  outputs: Schema.Record({ key: Schema.String, value: ArtifactSchema })
})

/** Whether a step has failed by its fleet, and another runner may do it. */
const isOfFleet = (error: BerthError): boolean =>
  error._tag === "RunnerLost" ||
  (error._tag === "FleetError" && (error.reason === "Unreachable" || error.reason === "NoRunner"))

/** For about a minute. */
const again = Schedule.exponential("500 millis").pipe(
  Schedule.union(Schedule.spaced("10 seconds")),
  Schedule.intersect(Schedule.recurs(10))
)

const imageOf = (name: string): Effect.Effect<Image.Image, BerthError, Berth> =>
  Effect.flatMap(Berth, ({ fleet }) =>
    name === "host" && fleet === undefined ? Image.host : Image.get(name)
  )

const unpack = (
  box: Container.Container,
  folder: string,
  artifact: Artifact
): Effect.Effect<void, BerthError, Artifacts> =>
  Effect.gen(function* () {
    const { get } = yield* Store.tag
    yield* Effect.mapError(
      Container.fileSystem(box).makeDirectory(folder, { recursive: true }),
      (error): BerthError =>
        isBerthError(error.cause)
          ? error.cause
          : new InvalidOption({
              option: "inputs",
              value: JSON.stringify(folder),
              expected: `a folder that can be made in the container: ${error.message}`
            })
    )
    yield* Stream.run(get(artifact), Container.tarIn(box, folder))
  })

const pack = (
  box: Container.Container,
  path: string,
  maxBytes: number
): Effect.Effect<Artifact, BerthError, Artifacts> =>
  Effect.gen(function* () {
    const { put } = yield* Store.tag
    // What cannot be looked at cannot be read either, and reading says why.
    const isFolder = yield* Container.fileSystem(box)
      .stat(path)
      .pipe(
        Effect.map(({ type }) => type === "Directory"),
        Effect.orElseSucceed(() => false)
      )
    return yield* put(Container.tarOut(box, isFolder ? `${path}/.` : path), maxBytes)
  })

const once = (
  options: ActivityOptions<string>
): Effect.Effect<Step<string>, BerthError, Artifacts | Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const {
      command,
      cwd,
      image,
      input,
      inputs = {},
      maxArtifactBytes = ARTIFACT_BYTES_MAX,
      maxOutputBytes = OUTPUT_BYTES,
      name: _,
      outputs = {},
      ...container
    } = options
    const box = yield* Container.start(yield* imageOf(image), {
      ...container,
      entrypoint: [],
      command: HOLDER
    })
    for (const [folder, artifact] of Object.entries(inputs)) yield* unpack(box, folder, artifact)
    const { exitCode, signal, stderr, stdout, truncated } = yield* Container.exec(box, command, {
      cwd,
      input,
      maxOutputBytes,
      onOverflow: "truncate"
    })
    if (exitCode !== 0)
      return yield* new NonZeroExit({
        container: box.id,
        command: printWords(command),
        exitCode,
        signal,
        stdout,
        stderr
      })
    const made: Record<string, Artifact> = {}
    for (const [output, path] of Object.entries(outputs))
      made[output] = yield* pack(box, path, maxArtifactBytes)
    return { stdout, stderr, truncated, outputs: made }
  })

export const activity = <Output extends string>(
  options: ActivityOptions<Output>
): Activity.Activity<
  Schema.Schema<Step<Output>, unknown>,
  Schema.Schema<BerthError, unknown>,
  Artifacts | Berth
> =>
  Activity.make({
    name: options.name,
    success: StepSchema as unknown as Schema.Schema<Step<Output>, unknown>,
    error: Failure as unknown as Schema.Schema<BerthError, unknown>,
    execute: Effect.scoped(once(options)).pipe(
      Effect.tapError((error) =>
        isOfFleet(error) ? Effect.logWarning(`step ${options.name}: ${error.message}`) : Effect.void
      ),
      Effect.retry({ schedule: again, while: isOfFleet }),
      Effect.withSpan("berth.FleetWorkflow.activity", {
        attributes: { "container.image.name": options.image, "berth.step": options.name }
      })
    ) as Effect.Effect<Step<Output>, BerthError, Artifacts | Berth>
  })
