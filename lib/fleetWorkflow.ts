/**
 * Durable workflows whose steps run in containers, on this machine or on a fleet: `berth/fleet/workflow`. The engine is that of
 * `@effect/workflow`; it records the result of each step, and does no step again that has ended, whatever becomes of the program.
 *
 * @since 0.2.0
 */
import type * as FileSystem from "@effect/platform/FileSystem"
import type { Activity } from "@effect/workflow/Activity"
import type { WorkflowEngine } from "@effect/workflow/WorkflowEngine"
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { CachePlace } from "./Build.ts"
import type { StartOptions } from "./Container.ts"
import * as artifacts from "./internal/fleet/artifacts.ts"
import { Failure as failure } from "./internal/fleet/protocol.ts"
import * as step from "./internal/fleet/step.ts"
import { later } from "./internal/util/later.ts"

const durable = later(() => import("./internal/fleet/engine.ts"))

/**
 * Files that a step has made, as an archive, by its digest. It is plain data: a workflow may return it, and another one take it.
 *
 * @since 0.2.0
 * @category models
 */
export interface Artifact {
  /** `sha256:` and 64 hexadecimal digits. */
  readonly digest: string
  /** In bytes. */
  readonly size: number
}

/**
 * The schema of an `Artifact`, for the payload or the result of a workflow.
 *
 * @since 0.2.0
 * @category schemas
 */
export const Artifact: Schema.Schema<Artifact> = step.ArtifactSchema

/**
 * The schema of the errors of steps, for `error` of a workflow.
 *
 * @since 0.2.0
 * @category schemas
 */
export const Failure: Schema.Schema<BerthError, unknown> = failure as unknown as Schema.Schema<
  BerthError,
  unknown
>

/**
 * Where the files of steps are, so that a step on another machine finds them.
 *
 * @since 0.2.0
 * @category models
 */
export interface Artifacts {
  /** Keeps an archive, and fails with `ImageError` (`TooLarge`) if it is longer. */
  readonly put: (
    content: Stream.Stream<Uint8Array, BerthError>,
    maxBytes: number
  ) => Effect.Effect<Artifact, BerthError>
  /** The archive, verified: its last byte comes only if its digest is right. */
  readonly get: (artifact: Artifact) => Stream.Stream<Uint8Array, BerthError>
}

/**
 * @since 0.2.0
 * @category tags
 */
export const Artifacts: Context.Tag<Artifacts, Artifacts> = artifacts.tag

/**
 * Keeps the files of steps in a repository of a registry, such as `registry.example.com/team/ci`, or in a folder, which programs of several
 * machines may share. The program itself reads and writes there, with its own credentials, which its runners never see.
 *
 * Nothing is removed: in a registry, each archive has a tag of its own, `berth-` and its digest, by which old ones can be found.
 *
 * Fails with `InvalidOption` and `InvalidData` for a place that cannot be one, and with `ImageError` (`Storage`) for a folder that cannot be
 * made.
 *
 * @since 0.2.0
 * @category layers
 */
export const layerArtifacts = (
  place: CachePlace
): Layer.Layer<Artifacts, BerthError, FileSystem.FileSystem> => Layer.effect(Artifacts, artifacts.make(place))

/**
 * A step: a command in a container of its own, which is gone when the step ends.
 *
 * @since 0.2.0
 * @category models
 */
export interface ActivityOptions<Output extends string>
  extends Omit<StartOptions, "entrypoint" | "stderr" | "stdin" | "stdout" | "terminal"> {
  /** The name of the step. The engine records its result under this name, which no other step of the workflow may have. */
  readonly name: string
  /** As `Image.get` takes it, or `host`: the root of the machine that it runs on. The image needs a `sleep`, which holds the container while files come and go. */
  readonly image: string
  /** The whole command; the image's entrypoint does not count. */
  readonly command: ReadonlyArray<string>
  /** What the command reads. Default: the end at once. */
  readonly input?: string | undefined
  /** What other steps have made, by the folder in the container that it is put into. */
  readonly inputs?: Readonly<Record<string, Artifact>> | undefined
  /** What the step makes, by a name: the path of a folder, whose contents it is, or of a file. */
  readonly outputs?: Readonly<Record<Output, string>> | undefined
  /** How much of stdout and of stderr is recorded; the rest is dropped. Default: 64 KiB. */
  readonly maxOutputBytes?: number | undefined
  /** The largest archive of an output, in bytes. Default: 16 GiB. */
  readonly maxArtifactBytes?: number | undefined
}

/**
 * What a step has done: its command has ended with 0.
 *
 * @since 0.2.0
 * @category models
 */
export interface Step<Output extends string> {
  readonly stdout: string
  readonly stderr: string
  /** Whether some of stdout or stderr was dropped. */
  readonly truncated: boolean
  readonly outputs: Readonly<Record<Output, Artifact>>
}

/**
 * A step of a workflow, which runs in a container of the `Berth` that the workflow has: `Berth.layer` or `Fleet.layer`. `Fleet.on` says
 * which runners may do it. The engine records what it gives or fails with; a step that has ended is not done again. One that was
 * interrupted, or whose program was killed, is done again from its beginning, in a new container.
 *
 * Fails with `NonZeroExit` if the command ends with another code than 0, and as `Image.get`, `Container.start`, `Container.exec`,
 * `Container.tarIn` and `Container.tarOut` do. A step whose runner is lost, or that no runner can take, is tried again for about a minute
 * before that is recorded.
 *
 * @since 0.2.0
 * @category steps
 * @example
 * const built = yield* FleetWorkflow.activity({
 *   name: "build",
 *   image: "registry.example.com/team/builder:1",
 *   command: ["make", "-C", "/src"],
 *   inputs: { "/src": sources },
 *   outputs: { app: "/src/dist" },
 *   limits: { memory: "2GiB", cpus: 2 }
 * })
 */
export const activity: <Output extends string = never>(
  options: ActivityOptions<Output>
) => Activity<Schema.Schema<Step<Output>, unknown>, Schema.Schema<BerthError, unknown>, Artifacts | Berth> =
  step.activity

/**
 * @since 0.2.0
 * @category models
 */
export interface EngineOptions {
  /**
   * Where the record is: in a Postgres, `postgres://user:password@host:5432/name`, in which the engine makes its tables, which begin with
   * `berth_workflow`; or in a file of SQLite on this machine, `file:/path`, which is made if it is missing, and which one program has at a
   * time.
   */
  readonly database: Redacted.Redacted<string>
  /**
   * How long the executions of a program that is no longer heard stay with it; then another program goes on with them. All programs of a
   * Postgres should have the same; with a file there is nothing to wait for. Default: 10 seconds.
   */
  readonly lease?: Duration.DurationInput | undefined
}

/**
 * An engine for workflows that survive their program: what has happened is in a Postgres, or in a file of SQLite. Each program that has this
 * engine and the workflows takes a share of the executions of a Postgres, and those of a program that ends, or is killed. When another one
 * joins, the steps that run of its share have 15 seconds to end; then they are done again there. With a file, the next program goes on at
 * once. It needs the packages `@effect/cluster`, `@effect/sql` and `@effect/sql-pg`, or for a file `@effect/sql-libsql` and `@libsql/client`.
 * `WorkflowEngine.layerMemory` of `@effect/workflow` is an engine without a record.
 *
 * Fails with `FleetError` (`Database`) if the database does not answer, or another program has the file. While a Postgres is away later,
 * executions wait.
 *
 * @since 0.2.0
 * @category layers
 */
export const layerEngine = (options: EngineOptions): Layer.Layer<WorkflowEngine, BerthError> =>
  Layer.scopedContext(durable(({ make }) => make(options)))
