/** Limits that this process may set: raising a hard one needs the host's CAP_SYS_RESOURCE (getrlimit(2)). */
import { readFileSync } from "node:fs"
import type { Limit } from "../../Security.ts"

const NO_LIMIT = (1n << 64n) - 1n
const CAP_SYS_RESOURCE = 24n

const read = (file: string): string => readFileSync(`/proc/self/${file}`, "utf8")

const mayRaise = (): boolean => {
  const own = /^CapEff:\s*([0-9a-f]+)$/m.exec(read("status"))?.[1] ?? "0"
  return (
    ((BigInt(`0x${own}`) >> CAP_SYS_RESOURCE) & 1n) === 1n &&
    /^\s*0\s+0\s+4294967295\s*$/.test(read("uid_map"))
  )
}

/** The hard limits by the number of the resource, which is the line of proc_pid_limits(5). */
const present = (): ReadonlyArray<bigint> =>
  read("limits")
    .trimEnd()
    .split("\n")
    .slice(1)
    .map((line) => line.slice(26).trim().split(/\s+/)[1]!)
    .map((hard) => (hard === "unlimited" ? NO_LIMIT : BigInt(hard)))

const lower = (a: bigint, b: bigint): bigint => (a < b ? a : b)

const shown = (limit: bigint): string => (limit === NO_LIMIT ? "unlimited" : String(limit))

/** The same limits; a limit that is too high is replaced by the present hard one, with a warning. */
export const attainable = (
  limits: ReadonlyArray<Limit>,
  inUserNamespace: boolean
): { readonly rlimits: ReadonlyArray<Limit>; readonly warnings: ReadonlyArray<string> } => {
  if (limits.length === 0 || (!inUserNamespace && mayRaise())) return { rlimits: limits, warnings: [] }
  const most = present()
  const warnings: Array<string> = []
  const rlimits = limits.map((limit) => {
    const max = most[limit.resource] ?? NO_LIMIT
    const asked = { soft: BigInt.asUintN(64, limit.soft), hard: BigInt.asUintN(64, limit.hard) }
    if (asked.hard <= max) return limit
    warnings.push(
      `rlimits.${limit.name}: ${shown(asked.hard)} is above the hard limit, and raising that needs CAP_SYS_RESOURCE on the host: it is ${shown(max)}`
    )
    return { ...limit, soft: lower(asked.soft, max), hard: max }
  })
  return { rlimits, warnings }
}
