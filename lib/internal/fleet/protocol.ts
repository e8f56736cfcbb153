/** What clients and runners of a fleet say to each other: procedures of @effect/rpc, whose failures are Berth's errors. */
import { PlatformError } from "@effect/platform/Error"
import * as Rpc from "@effect/rpc/Rpc"
import * as RpcGroup from "@effect/rpc/RpcGroup"
import * as Schema from "effect/Schema"
import * as Errors from "../../BerthError.ts"
import { FleetError, RunnerLost } from "../../FleetError.ts"

/** Grows with each change that a runner or a client of the version before does not understand. */
export const VERSION = 2

export const Failure = Schema.Union(
  Errors.InvalidOption,
  Errors.InvalidData,
  Errors.Unsupported,
  Errors.OperationFailed,
  Errors.CommandFailed,
  Errors.ImageError,
  Errors.RegistryError,
  Errors.SupervisorError,
  Errors.ContainerError,
  Errors.CgroupError,
  Errors.NonZeroExit,
  Errors.NetworkError,
  Errors.VolumeError,
  Errors.WaitFailed,
  Errors.FixtureFailed,
  Errors.ServiceFailed,
  Errors.BuildFailed,
  Errors.ComposeError,
  FleetError,
  RunnerLost
)

/** Names a container, a process or a stream of a session. */
const Id = Schema.String.pipe(Schema.maxLength(64))
const Text = Schema.String.pipe(Schema.maxLength(4096))
const Strings = Schema.Array(Schema.String)
const Bytes = Schema.Uint8ArrayFromSelf

/** How much of a machine its fleet may use, and how much is in use. */
export const Room = Schema.Struct({
  /** Grows with each change: what a client is told of a room may come in another order. */
  serial: Schema.Number,
  memoryBytes: Schema.Number,
  cpus: Schema.Number,
  usedMemoryBytes: Schema.Number,
  usedCpus: Schema.Number,
  containers: Schema.Number,
  /** The digests of the images that are there. */
  images: Strings
})
export type Room = typeof Room.Type

/** A runner, as it was when its session began. */
export const Description = Schema.Struct({
  name: Schema.String,
  version: Schema.Number,
  architecture: Schema.String,
  kernel: Schema.String,
  rootless: Schema.Boolean,
  /** What the doctor found: the names of the checks that are `ok`. */
  features: Strings,
  labels: Schema.Record({ key: Schema.String, value: Schema.String }),
  leaseMillis: Schema.Number
})
export type Description = typeof Description.Type

const Hello = Schema.TaggedStruct("Hello", { runner: Description, room: Room })
const Changed = Schema.TaggedStruct("Changed", { room: Room })

export const ExitStatus = Schema.Struct({
  exitCode: Schema.Number,
  signal: Schema.UndefinedOr(Schema.String),
  userMicros: Schema.Number,
  systemMicros: Schema.Number,
  maxRssBytes: Schema.Number,
  outOfMemory: Schema.UndefinedOr(
    Schema.Struct({ limit: Schema.UndefinedOr(Schema.Number), peak: Schema.UndefinedOr(Schema.Number) })
  )
})

const RunningContainer = Schema.Struct({
  id: Schema.String,
  image: Schema.String,
  memoryBytes: Schema.Number,
  cpus: Schema.Number
})
export type RunningContainer = typeof RunningContainer.Type

/** What was started, and the room that is left. */
const Started = Schema.Struct({ container: Id, pid: Schema.Number, room: Room })
export type Started = typeof Started.Type

/** The end of what was started, unless it was released. */
const Ended = Schema.TaggedStruct("Ended", { id: Id, status: ExitStatus })
const Failed = Schema.TaggedStruct("Failed", { id: Id, error: Failure })
export type End = typeof Ended.Type | typeof Failed.Type

const Opened = Schema.TaggedStruct("Opened", { id: Id })

/** Options as the caller gave them; the runner checks them. */
const Options = Schema.Unknown

const ImageConfig = Schema.Struct({
  entrypoint: Strings,
  command: Strings,
  environment: Schema.Record({ key: Schema.String, value: Schema.String }),
  workingDirectory: Schema.String,
  user: Schema.String,
  stopSignal: Schema.UndefinedOr(Schema.String),
  exposedPorts: Strings,
  volumes: Strings,
  labels: Schema.Record({ key: Schema.String, value: Schema.String }),
  architecture: Schema.String,
  os: Schema.String
})

const PulledImage = Schema.Struct({
  reference: Schema.String,
  digest: Schema.UndefinedOr(Schema.String),
  config: ImageConfig
})

/** An image on the machines of a fleet: which one it is. */
export const ImageName = Schema.Struct({ reference: Text, digest: Schema.UndefinedOr(Text) })

/** The methods of a FileSystem that take and give plain data. */
export const fileMethods = [
  "access",
  "chmod",
  "chown",
  "copy",
  "copyFile",
  "link",
  "makeDirectory",
  "makeTempDirectory",
  "makeTempFile",
  "readDirectory",
  "readLink",
  "realPath",
  "remove",
  "rename",
  "stat",
  "symlink",
  "truncate",
  "utimes",
  "writeFile"
] as const

export const Rpcs = RpcGroup.make(
  /** Begins a session, and lasts as long: all that it has started ends with it. */
  Rpc.make("session", {
    payload: { version: Schema.Number, clockMillis: Schema.Number, client: Text },
    success: Schema.Union(Hello, Changed, Ended, Failed),
    error: Failure,
    stream: true
  }),
  /** Lets the session live for another lease. */
  Rpc.make("renew", { error: Failure }),
  /** The containers of all sessions, each with the room that it takes. */
  Rpc.make("containers", { success: Schema.Array(RunningContainer), error: Failure }),
  Rpc.make("pull", {
    payload: { reference: Text, platform: Schema.UndefinedOr(Text) },
    success: Schema.Struct({ ...PulledImage.fields, room: Room }),
    error: Failure
  }),
  /** Makes an image of a container's files, and sends it to the registry of the reference. */
  Rpc.make("commit", {
    payload: { id: Id, reference: Text, options: Options },
    success: PulledImage,
    error: Failure
  }),
  /** Starts a container, which has the id that the client chooses. */
  Rpc.make("start", {
    payload: { id: Id, image: ImageName, options: Options },
    success: Started,
    error: Failure
  }),
  /**
   * Removes what `start` or `spawn` has started, or is starting, and succeeds when nothing of it is left. Gives how it ended, if it
   * had begun.
   */
  Rpc.make("release", {
    payload: { id: Id },
    success: Schema.Struct({ status: Schema.UndefinedOr(ExitStatus), room: Room }),
    error: Failure
  }),
  Rpc.make("exec", {
    payload: { id: Id, command: Strings, options: Options },
    success: Schema.Struct({
      ...ExitStatus.fields,
      stdout: Schema.String,
      stderr: Schema.String,
      truncated: Schema.Boolean
    }),
    error: Failure
  }),
  Rpc.make("spawn", {
    payload: { id: Id, container: Id, command: Strings, options: Options },
    success: Started,
    error: Failure
  }),
  Rpc.make("output", {
    payload: { id: Id, name: Schema.Literal("stdout", "stderr") },
    success: Bytes,
    error: Failure,
    stream: true
  }),
  Rpc.make("logs", {
    payload: {
      id: Id,
      follow: Schema.Boolean,
      since: Schema.UndefinedOr(Schema.Number),
      tail: Schema.UndefinedOr(Schema.Number)
    },
    success: Schema.Struct({
      time: Schema.Number,
      stream: Schema.Literal("stdout", "stderr"),
      line: Schema.String
    }),
    error: Failure,
    stream: true
  }),
  /** Bytes for the input of a process, a connection or an archive. Succeeds when they are taken. */
  Rpc.make("write", { payload: { id: Id, bytes: Bytes }, error: Failure }),
  Rpc.make("end", { payload: { id: Id }, error: Failure }),
  Rpc.make("signal", { payload: { id: Id, signal: Schema.Union(Text, Schema.Number) }, error: Failure }),
  Rpc.make("stop", {
    payload: {
      id: Id,
      signal: Schema.UndefinedOr(Schema.Union(Text, Schema.Number)),
      graceMillis: Schema.Number
    },
    success: ExitStatus,
    error: Failure
  }),
  Rpc.make("resize", { payload: { id: Id, rows: Schema.Number, columns: Schema.Number }, error: Failure }),
  /** What the container uses, and its processes: `Cgroup.Stats` and `ProcessInfo`. */
  Rpc.make("stats", { payload: { id: Id }, success: Schema.Unknown, error: Failure }),
  Rpc.make("top", { payload: { id: Id }, success: Schema.Array(Schema.Unknown), error: Failure }),
  Rpc.make("pause", { payload: { id: Id }, error: Failure }),
  Rpc.make("resume", { payload: { id: Id }, error: Failure }),
  Rpc.make("waitForPort", {
    payload: { id: Id, port: Schema.Number, timeoutMillis: Schema.UndefinedOr(Schema.Number) },
    error: Failure
  }),
  Rpc.make("file", {
    payload: { id: Id, method: Schema.Literal(...fileMethods), arguments: Schema.Array(Schema.Unknown) },
    success: Schema.Unknown,
    error: Schema.Union(PlatformError, Failure)
  }),
  Rpc.make("read", {
    payload: { id: Id, path: Text },
    success: Bytes,
    error: Schema.Union(PlatformError, Failure),
    stream: true
  }),
  Rpc.make("tarOut", {
    payload: { id: Id, path: Text, maxHoleBytes: Schema.UndefinedOr(Schema.Union(Text, Schema.Number)) },
    success: Bytes,
    error: Failure,
    stream: true
  }),
  /** An archive that `write` brings. The stream ends when it is unpacked. */
  Rpc.make("tarIn", { payload: { id: Id, path: Text }, success: Opened, error: Failure, stream: true }),
  /** A connection to a server in the container: what it sends; `write` brings what it gets. */
  Rpc.make("connect", {
    payload: {
      id: Id,
      address: Schema.Union(
        Schema.Number,
        Schema.Struct({ port: Schema.Number, host: Schema.optional(Text) }),
        Schema.Struct({ path: Text })
      )
    },
    success: Schema.Union(Opened, Bytes),
    error: Failure,
    stream: true
  })
)
