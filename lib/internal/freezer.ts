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
import { read } from "./hostFiles.ts"

const standing = new WeakSet<Cgroup>()

/** Whether this program has frozen it. */
export const isFrozen = (cgroup: Cgroup | undefined): boolean => cgroup !== undefined && standing.has(cgroup)

// How many processes are about to enter what a key stands for: a cgroup, or a container that may get one.
const entering = new WeakMap<object, number>()

const count = (keys: ReadonlyArray<object>, change: 1 | -1): Effect.Effect<void> =>
  Effect.sync(() => {
    for (const key of keys) entering.set(key, (entering.get(key) ?? 0) + change)
  })

/**
 * Starts a process in something that could be frozen meanwhile, which then waits: a child that has not executed yet may
 * have the supervisor wait for it.
 */
export const enter =
  (keys: ReadonlyArray<object>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.zipRight(count(keys, 1), Effect.ensuring(effect, count(keys, -1)))

const entered = (keys: ReadonlyArray<object>): Effect.Effect<void> =>
  Effect.suspend(() =>
    keys.every((key) => (entering.get(key) ?? 0) === 0)
      ? Effect.void
      : Effect.zipRight(Effect.sleep(1), entered(keys))
  )

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

/** Succeeds once everything in it stands still. Nothing enters it from now on, and what enters `container` has done so. */
export const freeze = (cgroup: Cgroup, container?: object): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    yield* internal.extend(cgroup, [{ controller: "freezer", option: "freeze" }])
    const folder = folderOf(cgroup)
    if (folder === undefined) return yield* internal.gone(cgroup)
    standing.add(cgroup)
    const all = entered(container === undefined ? [cgroup] : [cgroup, container])
    const done = yield* Effect.timeoutOption(Effect.zipRight(all, untilFrozen(folder)), PATIENCE)
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
