/** Capabilities by name, and as the kernel's bit sets. */
import { readFileSync } from "node:fs"
import type { Capability, CapabilityOptions } from "../../Security.ts"
import { nearest } from "../util/didYouMean.ts"
import { invalid } from "../util/validate.ts"

/** The index in the list is the number. */
export const names = [
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

/** Docker's default capabilities. */
export const defaults: ReadonlyArray<Capability> = [
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

const one = (name: string): bigint => 1n << BigInt(names.indexOf(name as Capability))

export const maskOf = (of: ReadonlyArray<Capability>): bigint =>
  of.reduce((mask, name) => mask | one(name), 0n)

const defaultMask = maskOf(defaults)

/** The capabilities that `ALL` adds for root: those of this process. In a user namespace these are all. */
const attainable = (): bigint => {
  if (process.geteuid?.() !== 0) return maskOf(names)
  try {
    const own = /^CapPrm:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
    return own === undefined ? maskOf(names) : maskOf(names) & BigInt(`0x${own}`)
  } catch {
    return maskOf(names)
  }
}

const bitsOf = (change: "add" | "drop" | "ambient", given: string): bigint => {
  const name = given.toUpperCase().replace(/^CAP_/, "")
  if (name === "ALL" && change !== "ambient") return change === "add" ? attainable() : maskOf(names)
  return names.includes(name as Capability)
    ? one(name)
    : invalid(
        `capabilities.${change}`,
        given,
        `a capability of capabilities(7); the nearest is ${nearest(name, names)}`
      )
}

/** The set and its ambient part as masks of 64 bits; throws `InvalidOption`. */
export const resolve = (
  options: CapabilityOptions
): { readonly capabilities: bigint; readonly ambient: bigint } => {
  let capabilities = defaultMask
  let ambient = 0n
  for (const given of options.drop ?? []) capabilities &= ~bitsOf("drop", given)
  for (const given of options.add ?? []) capabilities |= bitsOf("add", given)
  for (const given of options.ambient ?? []) ambient |= bitsOf("ambient", given)
  return { capabilities: capabilities | ambient, ambient }
}
