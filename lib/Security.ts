/**
 * What a container may do: capabilities, masked and read-only paths, resource limits. The defaults are Docker's.
 *
 * @since 0.1.0
 */
import { readFileSync } from "node:fs"
import { nearest } from "./internal/nearest.ts"
import { invalid } from "./internal/options.ts"

const names = [
  "CHOWN",
  "DAC_OVERRIDE",
  "DAC_READ_SEARCH",
  "FOWNER",
  "FSETID",
  "KILL",
  "SETGID",
  "SETUID",
  "SETPCAP",
  "LINUX_IMMUTABLE",
  "NET_BIND_SERVICE",
  "NET_BROADCAST",
  "NET_ADMIN",
  "NET_RAW",
  "IPC_LOCK",
  "IPC_OWNER",
  "SYS_MODULE",
  "SYS_RAWIO",
  "SYS_CHROOT",
  "SYS_PTRACE",
  "SYS_PACCT",
  "SYS_ADMIN",
  "SYS_BOOT",
  "SYS_NICE",
  "SYS_RESOURCE",
  "SYS_TIME",
  "SYS_TTY_CONFIG",
  "MKNOD",
  "LEASE",
  "AUDIT_WRITE",
  "AUDIT_CONTROL",
  "SETFCAP",
  "MAC_OVERRIDE",
  "MAC_ADMIN",
  "SYSLOG",
  "WAKE_ALARM",
  "BLOCK_SUSPEND",
  "AUDIT_READ",
  "PERFMON",
  "BPF",
  "CHECKPOINT_RESTORE"
] as const

/**
 * A capability of capabilities(7), without `CAP_`.
 *
 * @since 0.1.0
 * @category models
 */
export type Capability = (typeof names)[number]

/**
 * Every capability that there is; the place in the list is its number.
 *
 * @since 0.1.0
 * @category constants
 */
export const capabilities: ReadonlyArray<Capability> = names

/**
 * The capabilities that a container has unless told otherwise: Docker's.
 *
 * @since 0.1.0
 * @category constants
 */
export const defaultCapabilities: ReadonlyArray<Capability> = [
  "CHOWN",
  "DAC_OVERRIDE",
  "FSETID",
  "FOWNER",
  "MKNOD",
  "NET_RAW",
  "SETGID",
  "SETUID",
  "SETFCAP",
  "SETPCAP",
  "NET_BIND_SERVICE",
  "SYS_CHROOT",
  "KILL",
  "AUDIT_WRITE"
]

/**
 * Paths that a container sees as empty, as Docker has them: they tell of the host, or reach it.
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
 * Paths that a container can only read, as Docker has them.
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
 * A change to the default set. `drop` comes first, so `{ drop: ["ALL"], add: ["NET_BIND_SERVICE"] }` leaves one.
 *
 * @since 0.1.0
 * @category models
 */
export interface CapabilityOptions {
  readonly add?: ReadonlyArray<Capability | "ALL"> | undefined
  readonly drop?: ReadonlyArray<Capability | "ALL"> | undefined
}

const one = (name: string): bigint => 1n << BigInt(names.indexOf(name as Capability))

/** @internal */
export const maskOf = (of: ReadonlyArray<Capability>): bigint =>
  of.reduce((mask, name) => mask | one(name), 0n)

const defaultMask = maskOf(defaultCapabilities)

/** What `ALL` adds for root: what it has itself, as nobody can give more. In a user namespace that is everything. */
const attainable = (): bigint => {
  if (process.geteuid?.() !== 0) return maskOf(names)
  try {
    const own = /^CapPrm:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
    return own === undefined ? maskOf(names) : maskOf(names) & BigInt(`0x${own}`)
  } catch {
    return maskOf(names)
  }
}

/**
 * The capability set as a mask of 64 bits; throws `InvalidOption`.
 *
 * @internal
 */
export const resolveCapabilities = (options: CapabilityOptions): bigint => {
  let mask = defaultMask
  for (const [change, list] of [["drop", options.drop ?? []] as const, ["add", options.add ?? []] as const]) {
    for (const given of list) {
      const name = given.toUpperCase().replace(/^CAP_/, "")
      if (name !== "ALL" && !names.includes(name as Capability)) {
        invalid(
          `capabilities.${change}`,
          given,
          `a capability of capabilities(7); the nearest is ${nearest(name, names)}`
        )
      }
      const bits = name !== "ALL" ? one(name) : change === "add" ? attainable() : maskOf(names)
      mask = change === "add" ? mask | bits : mask & ~bits
    }
  }
  return mask
}

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
 * Limits of getrlimit(2), by the resource's name without `RLIMIT_`: a number for both, or soft and hard. Infinity is no
 * limit.
 *
 * @since 0.1.0
 * @category models
 */
export type Rlimits = {
  readonly [Resource in keyof typeof resources]?: number | { readonly soft: number; readonly hard: number }
}

/** @internal */
export const resolveRlimits = (
  limits: Rlimits
): ReadonlyArray<{ readonly resource: number; readonly soft: bigint; readonly hard: bigint }> =>
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
      invalid(option, value, "whole numbers, soft no more than hard")
    const encode = (n: number): bigint => (n === Number.POSITIVE_INFINITY ? -1n : BigInt(n))
    return { resource, soft: encode(soft), hard: encode(hard) }
  })
