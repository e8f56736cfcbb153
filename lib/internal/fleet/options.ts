/** The options of a container that cross the network: plain data, each one named here. */
import * as Effect from "effect/Effect"
import * as ParseResult from "effect/ParseResult"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { InvalidOption, Unsupported } from "../../BerthError.ts"
import type { ExecOptions, StartOptions } from "../../Container.ts"
import type { Mount } from "../../Mount.ts"
import type { ProcessOptions } from "../../Process.ts"
import type { CommitOptions } from "../../Snapshot.ts"

const Strings = Schema.Array(Schema.String)
const Size = Schema.Union(Schema.Number, Schema.String)
const Texts = Schema.Record({ key: Schema.String, value: Schema.String })

/** Data without functions and handles, whose parts Berth checks itself. */
const Plain: Schema.Schema<object> = Schema.declare(
  (value): value is object => typeof value === "object" && value !== null && isPlain(value, 0)
)

const DEPTH_MAX = 16

const isPlain = (value: unknown, depth: number): boolean => {
  if (typeof value !== "object" || value === null)
    return typeof value !== "function" && typeof value !== "symbol"
  if (depth > DEPTH_MAX || Object.getOwnPropertySymbols(value).length > 0) return false
  return Object.values(value).every((part) => isPlain(part, depth + 1))
}

const optional = <A, I>(schema: Schema.Schema<A, I>) => Schema.optional(Schema.UndefinedOr(schema))

const process = {
  env: optional(Texts),
  cwd: optional(Schema.String),
  user: optional(Schema.String),
  umask: optional(Schema.Number),
  appArmor: optional(Schema.String),
  terminal: optional(
    Schema.Union(Schema.Boolean, Schema.Struct({ rows: Schema.Number, columns: Schema.Number }))
  ),
  stdin: optional(Schema.Literal("null", "pipe")),
  stdout: optional(Schema.Literal("log", "pipe", "null")),
  stderr: optional(Schema.Literal("log", "pipe", "null")),
  capabilities: optional(Plain),
  noNewPrivileges: optional(Schema.Boolean),
  seccomp: optional(Schema.Union(Schema.Literal("default", "unconfined"), Plain)),
  rlimits: optional(Plain)
}

const BindSchema = Schema.Struct({
  type: Schema.Literal("bind"),
  source: Schema.String,
  target: Schema.String,
  readOnly: optional(Schema.Boolean),
  recursive: optional(Schema.Boolean)
})
const TmpfsSchema = Schema.Struct({
  type: Schema.Literal("tmpfs"),
  target: Schema.String,
  size: optional(Size),
  mode: optional(Schema.Number)
})
const FileSchema = Schema.Struct({
  type: Schema.Literal("file"),
  target: Schema.String,
  text: Schema.String
})

const NamespaceOrigin = optional(Schema.Literal("new", "host"))

const Start = Schema.Struct({
  ...process,
  command: optional(Strings),
  entrypoint: optional(Strings),
  init: optional(Schema.Boolean),
  hostname: optional(Schema.String),
  etcFiles: optional(Schema.Boolean),
  extraHosts: optional(Strings),
  dns: optional(Strings),
  dnsSearch: optional(Strings),
  mounts: optional(Schema.Array(Schema.Union(BindSchema, TmpfsSchema, FileSchema))),
  readOnly: optional(Schema.Boolean),
  maskedPaths: optional(Strings),
  hidepid: optional(Schema.Literal("off", "noaccess", "invisible", "ptraceable")),
  readonlyPaths: optional(Strings),
  shmSize: optional(Size),
  sysctls: optional(Texts),
  limits: optional(Plain),
  namespaces: optional(
    Schema.Struct({
      pid: NamespaceOrigin,
      uts: NamespaceOrigin,
      ipc: NamespaceOrigin,
      network: NamespaceOrigin,
      cgroup: NamespaceOrigin,
      time: NamespaceOrigin,
      user: NamespaceOrigin
    })
  ),
  userns: optional(
    Schema.Union(
      Schema.Literal("auto"),
      Schema.Struct({ uidMap: Schema.Array(Plain), gidMap: Schema.Array(Plain) })
    )
  ),
  network: optional(Schema.Literal("none", "host")),
  upper: optional(Schema.Literal("disk", "memory")),
  upperSize: optional(Size)
})

const Exec = Schema.Struct({
  ...process,
  input: optional(Schema.Union(Schema.String, Schema.Uint8ArrayFromSelf)),
  maxOutputBytes: optional(Schema.Number),
  onOverflow: optional(Schema.Literal("fail", "truncate"))
})

/** The options of a start that a runner takes. */
export type PlainStart = typeof Start.Type

const Commit = Schema.Struct({
  author: optional(Schema.String),
  comment: optional(Schema.String),
  created: optional(Schema.DateFromSelf),
  config: optional(Plain),
  maxHoleBytes: optional(Size)
})

const checked =
  <A, I>(schema: Schema.Schema<A, I>) =>
  (options: unknown): Effect.Effect<A, InvalidOption> =>
    Effect.mapError(Schema.decodeUnknown(schema, { onExcessProperty: "error" })(options), (error) => {
      const [first] = ParseResult.ArrayFormatter.formatErrorSync(error)
      return new InvalidOption({
        option: first?.path.join(".") || "options",
        value: "what it is set to",
        expected: `plain data that another machine can be told: ${first?.message ?? ""}`
      })
    })

export const startOptions = checked(Start)
export const execOptions: (options: unknown) => Effect.Effect<ExecOptions, InvalidOption> = checked(
  Exec
) as never
export const processOptions: (options: unknown) => Effect.Effect<ProcessOptions, InvalidOption> = checked(
  Schema.Struct(process)
) as never

export const commitOptions: (options: unknown) => Effect.Effect<CommitOptions, InvalidOption> = checked(
  Commit
) as never

/** Options that need this machine, with what to do instead. */
const local: Readonly<Record<string, string>> = {
  cgroup: "give `limits`",
  onSystemCall: "leave it out",
  logs: "read them with Container.logs",
  ports: "use Container.publish after the start: the port is on this machine",
  name: "leave it out",
  aliases: "leave it out"
}

const plainMount = (mount: Mount): unknown =>
  mount.type === "file"
    ? { ...mount, text: Redacted.isRedacted(mount.text) ? Redacted.value(mount.text) : mount.text }
    : mount

/** The options of a start as they are sent. */
export const sent = (options: StartOptions): Effect.Effect<PlainStart, InvalidOption | Unsupported> =>
  Effect.suspend((): Effect.Effect<PlainStart, InvalidOption | Unsupported> => {
    const given = Object.entries(options).filter(([, value]) => value !== undefined)
    for (const [name] of given)
      if (name in local)
        return new Unsupported({
          feature: `the option ${name} on another machine`,
          why: "it refers to something on this one",
          hint: `For a container of a fleet, ${local[name]}`
        })
    const { mounts, ...rest } = Object.fromEntries(given) as StartOptions
    return startOptions(mounts === undefined ? rest : { ...rest, mounts: mounts.map(plainMount) })
  })
