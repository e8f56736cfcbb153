/**
 * The rights of a container: capabilities, system calls, masked and read-only paths, resource limits. The defaults are
 * Docker's.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as internalAppArmor from "./internal/security/appArmor.ts"
import * as internalCapabilities from "./internal/security/capabilities.ts"
import * as seccompDefault from "./internal/security/seccompDefault.ts"
import * as seccomp from "./internal/security/seccompProfile.ts"
import { nearest } from "./internal/util/didYouMean.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import { invalid } from "./internal/util/validate.ts"

/**
 * A capability of capabilities(7), without `CAP_`.
 *
 * @since 0.1.0
 * @category models
 */
export type Capability = (typeof internalCapabilities.names)[number]

/**
 * All capabilities; the index in the list is the capability's number.
 *
 * @since 0.1.0
 * @category constants
 */
export const capabilities: ReadonlyArray<Capability> = internalCapabilities.names

/**
 * The default capabilities of a container, which are Docker's.
 *
 * @since 0.1.0
 * @category constants
 */
export const defaultCapabilities: ReadonlyArray<Capability> = internalCapabilities.defaults

/**
 * Paths that are empty in a container, as with Docker: their files describe the host or give access to it.
 *
 * @since 0.1.0
 * @category constants
 */
export const defaultMaskedPaths: ReadonlyArray<string> = [
  "/proc/acpi",
  "/proc/asound",
  "/proc/interrupts",
  "/proc/kcore",
  "/proc/keys",
  "/proc/latency_stats",
  "/proc/sched_debug",
  "/proc/scsi",
  "/proc/timer_list",
  "/proc/timer_stats",
  "/sys/devices/virtual/powercap",
  "/sys/firmware"
]

/**
 * Paths that a container can read but not write, as with Docker.
 *
 * @since 0.1.0
 * @category constants
 */
export const defaultReadonlyPaths: ReadonlyArray<string> = [
  "/proc/bus",
  "/proc/fs",
  "/proc/irq",
  "/proc/sys",
  "/proc/sysrq-trigger"
]

/**
 * A change to the default capabilities. `drop` comes first: `{ drop: ["ALL"], add: ["NET_BIND_SERVICE"] }` leaves one.
 *
 * @since 0.1.0
 * @category models
 */
export interface CapabilityOptions {
  readonly add?: ReadonlyArray<Capability | "ALL"> | undefined
  readonly drop?: ReadonlyArray<Capability | "ALL"> | undefined
  /**
   * Capabilities that a command of a non-root user keeps (PR_CAP_AMBIENT, Linux 4.3). They are added to the set as well.
   * Default: none.
   */
  readonly ambient?: ReadonlyArray<Capability> | undefined
}

/**
 * The action of a seccomp rule, as in seccomp(2) and libseccomp. `SCMP_ACT_LOG` allows and writes to the kernel's log,
 * `SCMP_ACT_NOTIFY` asks the program: see `Options.onSystemCall`.
 *
 * @since 0.1.0
 * @category models
 */
export type SeccompAction =
  | "SCMP_ACT_ALLOW"
  | "SCMP_ACT_ERRNO"
  | "SCMP_ACT_KILL"
  | "SCMP_ACT_KILL_PROCESS"
  | "SCMP_ACT_KILL_THREAD"
  | "SCMP_ACT_LOG"
  | "SCMP_ACT_NOTIFY"
  | "SCMP_ACT_TRACE"
  | "SCMP_ACT_TRAP"

/**
 * A comparison of an argument, counted from 0, with a number. `SCMP_CMP_MASKED_EQ`: the argument, masked with `value`,
 * equals `valueTwo`. All 64 bits are compared, but the kernel uses only 32 bits of many arguments: in a rule that allows,
 * `SCMP_CMP_NE`, `GT` and `GE` also accept a number to which a process has added 2^32. The arguments that a 32-bit program
 * passes to socketcall(2) are not compared: a rule before those for `socket` must refuse socketcall.
 *
 * @since 0.1.0
 * @category models
 */
export interface SeccompCondition {
  readonly index: number
  readonly value: number
  readonly valueTwo?: number | null | undefined
  readonly op:
    | "SCMP_CMP_EQ"
    | "SCMP_CMP_GE"
    | "SCMP_CMP_GT"
    | "SCMP_CMP_LE"
    | "SCMP_CMP_LT"
    | "SCMP_CMP_MASKED_EQ"
    | "SCMP_CMP_NE"
}

/**
 * When a rule applies: if the process has all of these capabilities (for `excludes`: any of them), on one of these
 * architectures (`amd64`, `arm64`, ...), since this kernel version (`4.8`).
 *
 * @since 0.1.0
 * @category models
 */
export interface SeccompFilter {
  readonly caps?: ReadonlyArray<string> | null | undefined
  readonly arches?: ReadonlyArray<string> | null | undefined
  readonly minKernel?: string | null | undefined
}

/**
 * The action for these system calls if all conditions hold.
 *
 * @since 0.1.0
 * @category models
 */
export interface SeccompRule {
  readonly names: ReadonlyArray<string>
  readonly action: SeccompAction
  /** The error of `SCMP_ACT_ERRNO`. Default 1, EPERM. */
  readonly errnoRet?: number | null | undefined
  readonly args?: ReadonlyArray<SeccompCondition> | null | undefined
  readonly includes?: SeccompFilter | null | undefined
  readonly excludes?: SeccompFilter | null | undefined
  readonly comment?: string | null | undefined
}

/**
 * A seccomp policy in Docker's form: a file for `docker run --security-opt seccomp=FILE` is one.
 *
 * @since 0.1.0
 * @category models
 */
export interface SeccompProfile {
  readonly defaultAction: SeccompAction
  readonly defaultErrnoRet?: number | null | undefined
  /** Architectures besides this machine's own: `SCMP_ARCH_X86`. System calls of any other architecture kill. */
  readonly architectures?: ReadonlyArray<string> | null | undefined
  /** The same for several machines, in place of `architectures`. */
  readonly archMap?:
    | ReadonlyArray<{
        readonly architecture: string
        readonly subArchitectures?: ReadonlyArray<string> | null | undefined
      }>
    | null
    | undefined
  readonly flags?:
    | ReadonlyArray<
        | "SECCOMP_FILTER_FLAG_LOG"
        | "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
        | "SECCOMP_FILTER_FLAG_TSYNC"
        | "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
      >
    | null
    | undefined
  readonly syscalls?: ReadonlyArray<SeccompRule> | null | undefined
}

/**
 * A system call for which `SCMP_ACT_NOTIFY` asks the program. The process that made the call waits for the answer.
 *
 * @since 0.1.0
 * @category models
 */
export interface SystemCall {
  /** The process's pid on the host. */
  readonly pid: number
  readonly number: number
  /** The name of the system call; empty for another architecture than this machine's own. */
  readonly name: string
  /** All six arguments, whether the call uses them or not; pointers are addresses in the process. */
  readonly args: ReadonlyArray<bigint>
}

/**
 * The result of such a call: an error, as in errno(3), a value, or the kernel's own result. `"continue"` is not a security
 * check: the memory behind pointers may change after the program has looked at it (seccomp_unotify(2), Linux 5.5).
 *
 * @since 0.1.0
 * @category models
 */
export type SystemCallAnswer = "continue" | { readonly errno: number } | { readonly value: number | bigint }

/**
 * The default policy of a container, which allows and refuses the same as Docker's. Some rules depend on the container's
 * capabilities.
 *
 * A 32-bit program that makes sockets with socketcall(2) gets ENOSYS, because it could make sockets of any family, AF_VSOCK
 * and AF_ALG included. For a trusted program, a rule in front allows the call:
 *
 * ```ts
 * const rule = { names: ["socketcall"], action: "SCMP_ACT_ALLOW" } as const
 * const seccomp = { ...Security.defaultSeccomp, syscalls: [rule, ...Security.defaultSeccomp.syscalls!] }
 * ```
 *
 * @since 0.1.0
 * @category constants
 */
export const defaultSeccomp: SeccompProfile = seccompDefault.defaultProfile

/**
 * A stricter policy for programs that need little: no tracing, only UNIX and IP sockets, no System V IPC.
 *
 * @since 0.1.0
 * @category constants
 */
export const strictSeccomp: SeccompProfile = seccompDefault.strictProfile

/**
 * Decodes a profile from the text of a JSON file. Fails with `InvalidData`, which names the place of the mistake. The names
 * of system calls are checked when the profile is used, because only then is it known which rules apply.
 *
 * @since 0.1.0
 * @category constructors
 */
export const seccompFromJson = (text: string): Effect.Effect<SeccompProfile, BerthError> =>
  attempt(() => seccomp.parse(text))

const resources = {
  cpu: 0,
  fsize: 1,
  data: 2,
  stack: 3,
  core: 4,
  rss: 5,
  nproc: 6,
  nofile: 7,
  memlock: 8,
  as: 9,
  locks: 10,
  sigpending: 11,
  msgqueue: 12,
  nice: 13,
  rtprio: 14,
  rttime: 15
} as const

/**
 * Limits of getrlimit(2), by the resource's name without `RLIMIT_`: one number for both limits, or soft and hard. Infinity
 * means no limit.
 *
 * @since 0.1.0
 * @category models
 */
export type Rlimits = {
  readonly [Resource in keyof typeof resources]?: number | { readonly soft: number; readonly hard: number }
}

/** @internal */
export interface Limit {
  readonly name: string
  readonly resource: number
  /** As a signed 64-bit number: -1 stands for no limit. */
  readonly soft: bigint
  readonly hard: bigint
}

/** @internal */
export const resolveRlimits = (limits: Rlimits): ReadonlyArray<Limit> =>
  Object.entries(limits).map(([name, value]) => {
    const { soft, hard } = typeof value === "number" ? { soft: value, hard: value } : value
    const resource = resources[name as keyof typeof resources]
    const option = `rlimits.${name}`
    if (resource === undefined)
      invalid(
        option,
        value,
        `a resource of getrlimit(2); the nearest is ${nearest(name, Object.keys(resources))}`
      )
    const acceptable = (n: number): boolean =>
      n === Number.POSITIVE_INFINITY || (Number.isSafeInteger(n) && n >= 0)
    if (!acceptable(soft) || !acceptable(hard) || soft > hard)
      invalid(option, value, "whole numbers; soft must not exceed hard")
    const encode = (n: number): bigint => (n === Number.POSITIVE_INFINITY ? -1n : BigInt(n))
    return { name, resource, soft: encode(soft), hard: encode(hard) }
  })

/**
 * Which processes a user sees in `/proc` (proc(5), Linux 5.8). `"off"`: all. `"noaccess"`: all, but without access to the
 * folders of other users' processes. `"invisible"`: only its own. `"ptraceable"`: only those that it may trace.
 *
 * @since 0.1.0
 * @category models
 */
export type HidePid = "off" | "noaccess" | "invisible" | "ptraceable"

/**
 * The rights of a process; part of the options of a start and of an exec.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly capabilities?: CapabilityOptions | undefined
  /** Whether set-user-ID programs run without additional rights (PR_SET_NO_NEW_PRIVS). Default true. */
  readonly noNewPrivileges?: boolean | undefined
  /**
   * The system calls that the process may make: those of the default policy, those of this profile (see
   * `seccompFromJson`), or all. Default `"default"`.
   */
  readonly seccomp?: "default" | "unconfined" | SeccompProfile | undefined
  /**
   * Answers each system call for which the profile has `SCMP_ACT_NOTIFY`; several calls may wait at the same time. If the
   * answer fails, or the scope has closed, the call fails with ENOSYS.
   */
  readonly onSystemCall?: ((call: SystemCall) => Effect.Effect<SystemCallAnswer>) | undefined
  /** Resource limits. A limit that this process may not raise is reduced to the present hard one, with a warning. */
  readonly rlimits?: Rlimits | undefined
}

/**
 * Options for programs that need little, to be spread into a container's options: no capabilities, `strictSeccomp`, a
 * read-only root, only the user's own processes in `/proc`, and no core dumps.
 *
 * ```ts
 * Container.run(image, { ...Security.strict, command: ["true"] })
 * ```
 *
 * @since 0.1.0
 * @category constants
 */
export const strict: {
  readonly capabilities: CapabilityOptions
  readonly noNewPrivileges: true
  readonly seccomp: SeccompProfile
  readonly readOnly: true
  readonly hidepid: "invisible"
  readonly maskedPaths: ReadonlyArray<string>
  readonly rlimits: Rlimits
} = {
  capabilities: { drop: ["ALL"] },
  noNewPrivileges: true,
  seccomp: strictSeccomp,
  readOnly: true,
  hidepid: "invisible",
  maskedPaths: [
    ...defaultMaskedPaths,
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/iomem",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/modules",
    "/proc/partitions",
    "/proc/slabinfo",
    "/proc/version_signature",
    "/proc/vmallocinfo",
    "/sys/kernel"
  ],
  rlimits: { core: 0 }
}

/**
 * Loads AppArmor profiles, given in the syntax of apparmor_parser(8), and returns their names. They are unloaded when the
 * scope closes. A process whose profile is unloaded continues unconfined, so containers must end before. If this program is
 * killed, the next Berth in the same folder unloads the profiles once no process uses them.
 *
 * Fails with `Unsupported` if AppArmor is disabled in the kernel, the parser is missing or this process is not root; with
 * `InvalidData` for text that the parser does not understand; with `OperationFailed` (EEXIST) if a profile with that name
 * is loaded already. Such a profile belongs to another program, and can be used by its name.
 *
 * @since 0.1.0
 * @category AppArmor
 * @example
 * const [profile] = yield* Security.appArmor(Security.defaultAppArmor("mine"))
 * const box = yield* Container.start(image, { command, appArmor: profile })
 */
export const appArmor: (
  profiles: string
) => Effect.Effect<ReadonlyArray<string>, BerthError, Berth | Scope.Scope> = internalAppArmor.load

/**
 * The text of Berth's own profile, under this name, for `appArmor`. It refuses the same as Docker's: mounts, writes to the
 * host's settings below /proc and /sys, and tracing or signalling processes outside. Files, the network and capabilities
 * are left to the other limits of the container.
 *
 * @since 0.1.0
 * @category AppArmor
 */
export const defaultAppArmor: (name: string) => string = internalAppArmor.defaultProfile
