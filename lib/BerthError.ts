/**
 * Every way in which Berth fails, as tagged values. A message says which operation failed, on what,
 * with which system call and errno where there was one, and what to do about it.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import { hasProperty } from "effect/Predicate"
import * as Schema from "effect/Schema"
import { adviceOf, describeErrno, errnoName } from "./internal/util/errno.ts"
import * as internal from "./internal/util/errorProto.ts"
import { lastLines } from "./internal/util/text.ts"

/**
 * Every error of Berth has this property.
 *
 * @since 0.1.0
 * @category symbols
 */
export const BerthErrorTypeId: unique symbol = internal.TypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type BerthErrorTypeId = typeof BerthErrorTypeId

/** What every error has besides its own fields. */
const common = {
  /** The error that this one was made from, with its stack. */
  cause: Schema.optional(Schema.Defect)
}

type All<Tag extends string, Fields> = { readonly _tag: Schema.tag<Tag> } & Fields & typeof common

interface ErrorClass<Self, Tag extends string, Fields extends Schema.Struct.Fields>
  extends Schema.Class<
    Self,
    All<Tag, Fields>,
    Schema.Struct.Encoded<All<Tag, Fields>>,
    Schema.Struct.Context<All<Tag, Fields>>,
    Schema.Struct.Constructor<Omit<All<Tag, Fields>, "_tag">>,
    {},
    Cause.YieldableError & { readonly [BerthErrorTypeId]: BerthErrorTypeId }
  > {
  readonly _tag: Tag
}

const tagged =
  <Self>() =>
  <Tag extends string, Fields extends Schema.Struct.Fields>(
    tag: Tag,
    fields: Fields
  ): ErrorClass<Self, Tag, Fields> => {
    const made = Schema.TaggedError<Self>(`berth/BerthError/${tag}`)(tag, { ...fields, ...common })
    const { prototype } = made as unknown as { readonly prototype: object }
    Object.assign(prototype, internal.printing, { [BerthErrorTypeId]: BerthErrorTypeId })
    return made as never
  }

/**
 * A value given to Berth is not acceptable: a limit of `"12 parsecs"`, a reference in upper case, an
 * unknown capability. Nothing was done.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidOption extends tagged<InvalidOption>()("InvalidOption", {
  /** Which option, as the caller wrote it: `limits.memory`. */
  option: Schema.String,
  /** The value, printed. */
  value: Schema.String,
  /** What would have been accepted. */
  expected: Schema.String
}) {
  override get message(): string {
    return `${this.option}: ${this.value} is not acceptable: expected ${this.expected}`
  }
}

/**
 * Data that was read cannot be parsed: a reference, a tar, registries.conf, a profile. Nothing was done with it, except that the
 * members of a tar before the broken one are there. It is not called `ParseError`, as Effect's Schema has an error of this tag.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidData extends tagged<InvalidData>()("InvalidData", {
  /** What it should be: `reference`, `tar`, `registries.conf`, `seccomp profile`, `AppArmor profile`. */
  format: Schema.String,
  /** The part that is wrong, printed, or the file and line that have it. */
  value: Schema.String,
  /** What would have been accepted. */
  expected: Schema.String
}) {
  override get message(): string {
    return `${this.format}: ${this.value} cannot be parsed: expected ${this.expected}`
  }
}

/**
 * This machine cannot do what was asked: another operating system, a kernel without a feature, a controller
 * that is not mounted, no user namespaces for somebody who is not root.
 *
 * @since 0.1.0
 * @category errors
 */
export class Unsupported extends tagged<Unsupported>()("Unsupported", {
  /** What was wanted: `user namespaces`, `cgroup controller memory`. */
  feature: Schema.String,
  /** Why it cannot be had here. */
  why: Schema.String,
  /** What to do about it. */
  hint: Schema.String
}) {
  override get message(): string {
    return `${this.feature}: ${this.why}. ${this.hint}`
  }
}

/**
 * The kernel refused one operation of a plan. Whatever the plan had made up to there has been undone.
 *
 * @since 0.1.0
 * @category errors
 */
export class OperationFailed extends tagged<OperationFailed>()("OperationFailed", {
  /** The operation as `Plan.print` shows it: `bind /data -> /mnt`. */
  operation: Schema.String,
  /** Its place in the plan, counted from 0; -1 where it was not part of a plan. */
  index: Schema.Int,
  /** The system call that failed: `move_mount`. */
  syscall: Schema.String,
  /** The error number that it gave, as in errno(3). */
  errno: Schema.Int,
  /** What to do about it, where Berth knows. */
  hint: Schema.String
}) {
  /** The errno's symbol: `ENOENT`. */
  get code(): string {
    return errnoName(this.errno)
  }
  override get message(): string {
    const hint = adviceOf(this.errno) ?? this.hint
    const todo = hint === "" ? "" : `. ${hint}`
    return `${this.operation}: ${this.syscall}: ${this.code} (${describeErrno(this.errno)})${todo}`
  }
}

/**
 * The command could not be executed inside the container. `NotFound` is a shell's 127, `NotExecutable` its 126.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommandFailed extends tagged<CommandFailed>()("CommandFailed", {
  reason: Schema.Literal("NotFound", "NotExecutable", "WorkingDirectory", "ArgumentsTooLong"),
  /** The command as it was given. */
  command: Schema.String,
  /** The paths that were tried, inside the container. */
  searched: Schema.Array(Schema.String),
  /** The error number that execve(2) or chdir(2) gave. */
  errno: Schema.Int
}) {
  /** The exit code that a shell would give: 127 for a command that was not found, else 126. */
  get exitCode(): number {
    return this.reason === "NotFound" ? 127 : 126
  }
  override get message(): string {
    const why = `${errnoName(this.errno)} (${describeErrno(this.errno)})`
    switch (this.reason) {
      case "NotFound":
        return `${this.command}: command not found in the image; looked at ${this.searched.join(", ")}`
      case "NotExecutable":
        return `${this.command}: cannot be executed: ${why}; looked at ${this.searched.join(", ")}`
      case "WorkingDirectory":
        return `${this.searched.join(", ")}: cannot be the working directory of ${this.command}: ${why}`
      default:
        return `${this.command}: its arguments and environment exceed the limit of the kernel: ${why}. Pass large data in a file or on stdin`
    }
  }
}

/**
 * An image, or a part of it, cannot be used.
 *
 * @since 0.1.0
 * @category errors
 */
export class ImageError extends tagged<ImageError>()("ImageError", {
  reason: Schema.Literal(
    /** No such layout, tag, manifest or blob. */
    "NotFound",
    /** Bytes that are not what their descriptor says: digest, diff id or size. */
    "DigestMismatch",
    /** A manifest, config or layer that cannot be read: truncated gzip, not JSON, a broken tar. */
    "Corrupt",
    /** A layer member that tries to leave its folder. */
    "Escape",
    /** A media type, digest algorithm or entry that Berth does not take. */
    "Unsupported",
    /** No image for this operating system and architecture. */
    "Platform",
    /** Past a bound: a decompression bomb, a manifest of 100 MB. */
    "TooLarge",
    /** A user or group that the image's own passwd or group file does not have. */
    "NoSuchUser",
    /** The disk or the store refused: full, read-only, somebody else's. */
    "Storage"
  ),
  /** The image, layer or file: a reference, a digest or a path. */
  subject: Schema.String,
  /** What is wrong, and what to do about it. */
  detail: Schema.String
}) {
  override get message(): string {
    return `${this.subject}: ${this.detail}`
  }
}

/**
 * A registry did not give what was asked of it.
 *
 * @since 0.1.0
 * @category errors
 */
export class RegistryError extends tagged<RegistryError>()("RegistryError", {
  reason: Schema.Literal(
    /** Nothing answers at that host and port, or the connection broke for good. */
    "Unreachable",
    /** 401 or 403, or a token service that refuses. */
    "Unauthorized",
    /** No such repository, tag or blob. */
    "NotFound",
    /** 429, after the retries. */
    "TooManyRequests",
    /** 405: the registry does not do this, as where deleting is turned off. */
    "Unsupported",
    /** An answer that is outside the OCI distribution specification, or a 5xx after the retries. */
    "Protocol"
  ),
  /** Host and port. */
  registry: Schema.String,
  /** The reference or digest that was asked for. */
  subject: Schema.String,
  /** HTTP status, 0 where there was none. */
  status: Schema.Int,
  /** What is wrong, and what to do about it. */
  detail: Schema.String
}) {
  override get message(): string {
    const status = this.status === 0 ? "" : ` (HTTP ${this.status})`
    return `${this.registry}: ${this.subject}: ${this.detail}${status}`
  }
}

/**
 * The supervisor is gone or cannot be started. Containers of this `Berth` layer are dead or dying.
 *
 * @since 0.1.0
 * @category errors
 */
export class SupervisorError extends tagged<SupervisorError>()("SupervisorError", {
  reason: Schema.Literal("NotStarted", "Gone", "Protocol"),
  detail: Schema.String
}) {
  override get message(): string {
    return `supervisor: ${this.detail}`
  }
}

/**
 * A container is not in a state in which this can be done, or gave more than was allowed.
 *
 * @since 0.1.0
 * @category errors
 */
export class ContainerError extends tagged<ContainerError>()("ContainerError", {
  reason: Schema.Literal(
    /** The process has exited. */
    "NotRunning",
    /** More output than the bound of a buffering call. */
    "OutputTooLong",
    /** Two readers for one stream. */
    "AlreadyRead",
    /** Output that nobody read in time has been dropped: a second read gives the rest. */
    "OutputDropped",
    /** It was started without a cgroup of its own. */
    "NoCgroup",
    /** It is paused: what is started in it would stand still as well. */
    "Paused"
  ),
  /** The container's id. */
  container: Schema.String,
  detail: Schema.String,
  /** What it had written by then, for `OutputTooLong`: as much of each output as its limit allows, as UTF-8. */
  stdout: Schema.optional(Schema.String),
  stderr: Schema.optional(Schema.String)
}) {
  override get message(): string {
    return `container ${this.container}: ${this.detail}`
  }
}

/**
 * A cgroup cannot be made, limited, read or waited on in this way. Nothing is left out in silence: where a tree cannot
 * hold to a limit, the limit is an error.
 *
 * @since 0.1.0
 * @category errors
 */
export class CgroupError extends tagged<CgroupError>()("CgroupError", {
  reason: Schema.Literal(
    /** The kernel has the controller, and no hierarchy that is mounted has it. */
    "NotMounted",
    /** The controller is in a hierarchy of version 1, which cannot do this. */
    "BoundToV1",
    /** Version 2 has the controller, and does not pass it on to the cgroup's place; or the place is somebody else's. */
    "NotDelegated",
    /** The kernel was built without it. */
    "NotInKernel",
    /** More than the new limit is in use, and cannot be reclaimed. */
    "InUse",
    /** Version 2 has processes either in a cgroup or in those below it that have controllers of their own. */
    "HasProcesses",
    /** The cgroup is not there any more: its scope has closed, or somebody else has removed it. */
    "Gone",
    /** The tree is mounted read-only. */
    "ReadOnly",
    /** The kernel does not take the value. */
    "Refused"
  ),
  /** `memory`, `cpu`, `cpuset`, `pids`, `io`, `hugetlb`, `devices`, `freezer`, `rdma`, `misc`, `pressure`; or `cgroup`. */
  controller: Schema.String,
  /** The file or folder. */
  path: Schema.String,
  /** The error number that the kernel gave, 0 where it was not asked. */
  errno: Schema.Int,
  /** What is wrong, and what to do about it. */
  detail: Schema.String
}) {
  override get message(): string {
    const why = this.errno === 0 ? "" : ` (${errnoName(this.errno)})`
    return `cgroup controller ${this.controller}: ${this.path}: ${this.detail}${why}`
  }
}

/**
 * A command has ended with another exit code than zero, where that is asked to be a failure: `$` of `berth/promise`.
 *
 * @since 0.1.0
 * @category errors
 */
export class NonZeroExit extends tagged<NonZeroExit>()("NonZeroExit", {
  /** The container's id. */
  container: Schema.String,
  /** The command, printed as a shell would take it. */
  command: Schema.String,
  /** What it gave to exit(3), or 128 and the signal's number. */
  exitCode: Schema.Int,
  /** The signal that ended it: `SIGKILL`. */
  signal: Schema.UndefinedOr(Schema.String),
  /** All that it wrote, as UTF-8. */
  stdout: Schema.String,
  stderr: Schema.String
}) {
  override get message(): string {
    const how = this.signal === undefined ? `exit code ${this.exitCode}` : `ended by ${this.signal}`
    const last = lastLines(this.stderr, 5).join("\n")
    return `${this.command}: ${how}${last === "" ? "" : `\n${last}`}`
  }
}

/**
 * What was waited for has not come.
 *
 * @since 0.1.0
 * @category errors
 */
export class WaitFailed extends tagged<WaitFailed>()("WaitFailed", {
  reason: Schema.Literal(
    /** Not in the time that was given. */
    "TimedOut",
    /** The container has ended, so it never will. */
    "Ended",
    /** As many health checks in a row have failed as the image allows. */
    "Unhealthy"
  ),
  /** What was waited for: `port 5432`. */
  condition: Schema.String,
  /** The container's id. */
  container: Schema.String,
  /** How the container was then: `is running`, `has ended with exit code 1`, `was ended by SIGKILL`. */
  state: Schema.String,
  /** For how long, in milliseconds. */
  millis: Schema.Number,
  /** The last lines that it wrote. */
  log: Schema.Array(Schema.String),
  /** What a command of `berth/promise` had written by then, where its own time was over. */
  stdout: Schema.optional(Schema.String),
  stderr: Schema.optional(Schema.String)
}) {
  override get message(): string {
    const why =
      this.reason === "Unhealthy"
        ? `${this.condition} reported that the container is unhealthy`
        : `no ${this.condition} within ${Math.round(this.millis)} ms`
    const log = this.log.length === 0 ? "" : `. Last lines of its log:\n${this.log.join("\n")}`
    return `container ${this.container}: ${why}; it ${this.state}${log}`
  }
}

/**
 * Something could not be given back when its scope closed, or in a sweep. It fails nothing: it is what is logged, as a
 * warning, and the next Berth that starts in the same folder takes what is left.
 *
 * @since 0.1.0
 * @category warnings
 */
export class NotReleased extends Schema.TaggedError<NotReleased>("berth/BerthError/NotReleased")(
  "NotReleased",
  {
    /** What it is: `container 0123456789ab`, the path of a folder or of a cgroup, `supervisor 4711`. */
    resource: Schema.String,
    /** The system call that failed, or `release` where no answer came in time. */
    syscall: Schema.String,
    /** The error number that it gave, as in errno(3). */
    errno: Schema.Int
  }
) {
  /** The errno's symbol: `EBUSY`. */
  get code(): string {
    return errnoName(this.errno)
  }
  override get message(): string {
    return `${this.resource} was not released: ${this.syscall}: ${this.code} (${describeErrno(this.errno)})`
  }
}

Object.assign(NotReleased.prototype, internal.printing)

/**
 * Any error of Berth.
 *
 * @since 0.1.0
 * @category models
 */
export type BerthError =
  | InvalidOption
  | InvalidData
  | Unsupported
  | OperationFailed
  | CommandFailed
  | ImageError
  | RegistryError
  | SupervisorError
  | ContainerError
  | CgroupError
  | NonZeroExit
  | WaitFailed

/**
 * Whether a value is one of Berth's errors.
 *
 * @since 0.1.0
 * @category guards
 */
export const isBerthError = (u: unknown): u is BerthError => hasProperty(u, BerthErrorTypeId)
