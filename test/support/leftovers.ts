/** What a file of tests leaves behind on the machine: everything that exists after it and did not before, by name. */
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

/** Every process with its parent. Zombies count, because somebody has to wait for them. */
const parents = (): ReadonlyMap<number, number> =>
  new Map(
    pids().flatMap((pid) => {
      const parent = / [A-Z] (\d+) /.exec(read(`/proc/${pid}/stat`).replace(/^.*\)/s, ")"))?.[1]
      return parent === undefined ? [] : [[pid, Number(parent)] as const]
    })
  )

/** All descendants of a process. */
export const descendants = (root: number): ReadonlyArray<number> => {
  const all = parents()
  const isBelow = (pid: number): boolean => {
    const parent = all.get(pid)
    return parent === root || (parent !== undefined && parent > 1 && isBelow(parent))
  }
  return [...all.keys()].filter(isBelow)
}

/** The supervisors of this process. Only its own children count: a clone has the supervisor's name until it executes. */
export const supervisors = (): ReadonlyArray<number> =>
  descendants(process.pid).filter(
    (pid) =>
      read(`/proc/${pid}/cmdline`).startsWith("berth-supervisor") &&
      read(`/proc/${pid}/status`).includes(`\nPPid:\t${process.pid}\n`)
  )

const PF_EXITING = 0x4

/**
 * Whether a process exists and has not ended. A killed process runs no more, although its entry stays until its parent
 * has waited for it, and the entry of a pid namespace's first process until all processes in there have been waited for.
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

/** The cgroups of these programs. Their names begin with the pid of the program that started the supervisor. */
export const cgroupsOf = (owners: ReadonlyArray<number>): ReadonlyArray<string> =>
  foldersBelow("/sys/fs/cgroup", 5).filter((path) =>
    owners.some((owner) => path.slice(path.lastIndexOf("/") + 1).startsWith(`berth.${owner}-`))
  )

/** The targets of this process's descriptors, without the numbers in them, which differ each time. */
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

/** The items that occur more often now than before. */
const more = (before: ReadonlyArray<string>, now: ReadonlyArray<string>): ReadonlyArray<string> => {
  const were = counted(before)
  return [...counted(now)].flatMap(([item, count]) => {
    const extra = count - (were.get(item) ?? 0)
    return extra > 0 ? [extra === 1 ? item : `${item} (${extra} times)`] : []
  })
}

// Only mounts that can be Berth's count, because other users of the host mount as well. The ids of a mount and of its
// parent are left out.
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
 * Tries until `attempt` is true, for at most `millis`, and tells whether it was. The limit is generous, because a busy
 * machine must not fail a test; the soak measures how long a release takes.
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
 * Everything that exists now and did not before. Waits a while for what the kernel removes later; `isOthers` excludes what
 * somebody else leaves.
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
