/**
 * What a supervisor leaves when it is killed: processes that do not die with their parent, its cgroups, and its state
 * folder, with what units kept on disk. Whose lock can be had is dead.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { NotReleased } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { tree } from "../cgroup/cgroup.ts"
import { tryLock } from "../disk/fileLock.ts"
import type { Supervisor } from "../supervisor/connection.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { EBUSY } from "../util/errno.ts"
import { link, list, read } from "../util/readFile.ts"

const kill = (pid: number, signal: "SIGKILL" | "SIGCONT" = "SIGKILL"): void => {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended meanwhile.
  }
}

/** False while something in it is still dying. */
const removeCgroup = (cgroup: string): boolean => {
  // What version 1's freezer holds would not die otherwise.
  if (fs.existsSync(`${cgroup}/freezer.state`)) fs.writeFileSync(`${cgroup}/freezer.state`, "THAWED")
  for (const line of read(`${cgroup}/cgroup.procs`).split("\n")) if (Number(line) > 0) kill(Number(line))
  for (const entry of fs.readdirSync(cgroup, { withFileTypes: true }))
    if (entry.isDirectory()) removeCgroup(`${cgroup}/${entry.name}`)
  try {
    fs.rmdirSync(cgroup)
    return true
  } catch {
    return false
  }
}

/** A dead supervisor's cgroups: they carry the name of its state folder. */
const cgroupsOf = (name: string): ReadonlyArray<string> =>
  [...new Set(Object.values(tree().controllers).map((hierarchy) => hierarchy.folder))].flatMap((folder) =>
    list(folder)
      .filter((entry) => entry.startsWith(`berth.${name}.`))
      .map((entry) => `${folder}/${entry}`)
  )

/**
 * Processes that a dead supervisor has left, whatever they have done to their parent-death signal: every root that Berth
 * makes has mounts that tell whose it is (native/supervisor/nodes.c, compile.ts), and who has no root of his own is in the
 * supervisor's mount namespace, which has its folder.
 */
const processesOf = (name: string): ReadonlyArray<number> => {
  // One answer for each mount namespace: there are few of them, and many processes.
  const known = new Map<string, boolean>([[link("/proc/self/ns/mnt"), false]])
  return list("/proc")
    .map(Number)
    .filter((pid) => {
      if (!(pid > 1)) return false
      const namespace = link(`/proc/${pid}/ns/mnt`)
      if (namespace === "") return false
      let found = known.get(namespace)
      if (found === undefined) {
        const mounts = read(`/proc/${pid}/mountinfo`)
        found = mounts.includes(` berth.${name} `) || mounts.includes(`/run/${name}/`)
        known.set(namespace, found)
      }
      return found
    })
}

/** What in /proc/PID/stat stays the same for as long as a process lives, and whether it does; undefined of no process. */
const identityOf = (stat: string): { readonly pid: number; readonly start: string } | undefined => {
  // A name may have anything in it.
  const rest = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  const pid = Number.parseInt(stat, 10)
  const start = rest[19]
  return !(pid > 1) || start === undefined || rest[0] === "Z" ? undefined : { pid, start }
}

/** The process that a line of /proc/PID/stat was of, if it is still there. */
const stillThere = (stat: string): number | undefined => {
  const was = identityOf(stat)
  const now = was === undefined ? undefined : identityOf(read(`/proc/${was.pid}/stat`))
  return now !== undefined && now.start === was!.start ? now.pid : undefined
}

const ownerFile = (state: string): string => `${state}/owner`

/** Records in its folder whose a supervisor is, for the sweep that finds it alive when its program is not. */
export const recordOwner = (state: string, supervisor: number): void => {
  fs.writeFileSync(ownerFile(state), `${read("/proc/self/stat")}${read(`/proc/${supervisor}/stat`)}`, {
    mode: 0o600
  })
}

/**
 * A supervisor whose program is gone. It ends by itself, unless something holds it up. One whose folder is another
 * pid namespace's is not found, and so let alone.
 */
const orphanIn = (state: string): number | undefined => {
  const [program = "", supervisor = ""] = read(ownerFile(state)).split("\n")
  const pid = stillThere(supervisor)
  return pid !== undefined && stillThere(program) === undefined ? pid : undefined
}

const modified = (path: string): number => fs.statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/**
 * First processes of containers that could have hidden, which have been recorded (compile.ts): by the number and the time
 * of the start, which no process can change. With the first of a pid namespace ends all that is in it. The time counts from
 * the machine's start, so what was recorded before that says nothing.
 */
const recordedIn = (state: string): ReadonlyArray<number> =>
  list(state)
    .filter((name) => name.endsWith(".first"))
    .filter((name) => modified(`${state}/${name}/stat`) > Date.now() - os.uptime() * 1000)
    .flatMap((name) => stillThere(read(`${state}/${name}/stat`)) ?? [])

/** Takes a dead supervisor's lock, or undefined where it lives. */
const lockOf = (state: string): number | undefined => {
  try {
    const fd = fs.openSync(`${state}/lock`, "r+")
    if (tryLock(fd, "exclusive") === 0) return fd
    fs.closeSync(fd)
  } catch {
    // Gone already.
  }
  return undefined
}

// A process that was killed needs a moment to leave its cgroup.
const patience = Schedule.upTo(Schedule.spaced("10 millis"), "2 seconds")

/** The lock of a supervisor that is dead by then, or undefined where it lives on. */
const awaitLock = (state: string): Effect.Effect<number | undefined> => {
  let lock: number | undefined
  return Effect.sync(() => {
    lock = lockOf(state)
    return lock !== undefined
  }).pipe(
    Effect.repeat({ until: (taken) => taken, schedule: patience }),
    Effect.map(() => lock)
  )
}

/** The lock of a dead supervisor; one that has no program any more, and does not end, is ended. */
const takeLock = (state: string): Effect.Effect<number | undefined> =>
  Effect.suspend(() => {
    const lock = lockOf(state)
    const orphan = lock === undefined ? orphanIn(state) : undefined
    if (orphan === undefined) return Effect.succeed(lock)
    kill(orphan, "SIGCONT")
    return Effect.flatMap(awaitLock(state), (given) => {
      if (given !== undefined || orphanIn(state) === undefined) return Effect.succeed(given)
      kill(orphan)
      return awaitLock(state)
    })
  })

/** A folder whose supervisor never came to be: it has its final name only once it is locked. */
const isAbandoned = (state: string): boolean => Date.now() - fs.statSync(state).mtimeMs > 60_000

/** What of a dead supervisor is still there, after one more attempt to end it. */
const endOnce = (name: string, state: string): ReadonlyArray<string> => {
  const processes = [...new Set([...processesOf(name), ...recordedIn(state)])]
  processes.forEach((pid) => kill(pid))
  const cgroups = cgroupsOf(name).filter((cgroup) => fs.existsSync(cgroup) && !removeCgroup(cgroup))
  return [...cgroups, ...processes.map((pid) => `process ${pid}`)]
}

/** Ends what a dead supervisor has left; true when nothing but its folder is there any more. */
const end = (name: string, state: string): Effect.Effect<boolean> =>
  Effect.sync(() => endOnce(name, state)).pipe(
    Effect.repeat({ until: (left) => left.length === 0, schedule: patience }),
    Effect.zipRight(Effect.sync(() => endOnce(name, state))),
    Effect.tap((left) =>
      Effect.forEach(left, (resource) =>
        Effect.logWarning(new NotReleased({ resource, syscall: "sweep", errno: EBUSY }))
      )
    ),
    Effect.map((left) => left.length === 0)
  )

const takeOne = (folder: string, name: string, into: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const state = `${folder}/run/${name}`
    const take = Effect.sync(() => fs.renameSync(state, into))
    if (name.startsWith(".")) return isAbandoned(state) ? take : Effect.void
    return Effect.flatMap(takeLock(state), (lock) =>
      lock === undefined
        ? Effect.void
        : // Where something stays, so does the folder: by its name the next Berth finds it.
          Effect.zipRight(Effect.whenEffect(take, end(name, state)), Effect.void).pipe(
            Effect.ensuring(Effect.sync(() => fs.closeSync(lock)))
          )
    )
  }).pipe(
    // Another Berth may be at the same.
    Effect.catchAllDefect((cause) => Effect.logDebug(`${folder}/run/${name} was not swept: ${cause}`))
  )

const STALE = "stale-"

/** Ends what supervisors that were killed have left below this folder, and takes their folders into a living one's. */
export const sweep = (folder: string, state: string): Effect.Effect<void> =>
  Effect.forEach(
    list(`${folder}/run`).filter((name) => `${folder}/run/${name}` !== state),
    (name, k) => takeOne(folder, name, `${state}/${STALE}${k}`),
    { discard: true }
  )

/**
 * Removes what `sweep` has taken, however large and deep it is, without waiting for it. The supervisor does that, with
 * the rights that its containers had.
 */
export const removeSwept = (supervisor: Supervisor): Effect.Effect<void> =>
  Effect.suspend(() => {
    const stale = list(supervisor.folder).filter((name) => name.startsWith(STALE))
    if (stale.length === 0) return Effect.void
    const bin = `${supervisor.folder}/swept`
    const plan = Plan.make([{ op: "scratch", path: bin, mode: 0o700 }])
    return supervisor.start(supervisor.nextId(), plan, {}).pipe(
      Effect.tap(() => {
        for (const name of stale) fs.renameSync(`${supervisor.folder}/${name}`, `${bin}/${name}`)
      }),
      Effect.flatMap((unit) => Effect.asVoid(Effect.forkDaemon(releaseUnit(bin, unit)))),
      Effect.catchAll((error) => Effect.logWarning(error))
    )
  })
