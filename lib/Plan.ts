/**
 * The work of the supervisor for one container, as data: a flat list of operations that can be printed, compared and
 * tested without privileges. C decodes the binary form and performs the operations one by one; it makes no decisions.
 *
 * @since 0.1.0
 */
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"
import { flags as namespaceFlags } from "./internal/ids/namespaceFlags.ts"
import { operations as table } from "./internal/supervisor/operations.ts"
import { NO_FD, PLAN_MAGIC, PLAN_VERSION } from "./internal/supervisor/protocol.ts"
import * as mountAttributes from "./internal/util/mountAttributes.ts"

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
 * One operation: its name in `op`, and its fields. Fields that answer a question (`recursive`, `pinned`, `required`,
 * `create`, `proc`, `mapped`, `discard`) are 1 for yes and 0 for no.
 *
 * - `cgroup-create`, `cgroup-write`, `cgroup-join`: cgroups(7); `version` is 1 or 2. `cgroup-devices` replaces the eBPF
 *   program that decides which devices may be opened (version 2 only, Linux 4.15).
 * - `scratch` makes a folder that is removed with everything in it when the unit is released; `discard` removes an existing
 *   folder then. `keep-open` keeps a descriptor open until then.
 * - `owner`: chown(2). `layer-map` sets the id maps that translate the owners of the lower layers of the overlays after it,
 *   mount_setattr(2); the writable layer in memory then belongs to the owner of the tmpfs.
 * - `overlay`, `overlay-memory`: a union mount of `lower`, uppermost first, with the writable layer on disk or on a tmpfs.
 *   `root-mount`, `root-bind`: an existing root. `attributes` are MOUNT_ATTR_* of mount_setattr(2).
 * - `process`: the clone, with the namespaces of clone(2) that are new. The child performs the operations after it.
 * - `filesystem`: a new mount, fsopen(2); of the file system in a file if there is an `image`, through a loop device, loop(4),
 *   which the kernel frees with the last mount. `tree` takes a folder or a file as a mount; no component of its path may be a symbolic
 *   link. If it is `mapped`, the ids of the `layer-map` translate its owners. `attach` mounts what the operation before it
 *   made at a folder of the supervisor's own mount namespace, until the unit is released; with `discard`, what
 *   an ext4 has not written yet is dropped then. `hand-over` gives it to the child instead, and each `place` attaches the next of these in the root.
 * - `copy-attributes` gives a folder the owner and the mode of another.
 * - `record` writes the child's line of /proc/PID/stat into a new file, by which a sweep finds the process.
 * - `id-map`: user_namespaces(7). `root-user`: the child becomes root of its user namespace. `join`: setns(2). `unshare`:
 *   unshare(2). `join-owner`: setns(2) into the user namespace that owns a namespace, ioctl_ns(2).
 * - `fork`: a child of the process, in the pid namespace that the process has joined, performs the operations after it; the
 *   process itself ends. `controlling-terminal`: TIOCSCTTY of standard input, ioctl_tty(2).
 * - `empty-root` makes an empty mount the root of the process: at `path`, or in place of all other mounts of the namespace
 *   where `path` is "/". With `proc`, a procfs covers it. `take-proc` joins the pid namespace of a process and copies the
 *   procfs that this process has at one of `paths`; a later `mount` of a procfs attaches the copy.
 * - `attach-root`, `mount`, `bind`, `directory`, `symlink`, `mask`, `readonly`, `pivot`, `root-readonly`: the file system of
 *   the container. Targets are resolved inside the root with openat2(2). The path to the target of a `pinned` mount may
 *   have no symbolic link, and paths below the target are resolved in the mount itself. A `required` path must exist.
 * - `targets` makes the missing folders and empty files of the overlay before it, for mounts; those that cannot be made are
 *   left out. `files` makes files with the `contents`, this owner and mode in `folder` and mounts each at its target: over a
 *   symbolic link itself, and over an empty file where the target is missing. Unless they are `required`, the ones without a place are
 *   left out.
 * - `apparmor`: the profile that confines the command from its execution on, apparmor(7).
 * - `bounding`, `user`, `capabilities`, `no-new-privileges`, `seccomp`, `rlimit`, `umask`, `keyring`, `session`:
 *   credentials(7), capabilities(7), seccomp(2), getrlimit(2), umask(2), keyrings(7), setsid(2).
 * - `seccomp` has a BPF program and the flags of seccomp(2). The listener of a program that notifies is sent to `listener`.
 * - `terminal` opens a pty of the container's devpts, pts(4), and sends its master to `socket`.
 * - `netlink` sends messages of rtnetlink(7) over a socket of another network namespace, or, without a socket, in the child's
 *   own. The child's pid is written at `pidAt`, unless that is -1; the supervisor sends these for a child with `id-map`.
 * - `netfilter` sends a batch of messages of nf_tables, NETLINK_NETFILTER of netlink(7), in the child's own network namespace.
 * - `name-sockets` sends the sockets at 127.0.0.11:53, UDP and TCP, to a responder of names, with a message.
 * - `send-network` gives the child's network namespace to whoever has started the plan, as a descriptor.
 * - `exec`: execve(2) of the first of `paths` that exists. `exec-self` executes the supervisor's own program, which holds
 *   namespaces open or is a container's init. `exit` ends the process with 0.
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
 * A plan in the binary form that the supervisor takes.
 *
 * @since 0.1.0
 * @category models
 */
export interface Encoded {
  readonly bytes: Uint8Array
  /** The names of the descriptors, in the order in which they must be sent. */
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
 * Makes a plan of these operations, in this order.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (operations: ReadonlyArray<Operation>): Plan =>
  Object.assign(Object.create(Proto), { operations })

const namespaceNames = Object.entries(namespaceFlags)

const attributeNames: ReadonlyArray<readonly [name: string, flag: number]> = [
  ["ro", mountAttributes.MOUNT_ATTR_RDONLY],
  ["nosuid", mountAttributes.MOUNT_ATTR_NOSUID],
  ["nodev", mountAttributes.MOUNT_ATTR_NODEV],
  ["noexec", mountAttributes.MOUNT_ATTR_NOEXEC],
  ["noatime", mountAttributes.MOUNT_ATTR_NOATIME]
]

const names = (all: typeof attributeNames, flags: number): string => {
  const set = all.filter(([, flag]) => (flags & flag) !== 0).map(([name]) => name)
  return set.length === 0 ? "none" : set.join(",")
}

const quote = (text: string): string => (/^[\w@%+=:,./<>-]+$/.test(text) ? text : JSON.stringify(text))

const printField = (field: string, type: string, value: unknown): string => {
  // They may be secret.
  if (field === "contents")
    return `[${(value as ReadonlyArray<string>).map((text) => `${Buffer.byteLength(text)} bytes`).join(", ")}]`
  if (field === "environment")
    return `[${(value as ReadonlyArray<string>).map((text) => quote(text.slice(0, text.indexOf("=")))).join(" ")}]`
  if (field === "namespaces") return names(namespaceNames, Number(value))
  if (field === "attributes") return names(attributeNames, Number(value))
  if (field === "mode" || field === "mask") return `0${Number(value).toString(8)}`
  if (/^(recursive|pinned|required|create|proc|mapped|discard)$/.test(field))
    return Number(value) === 0 ? "no" : "yes"
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
 * The plan as text, a numbered line for each operation. `OperationFailed.index` refers to these numbers.
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
    if (name === null) return this.u32(NO_FD)
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

// Operations that many plans share, with their bytes after the first encoding.
const constants = new WeakMap<Operation, Uint8Array>()
const notYet = new Uint8Array(0)

/**
 * Keeps the encoded bytes of an operation that many plans share. An operation that names a descriptor cannot be kept, as
 * the number of the descriptor differs from plan to plan.
 *
 * @internal
 */
export const constant = (operation: Operation): Operation => {
  constants.set(operation, notYet)
  return operation
}

/**
 * The plan in its binary form, which native/supervisor/plan.h describes. Strings must not contain NUL: the modules that
 * compile plans check that.
 *
 * @since 0.1.0
 * @category conversions
 */
export const encode = (plan: Plan): Encoded => {
  const writer = new Writer()
  writer.u32(PLAN_MAGIC)
  writer.u16(PLAN_VERSION)
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
