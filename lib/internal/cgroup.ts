import { existsSync, readFileSync } from "node:fs"
import type { Folder, Limits, Stats } from "../Cgroup.ts"
import type * as Plan from "../Plan.ts"
import { parseBytes } from "./bytes.ts"
import { detect, type Tree } from "./cgroupTree.ts"
import { invalid } from "./options.ts"

let detected: Tree | undefined

/** The machine's tree, read once: a process's own cgroup hardly ever changes under it. */
export const tree = (): Tree => {
  detected ??= detect()
  return detected
}

/** The name of a unit's cgroup; the sweeper knows by it whose it was. */
export const nameOf = (folder: string, id: number): string =>
  `berth.${folder.slice(folder.lastIndexOf("/") + 1)}.${id}`

export interface ParsedLimits {
  readonly memory: number | undefined
  readonly cpus: number | undefined
  readonly pids: number | undefined
}

const PAGE = 4096

/** Throws `InvalidOption`. */
export const parseLimits = (limits: Limits): ParsedLimits => {
  const { memory, cpus, pids } = limits
  const bytes = memory === undefined ? undefined : parseBytes(memory)
  if (memory !== undefined && (bytes === undefined || bytes < PAGE || !Number.isSafeInteger(bytes)))
    invalid("limits.memory", memory, `bytes, at least ${PAGE}, as a number or as text like "256MiB"`)
  if (cpus !== undefined && !(Number.isFinite(cpus) && cpus >= 0.01 && cpus <= 100000))
    invalid("limits.cpus", cpus, "a number of CPUs, at least 0.01")
  if (pids !== undefined && !(Number.isInteger(pids) && pids >= 1 && pids <= 4194304))
    invalid("limits.pids", pids, "a whole number of processes, from 1 to 4194304")
  return { memory: bytes, cpus, pids }
}

export const needed = (limits: ParsedLimits): ReadonlyArray<string> =>
  (["memory", "cpus", "pids"] as const).flatMap((key) =>
    limits[key] === undefined ? [] : [key === "cpus" ? "cpu" : key]
  )

/** The folders of a cgroup: one in each hierarchy that limits or counts anything. */
export const folders = (from: Tree, name: string): ReadonlyArray<Folder> => {
  const byPath = new Map<string, { version: 1 | 2; path: string; controllers: Array<string> }>()
  for (const controller of ["memory", "cpu", "cpuacct", "pids"]) {
    const hierarchy = from.controllers[controller]
    if (hierarchy === undefined) continue
    const path = `${hierarchy.folder}/${name}`
    const folder = byPath.get(path) ?? { version: hierarchy.version, path, controllers: [] }
    folder.controllers.push(controller)
    byPath.set(path, folder)
  }
  return [...byPath.values()]
}

// Version 1 limits memory and swap together, after the memory alone. Without swap accounting there are no such files;
// the root cgroup of version 2 has none either, and there it is seen by what is swapped to.
const noSwap = (
  path: string,
  version: 1 | 2,
  memory: number
): ReadonlyArray<readonly [file: string, value: string]> =>
  limitsSwap(path.slice(0, path.lastIndexOf("/")), version)
    ? [version === 1 ? ["memory.memsw.limit_in_bytes", String(memory)] : ["memory.swap.max", "0"]]
    : []

// By the folder above, looked at once: whether swap is accounted for is decided when the machine starts.
const swapLimits = new Map<string, boolean>()

const limitsSwap = (above: string, version: 1 | 2): boolean => {
  let found = swapLimits.get(above)
  if (found === undefined) {
    found = existsSync(`${above}/${version === 1 ? "memory.memsw.limit_in_bytes" : "memory.swap.max"}`)
    swapLimits.set(above, found)
  }
  return found || (version === 2 && read("/proc/swaps").trim().includes("\n"))
}

const PERIOD_MICROS = 100000

/** cgroup-v1/memory.rst, sched-bwc.rst, pids.rst and cgroup-v2.rst of the kernel's documentation. */
const files = (
  { path, version }: Folder,
  limits: ParsedLimits
): Readonly<Record<string, ReadonlyArray<readonly [string, string]>>> => {
  const quota = limits.cpus === undefined ? undefined : String(Math.round(limits.cpus * PERIOD_MICROS))
  return {
    memory:
      limits.memory === undefined
        ? []
        : [
            [version === 1 ? "memory.limit_in_bytes" : "memory.max", String(limits.memory)],
            ...noSwap(path, version, limits.memory)
          ],
    cpu:
      quota === undefined
        ? []
        : version === 1
          ? [["cpu.cfs_quota_us", quota]]
          : [["cpu.max", `${quota} ${PERIOD_MICROS}`]],
    pids: limits.pids === undefined ? [] : [["pids.max", String(limits.pids)]]
  }
}

export const writes = (to: ReadonlyArray<Folder>, limits: ParsedLimits): ReadonlyArray<Plan.Operation> =>
  to.flatMap((folder) =>
    folder.controllers.flatMap((controller) =>
      (files(folder, limits)[controller] ?? []).map(
        ([file, value]): Plan.Operation => ({ op: "cgroup-write", file: `${folder.path}/${file}`, value })
      )
    )
  )

const read = (path: string): string => {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const count = (text: string): number | undefined => (/^\d+\s*$/.test(text) ? Number(text) : undefined)

/** The number behind a key in a flat-keyed file: `oom_kill 3`. */
const keyed = (text: string, key: string): number | undefined => {
  const match = new RegExp(`^${key} (\\d+)$`, "m").exec(text)
  return match === null ? undefined : Number(match[1])
}

// Version 1 says "no limit" with the largest multiple of a page that a long holds.
const UNLIMITED = 2 ** 62

const divided = (value: number | undefined, by: number): number | undefined =>
  value === undefined ? undefined : Math.floor(value / by)

export const readStats = (from: ReadonlyArray<Folder>): Stats => {
  const at = (controller: string) => from.find((folder) => folder.controllers.includes(controller))
  const memory = at("memory")
  const cpu = at("cpu")
  const cpuacct = at("cpuacct")
  const pids = at("pids")
  const file = (folder: Folder | undefined, v1: string, v2: string): string =>
    folder === undefined ? "" : read(`${folder.path}/${folder.version === 1 ? v1 : v2}`)
  const limit = count(file(memory, "memory.limit_in_bytes", "memory.max"))
  const cpuStat = file(cpu, "cpu.stat", "cpu.stat")
  return {
    memory: {
      current: count(file(memory, "memory.usage_in_bytes", "memory.current")),
      peak: count(file(memory, "memory.max_usage_in_bytes", "memory.peak")),
      limit: limit !== undefined && limit < UNLIMITED ? limit : undefined,
      oomKills: keyed(file(memory, "memory.oom_control", "memory.events"), "oom_kill")
    },
    cpu: {
      usageMicros:
        cpuacct?.version === 1
          ? divided(count(read(`${cpuacct.path}/cpuacct.usage`)), 1000)
          : keyed(cpuStat, "usage_usec"),
      throttledPeriods: keyed(cpuStat, "nr_throttled"),
      throttledMicros: keyed(cpuStat, "throttled_usec") ?? divided(keyed(cpuStat, "throttled_time"), 1000)
    },
    pids: {
      current: count(file(pids, "pids.current", "pids.current")),
      limit: count(file(pids, "pids.max", "pids.max"))
    }
  }
}
