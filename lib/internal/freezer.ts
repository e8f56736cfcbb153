/**
 * A cgroup that stands still: freezer.state on version 1 (cgroup-v1/freezer-subsystem.rst), cgroup.freeze on version 2
 * (Linux 5.2). Version 1 holds even what has been killed, so what has to die is let go first.
 */
import * as fs from "node:fs"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import { type BerthError, CgroupError } from "../BerthError.ts"
import type { Cgroup, Folder } from "../Cgroup.ts"
import * as internal from "./cgroup.ts"
import * as events from "./cgroupEvents.ts"
import { read } from "./cgroupLimits.ts"

const standing = new WeakSet<Cgroup>()

/** Whether this program has frozen it. */
export const isFrozen = (cgroup: Cgroup | undefined): boolean => cgroup !== undefined && standing.has(cgroup)

const folderOf = (cgroup: Cgroup): Folder | undefined =>
  cgroup.folders.find(({ controllers }) => controllers.includes("freezer"))

const write = ({ path, version }: Folder, frozen: boolean): Effect.Effect<void, BerthError> => {
  const [file, value] =
    version === 1 ? ["freezer.state", frozen ? "FROZEN" : "THAWED"] : ["cgroup.freeze", frozen ? "1" : "0"]
  return internal.filesOf("freezer", `${path}/${file}`, () => fs.writeFileSync(`${path}/${file}`, value))
}

const PATIENCE = "5 seconds"
const TRIES_BEFORE_THAW = 50

// Version 1 does not tell: its file finds out when it is read. And it leaves out what is forked in the meantime, which it
// takes in with the next write, or once it has let all go for a moment; runc does the same.
const untilFrozen = (folder: Folder): Effect.Effect<unknown, BerthError> => {
  const file = `${folder.path}/freezer.state`
  const attempt = (tries: number): Effect.Effect<void, BerthError> =>
    Effect.flatMap(write(folder, true), () => {
      if (read(file).trim() === "FROZEN") return Effect.void
      const again = Effect.zipRight(
        Effect.sleep(tries < 10 ? 1 : 10),
        Effect.suspend(() => attempt(tries + 1))
      )
      return tries % TRIES_BEFORE_THAW === TRIES_BEFORE_THAW - 1
        ? Effect.zipRight(write(folder, false), again)
        : again
    })
  return folder.version === 1 ? attempt(0) : Effect.zipRight(write(folder, true), events.frozen(folder.path))
}

/** Succeeds once everything in it stands still. */
export const freeze = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    yield* internal.extend(cgroup, [{ controller: "freezer", option: "freeze" }])
    const folder = folderOf(cgroup)
    if (folder === undefined) return yield* internal.gone(cgroup)
    standing.add(cgroup)
    const done = yield* Effect.timeoutOption(untilFrozen(folder), PATIENCE)
    if (done._tag === "Some") return
    yield* new CgroupError({
      reason: "Refused",
      controller: "freezer",
      path: folder.path,
      errno: 0,
      detail: "a process waits in the kernel and cannot be stopped: everything runs again, try later"
    })
  }).pipe(Effect.onError(() => Effect.ignore(thaw(cgroup))))

/** Nothing happens where it is not frozen. */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const folder = folderOf(cgroup)
    if (folder === undefined) return Effect.void
    standing.delete(cgroup)
    return write(folder, false)
  })

/**
 * Lets processes out of a frozen cgroup, so that those of them that have been killed die while the others in it still
 * stand. Version 2 lets what is killed die anyway.
 */
export const letOut = (cgroup: Cgroup, pids: () => ReadonlyArray<number>): void => {
  const folder = folderOf(cgroup)
  if (folder?.version !== 1) return
  for (const pid of pids()) {
    try {
      process.kill(pid, "SIGKILL")
      internal.moveTo(dirname(folder.path), pid)
    } catch {
      // It has ended, or all of the cgroup has.
    }
  }
}
