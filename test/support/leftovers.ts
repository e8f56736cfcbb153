/** What a file of tests leaves behind on the machine: whatever is there after it and was not before is named. */
import * as fs from "node:fs"

const list = (folder: string): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

const read = (path: string): string => {
  try {
    return fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const link = (path: string): string => {
  try {
    return fs.readlinkSync(path)
  } catch {
    return ""
  }
}

const pids = (): ReadonlyArray<number> => list("/proc").map(Number).filter(Number.isInteger)

/** Every process with its parent; a zombie counts, as somebody has to wait for it. */
const parents = (): ReadonlyMap<number, number> =>
  new Map(
    pids().flatMap((pid) => {
      const parent = / [A-Z] (\d+) /.exec(read(`/proc/${pid}/stat`).replace(/^.*\)/s, ")"))?.[1]
      return parent === undefined ? [] : [[pid, Number(parent)] as const]
    })
  )

/** The processes below one, however far. */
export const descendants = (root: number): ReadonlyArray<number> => {
  const all = parents()
  const isBelow = (pid: number): boolean => {
    const parent = all.get(pid)
    return parent === root || (parent !== undefined && parent > 1 && isBelow(parent))
  }
  return [...all.keys()].filter(isBelow)
}

const PF_EXITING = 0x4

/**
 * Whether a process is there and has not ended. One that has been killed runs no more, although its entry stays until
 * its parent has waited for it, and the first of a pid namespace until all in there have been waited for.
 */
export const isAlive = (pid: number): boolean => {
  const fields = read(`/proc/${pid}/stat`)
    .replace(/^.*\) /s, "")
    .split(" ")
  return fields.length > 7 && !["Z", "X"].includes(fields[0]!) && (Number(fields[6]) & PF_EXITING) === 0
}

export const describeProcess = (pid: number): string => {
  const command = read(`/proc/${pid}/cmdline`).replaceAll("\0", " ").trim()
  return `process ${pid} ${command === "" ? read(`/proc/${pid}/comm`).trim() : command}`
}

const foldersBelow = (folder: string, depth: number): ReadonlyArray<string> =>
  depth === 0
    ? []
    : list(folder).flatMap((name) => {
        const path = `${folder}/${name}`
        if (!/^[^.]+$/.test(name) && !name.startsWith("berth.")) return []
        return fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
          ? [path, ...foldersBelow(path, depth - 1)]
          : []
      })

/** The cgroups of supervisors of these processes: their names begin with the process that started the supervisor. */
export const cgroupsOf = (owners: ReadonlyArray<number>): ReadonlyArray<string> =>
  foldersBelow("/sys/fs/cgroup", 5).filter((path) =>
    owners.some((owner) => path.slice(path.lastIndexOf("/") + 1).startsWith(`berth.${owner}-`))
  )

/** The descriptors of this process, by what they are of; numbers in names are left out, as they differ. */
export const descriptors = (): ReadonlyArray<string> =>
  list("/proc/self/fd").flatMap((fd) => {
    const target = link(`/proc/self/fd/${fd}`)
    return target === "" || target.startsWith("/proc/") ? [] : [target.replace(/\[?\d+\]?$/, "")]
  })

const counted = (items: ReadonlyArray<string>): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1)
  return counts
}

/** Those items that there are more of now than before. */
const more = (before: ReadonlyArray<string>, now: ReadonlyArray<string>): ReadonlyArray<string> => {
  const were = counted(before)
  return [...counted(now)].flatMap(([item, count]) => {
    const extra = count - (were.get(item) ?? 0)
    return extra > 0 ? [extra === 1 ? item : `${item} (${extra} times)`] : []
  })
}

// A mount's id and that of its parent are of no interest, and the host's other users mount as they like: only what
// can be Berth's is looked at.
const mountsIn = (mountinfo: string): ReadonlyArray<string> =>
  mountinfo
    .split("\n")
    .filter((line) => / - (overlay|proc|sysfs|devpts|mqueue|tmpfs|nsfs) |berth/.test(line))
    .map((line) => line.split(" ").slice(2).join(" "))

const namespacesOf = (processes: ReadonlyArray<number>): ReadonlyArray<string> => [
  ...new Set(processes.map((pid) => link(`/proc/${pid}/ns/net`)).filter((name) => name !== ""))
]

export interface Snapshot {
  readonly mounts: ReadonlyArray<string>
  readonly mountsOfInit: ReadonlyArray<string>
  readonly cgroups: ReadonlyArray<string>
  readonly processes: ReadonlyArray<number>
  readonly networks: ReadonlyArray<string>
  readonly descriptors: ReadonlyArray<string>
}

export const snapshot = (): Snapshot => {
  const processes = descendants(process.pid)
  return {
    mounts: mountsIn(read("/proc/self/mountinfo")),
    mountsOfInit:
      link("/proc/1/ns/mnt") === link("/proc/self/ns/mnt") ? [] : mountsIn(read("/proc/1/mountinfo")),
    cgroups: cgroupsOf([process.pid]),
    processes,
    networks: namespacesOf([process.pid, ...processes]),
    descriptors: descriptors()
  }
}

const difference = (before: Snapshot, now: Snapshot, folder: string): ReadonlyArray<string> => [
  ...more(before.mounts, now.mounts).map((line) => `mount ${line}`),
  ...more(before.mountsOfInit, now.mountsOfInit).map((line) => `mount of pid 1 ${line}`),
  ...more(before.cgroups, now.cgroups).map((path) => `cgroup ${path}`),
  ...now.processes.filter((pid) => !before.processes.includes(pid)).map(describeProcess),
  ...more(before.networks, now.networks).map((name) => `network namespace ${name}`),
  ...more(before.descriptors, now.descriptors).map((target) => `descriptor of ${target}`),
  ...list(`${folder}/run`).map((name) => `folder ${folder}/run/${name}`)
]

export const sleep = (millis: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, millis))

/**
 * Tries until `attempt` is true, for `millis` at the most: whether it was. How long that takes is for the soak to say: a
 * machine that has much else to do must not fail a test.
 */
export const eventually = async (
  attempt: () => boolean | Promise<boolean>,
  millis = 15_000
): Promise<boolean> => {
  for (const end = Date.now() + millis; Date.now() < end; await sleep(10)) {
    if (await attempt()) return true
  }
  return attempt()
}

/** Waits until `attempt` is true; fails with the name of what was awaited when that takes longer than `millis`. */
export const until = async (
  what: string,
  attempt: () => boolean | Promise<boolean>,
  millis = 30_000
): Promise<void> => {
  if (!(await eventually(attempt, millis))) throw new Error(`it should come within ${millis} ms: ${what}`)
}

/**
 * What is there that was not before, once the kernel has had the time to tear down what it does in its own time; but for
 * what somebody else leaves.
 */
export const leftovers = async (
  before: Snapshot,
  folder: string,
  isOthers: (what: string) => boolean = () => false
): Promise<ReadonlyArray<string>> => {
  const left = (): ReadonlyArray<string> =>
    difference(before, snapshot(), folder).filter((what) => !isOthers(what))
  await eventually(() => left().length === 0)
  return left()
}
