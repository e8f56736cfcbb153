/**
 * What the supervisor does to make a container, as data: a flat list of operations that can be printed, compared and
 * tested without privileges. C decodes the binary form and performs it, operation by operation, and decides nothing.
 *
 * @since 0.1.0
 */
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Plan")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

// The fields of each operation: i a number of 64 bits, s a string, l a list of strings, u a list of numbers of 32 bits,
// b bytes, f the name of a descriptor that is sent along (null: none, or /dev/null). The order of the operations is
// their code, the same as in native/supervisor/plan.h.
const table = {
  "cgroup-create": { path: "s" },
  "cgroup-write": { file: "s", value: "s" },
  "cgroup-join": { path: "s", version: "i" },
  scratch: { path: "s", mode: "i" },
  overlay: { lower: "l", upper: "s", work: "s", options: "l", attributes: "i" },
  "overlay-memory": { lower: "l", mode: "i", tmpfs: "l", options: "l", attributes: "i" },
  "root-mount": { mount: "f" },
  "root-bind": { path: "s", attributes: "i", recursive: "i" },
  process: { namespaces: "i" },
  "id-map": { uids: "s", gids: "s" },
  join: { process: "f", namespaces: "i" },
  session: {},
  keyring: {},
  stdio: { stdin: "f", stdout: "f", stderr: "f" },
  rlimit: { resource: "i", soft: "i", hard: "i" },
  unshare: { namespaces: "i" },
  loopback: {},
  root: {},
  mount: { type: "s", target: "s", options: "l", attributes: "i", pinned: "i" },
  bind: { source: "s", target: "s", attributes: "i", recursive: "i", pinned: "i" },
  directory: { path: "s", mode: "i" },
  symlink: { target: "s", path: "s" },
  mask: { null: "s", paths: "l", required: "i" },
  readonly: { paths: "l", required: "i" },
  pivot: {},
  "root-readonly": {},
  hostname: { name: "s" },
  domainname: { name: "s" },
  sysctl: { key: "s", value: "s" },
  "working-directory": { path: "s", create: "i" },
  umask: { mask: "i" },
  bounding: { capabilities: "i" },
  user: { uid: "i", gid: "i", groups: "u" },
  capabilities: { effective: "i", permitted: "i", inheritable: "i", ambient: "i" },
  terminal: { socket: "f", rows: "i", columns: "i", uid: "i" },
  "no-new-privileges": {},
  seccomp: { program: "b", flags: "i", listener: "f" },
  exec: { program: "f", paths: "l", arguments: "l", environment: "l" },
  connect: { socket: "f", version: "i", port: "i" },
  self: { arguments: "l", environment: "l" },
  "cgroup-devices": { path: "s", program: "b" },
  apparmor: { profile: "s" },
  hold: { descriptor: "f" },
  "layer-map": { uids: "s", gids: "s" },
  owner: { path: "s", uid: "i", gid: "i" },
  "root-user": {},
  discard: { path: "s" },
  record: { path: "s" },
  fork: {},
  "controlling-terminal": {},
  "empty-root": { path: "s", proc: "i" },
  "proc-of": { process: "f", paths: "l" }
} as const

type Table = typeof table

interface FieldTypes {
  readonly i: number | bigint
  readonly s: string
  readonly l: ReadonlyArray<string>
  readonly u: ReadonlyArray<number>
  readonly b: Uint8Array
  readonly f: string | null
}

/**
 * The name of an operation.
 *
 * @since 0.1.0
 * @category models
 */
export type OperationName = keyof Table

/**
 * One operation: its name in `op`, and its fields.
 *
 * - `cgroup-create`, `cgroup-write`, `cgroup-join`: cgroups(7); `version` 1 or 2. `cgroup-devices`: an eBPF program that
 *   decides which devices may be opened, in place of the one that was there (version 2 only, Linux 4.15).
 * - `scratch`: a folder that is removed with everything in it when the unit is released; `discard`: the same for one that
 *   is there. `hold`: a descriptor that stays open as long.
 * - `owner`: chown(2). `layer-map`: the maps by which the ids of the lower layers that follow are translated,
 *   mount_setattr(2); the writable layer in memory then belongs to the tmpfs's owner.
 * - `overlay`, `overlay-memory`: a union mount of `lower`, uppermost first, with the writable layer on disk or on a
 *   tmpfs; `root-mount`, `root-bind`: a root that is there already. `attributes` are of MOUNT_ATTR_*, mount_setattr(2).
 * - `process`: the clone, with the namespaces of clone(2) that are new; what is behind it is done by the child.
 * - `record`: its line of /proc/PID/stat into a new file, by which a sweep finds it.
 * - `id-map`: user_namespaces(7); `root-user`: becomes root in there. `join`: setns(2). `unshare`: unshare(2).
 * - `fork`: what is behind it is done by a child of the process, in the pid namespace that it has joined; the process itself
 *   ends. `controlling-terminal`: TIOCSCTTY of standard input, ioctl_tty(2).
 * - `empty-root`: an empty mount as the process's root, at `path`, or, where that is "/", in place of all other mounts of the
 *   namespace; with `proc`, a procfs lies over it. `proc-of`: joins the pid namespace of a process, and takes its procfs, which is at one
 *   of `paths` there, for the `mount` of one.
 * - `root`, `mount`, `bind`, `directory`, `symlink`, `mask`, `readonly`, `pivot`, `root-readonly`: the file
 *   system that the container sees; targets are resolved inside the root with openat2(2). No link may lead to the target of
 *   a `pinned` mount, and paths below it are resolved in the mount itself. A `required` path has to be there.
 * - `apparmor`: the profile that the command is confined by from its execution on, apparmor(7).
 * - `bounding`, `user`, `capabilities`, `no-new-privileges`, `seccomp`, `rlimit`, `umask`, `keyring`, `session`:
 *   credentials(7), capabilities(7), seccomp(2), getrlimit(2), umask(2), keyrings(7), setsid(2).
 * - `seccomp`: a BPF program and flags of seccomp(2); where the program notifies, its listener is sent to `listener`.
 * - `terminal`: a pty of the container's devpts, pts(4), whose other end is sent to `socket`.
 * - `exec`: execve(2) of the first of `paths` that is there; `self`: the supervisor's own program, which holds
 *   namespaces open or is a container's init; `connect`: a connection to loopback, sent to `socket`.
 *
 * @since 0.1.0
 * @category models
 */
export type Operation = {
  [Name in OperationName]: {
    readonly op: Name
  } & { readonly [Field in keyof Table[Name]]: FieldTypes[Table[Name][Field] & keyof FieldTypes] }
}[OperationName]

/**
 * A plan.
 *
 * @since 0.1.0
 * @category models
 */
export interface Plan extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  readonly operations: ReadonlyArray<Operation>
}

/**
 * A plan in the form that goes to the supervisor.
 *
 * @since 0.1.0
 * @category models
 */
export interface Encoded {
  readonly bytes: Uint8Array
  /** The names of the descriptors, in the order in which they have to be sent. */
  readonly descriptors: ReadonlyArray<string>
}

const Proto: Omit<Plan, "operations"> = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Plan) {
    return { _id: "Plan", operations: this.operations.map(printOperation) }
  },
  toString(this: Plan) {
    return print(this)
  }
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isPlan = (u: unknown): u is Plan => hasProperty(u, TypeId)

/**
 * A plan of these operations, in this order.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (operations: ReadonlyArray<Operation>): Plan =>
  Object.assign(Object.create(Proto), { operations })

const namespaceNames: ReadonlyArray<readonly [flag: number, name: string]> = [
  [0x00020000, "mount"],
  [0x02000000, "cgroup"],
  [0x04000000, "uts"],
  [0x08000000, "ipc"],
  [0x10000000, "user"],
  [0x20000000, "pid"],
  [0x40000000, "network"],
  [0x00000080, "time"]
]

const attributeNames: ReadonlyArray<readonly [flag: number, name: string]> = [
  [0x1, "ro"],
  [0x2, "nosuid"],
  [0x4, "nodev"],
  [0x8, "noexec"],
  [0x10, "noatime"]
]

const names = (all: typeof namespaceNames, flags: number): string => {
  const set = all.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name)
  return set.length === 0 ? "none" : set.join(",")
}

const quote = (text: string): string => (/^[\w@%+=:,./<>-]+$/.test(text) ? text : JSON.stringify(text))

const printField = (field: string, type: string, value: unknown): string => {
  if (field === "namespaces") return names(namespaceNames, Number(value))
  if (field === "attributes") return names(attributeNames, Number(value))
  if (field === "mode" || field === "mask") return `0${Number(value).toString(8)}`
  if (/^(capabilities|effective|permitted|inheritable|ambient)$/.test(field))
    return `0x${BigInt(value as bigint).toString(16)}`
  switch (type) {
    case "s":
      return quote(value as string)
    case "l":
      return `[${(value as ReadonlyArray<string>).map(quote).join(" ")}]`
    case "u":
      return `[${(value as ReadonlyArray<number>).join(" ")}]`
    case "b":
      return `${(value as Uint8Array).length} bytes`
    case "f":
      return value === null ? "none" : `<${value}>`
    default:
      return String(value)
  }
}

/**
 * One operation as a line: its name and its fields.
 *
 * @since 0.1.0
 * @category conversions
 */
export const printOperation = (operation: Operation): string =>
  [
    operation.op,
    ...Object.entries(table[operation.op]).map(
      ([field, type]) => `${field}=${printField(field, type, operation[field as never])}`
    )
  ].join(" ")

/**
 * The plan as text, a numbered line for each operation. The numbers are those of `OperationFailed.index`.
 *
 * @since 0.1.0
 * @category conversions
 */
export const print = (plan: Plan): string =>
  plan.operations
    .map((operation, index) => `${String(index).padStart(3)}  ${printOperation(operation)}`)
    .join("\n")

const kinds = Object.entries(table).map(([name, fields], code) => ({
  name,
  code,
  fields: Object.entries(fields)
}))
const kindOf = new Map(kinds.map((kind) => [kind.name, kind]))

const MAGIC = 0x4e4c5042
const VERSION = 1
const NO_DESCRIPTOR = 0xffffffff
const utf8 = new TextEncoder()

class Writer {
  bytes = new Uint8Array(4096)
  view = new DataView(this.bytes.buffer)
  length = 0
  readonly descriptors: Array<string> = []

  // May replace `bytes` and `view`, so it comes before either is used.
  reserve(bytes: number): number {
    const at = this.length
    if (at + bytes > this.bytes.length) {
      const grown = new Uint8Array(Math.max(this.bytes.length * 2, at + bytes))
      grown.set(this.bytes)
      this.bytes = grown
      this.view = new DataView(grown.buffer)
    }
    this.length += bytes
    return at
  }
  u16(value: number): void {
    const at = this.reserve(2)
    this.view.setUint16(at, value, true)
  }
  u32(value: number): void {
    const at = this.reserve(4)
    this.view.setUint32(at, value, true)
  }
  string(text: string): void {
    const head = this.reserve(4 + text.length * 3 + 1)
    const { written } = utf8.encodeInto(text, this.bytes.subarray(head + 4))
    this.view.setUint32(head, written, true)
    this.bytes[head + 4 + written] = 0
    this.length = head + 4 + written + 1
  }
  descriptor(name: string | null): void {
    if (name === null) return this.u32(NO_DESCRIPTOR)
    const index = this.descriptors.indexOf(name)
    this.u32(index >= 0 ? index : this.descriptors.push(name) - 1)
  }
  field(type: string, value: unknown): void {
    switch (type) {
      case "i": {
        const at = this.reserve(8)
        return this.view.setBigInt64(at, BigInt.asIntN(64, BigInt(value as number | bigint)), true)
      }
      case "s":
        return this.string(value as string)
      case "f":
        return this.descriptor(value as string | null)
      case "l": {
        const items = value as ReadonlyArray<string>
        this.u32(items.length)
        for (const item of items) this.string(item)
        return
      }
      case "u": {
        const items = value as ReadonlyArray<number>
        this.u32(items.length)
        for (const item of items) this.u32(item)
        return
      }
      default: {
        const bytes = value as Uint8Array
        this.u32(bytes.length)
        const at = this.reserve(bytes.length)
        this.bytes.set(bytes, at)
      }
    }
  }
}

// Operations that stand in many plans, with their bytes once they have been encoded.
const constants = new WeakMap<Operation, Uint8Array>()
const notYet = new Uint8Array(0)

/**
 * Has the bytes of an operation kept, for one that many plans share. Not for one that names a descriptor, whose number
 * is the plan's.
 *
 * @internal
 */
export const constant = (operation: Operation): Operation => {
  constants.set(operation, notYet)
  return operation
}

/**
 * The plan in its binary form, which native/supervisor/plan.h describes. Strings must not hold NUL: `Container` and the others
 * that compile plans see to it.
 *
 * @since 0.1.0
 * @category conversions
 */
export const encode = (plan: Plan): Encoded => {
  const writer = new Writer()
  writer.u32(MAGIC)
  writer.u16(VERSION)
  writer.u16(plan.operations.length)
  for (const operation of plan.operations) {
    const known = constants.get(operation)
    if (known !== undefined && known.length > 0) {
      const at = writer.reserve(known.length)
      writer.bytes.set(known, at)
      continue
    }
    const kind = kindOf.get(operation.op)!
    const start = writer.length
    writer.u16(kind.code)
    writer.u16(0)
    const size = writer.reserve(4)
    for (const [field, type] of kind.fields) writer.field(type, operation[field as never])
    writer.view.setUint32(size, writer.length - size - 4, true)
    if (known !== undefined) constants.set(operation, writer.bytes.slice(start, writer.length))
  }
  return { bytes: writer.bytes.subarray(0, writer.length), descriptors: writer.descriptors }
}
