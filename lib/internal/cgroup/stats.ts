/** The files of a cgroup as numbers: cgroup-v2.rst, and cgroup-v1/ of the kernel's documentation. */
import { readdirSync, readFileSync } from "node:fs"
import type {
  Cgroup,
  Folder,
  HugetlbStats,
  IoStats,
  MemoryEvents,
  Pressure,
  PressureTimes,
  Stats
} from "../../Cgroup.ts"

type Numbers = Readonly<Record<string, number>>

const none: Numbers = {}

/** The names of a folder's files, listed once, so that a file that this tree lacks costs nothing later. */
const filesOf = ({ state }: Cgroup, folder: Folder): ReadonlySet<string> => {
  let files = state.files.get(folder)
  if (files === undefined) {
    try {
      files = new Set(readdirSync(folder.path))
      state.files.set(folder, files)
    } catch {
      return new Set()
    }
  }
  return files
}

/** The text of a controller's file, by its name on either version; empty if the file does not exist. */
export type Source = (controller: string, v1: string | undefined, v2: string | undefined) => string

export const sourceOf =
  (cgroup: Cgroup): Source =>
  (controller, v1, v2) => {
    const folder = cgroup.folders.find(({ controllers }) => controllers.includes(controller))
    const file = folder?.version === 1 ? v1 : v2
    if (folder === undefined || file === undefined || !filesOf(cgroup, folder).has(file)) return ""
    try {
      return readFileSync(`${folder.path}/${file}`, "utf8")
    } catch {
      return ""
    }
  }

const count = (text: string): number | undefined => {
  const number = text === "" ? Number.NaN : Number(text)
  return Number.isNaN(number) ? undefined : number
}

/** A flat-keyed file: `oom_kill 3` on each line. */
const keyed = (text: string): Numbers => {
  if (text === "") return none
  const numbers: Record<string, number> = {}
  for (const line of text.split("\n")) {
    const space = line.indexOf(" ")
    if (space > 0) numbers[line.slice(0, space)] = Number(line.slice(space + 1))
  }
  return numbers
}

/** A nested-keyed file: `8:0 rbytes=1 wbytes=2` on each line. */
const nested = (text: string): Readonly<Record<string, Numbers>> => {
  const all: Record<string, Numbers> = {}
  for (const line of text.split("\n")) {
    const [key, ...pairs] = line.split(" ")
    if (key === undefined || key === "" || pairs.length === 0) continue
    const numbers: Record<string, number> = {}
    for (const pair of pairs) {
      const [name, value] = pair.split("=")
      numbers[name!] = Number(value)
    }
    all[key] = numbers
  }
  return all
}

// On version 1, "no limit" is the largest multiple of a page that fits into a long.
const UNLIMITED = 2 ** 62

const limitOf = (text: string): number | undefined => {
  const limit = count(text)
  return limit !== undefined && limit >= 0 && limit < UNLIMITED ? limit : undefined
}

const divided = (value: number | undefined, by: number): number | undefined =>
  value === undefined ? undefined : Math.floor(value / by)

export const readMemoryEvents = (file: Source): MemoryEvents => {
  const v1 = keyed(file("memory", "memory.oom_control", undefined))
  const events = keyed(file("memory", undefined, "memory.events"))
  return {
    low: events.low,
    high: events.high,
    max: events.max,
    oom: events.oom,
    oomKill: events.oom_kill ?? v1.oom_kill,
    oomGroupKill: events.oom_group_kill
  }
}

export const readPidsEvents = (file: Source): number | undefined =>
  keyed(file("pids", "pids.events", "pids.events")).max

/** The memory limit and the peak, for a process that the OOM killer has killed. */
export const readMemoryLimit = (
  file: Source
): { readonly limit: number | undefined; readonly peak: number | undefined } => ({
  limit: limitOf(file("memory", "memory.limit_in_bytes", "memory.max")),
  peak: count(file("memory", "memory.max_usage_in_bytes", "memory.peak"))
})

const readMemory = (file: Source): Stats["memory"] => {
  const stat = keyed(file("memory", "memory.stat", "memory.stat"))
  const events = readMemoryEvents(file)
  const both = count(file("memory", "memory.memsw.usage_in_bytes", undefined))
  const current = count(file("memory", "memory.usage_in_bytes", "memory.current"))
  return {
    current,
    ...readMemoryLimit(file),
    swap:
      both === undefined || current === undefined
        ? count(file("memory", undefined, "memory.swap.current"))
        : Math.max(0, both - current),
    anon: stat.anon ?? stat.total_rss,
    file: stat.file ?? stat.total_cache,
    kernel: stat.kernel ?? count(file("memory", "memory.kmem.usage_in_bytes", undefined)),
    sockets: stat.sock ?? count(file("memory", "memory.kmem.tcp.usage_in_bytes", undefined)),
    pageFaults: stat.total_pgfault ?? stat.pgfault,
    majorPageFaults: stat.total_pgmajfault ?? stat.pgmajfault,
    oomKills: events.oomKill,
    events
  }
}

const cpuLimit = (file: Source): number | undefined => {
  const [quota, period] = file("cpu", undefined, "cpu.max").split(" ")
  const q = quota === "" ? count(file("cpu", "cpu.cfs_quota_us", undefined)) : count(quota ?? "")
  const p = period === undefined ? count(file("cpu", "cpu.cfs_period_us", undefined)) : count(period)
  return q === undefined || p === undefined || q < 0 ? undefined : q / p
}

const readCpu = (file: Source): Stats["cpu"] => {
  const stat = keyed(file("cpu", "cpu.stat", "cpu.stat"))
  // If version 1 has the cpu controller, version 2 may still have the times.
  const times = stat.usage_usec === undefined ? keyed(file("cpuacct", undefined, "cpu.stat")) : stat
  const nanos = (name: string): number | undefined => divided(count(file("cpuacct", name, undefined)), 1000)
  return {
    usageMicros: times.usage_usec ?? nanos("cpuacct.usage"),
    userMicros: times.user_usec ?? nanos("cpuacct.usage_user"),
    systemMicros: times.system_usec ?? nanos("cpuacct.usage_sys"),
    limit: cpuLimit(file),
    periods: stat.nr_periods,
    throttledPeriods: stat.nr_throttled,
    throttledMicros: stat.throttled_usec ?? divided(stat.throttled_time, 1000),
    burstMicros: stat.burst_usec ?? divided(stat.burst_time, 1000)
  }
}

const readIo = (file: Source): ReadonlyArray<IoStats> => {
  const v2 = nested(file("io", undefined, "io.stat"))
  const devices = new Map<string, { -readonly [K in keyof IoStats]: IoStats[K] }>(
    Object.entries(v2).map(([device, stat]) => [
      device,
      {
        device,
        readBytes: stat.rbytes ?? 0,
        writtenBytes: stat.wbytes ?? 0,
        reads: stat.rios ?? 0,
        writes: stat.wios ?? 0
      }
    ])
  )
  // Version 1: `8:0 Read 4096` on each line.
  const add = (text: string, read: "readBytes" | "reads", written: "writtenBytes" | "writes"): void => {
    for (const line of text.split("\n")) {
      const [device, kind, value] = line.split(" ")
      if (device === undefined || (kind !== "Read" && kind !== "Write")) continue
      const found = devices.get(device) ?? { device, readBytes: 0, writtenBytes: 0, reads: 0, writes: 0 }
      found[kind === "Read" ? read : written] = Number(value)
      devices.set(device, found)
    }
  }
  add(file("io", "blkio.throttle.io_service_bytes_recursive", undefined), "readBytes", "writtenBytes")
  add(file("io", "blkio.throttle.io_serviced_recursive", undefined), "reads", "writes")
  return [...devices.values()]
}

const readHugetlb = (cgroup: Cgroup, file: Source): Readonly<Record<string, HugetlbStats>> => {
  const folder = cgroup.folders.find(({ controllers }) => controllers.includes("hugetlb"))
  const all: Record<string, HugetlbStats> = {}
  if (folder === undefined) return all
  for (const name of filesOf(cgroup, folder)) {
    const size = /^hugetlb\.(\d+[KMG]B)\.(?:max|limit_in_bytes)$/.exec(name)?.[1]
    if (size === undefined) continue
    const at = `hugetlb.${size}`
    all[size] = {
      current: count(file("hugetlb", `${at}.usage_in_bytes`, `${at}.current`)),
      limit: limitOf(file("hugetlb", `${at}.limit_in_bytes`, `${at}.max`)),
      failures:
        count(file("hugetlb", `${at}.failcnt`, undefined)) ??
        keyed(file("hugetlb", undefined, `${at}.events`)).max
    }
  }
  return all
}

const times = (numbers: Numbers): PressureTimes => ({
  avg10: numbers.avg10 ?? 0,
  avg60: numbers.avg60 ?? 0,
  avg300: numbers.avg300 ?? 0,
  totalMicros: numbers.total ?? 0
})

export const readPressure = (text: string): Pressure | undefined => {
  const { full, some } = nested(text)
  return some === undefined
    ? undefined
    : { some: times(some), full: full === undefined ? undefined : times(full) }
}

/** The present use of a cgroup, from the files of all its folders. */
export const readStats = (cgroup: Cgroup): Stats => {
  const file = sourceOf(cgroup)
  const pressure = (name: string): Pressure | undefined =>
    readPressure(file("pressure", undefined, `${name}.pressure`))
  const rdma = Object.entries(nested(file("rdma", "rdma.current", "rdma.current")))
  return {
    memory: readMemory(file),
    cpu: readCpu(file),
    pids: {
      current: count(file("pids", "pids.current", "pids.current")),
      peak: count(file("pids", "pids.peak", "pids.peak")),
      limit: limitOf(file("pids", "pids.max", "pids.max")),
      failures: readPidsEvents(file)
    },
    io: readIo(file),
    hugetlb: readHugetlb(cgroup, file),
    rdma: Object.fromEntries(
      rdma.map(([device, used]) => [device, { handles: used.hca_handle ?? 0, objects: used.hca_object ?? 0 }])
    ),
    misc: keyed(file("misc", "misc.current", "misc.current")),
    pressure: { cpu: pressure("cpu"), memory: pressure("memory"), io: pressure("io") }
  }
}
