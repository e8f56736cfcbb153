/**
 * Turns limits into writes to a cgroup's files: cgroup-v2.rst, and the files of cgroup-v1/ for memory, blkio-controller,
 * cpusets, hugetlb and devices, sched-bwc.rst and pids.rst, of the kernel's documentation.
 */
import { existsSync } from "node:fs"
import type { Bytes, CpuLimits, CpusetLimits, IoLimits, Limits, MemoryLimits } from "../../Cgroup.ts"
import { parseBytes } from "../util/bytes.ts"
import { read } from "../util/readFile.ts"
import { invalid } from "../util/validate.ts"
import { allowLines, numbersOf, parseDevices, program } from "./devices.ts"
import type { Tree } from "./tree.ts"

/** A file of the cgroup and its new value; bytes are a program for its devices. */
export type Write = readonly [file: string, value: string | Uint8Array]

/** The target of a limit. */
export interface Place {
  /** The cgroup's folder. */
  readonly path: string
  /** The folder above it. */
  readonly above: string
  /** Whether the cgroup is new, without any limit. */
  readonly fresh: boolean
  readonly tree: Tree
}

/** One limit, for either version. Without `v1`, version 1 does not support it. */
export interface Setting {
  readonly controller: string
  readonly option: string
  readonly v1: ((place: Place) => ReadonlyArray<Write>) | undefined
  readonly v2: (place: Place) => ReadonlyArray<Write>
}

const PAGE = 4096
const MAX = "max"

const bytesOf = (option: string, value: Bytes, least: number): number | "max" => {
  if (value === MAX) return MAX
  const bytes = typeof value === "number" || typeof value === "string" ? parseBytes(value) : undefined
  return bytes !== undefined && bytes >= least && Number.isSafeInteger(bytes)
    ? bytes
    : invalid(
        option,
        value,
        `bytes, at least ${least}, as a number or as text like "256MiB"; or "max" for no limit`
      )
}

const whole = (option: string, value: number, least: number, most: number): number =>
  Number.isInteger(value) && value >= least && value <= most
    ? value
    : invalid(option, value, `a whole number from ${least} to ${most}`)

const wholeOrMax = (option: string, value: number | "max", least: number): number | "max" =>
  value === MAX || (Number.isSafeInteger(value) && value >= least)
    ? value
    : invalid(option, value, `a whole number, at least ${least}; or "max" for no limit`)

const v1Bytes = (value: number | "max"): string => (value === MAX ? "-1" : String(value))

// A kernel without swap accounting has no such files. The root cgroup of version 2 has none either: there, a machine with
// swap counts as one with accounting.
const limitsSwap = ({ above, tree }: Place, file: string): boolean =>
  tree.hasFile(above, file) || (file === "memory.swap.max" && read("/proc/swaps").trim().includes("\n"))

const MEMSW = "memory.memsw.limit_in_bytes"

const memory = (given: Bytes | MemoryLimits): ReadonlyArray<Setting> => {
  const limits: MemoryLimits = typeof given === "object" ? given : { max: given }
  const option = typeof given === "object" ? "limits.memory.max" : "limits.memory"
  const settings: Array<Setting> = []
  const only = (
    name: string,
    v2: string,
    value: string,
    v1?: (place: Place) => ReadonlyArray<Write>
  ): void => {
    settings.push({ controller: "memory", option: `limits.memory.${name}`, v1, v2: () => [[v2, value]] })
  }
  if (limits.max !== undefined) {
    const max = bytesOf(option, limits.max, PAGE)
    const swap = limits.swap === undefined ? 0 : bytesOf("limits.memory.swap", limits.swap, 0)
    settings.push({
      controller: "memory",
      option,
      // Version 1 limits memory and swap together; that limit must not be below the one of memory alone.
      v1: (place) => {
        const limit: Write = ["memory.limit_in_bytes", v1Bytes(max)]
        if (limits.swap === undefined && !limitsSwap(place, MEMSW)) return [limit]
        const both = max === MAX || swap === MAX ? "-1" : String(max + swap)
        return place.fresh ? [limit, [MEMSW, both]] : [[MEMSW, "-1"], limit, [MEMSW, both]]
      },
      v2: (place) => [
        ["memory.max", String(max)],
        ...(limits.swap !== undefined || limitsSwap(place, "memory.swap.max")
          ? [["memory.swap.max", max === MAX && limits.swap === undefined ? MAX : String(swap)] as const]
          : [])
      ]
    })
  } else if (limits.swap !== undefined)
    invalid("limits.memory.swap", limits.swap, "limits.memory.max beside it: version 1 limits both together")
  if (limits.high !== undefined)
    only("high", "memory.high", String(bytesOf("limits.memory.high", limits.high, 0)))
  if (limits.low !== undefined) {
    const low = bytesOf("limits.memory.low", limits.low, 0)
    only("low", "memory.low", String(low), () => [["memory.soft_limit_in_bytes", v1Bytes(low)]])
  }
  if (limits.oomGroup !== undefined) only("oomGroup", "memory.oom.group", limits.oomGroup ? "1" : "0")
  return settings
}

const PERIOD_MICROS = 100000

const cpu = (cpus: Limits["cpus"], limits: CpuLimits): ReadonlyArray<Setting> => {
  if (cpus !== undefined && cpus !== MAX && !(Number.isFinite(cpus) && cpus >= 0.01 && cpus <= 100000))
    invalid("limits.cpus", cpus, 'a number of CPUs, at least 0.01; or "max" for no limit')
  const { burstMicros, idle, periodMicros, weight } = limits
  const settings: Array<Setting> = []
  const set = (option: string, v1: ReadonlyArray<Write>, v2: ReadonlyArray<Write>): void => {
    settings.push({ controller: "cpu", option, v1: () => v1, v2: () => v2 })
  }
  // An idle cgroup has no weight, so idling is switched off before the weight is set.
  if (idle === false) set("limits.cpu.idle", [["cpu.idle", "0"]], [["cpu.idle", "0"]])
  if (weight !== undefined) {
    whole("limits.cpu.weight", weight, 1, 10000)
    if (idle === true) invalid("limits.cpu.weight", weight, "no weight where limits.cpu.idle is true")
    // The scheduler's own conversion: kernel/sched/core.c, sched_weight_from_cgroup().
    const shares = String(Math.max(2, Math.round((weight * 1024) / 100)))
    set("limits.cpu.weight", [["cpu.shares", shares]], [["cpu.weight", String(weight)]])
  }
  if (idle === true) set("limits.cpu.idle", [["cpu.idle", "1"]], [["cpu.idle", "1"]])
  if (cpus === undefined) {
    if (periodMicros !== undefined) invalid("limits.cpu.periodMicros", periodMicros, "limits.cpus beside it")
    if (burstMicros !== undefined) invalid("limits.cpu.burstMicros", burstMicros, "limits.cpus beside it")
    return settings
  }
  const period =
    periodMicros === undefined
      ? PERIOD_MICROS
      : whole("limits.cpu.periodMicros", periodMicros, 1000, 1_000_000)
  const quota = cpus === MAX ? MAX : Math.round(cpus * period)
  if (quota !== MAX && quota < 1000)
    invalid("limits.cpu.periodMicros", period, "a period of which limits.cpus is at least 1000 microseconds")
  const burst =
    burstMicros === undefined ? undefined : whole("limits.cpu.burstMicros", burstMicros, 0, 2 ** 31)
  if (burst !== undefined && burst > 0 && (quota === MAX || burst > quota))
    invalid("limits.cpu.burstMicros", burst, "at most the quota, which is cpus times the period")
  // A burst must never be above the quota.
  const none = (file: string, fresh: boolean): ReadonlyArray<Write> =>
    burst === undefined || fresh ? [] : [[file, "0"]]
  const then = (file: string): ReadonlyArray<Write> => (burst === undefined ? [] : [[file, String(burst)]])
  settings.push({
    controller: "cpu",
    option: "limits.cpus",
    v1: ({ fresh }) => [
      ...none("cpu.cfs_burst_us", fresh),
      ...(period === PERIOD_MICROS && fresh ? [] : [["cpu.cfs_period_us", String(period)] as const]),
      ["cpu.cfs_quota_us", quota === MAX ? "-1" : String(quota)],
      ...then("cpu.cfs_burst_us")
    ],
    v2: ({ fresh }) => [
      ...none("cpu.max.burst", fresh),
      ["cpu.max", `${quota} ${period}`],
      ...then("cpu.max.burst")
    ]
  })
  return settings
}

/** The numbers of a list like `0-3,6`; undefined for an invalid list. */
export const parseList = (text: string): ReadonlySet<number> | undefined => {
  const all = new Set<number>()
  for (const part of text.trim().split(",")) {
    const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part)
    const [from, to] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])]
    if (match === null || from > to) return undefined
    for (let n = from; n <= to; n++) all.add(n)
  }
  return all
}

const among = (option: string, list: string, file: string): void => {
  const asked = typeof list === "string" ? parseList(list) : undefined
  const text = read(file).trim()
  const there = parseList(text)
  if (asked === undefined) invalid(option, list, `a list like "0-1,3", out of ${text}`)
  else if (there !== undefined && [...asked].some((n) => !there.has(n)))
    invalid(option, list, `a list out of ${text}, the available ones (${file})`)
}

const cpuset = ({ cpus, mems }: CpusetLimits): ReadonlyArray<Setting> => {
  const check = (place: Place, effectiveCpus: string, effectiveMems: string): void => {
    if (cpus !== undefined) among("limits.cpuset.cpus", cpus, `${place.above}/${effectiveCpus}`)
    if (mems !== undefined) among("limits.cpuset.mems", mems, `${place.above}/${effectiveMems}`)
  }
  return [
    {
      controller: "cpuset",
      option: "limits.cpuset",
      // A new cgroup of version 1 has neither CPUs nor memory nodes, and no process can enter it without them.
      v1: (place) => {
        check(place, "cpuset.effective_cpus", "cpuset.effective_mems")
        const inherited = (file: string): string | undefined =>
          place.fresh ? read(`${place.above}/${file}`).trim() : undefined
        const c = cpus ?? inherited("cpuset.effective_cpus")
        const m = mems ?? inherited("cpuset.effective_mems")
        return [
          ...(m === undefined ? [] : [["cpuset.mems", m] as const]),
          ...(c === undefined ? [] : [["cpuset.cpus", c] as const])
        ]
      },
      v2: (place) => {
        check(place, "cpuset.cpus.effective", "cpuset.mems.effective")
        return [
          ...(mems === undefined ? [] : [["cpuset.mems", mems] as const]),
          ...(cpus === undefined ? [] : [["cpuset.cpus", cpus] as const])
        ]
      }
    }
  ]
}

// Either BFQ's file or io.cost's exists; the root cgroup has neither, so it does not show which one is used.
const weightFile = (above: string): string =>
  existsSync(`${above}/io.bfq.weight`) && !existsSync(`${above}/io.weight`) ? "io.bfq.weight" : "io.weight"

const io = (limits: IoLimits): ReadonlyArray<Setting> => {
  const settings: Array<Setting> = []
  const weigh = (option: string, weight: number, device: string | undefined): void => {
    whole(option, weight, 1, 10000)
    settings.push({
      controller: "io",
      option,
      v1: () => {
        whole(option, weight, 1, 1000)
        return device === undefined
          ? [["blkio.bfq.weight", String(weight)]]
          : [["blkio.bfq.weight_device", `${device} ${weight}`]]
      },
      v2: ({ above }) => [[weightFile(above), `${device ?? "default"} ${weight}`]]
    })
  }
  if (limits.weight !== undefined) weigh("limits.io.weight", limits.weight, undefined)
  limits.devices?.forEach((given, index) => {
    const option = `limits.io.devices[${index}]`
    const numbers = /^\d{1,9}:\d{1,9}$/.test(given.device)
      ? given.device
      : (({ major, minor }) => `${major}:${minor}`)(numbersOf(`${option}.device`, given.device, ["block"]))
    if (given.weight !== undefined) weigh(`${option}.weight`, given.weight, numbers)
    const values = (
      [
        ["readBps", "rbps", "read_bps"],
        ["writeBps", "wbps", "write_bps"],
        ["readIops", "riops", "read_iops"],
        ["writeIops", "wiops", "write_iops"]
      ] as const
    ).flatMap(([name, v2, v1]) => {
      const value = given[name]
      if (value === undefined) return []
      const parsed = name.endsWith("Bps")
        ? bytesOf(`${option}.${name}`, value, 1)
        : wholeOrMax(`${option}.${name}`, value as number | "max", 1)
      return [{ v1, v2, value: parsed }]
    })
    if (values.length === 0) return
    settings.push({
      controller: "io",
      option,
      v1: () =>
        values.map(({ v1, value }) => [
          `blkio.throttle.${v1}_device`,
          `${numbers} ${value === MAX ? 0 : value}`
        ]),
      v2: () => [["io.max", [numbers, ...values.map(({ v2, value }) => `${v2}=${value}`)].join(" ")]]
    })
  })
  return settings
}

const KIB: Readonly<Record<string, number>> = { KB: 1, MB: 1024, GB: 1024 ** 2 }

const hugetlb = (size: string, given: Bytes): Setting => {
  const option = `limits.hugetlb.${size}`
  const match = /^(\d{1,6})([KMG]B)$/.exec(size)
  const kib = Number(match?.[1]) * KIB[match?.[2] ?? ""]!
  if (match === null || !existsSync(`/sys/kernel/mm/hugepages/hugepages-${kib}kB`))
    invalid("limits.hugetlb", size, 'a size of /sys/kernel/mm/hugepages, written like "2MB"')
  const value = bytesOf(option, given, 0)
  return {
    controller: "hugetlb",
    option,
    v1: () => [[`hugetlb.${size}.limit_in_bytes`, v1Bytes(value)]],
    v2: () => [[`hugetlb.${size}.max`, String(value)]]
  }
}

/** The same file on both versions. */
const same = (controller: string, option: string, file: string, value: string): Setting => ({
  controller,
  option,
  v1: () => [[file, value]],
  v2: () => [[file, value]]
})

const named = (option: string, name: string): string =>
  /^[\w.-]{1,64}$/.test(name) ? name : invalid(option, name, "a name")

/** The settings of these limits, in the order of their writes; throws `InvalidOption`. */
export const parseLimits = (limits: Limits): ReadonlyArray<Setting> => {
  const settings: Array<Setting> = []
  if (limits.memory !== undefined) settings.push(...memory(limits.memory))
  if (limits.cpus !== undefined || limits.cpu !== undefined)
    settings.push(...cpu(limits.cpus, limits.cpu ?? {}))
  if (limits.cpuset !== undefined) settings.push(...cpuset(limits.cpuset))
  if (limits.pids !== undefined) {
    const most = limits.pids === MAX ? MAX : whole("limits.pids", limits.pids, 1, 4194304)
    settings.push(same("pids", "limits.pids", "pids.max", String(most)))
  }
  if (limits.io !== undefined) settings.push(...io(limits.io))
  for (const [size, value] of Object.entries(limits.hugetlb ?? {})) settings.push(hugetlb(size, value))
  if (limits.devices !== undefined) {
    const devices = parseDevices(limits.devices)
    settings.push({
      controller: "devices",
      option: "limits.devices",
      v1: () => [
        ["devices.deny", "a"],
        ...allowLines(devices).map((line) => ["devices.allow", line] as const)
      ],
      v2: () => [["devices", program(devices)]]
    })
  }
  for (const [device, { handles, objects }] of Object.entries(limits.rdma ?? {})) {
    const option = `limits.rdma.${named("limits.rdma", device)}`
    const values = [
      ...(handles === undefined ? [] : [`hca_handle=${wholeOrMax(option, handles, 0)}`]),
      ...(objects === undefined ? [] : [`hca_object=${wholeOrMax(option, objects, 0)}`])
    ]
    if (values.length > 0) settings.push(same("rdma", option, "rdma.max", [device, ...values].join(" ")))
  }
  for (const [resource, value] of Object.entries(limits.misc ?? {})) {
    const option = `limits.misc.${named("limits.misc", resource)}`
    settings.push(same("misc", option, "misc.max", `${resource} ${wholeOrMax(option, value, 0)}`))
  }
  return settings
}
