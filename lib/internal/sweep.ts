/**
 * What a supervisor leaves when it is killed: its state folder, with what units kept on disk, and its cgroups. Whose
 * lock can be had is dead.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { tree } from "./cgroup.ts"
import { LOCK_EX, LOCK_NB, native } from "./native.ts"

const list = (folder: string): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

const kill = (cgroup: string): void => {
  for (const line of fs.readFileSync(`${cgroup}/cgroup.procs`, "utf8").split("\n")) {
    if (Number(line) > 0) process.kill(Number(line), "SIGKILL")
  }
  // What version 1's freezer holds would not die otherwise.
  if (fs.existsSync(`${cgroup}/freezer.state`)) fs.writeFileSync(`${cgroup}/freezer.state`, "THAWED")
}

const removeCgroup = (cgroup: string): void => {
  for (const entry of fs.readdirSync(cgroup, { withFileTypes: true })) {
    if (entry.isDirectory()) removeCgroup(`${cgroup}/${entry.name}`)
  }
  kill(cgroup)
  fs.rmdirSync(cgroup)
}

/** Removes a dead supervisor's cgroups: they carry the name of its state folder. False while a process is still dying. */
const removeCgroups = (name: string): boolean => {
  const folders = new Set(Object.values(tree().controllers).map((hierarchy) => hierarchy.folder))
  let gone = true
  for (const folder of folders) {
    for (const cgroup of list(folder).filter((entry) => entry.startsWith(`berth.${name}.`))) {
      try {
        removeCgroup(`${folder}/${cgroup}`)
      } catch {
        gone = !fs.existsSync(`${folder}/${cgroup}`) && gone
      }
    }
  }
  return gone
}

/** Takes a dead supervisor's lock, or undefined where it lives. */
const lockOf = (state: string): number | undefined => {
  try {
    const fd = fs.openSync(`${state}/lock`, "r+")
    if (native().flock(fd, LOCK_EX | LOCK_NB) === 0) return fd
    fs.closeSync(fd)
  } catch {
    // Gone already.
  }
  return undefined
}

// A process that was killed needs a moment to leave its cgroup.
const patience = Schedule.intersect(Schedule.spaced("10 millis"), Schedule.recurs(100))

/** A folder whose supervisor never came to be: it has its final name only once it is locked. */
const isAbandoned = (state: string): boolean => Date.now() - fs.statSync(state).mtimeMs > 60_000

const sweepOne = (state: string, name: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (name.startsWith(".")) {
      return Effect.ignore(
        Effect.try(() => isAbandoned(state) && fs.rmSync(state, { recursive: true, force: true }))
      )
    }
    const lock = lockOf(state)
    if (lock === undefined) return Effect.void
    return Effect.sync(() => removeCgroups(name)).pipe(
      Effect.repeat({ until: (gone) => gone, schedule: patience }),
      Effect.zipRight(Effect.sync(() => fs.rmSync(state, { recursive: true, force: true }))),
      Effect.catchAllDefect((cause) => Effect.logWarning(`${state} could not be swept: ${cause}`)),
      Effect.ensuring(Effect.sync(() => fs.closeSync(lock)))
    )
  })

/** Gives back what supervisors that were killed have left below this folder. */
export const sweep = (folder: string): Effect.Effect<void> =>
  Effect.forEach(list(`${folder}/run`), (name) => sweepOne(`${folder}/run/${name}`, name), { discard: true })
