/**
 * Removes what a killed supervisor leaves: processes that did not die with their parent, its cgroups, and its state folder
 * with the files of its units. A supervisor is dead if its lock can be taken.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { NotReleased } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import type { Tree } from "../cgroup/tree.ts"
import { tryLock } from "../disk/fileLock.ts"
import type { Supervisor } from "../supervisor/connection.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { AT_FDCWD, native, RESOLVE_NO_SYMLINKS } from "../system/addon.ts"
import { EBUSY } from "../util/errno.ts"
import { link, list, read } from "../util/readFile.ts"

const kill = (pid: number, signal: "SIGKILL" | "SIGCONT" = "SIGKILL"): void => {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended meanwhile.
  }
}

/** Kills the processes of a cgroup and removes it; false while some of them are still dying. */
const removeCgroup = (cgroup: string): boolean => {
  // Processes that the freezer of version 1 holds do not die.
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

/** The cgroups of a dead supervisor, whose names contain that of its state folder. */
const cgroupsOf = (tree: Tree, name: string): ReadonlyArray<string> =>
  [...new Set(Object.values(tree.controllers).map((hierarchy) => hierarchy.folder))].flatMap((folder) =>
    list(folder)
      .filter((entry) => entry.startsWith(`berth.${name}.`))
      .map((entry) => `${folder}/${entry}`)
  )

/**
 * The processes that a dead supervisor has left, even if they changed their parent-death signal. Every root that Berth makes
 * has mounts that name the supervisor (native/supervisor/nodes.c, compile.ts); a process without a root of its own is in the
 * supervisor's mount namespace, which contains its folder.
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

/** The fields of /proc/PID/stat that stay the same while a process lives, and whether it lives; undefined for no process. */
const identityOf = (stat: string): { readonly pid: number; readonly start: string } | undefined => {
  // A name may contain any character.
  const rest = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  const pid = Number.parseInt(stat, 10)
  const start = rest[19]
  return !(pid > 1) || start === undefined || rest[0] === "Z" ? undefined : { pid, start }
}

/** The pid of the process that a line of /proc/PID/stat describes, if it still lives. */
const stillThere = (stat: string): number | undefined => {
  const was = identityOf(stat)
  const now = was === undefined ? undefined : identityOf(read(`/proc/${was.pid}/stat`))
  return now !== undefined && now.start === was!.start ? now.pid : undefined
}

const ownerFile = (state: string): string => `${state}/owner`

/** Records the program of a supervisor in its folder, for a sweep that finds the supervisor alive and the program dead. */
export const recordOwner = (state: string, supervisor: number): void => {
  fs.writeFileSync(ownerFile(state), `${read("/proc/self/stat")}${read(`/proc/${supervisor}/stat`)}`, {
    mode: 0o600
  })
}

/** Records a supervisor with leases, which belongs to no program. */
export const recordLeased = (state: string, supervisor: number): void => {
  const stat = read(`/proc/${supervisor}/stat`)
  fs.writeFileSync(ownerFile(state), `${stat}${stat}`, { mode: 0o600 })
}

/** The pid of the supervisor that was recorded in its folder, if it still lives. */
export const pidIn = (state: string): number | undefined =>
  stillThere(read(ownerFile(state)).split("\n")[1] ?? "")

/**
 * The pid of a supervisor whose program is dead. Such a supervisor ends by itself unless something holds it up. A supervisor
 * of another pid namespace is not found, and is left alone.
 */
const orphanIn = (state: string): number | undefined => {
  const [program = ""] = read(ownerFile(state)).split("\n")
  const pid = pidIn(state)
  return pid !== undefined && stillThere(program) === undefined ? pid : undefined
}

const modified = (path: string): number => fs.statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0

/**
 * The first processes of containers that could hide, which were recorded (compile.ts) with their pid and start time: no
 * process can change these. When the first process of a pid namespace ends, all others in it end. The start time counts from
 * the machine's boot, so records from before that boot are ignored.
 */
const recordedIn = (state: string): ReadonlyArray<number> =>
  list(state)
    .filter((name) => name.endsWith(".first"))
    .filter((name) => modified(`${state}/${name}/stat`) > Date.now() - os.uptime() * 1000)
    .flatMap((name) => stillThere(read(`${state}/${name}/stat`)) ?? [])

/** Takes the lock of a dead supervisor; undefined if the supervisor lives. */
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

/** Waits for the lock of a supervisor that is dying; undefined if it lives on. */
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

/** The lock of a dead supervisor. A supervisor whose program is dead and that does not end by itself is killed. */
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

/** Whether the supervisor of an unnamed folder was never started: a folder gets its name once it is locked. */
const isAbandoned = (state: string): boolean => Date.now() - fs.statSync(state).mtimeMs > 60_000

/** The remains of a dead supervisor, after one more attempt to remove them. */
const endOnce = (tree: () => Tree, name: string, state: string): ReadonlyArray<string> => {
  const processes = [...new Set([...processesOf(name), ...recordedIn(state)])]
  processes.forEach((pid) => kill(pid))
  const cgroups = cgroupsOf(tree(), name).filter((cgroup) => fs.existsSync(cgroup) && !removeCgroup(cgroup))
  return [...cgroups, ...processes.map((pid) => `process ${pid}`)]
}

/** Removes the remains of a dead supervisor; true when only its folder is left. */
const end = (tree: () => Tree, name: string, state: string): Effect.Effect<boolean> =>
  Effect.sync(() => endOnce(tree, name, state)).pipe(
    Effect.repeat({ until: (left) => left.length === 0, schedule: patience }),
    Effect.zipRight(Effect.sync(() => endOnce(tree, name, state))),
    Effect.tap((left) =>
      Effect.forEach(left, (resource) =>
        Effect.logWarning(new NotReleased({ resource, syscall: "sweep", errno: EBUSY }))
      )
    ),
    Effect.map((left) => left.length === 0)
  )

const takeOne = (tree: () => Tree, folder: string, name: string, into: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const state = `${folder}/run/${name}`
    const take = Effect.sync(() => fs.renameSync(state, into))
    if (name.startsWith(".")) return isAbandoned(state) ? take : Effect.void
    // A supervisor removes its folder last, and its lock with it; a file that this program wrote meanwhile keeps the folder.
    if (!fs.existsSync(`${state}/lock`)) return take
    return Effect.flatMap(takeLock(state), (lock) =>
      lock === undefined
        ? Effect.void
        : // If something is left, the folder stays: the next Berth finds the rest by its name.
          Effect.zipRight(Effect.whenEffect(take, end(tree, name, state)), Effect.void).pipe(
            Effect.ensuring(Effect.sync(() => fs.closeSync(lock)))
          )
    )
  }).pipe(
    // Another Berth may sweep the same folder.
    Effect.catchAllDefect((cause) => Effect.logDebug(`${folder}/run/${name} was not swept: ${cause}`))
  )

/** The folder of the gates of shared supervisors: files with the names of their state folders. */
export const gatesFolder = (folder: string): string => `${folder}/leases`

/** Removes the gates of supervisors that were killed. */
const removeGates = (folder: string): void => {
  for (const name of list(gatesFolder(folder))) {
    const gate = `${gatesFolder(folder)}/${name}`
    const fd = native().openIn(AT_FDCWD, gate, fs.constants.O_RDWR, RESOLVE_NO_SYMLINKS, 0)
    if (fd < 0) continue
    // Only who has the lock of a gate writes a name, or removes the file, after which another one may have its place.
    const isMine = tryLock(fd, "exclusive") === 0 && link(`/proc/self/fd/${fd}`) === fs.realpathSync(gate)
    if (isMine && !fs.existsSync(`${folder}/run/${read(gate)}/lock`)) fs.rmSync(gate)
    native().close(fd)
  }
}

const STALE = "stale-"

/**
 * Removes what killed supervisors have left below this folder and in this tree of cgroups, and moves their folders into
 * that of a living one.
 */
export const sweep = (folder: string, state: string, tree: () => Tree): Effect.Effect<void> =>
  Effect.forEach(
    list(`${folder}/run`).filter((name) => `${folder}/run/${name}` !== state),
    (name, k) => takeOne(tree, folder, name, `${state}/${STALE}${k}`),
    { discard: true }
  ).pipe(Effect.zipRight(Effect.ignore(Effect.try(() => removeGates(folder)))))

/**
 * Removes the folders that `sweep` has moved, of any size and depth, in the background. The supervisor does that, with
 * the rights of its containers.
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
