/**
 * Every way in which Berth fails, as tagged values. A message names the operation that failed, its subject, the system
 * call and errno if there are any, and what to do about it.
 *
 * @since 0.1.0
 */

import { hasProperty } from "effect/Predicate"
import type { FleetError, RunnerLost } from "./FleetError.ts"
import { adviceOf, describeErrno, errnoName } from "./internal/util/errno.ts"
import { type ErrorClass, error, type WarningClass, warning } from "./internal/util/errorClass.ts"
import * as internal from "./internal/util/errorProto.ts"
import { lastLines, printLog } from "./internal/util/text.ts"

/**
 * Marks the errors of Berth.
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

const invalidOption = {
  /** The option, as the caller wrote it: `limits.memory`. */
  option: "string",
  /** The value, printed. */
  value: "string",
  /** The accepted values. */
  expected: "string"
} as const
const InvalidOptionClass: ErrorClass<InvalidOption, "InvalidOption", typeof invalidOption> = error(
  "InvalidOption",
  invalidOption
)

/**
 * Berth does not accept the value of an option: a limit of `"12 parsecs"`, a reference in upper case, an unknown
 * capability. Nothing was done.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidOption extends InvalidOptionClass {
  override get message(): string {
    return `${this.option}: ${this.value} is not acceptable: expected ${this.expected}`
  }
}

const invalidData = {
  /** The kind of data: `reference`, `tar`, `registries.conf`, `seccomp profile`, `AppArmor profile`. */
  format: "string",
  /** The invalid part, printed, or its file and line. */
  value: "string",
  /** The expected form. */
  expected: "string"
} as const
const InvalidDataClass: ErrorClass<InvalidData, "InvalidData", typeof invalidData> = error(
  "InvalidData",
  invalidData
)

/**
 * Data cannot be parsed: a reference, a tar, registries.conf, a profile. Nothing was done with it, except that the
 * members of a tar before the broken one have been extracted. The name `ParseError` belongs to an error of Effect's
 * Schema.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidData extends InvalidDataClass {
  override get message(): string {
    return `${this.format}: ${this.value} cannot be parsed: expected ${this.expected}`
  }
}

const unsupported = {
  /** The missing feature: `user namespaces`, `cgroup controller memory`. */
  feature: "string",
  /** The reason why it is missing. */
  why: "string",
  /** How to add it. */
  hint: "string"
} as const
const UnsupportedClass: ErrorClass<Unsupported, "Unsupported", typeof unsupported> = error(
  "Unsupported",
  unsupported
)

/**
 * This machine lacks a feature: another operating system, a kernel without the feature, an unmounted controller, no
 * user namespaces for non-root users.
 *
 * @since 0.1.0
 * @category errors
 */
export class Unsupported extends UnsupportedClass {
  override get message(): string {
    return `${this.feature}: ${this.why}. ${this.hint}`
  }
}

const operationFailed = {
  /** The operation as `Plan.print` shows it: `bind /data -> /mnt`. */
  operation: "string",
  /** The index of the operation in the plan, from 0; -1 if it was not part of a plan. */
  index: "integer",
  /** The system call that failed: `move_mount`. */
  syscall: "string",
  /** The error number of the system call, errno(3). */
  errno: "integer",
  /** What the kernel says about it, which it does for some messages of netlink(7) (NETLINK_EXT_ACK). Since 0.2.0. */
  text: "string?",
  /** What to do about it, if Berth knows. */
  hint: "string"
} as const
const OperationFailedClass: ErrorClass<OperationFailed, "OperationFailed", typeof operationFailed> = error(
  "OperationFailed",
  operationFailed
)

/**
 * The kernel refused one operation of a plan. Everything that the plan had made before is undone.
 *
 * @since 0.1.0
 * @category errors
 */
export class OperationFailed extends OperationFailedClass {
  /** The name of the errno: `ENOENT`. */
  get code(): string {
    return errnoName(this.errno)
  }
  override get message(): string {
    const hint = adviceOf(this.errno) ?? this.hint
    const said = this.text === undefined || this.text === "" ? "" : `: ${this.text}`
    const todo = hint === "" ? "" : `. ${hint}`
    return `${this.operation}: ${this.syscall}: ${this.code} (${describeErrno(this.errno)})${said}${todo}`
  }
}

const commandFailed = {
  reason: ["NotFound", "NotExecutable", "WorkingDirectory", "ArgumentsTooLong"],
  /** The command, as the caller wrote it. */
  command: "string",
  /** The paths that were tried, inside the container. */
  searched: "strings",
  /** The error number of execve(2) or chdir(2). */
  errno: "integer"
} as const
const CommandFailedClass: ErrorClass<CommandFailed, "CommandFailed", typeof commandFailed> = error(
  "CommandFailed",
  commandFailed
)

/**
 * The command could not be executed inside the container. `NotFound` corresponds to exit code 127 of a shell,
 * `NotExecutable` to 126.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommandFailed extends CommandFailedClass {
  /** The exit code that a shell would give: 127 for `NotFound`, else 126. */
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

const imageError = {
  reason: [
    /** The layout, tag, manifest or blob does not exist. */
    "NotFound",
    /** The bytes do not match their descriptor: digest, diff id or size. */
    "DigestMismatch",
    /** A manifest, config or layer cannot be decoded: truncated gzip, not JSON, a broken tar. */
    "Corrupt",
    /** A layer member that tries to leave its folder. */
    "Escape",
    /** Berth does not support this media type, digest algorithm or kind of entry. */
    "Unsupported",
    /** The image has no manifest for this operating system and architecture. */
    "Platform",
    /** A limit is exceeded: a decompression bomb, a manifest of 100 MB. */
    "TooLarge",
    /** The image's passwd or group file lacks this user or group. */
    "NoSuchUser",
    /** The disk refused an operation: it is full, read-only, or belongs to another user. */
    "Storage"
  ],
  /** The image, layer or file: a reference, a digest or a path. */
  subject: "string",
  /** What went wrong, and what to do about it. */
  detail: "string"
} as const
const ImageErrorClass: ErrorClass<ImageError, "ImageError", typeof imageError> = error(
  "ImageError",
  imageError
)

/**
 * An image, or a part of it, cannot be used.
 *
 * @since 0.1.0
 * @category errors
 */
export class ImageError extends ImageErrorClass {
  override get message(): string {
    return `${this.subject}: ${this.detail}`
  }
}

const registryError = {
  reason: [
    /** The host and port do not answer, or the connection broke and retries failed. */
    "Unreachable",
    /** Status 401 or 403, or the token service refused. */
    "Unauthorized",
    /** The repository, tag or blob does not exist. */
    "NotFound",
    /** Status 429, after the retries. */
    "TooManyRequests",
    /** Status 405: the registry does not support the request, for example because deletion is disabled. */
    "Unsupported",
    /** An answer that violates the OCI distribution specification, or a status of 5xx after the retries. */
    "Protocol"
  ],
  /** The registry's host and port. */
  registry: "string",
  /** The requested reference or digest. */
  subject: "string",
  /** The HTTP status, 0 if there was no answer. */
  status: "integer",
  /** What went wrong, and what to do about it. */
  detail: "string"
} as const
const RegistryErrorClass: ErrorClass<RegistryError, "RegistryError", typeof registryError> = error(
  "RegistryError",
  registryError
)

/**
 * A request to a registry failed.
 *
 * @since 0.1.0
 * @category errors
 */
export class RegistryError extends RegistryErrorClass {
  override get message(): string {
    const status = this.status === 0 ? "" : ` (HTTP ${this.status})`
    return `${this.registry}: ${this.subject}: ${this.detail}${status}`
  }
}

const supervisorError = {
  reason: ["NotStarted", "Gone", "Protocol"],
  detail: "string"
} as const
const SupervisorErrorClass: ErrorClass<SupervisorError, "SupervisorError", typeof supervisorError> = error(
  "SupervisorError",
  supervisorError
)

/**
 * The supervisor has ended or cannot be started. The containers of this `Berth` layer are dead or dying.
 *
 * @since 0.1.0
 * @category errors
 */
export class SupervisorError extends SupervisorErrorClass {
  override get message(): string {
    return `supervisor: ${this.detail}`
  }
}

const containerError = {
  reason: [
    /** The process has exited. */
    "NotRunning",
    /** The container has not ended, which the operation needs. */
    "Running",
    /** The output exceeded the limit of a buffering call. */
    "OutputTooLong",
    /** The stream has a reader already. */
    "AlreadyRead",
    /** Output that nobody read in time has been dropped: a second read gives the rest. */
    "OutputDropped",
    /** The container was started without a cgroup of its own. */
    "NoCgroup",
    /** The container is paused: a command started in it would be paused as well. */
    "Paused"
  ],
  /** The container's id. */
  container: "string",
  detail: "string",
  /** What it had written by then, for `OutputTooLong`: as much of each output as its limit allows, as UTF-8. */
  stdout: "string?",
  stderr: "string?",
  /** The last lines of its output, for a connection to a container that has ended. */
  log: "strings?"
} as const
const ContainerErrorClass: ErrorClass<ContainerError, "ContainerError", typeof containerError> = error(
  "ContainerError",
  containerError
)

/**
 * The container's state does not allow the operation, or its output exceeded the limit.
 *
 * @since 0.1.0
 * @category errors
 */
export class ContainerError extends ContainerErrorClass {
  override get message(): string {
    return `container ${this.container}: ${this.detail}${printLog(this.log)}`
  }
}

const cgroupError = {
  reason: [
    /** The kernel has the controller, but no mounted hierarchy has it. */
    "NotMounted",
    /** The controller is in a hierarchy of version 1, which lacks this function. */
    "BoundToV1",
    /** The controller is on version 2, but is not delegated to the parent cgroup, or the parent is another user's. */
    "NotDelegated",
    /** The kernel was built without the controller. */
    "NotInKernel",
    /** The processes use more memory than the new limit, and it cannot be reclaimed. */
    "InUse",
    /** On version 2, a cgroup with controllers for its children cannot have processes of its own. */
    "HasProcesses",
    /** The cgroup does not exist any more: its scope has closed, or another program has removed it. */
    "Gone",
    /** The tree is mounted read-only. */
    "ReadOnly",
    /** The kernel refuses the value. */
    "Refused"
  ],
  /** `memory`, `cpu`, `cpuset`, `pids`, `io`, `hugetlb`, `devices`, `freezer`, `rdma`, `misc`, `pressure`; or `cgroup`. */
  controller: "string",
  /** The file or folder. */
  path: "string",
  /** The kernel's error number, 0 if no system call was made. */
  errno: "integer",
  /** What went wrong, and what to do about it. */
  detail: "string"
} as const
const CgroupErrorClass: ErrorClass<CgroupError, "CgroupError", typeof cgroupError> = error(
  "CgroupError",
  cgroupError
)

/**
 * A cgroup cannot be made, limited, read or waited on in this way. A limit that the tree cannot enforce is an error,
 * never ignored.
 *
 * @since 0.1.0
 * @category errors
 */
export class CgroupError extends CgroupErrorClass {
  override get message(): string {
    const why = this.errno === 0 ? "" : ` (${errnoName(this.errno)})`
    return `cgroup controller ${this.controller}: ${this.path}: ${this.detail}${why}`
  }
}

const nonZeroExit = {
  /** The container's id. */
  container: "string",
  /** The command, quoted for a shell. */
  command: "string",
  /** The argument of its exit(3), or 128 plus the number of the signal that ended it. */
  exitCode: "integer",
  /** The signal that ended it: `SIGKILL`. */
  signal: "string | undefined",
  /** The whole output, decoded as UTF-8. */
  stdout: "string",
  stderr: "string"
} as const
const NonZeroExitClass: ErrorClass<NonZeroExit, "NonZeroExit", typeof nonZeroExit> = error(
  "NonZeroExit",
  nonZeroExit
)

/**
 * A command has ended with an exit code other than 0, in an API that treats this as a failure: `$` of `berth/promise`.
 *
 * @since 0.1.0
 * @category errors
 */
export class NonZeroExit extends NonZeroExitClass {
  override get message(): string {
    const how = this.signal === undefined ? `exit code ${this.exitCode}` : `ended by ${this.signal}`
    const last = lastLines(this.stderr, 5).join("\n")
    return `${this.command}: ${how}${last === "" ? "" : `\n${last}`}`
  }
}

const waitFailed = {
  reason: [
    /** The timeout is over. */
    "TimedOut",
    /** The container has ended, so the condition cannot come true. */
    "Ended",
    /** The health check has failed as many times in a row as the image allows. */
    "Unhealthy"
  ],
  /** The condition: `port 5432`. */
  condition: "string",
  /** The container's id. */
  container: "string",
  /** The state of the container: `is running`, `has ended with exit code 1`, `was ended by SIGKILL`. */
  state: "string",
  /** The duration of the wait, in milliseconds. */
  millis: "number",
  /** The last lines of the container's output. */
  log: "strings",
  /** The output so far of a command of `berth/promise` that exceeded its own time. */
  stdout: "string?",
  stderr: "string?"
} as const
const WaitFailedClass: ErrorClass<WaitFailed, "WaitFailed", typeof waitFailed> = error(
  "WaitFailed",
  waitFailed
)

/**
 * A condition did not come true.
 *
 * @since 0.1.0
 * @category errors
 */
export class WaitFailed extends WaitFailedClass {
  override get message(): string {
    const why =
      this.reason === "Unhealthy"
        ? `${this.condition} reported that the container is unhealthy`
        : `no ${this.condition} within ${Math.round(this.millis)} ms`
    return `container ${this.container}: ${why}; it ${this.state}${printLog(this.log)}`
  }
}

const fixtureFailed = {
  reason: [
    /** `announce` failed, which tells the server its address; `cause` is its error. */
    "Announce",
    /** What fills the server failed, such as a migration; `cause` is its error. */
    "Prepare",
    /** The server that programs share cannot be reached: `detail` names the process that prevents it. */
    "Share",
    /** The server did not stop cleanly, so its files may be incomplete. */
    "Stop",
    /**
     * A signal such as SIGSTOP has stopped a process that it waits for: its server, or the program that prepares or starts it. `detail` names
     * the process. It has been stopped for 5 seconds.
     */
    "Stopped"
  ],
  /** The fixture's name. */
  fixture: "string",
  detail: "string",
  /** The last lines of the server's log. */
  log: "strings"
} as const
const FixtureFailedClass: ErrorClass<FixtureFailed, "FixtureFailed", typeof fixtureFailed> = error(
  "FixtureFailed",
  fixtureFailed
)

/**
 * A fixture could not be prepared or forked. After a failed preparation nothing was kept: the next fork prepares it again.
 *
 * @since 0.2.0
 * @category errors
 */
export class FixtureFailed extends FixtureFailedClass {
  override get message(): string {
    const what = {
      Announce: "its server could not be told its address: ",
      Prepare: "its preparation failed: ",
      Share: "its shared server cannot be reached: ",
      Stop: "its server did not stop cleanly: it ",
      Stopped: "it waits for a process that has been stopped by a signal: "
    }[this.reason]
    return `fixture ${this.fixture}: ${what}${this.detail}${printLog(this.log)}`
  }
}

const serviceFailed = {
  reason: [
    /** There is no image to start it from; `cause` is the error of the image. */
    "Image",
    /** It cannot be started; `cause` says why. */
    "Start",
    /** It did not become ready or healthy. */
    "Unhealthy",
    /** It ended too early, or with another exit code than 0. */
    "Ended"
  ],
  /** The name of the service. */
  service: "string",
  detail: "string",
  /** The last lines of its log. */
  log: "strings"
} as const
const ServiceFailedClass: ErrorClass<ServiceFailed, "ServiceFailed", typeof serviceFailed> = error(
  "ServiceFailed",
  serviceFailed
)

/**
 * A service of a group did not come as far as the group needs it. The other services have ended.
 *
 * @since 0.2.0
 * @category errors
 */
export class ServiceFailed extends ServiceFailedClass {
  override get message(): string {
    const what = { Image: "it has no image: ", Start: "it was not started: ", Unhealthy: "", Ended: "it " }[
      this.reason
    ]
    return `service ${this.service}: ${what}${this.detail}${printLog(this.log)}`
  }
}

const buildFailed = {
  reason: [
    /** The command of the step ended with an exit code other than 0. */
    "Command",
    /** The OOM killer ended the command of the step. */
    "OutOfMemory",
    /** The step ran past its time. */
    "TimedOut",
    /** A path or pattern has no file. */
    "NoMatch",
    /** A file of the context changed while the step copied it. */
    "Changed",
    /** A file of an address cannot be had, or is not the one of its checksum. */
    "Unavailable",
    /** The disk is full, or read-only. */
    "Storage",
    /** An image is not for the platform that is asked for, or this machine cannot run the programs of its platform. */
    "Platform",
    /** The Dockerfile cannot be read at this place. */
    "Syntax",
    /** The Dockerfile asks for something that Berth does not do. */
    "Unsupported"
  ],
  /** The step: `RUN npm ci`. */
  step: "string",
  /** The file and line that have the step, if it comes from a file: `Dockerfile:12`. */
  place: "string | undefined",
  /** What is wrong, and what to do about it. */
  detail: "string",
  exitCode: "integer | undefined",
  /** The last lines of the output of the step. */
  log: "strings"
} as const
const BuildFailedClass: ErrorClass<BuildFailed, "BuildFailed", typeof buildFailed> = error(
  "BuildFailed",
  buildFailed
)

/**
 * A build failed at one of its steps. What the steps before it made stays in the store, so the next build goes on from there.
 *
 * @since 0.2.0
 * @category errors
 */
export class BuildFailed extends BuildFailedClass {
  override get message(): string {
    const at = this.place === undefined ? "" : `${this.place}: `
    return `${at}${this.step}: ${this.detail}${printLog(this.log)}`
  }
}

const composeError = {
  reason: [
    /** It is no YAML, or its aliases grow without end. */
    "Syntax",
    /** Berth does not support this part of the Compose specification. */
    "Unsupported",
    /** A key or a value is not one of the Compose specification, or refers to something that the file lacks. */
    "Invalid",
    /** A variable has no value, or is written wrongly. */
    "Variable",
    /** A file cannot be read: the compose file, or one that it names. */
    "File"
  ],
  file: "string",
  /** Counted from 1. */
  line: "integer",
  column: "integer",
  /** The keys that lead to the value: `services.db.ports[0]`. Empty for the whole file. */
  path: "string",
  /** What is wrong, and what to do about it. */
  detail: "string"
} as const
const ComposeErrorClass: ErrorClass<ComposeError, "ComposeError", typeof composeError> = error(
  "ComposeError",
  composeError
)

/**
 * A compose file cannot be used. Nothing was started.
 *
 * @since 0.2.0
 * @category errors
 */
export class ComposeError extends ComposeErrorClass {
  override get message(): string {
    const path = this.path === "" ? "" : `${this.path}: `
    return `${this.file}:${this.line}:${this.column}: ${path}${this.detail}`
  }
}

const networkError = {
  reason: [
    /** Nothing listens at that address. */
    "Refused",
    /** The connection was not accepted in the kernel's time for it: tcp(7), `tcp_syn_retries`. */
    "TimedOut",
    /** The other end broke the connection. */
    "Reset",
    /** No way leads to the address from that network. */
    "Unreachable",
    /** Something else has the address. */
    "AddressInUse"
  ],
  /** The container's id, or the network's name. */
  subject: "string",
  /** `127.0.0.1:5432`, or the path of a Unix socket. */
  address: "string",
  /** The error number that the kernel gave. */
  errno: "integer",
  /** What is wrong, and what to do about it. */
  detail: "string",
  /** The last lines of the container's output, for a connection to a container. */
  log: "strings?"
} as const
const NetworkErrorClass: ErrorClass<NetworkError, "NetworkError", typeof networkError> = error(
  "NetworkError",
  networkError
)

/**
 * A connection to, from or between containers cannot be made.
 *
 * @since 0.2.0
 * @category errors
 */
export class NetworkError extends NetworkErrorClass {
  override get message(): string {
    return `${this.subject}: ${this.address}: ${this.detail} (${errnoName(this.errno)})${printLog(this.log)}`
  }
}

const volumeError = {
  reason: [
    /** Berth's folder has no volume of this name. */
    "NotFound",
    /** Containers, programs or copies use the volume, which the operation excludes. */
    "InUse",
    /** The volume of this name has another size, or is a copy of another volume. */
    "Mismatch",
    /** The volume's folder is not as Berth has made it. */
    "Broken"
  ],
  /** The name of the volume, or a description if it has none. */
  volume: "string",
  /** What is wrong, and what to do about it. */
  detail: "string"
} as const
const VolumeErrorClass: ErrorClass<VolumeError, "VolumeError", typeof volumeError> = error(
  "VolumeError",
  volumeError
)

/**
 * A volume cannot be made, used or removed in this way. Nothing of it was changed.
 *
 * @since 0.2.0
 * @category errors
 */
export class VolumeError extends VolumeErrorClass {
  override get message(): string {
    return `volume ${this.volume}: ${this.detail}`
  }
}

const notReleased = {
  /** The resource: `container 0123456789ab`, the path of a folder or of a cgroup, `supervisor 4711`. */
  resource: "string",
  /** The system call that failed, or `release` if the supervisor did not answer in time. */
  syscall: "string",
  /** The error number of the system call, errno(3). */
  errno: "integer"
} as const
const NotReleasedClass: WarningClass<NotReleased, "NotReleased", typeof notReleased> = warning(
  "NotReleased",
  notReleased
)

/**
 * A resource could not be released when its scope closed, or in a sweep. It is logged as a warning and fails nothing;
 * the next Berth that starts in the same folder removes the resource.
 *
 * @since 0.1.0
 * @category warnings
 */
export class NotReleased extends NotReleasedClass {
  /** The name of the errno: `EBUSY`. */
  get code(): string {
    return errnoName(this.errno)
  }
  override get message(): string {
    return `${this.resource} was not released: ${this.syscall}: ${this.code} (${describeErrno(this.errno)})`
  }
}

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
  | NetworkError
  | VolumeError
  | WaitFailed
  | FixtureFailed
  | ServiceFailed
  | BuildFailed
  | ComposeError
  | FleetError
  | RunnerLost

/**
 * Whether a value is an error of Berth.
 *
 * @since 0.1.0
 * @category guards
 */
export const isBerthError = (u: unknown): u is BerthError => hasProperty(u, BerthErrorTypeId)
