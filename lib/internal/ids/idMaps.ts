/**
 * The ids of user namespaces: the ranges of a non-root user, subuid(5), how a namespace gets them, and the maps that a
 * caller gives. Maps that pass the checks here can be put into a plan; for any other map the checks throw `InvalidOption`.
 */
import { execFile } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import { Unsupported } from "../../BerthError.ts"
import type { IdRange } from "../../Namespace.ts"
import { invalid } from "../util/validate.ts"

/** The maps of a user namespace. */
export interface Ids {
  readonly uids: ReadonlyArray<IdRange>
  readonly gids: ReadonlyArray<IdRange>
}

const ID_END = 2 ** 32 - 1

/** user_namespaces(7): a map has 340 lines at most. */
const RANGES_MAX = 340

/** All ids of the host, for root. */
export const all: Ids = (() => {
  const every = [{ container: 0, host: 0, size: ID_END }]
  return { uids: every, gids: every }
})()

/** Root alone. */
export const single = (uid: number, gid: number): Ids => ({
  uids: [{ container: 0, host: uid, size: 1 }],
  gids: [{ container: 0, host: gid, size: 1 }]
})

/** The map in the form of uid_map and gid_map. */
export const print = (ranges: ReadonlyArray<IdRange>): string =>
  ranges.map(({ container, host, size }) => `${container} ${host} ${size}\n`).join("")

/** A map of the same ids for a namespace inside this one. */
export const nested = (outer: Ids): Ids => {
  const same = (ranges: ReadonlyArray<IdRange>) =>
    ranges.map(({ container, size }) => ({ container, host: container, size }))
  return { uids: same(outer.uids), gids: same(outer.gids) }
}

/** The host's id for an id in the namespace; unmapped ids are returned unchanged. */
export const outside = (ranges: ReadonlyArray<IdRange>, id: number): number =>
  inside(
    ranges.map(({ container, host, size }) => ({ container: host, host: container, size })),
    id
  )

/** The id in the namespace for an id of the host; unmapped ids are returned unchanged. */
export const inside = (ranges: ReadonlyArray<IdRange>, id: number): number => {
  const range = ranges.find(({ host, size }) => id >= host && id - host < size)
  return range === undefined ? id : id - range.host + range.container
}

/** Whether the mapped ids have the same numbers inside and outside. */
export const areSame = ({ gids, uids }: Ids): boolean =>
  [...uids, ...gids].every(({ container, host }) => container === host)

const count = (ranges: ReadonlyArray<IdRange>): number => ranges.reduce((sum, range) => sum + range.size, 0)

const overlap = (
  ranges: ReadonlyArray<IdRange>,
  side: "container" | "host"
): readonly [IdRange, IdRange] | undefined => {
  const sorted = ranges.toSorted((a, b) => a[side] - b[side])
  const at = sorted.findIndex((range, k) => k > 0 && sorted[k - 1]![side] + sorted[k - 1]!.size > range[side])
  return at < 0 ? undefined : [sorted[at - 1]!, sorted[at]!]
}

/** Checks a map that a caller gives, whose `host` ids count in `outer`, the namespace around it. */
const checkMap = (
  option: string,
  ranges: ReadonlyArray<IdRange>,
  outer: ReadonlyArray<IdRange>
): ReadonlyArray<IdRange> => {
  if (!Array.isArray(ranges) || ranges.length === 0 || ranges.length > RANGES_MAX)
    return invalid(option, ranges, `from 1 to ${RANGES_MAX} ranges`)
  for (const range of ranges) {
    const numbers = [range.container, range.host, range.size]
    if (!numbers.every((n) => Number.isInteger(n) && n >= 0 && n <= ID_END))
      return invalid(option, range, "whole numbers from 0 to 2^32 - 1")
    if (range.size === 0) return invalid(option, range, "a range with at least one id")
    if (range.container + range.size > ID_END || range.host + range.size > ID_END)
      return invalid(option, range, "ids of at most 2^32 - 2")
  }
  for (const side of ["container", "host"] as const) {
    const two = overlap(ranges, side)
    if (two !== undefined) return invalid(option, two, `ranges whose ${side} ids do not overlap`)
  }
  const sorted = ranges.toSorted((a, b) => a.container - b.container)
  const gap = sorted.find((range, k) => {
    const before = sorted[k - 1]
    return range.container !== (before === undefined ? 0 : before.container + before.size)
  })
  if (gap !== undefined) return invalid(option, gap, "ids from 0 on without a gap between two ranges")
  const beyond = ranges.find(
    ({ host, size }) => !outer.some((o) => host >= o.container && host + size <= o.container + o.size)
  )
  if (beyond !== undefined)
    return invalid(
      option,
      beyond,
      `host ids from 0 to ${count(outer) - 1}, the only ones available: 0 is your own id, the others are your ranges in /etc/subuid and /etc/subgid`
    )
  return ranges
}

/** Checks the maps that a caller gives for a namespace inside one with the ids `outer`; throws. */
export const checkMaps = (
  option: string,
  given: { readonly uids: ReadonlyArray<IdRange>; readonly gids: ReadonlyArray<IdRange> },
  outer: Ids,
  names: readonly [uids: string, gids: string] = ["uids", "gids"]
): Ids => ({
  uids: checkMap(`${option}.${names[0]}`, given.uids, outer.uids),
  gids: checkMap(`${option}.${names[1]}`, given.gids, outer.gids)
})

/** A range of ids of a user, as in subuid(5). */
export interface SubIds {
  readonly start: number
  readonly size: number
}

/** The ranges of an owner with these names, in the order of the file. Malformed lines are ignored. */
export const parseSubIds = (text: string, names: ReadonlyArray<string>): ReadonlyArray<SubIds> =>
  text.split("\n").flatMap((line) => {
    const [owner, start, size, ...rest] = line.trim().split(":")
    if (rest.length > 0 || !names.includes(owner!) || !/^\d+$/.test(start ?? "") || !/^\d+$/.test(size ?? ""))
      return []
    const range = { start: Number(start), size: Number(size) }
    return range.size > 0 && range.start + range.size <= ID_END ? [range] : []
  })

const readText = (path: string): string => {
  try {
    return fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/** The ranges of a user in a file like /etc/subuid. */
export const subIdsOf = (file: string, names: ReadonlyArray<string>): ReadonlyArray<SubIds> =>
  parseSubIds(readText(file), names)

const programs = ["newuidmap", "newgidmap"] as const

const findProgram = (name: string): string | undefined =>
  [...(process.env.PATH ?? "").split(":"), "/usr/bin", "/usr/local/bin"]
    .filter((folder) => folder.startsWith("/"))
    .map((folder) => `${folder}/${name}`)
    .find((path) => fs.existsSync(path))

/** A map in which root is the user, and the ids from 1 on are the user's ranges. */
const withRanges = (own: number, ranges: ReadonlyArray<SubIds>): ReadonlyArray<IdRange> => {
  let next = 1
  return [
    { container: 0, host: own, size: 1 },
    ...ranges.slice(0, RANGES_MAX - 1).map(({ size, start }) => {
      const container = next
      next += size
      return { container, host: start, size }
    })
  ]
}

const userName = (): ReadonlyArray<string> => {
  try {
    return [os.userInfo().username]
  } catch {
    return [] // a user without an entry in passwd(5)
  }
}

/** The ids that this process's user can map, or the reason why it can only map its own. */
export const ranges = (): Ids | string => {
  const [uid, gid] = [process.geteuid!(), process.getegid!()]
  const names = [...userName(), String(uid)]
  const uids = subIdsOf("/etc/subuid", names)
  const gids = subIdsOf("/etc/subgid", names)
  const missing = [uids.length === 0 ? "/etc/subuid" : "", gids.length === 0 ? "/etc/subgid" : ""].filter(
    Boolean
  )
  if (missing.length > 0) return `${missing.join(" and ")} have no range for ${names.join(" or ")}`
  const absent = programs.filter((name) => findProgram(name) === undefined)
  if (absent.length > 0) return `${absent.join(" and ")} are not installed`
  if (/^NoNewPrivs:\t1$/m.test(readText("/proc/self/status")))
    return "this process has no_new_privs set, so newuidmap gets no privileges"
  return { uids: withRanges(uid, uids), gids: withRanges(gid, gids) }
}

/** The ids that this process's user has, as far as they can be determined. */
export const own = (): Ids => {
  const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0]
  const found = uid === 0 ? all : ranges()
  return typeof found === "string" ? single(uid, gid) : found
}

/** The steps to get ranges. */
export const rangesHint =
  'Install newuidmap (Debian: uidmap) and give yourself ranges (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME), or use a single id: Berth.layerWith({ ids: "single" })'

// newuidmap(1): PID, then CONTAINER HOST SIZE for each range.
const runProgram = (
  name: string,
  pid: number,
  ranges: ReadonlyArray<IdRange>
): Effect.Effect<void, Unsupported> =>
  Effect.async<void, Unsupported>((resume) => {
    const args = [pid, ...ranges.flatMap(({ container, host, size }) => [container, host, size])].map(String)
    execFile(findProgram(name) ?? name, args, (error, _, stderr) => {
      if (error === null) return resume(Effect.void)
      const why = `${name}: ${stderr.trim() || error.message}`
      resume(Effect.fail(new Unsupported({ feature: "ranges of ids", why, hint: rangesHint, cause: error })))
    })
  })

/** Writes the maps of the user namespace of a process that waits for them. */
export const writeMaps = (pid: number, ids: Ids): Effect.Effect<void, Unsupported> =>
  Effect.zipRight(runProgram("newuidmap", pid, ids.uids), runProgram("newgidmap", pid, ids.gids))
