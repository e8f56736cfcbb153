/**
 * Freezes cgroups: freezer.state on version 1 (cgroup-v1/freezer-subsystem.rst), cgroup.freeze on version 2 (Linux 5.2).
 * Version 1 also holds killed processes, so these are let out before they can die.
 */
import * as fs from "node:fs"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import { type BerthError, CgroupError } from "../../BerthError.ts"
import type { Cgroup, Folder } from "../../Cgroup.ts"
import { read } from "../util/readFile.ts"
import * as internal from "./cgroup.ts"
import * as events from "./events.ts"

/** Whether this program has frozen it. */
export const isFrozen = (cgroup: Cgroup | undefined): boolean => cgroup?.state.frozen === true

/** The state of a cgroup, or of a container that may get one: the number of processes that are entering it. */
export interface Entered {
  entering: number
}

const count = (all: ReadonlyArray<Entered>, change: 1 | -1): void => {
  for (const one of all) one.entering += change
}

/**
 * Starts a process in places that could be frozen meanwhile: a freeze waits until the process executes its command. Call it in an
 * uninterruptible region, where one step does what `Effect.ensuring` needs several for.
 */
export const enter =
  (all: ReadonlyArray<Entered>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      count(all, 1)
      return Effect.matchCauseEffect(effect, {
        onFailure: (cause) => {
          count(all, -1)
          return Effect.failCause(cause)
        },
        onSuccess: (value) => {
          count(all, -1)
          return Effect.succeed(value)
        }
      })
    })

/** Lets a freeze wait for a killed process, which would stay if it were frozen before its end. */
export const leave = (
  all: ReadonlyArray<Entered>,
  gone: Effect.Effect<unknown, unknown>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    count(all, 1)
    const left = Effect.sync(() => count(all, -1))
    return Effect.asVoid(Effect.forkDaemon(Effect.ensuring(Effect.exit(gone), left)))
  }).pipe(Effect.uninterruptible)

const entered = (all: ReadonlyArray<Entered>): Effect.Effect<void> =>
  Effect.suspend(() =>
    all.every(({ entering }) => entering === 0) ? Effect.void : Effect.zipRight(Effect.sleep(1), entered(all))
  )

/** The same, with the time limit of a freeze. */
export const settled = (one: Entered): Effect.Effect<void> =>
  Effect.asVoid(Effect.timeoutOption(entered([one]), PATIENCE))

const PATIENCE = "5 seconds"

const folderOf = (cgroup: Cgroup): Folder | undefined =>
  cgroup.folders.find(({ controllers }) => controllers.includes("freezer"))

const write = (
  { path, version }: Folder,
  frozen: boolean,
  still: () => boolean = () => true
): Effect.Effect<void, BerthError> => {
  const [file, value] =
    version === 1 ? ["freezer.state", frozen ? "FROZEN" : "THAWED"] : ["cgroup.freeze", frozen ? "1" : "0"]
  return internal.filesOf("freezer", `${path}/${file}`, () => {
    if (still()) fs.writeFileSync(`${path}/${file}`, value)
  })
}

const TRIES_BEFORE_THAW = 50

// Version 1 does not report the end of a freeze: its file computes it when it is read. It misses processes that are forked in
// the meantime; the next write catches them, or a short thaw in between, as in runc. After a thaw by another fiber nothing is
// written here.
const untilFrozen = (cgroup: Cgroup, folder: Folder): Effect.Effect<void, BerthError> => {
  const file = `${folder.path}/freezer.state`
  const isWanted = () => isFrozen(cgroup)
  const attempt = (tries: number): Effect.Effect<void, BerthError> =>
    Effect.flatMap(write(folder, true, isWanted), () => {
      if (!isWanted() || read(file).trim() === "FROZEN") return Effect.void
      const again = Effect.zipRight(
        Effect.sleep(tries < 10 ? 1 : 10),
        Effect.suspend(() => attempt(tries + 1))
      )
      return tries % TRIES_BEFORE_THAW === TRIES_BEFORE_THAW - 1
        ? Effect.zipRight(write(folder, false), again)
        : again
    })
  if (folder.version === 1) return attempt(0)
  return Effect.zipRight(
    write(folder, true, isWanted),
    Effect.raceFirst(events.frozen(folder.path), thawed(cgroup))
  )
}

const thawed = (cgroup: Cgroup): Effect.Effect<void> =>
  Effect.suspend(() => (isFrozen(cgroup) ? Effect.zipRight(Effect.sleep(10), thawed(cgroup)) : Effect.void))

/**
 * Succeeds once all processes in the cgroup are frozen, or have been thawed since. No process enters it from now on, and
 * those that enter `container` have done so.
 */
export const freeze = (cgroup: Cgroup, container?: Entered): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    yield* internal.extend(cgroup, [{ controller: "freezer", option: "freeze" }])
    const folder = folderOf(cgroup)
    if (folder === undefined) return yield* internal.gone(cgroup)
    if (isFrozen(cgroup)) return
    cgroup.state.frozen = true
    yield* stand(cgroup, folder, container).pipe(Effect.onError(() => Effect.ignore(thaw(cgroup))))
  }).pipe(internal.inTurn(cgroup.state, "freezing").withPermits(1))

const stand = (cgroup: Cgroup, folder: Folder, container?: Entered): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const all = entered(container === undefined ? [cgroup.state] : [cgroup.state, container])
    const done = yield* Effect.timeoutOption(Effect.zipRight(all, untilFrozen(cgroup, folder)), PATIENCE)
    if (done._tag === "Some") return
    yield* new CgroupError({
      reason: "Refused",
      controller: "freezer",
      path: folder.path,
      errno: 0,
      detail: "a process waits in the kernel and cannot be frozen: all processes run again; try later"
    })
  })

/** Does nothing if the cgroup is not frozen, or does not exist any more. */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const folder = folderOf(cgroup)
    if (folder === undefined) return Effect.void
    cgroup.state.frozen = false
    return Effect.catchIf(
      write(folder, false),
      (error) => error._tag === "CgroupError" && error.reason === "Gone",
      () => Effect.void
    )
  })

/**
 * Kills processes of a frozen cgroup and moves them out of it, so that they die while the others stay frozen. On version 2
 * killed processes die anyway.
 */
export const letOut = (cgroup: Cgroup, pids: () => ReadonlyArray<number>): void => {
  const folder = folderOf(cgroup)
  if (folder?.version !== 1) return
  for (const pid of pids()) {
    try {
      process.kill(pid, "SIGKILL")
      internal.moveTo(dirname(folder.path), pid)
    } catch {
      // The process has ended, or the whole cgroup has.
    }
  }
}
