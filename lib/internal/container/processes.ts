/** The processes of a container, from /proc: proc_pid_stat(5), proc_pid_status(5), pid_namespaces(7). */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type { BerthError } from "../../BerthError.ts"
import type { Container, ProcessInfo } from "../../Container.ts"
import type { Process } from "../../Process.ts"
import { promised, turn } from "../files/rooted.ts"
import { flags } from "../ids/namespaceFlags.ts"
import { native } from "../system/addon.ts"
import { link, read, readBounded } from "../util/readFile.ts"
import { readInside, records } from "./passwd.ts"

const all = (): ReadonlyArray<number> =>
  fs.readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []))

// The command's name is in parentheses, and may itself contain parentheses.
const statOf = (pid: number): ReadonlyArray<string> =>
  read(`/proc/${pid}/stat`)
    .replace(/^.*\) /s, "")
    .split(" ")

/** Records an exec of a container, because shared namespaces do not identify the container's processes. */
export const noteExecuted = (process: Process): void => {
  process.state.inside.executed.add(process)
}

export const forgetExecuted = (process: Process): void => {
  process.state.inside.executed.delete(process)
}

// After it has been reaped, another process may get its pid.
const isThere = (process: Process): boolean => native().signal(process.state.pidfd, 0) >= 0

/**
 * The host's pids of a container's processes: those in its own pid namespace or, if it has none, in its own mount
 * namespace, which its execs join; if it has neither, its first process and its execs; and all their descendants, in
 * any namespaces.
 */
export const processesOf = (first: Process): ReadonlyArray<number> => {
  if (!isThere(first)) return []
  const own = new Set([first.pid])
  const { ended, inside } = first.state
  if (inside.ended === ended)
    for (const process of inside.executed) if (isThere(process)) own.add(process.pid)
  const made = first.plan.operations.reduce(
    (all, operation) =>
      operation.op === "process" || operation.op === "unshare" ? all | Number(operation.namespaces) : all,
    0
  )
  const kind = (made & flags.pid) !== 0 ? "pid" : "mnt"
  const namespace = (made & (flags.pid | flags.mount)) !== 0 ? link(`/proc/${first.pid}/ns/${kind}`) : ""
  const children = new Map<number, Array<number>>()
  const found = new Set<number>()
  for (const pid of all()) {
    const stat = statOf(pid)
    if (stat.length < 2 || stat[0] === "Z" || stat[0] === "X") continue
    const parent = Number(stat[1])
    const siblings = children.get(parent)
    if (siblings === undefined) children.set(parent, [pid])
    else siblings.push(pid)
    if (own.has(pid) || (namespace !== "" && link(`/proc/${pid}/ns/${kind}`) === namespace)) found.add(pid)
  }
  // A loop over a set also visits elements that are added during the loop.
  for (const pid of found) for (const child of children.get(pid) ?? []) found.add(child)
  return [...found]
}

const TICK_MICROS = 10_000 // USER_HZ is 100 on every architecture of Berth
const ARGUMENTS_MAX = 4096

const field = (status: string, name: string): string =>
  new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)?.[1] ?? ""

const numbers = (status: string): ReadonlyArray<number> => field(status, "NSpid").split(/\s+/).map(Number)

const idInside = (map: string, outside: number): number => {
  for (const line of map.split("\n")) {
    const [inside, from, length] = line.trim().split(/\s+/).map(Number)
    if (length !== undefined && outside >= from! && outside < from! + length) return inside! + outside - from!
  }
  return outside
}

const namesOf = (passwd: string): ReadonlyMap<number, string> => {
  const names = new Map<number, string>()
  for (const [name, , uid] of records(passwd))
    if (/^\d+$/.test(uid ?? "") && !names.has(Number(uid))) names.set(Number(uid), name!)
  return names
}

const processOf = async (
  pid: number,
  depth: number,
  userOf: (uid: number) => string
): Promise<ReadonlyArray<ProcessInfo>> => {
  const status = read(`/proc/${pid}/status`)
  const stat = statOf(pid)
  if (status === "" || stat.length < 13) return []
  const command = (await readBounded(`/proc/${pid}/cmdline`, ARGUMENTS_MAX)).toString().replace(/\0+$/, "")
  return [
    {
      pid,
      pidInside: numbers(status)[depth] ?? pid,
      parent: Number(stat[1]),
      user: userOf(Number(field(status, "Uid").split(/\s+/)[0])),
      command: command === "" ? [`[${field(status, "Name")}]`] : command.split("\0"),
      state: stat[0]!,
      threads: Number(field(status, "Threads")),
      userMicros: Number(stat[11]) * TICK_MICROS,
      systemMicros: Number(stat[12]) * TICK_MICROS,
      memoryBytes: Number.parseInt(field(status, "VmRSS") || "0", 10) * 1024
    }
  ]
}

/** The processes at this moment; a process that ends meanwhile is left out. */
export const top = (
  container: Container,
  pids: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<ProcessInfo>, BerthError> =>
  Effect.gen(function* () {
    const passwd = readInside(`container ${container.id}`, container.pid, "etc/passwd")
    // An invalid passwd file only removes the users' names.
    const names = namesOf(yield* Effect.orElseSucceed(passwd, () => ""))
    const map = read(`/proc/${container.pid}/uid_map`)
    const userOf = (uid: number): string => names.get(idInside(map, uid)) ?? String(idInside(map, uid))
    // At the namespace depth of the container's first process.
    const depth = numbers(read(`/proc/${container.pid}/status`)).length - 1
    return yield* Effect.orDie(
      promised(async (signal) => {
        const found: Array<ProcessInfo> = []
        for (const pid of pids) {
          await turn(signal)
          found.push(...(await processOf(pid, depth, userOf)))
        }
        return found
      })
    )
  })
