/**
 * A cgroup that stands still: freezer.state on version 1 (cgroup-v1/freezer-subsystem.rst), cgroup.freeze on version 2
 * (Linux 5.2). Version 1 holds even what has been killed, so what has to die is let go first.
 */
import * as fs from "node:fs"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import { type BerthError, CgroupError } from "../../BerthError.ts"
import type { Cgroup, Folder } from "../../Cgroup.ts"
import { read } from "../util/readFile.ts"
import * as internal from "./cgroup.ts"
import * as events from "./events.ts"

// Those that stand still, or are about to.
const standing = new WeakSet<Cgroup>()
// One at a time freezes a cgroup; who thaws it waits for nobody.
const freezing = new WeakMap<Cgroup, Effect.Semaphore>()

const inTurn = (cgroup: Cgroup): Effect.Semaphore => {
  const known = freezing.get(cgroup) ?? Effect.unsafeMakeSemaphore(1)
  freezing.set(cgroup, known)
  return known
}

/** Whether this program has frozen it. */
export const isFrozen = (cgroup: Cgroup | undefined): boolean => cgroup !== undefined && standing.has(cgroup)

// How many processes are about to enter what a key stands for: a cgroup, or a container that may get one.
const entering = new WeakMap<object, number>()

const count = (keys: ReadonlyArray<object>, change: 1 | -1): Effect.Effect<void> =>
  Effect.sync(() => {
    for (const key of keys) entering.set(key, (entering.get(key) ?? 0) + change)
  })

/** Starts a process in something that could be frozen meanwhile, which then waits until it has executed its command. */
export const enter =
  (keys: ReadonlyArray<object>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.zipRight(count(keys, 1), Effect.ensuring(effect, count(keys, -1)))

/** Has who freezes it wait for what has been killed in it, which would stay if it stood still before it is gone. */
export const leave = (
  keys: ReadonlyArray<object>,
  gone: Effect.Effect<unknown, unknown>
): Effect.Effect<void> =>
  Effect.zipRight(
    count(keys, 1),
    Effect.asVoid(Effect.forkDaemon(Effect.ensuring(Effect.exit(gone), count(keys, -1))))
  ).pipe(Effect.uninterruptible)

const entered = (keys: ReadonlyArray<object>): Effect.Effect<void> =>
  Effect.suspend(() =>
    keys.every((key) => (entering.get(key) ?? 0) === 0)
      ? Effect.void
      : Effect.zipRight(Effect.sleep(1), entered(keys))
  )

/** The same, for no longer than a freeze would. */
export const settled = (key: object): Effect.Effect<void> =>
  Effect.asVoid(Effect.timeoutOption(entered([key]), PATIENCE))

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

// Version 1 does not tell: its file finds out when it is read. And it leaves out what is forked in the meantime, which it
// takes in with the next write, or once it has let all go for a moment; runc does the same. Who thaws it meanwhile is
// later than this, and nothing is written after him.
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
 * Succeeds once everything in it stands still, or has been let go on since. Nothing enters it from now on, and what
 * enters `container` has done so.
 */
export const freeze = (cgroup: Cgroup, container?: object): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    yield* internal.extend(cgroup, [{ controller: "freezer", option: "freeze" }])
    const folder = folderOf(cgroup)
    if (folder === undefined) return yield* internal.gone(cgroup)
    if (isFrozen(cgroup)) return
    standing.add(cgroup)
    yield* stand(cgroup, folder, container).pipe(Effect.onError(() => Effect.ignore(thaw(cgroup))))
  }).pipe(inTurn(cgroup).withPermits(1))

const stand = (cgroup: Cgroup, folder: Folder, container?: object): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const all = entered(container === undefined ? [cgroup] : [cgroup, container])
    const done = yield* Effect.timeoutOption(Effect.zipRight(all, untilFrozen(cgroup, folder)), PATIENCE)
    if (done._tag === "Some") return
    yield* new CgroupError({
      reason: "Refused",
      controller: "freezer",
      path: folder.path,
      errno: 0,
      detail: "a process waits in the kernel and did not stop: everything runs again; try later"
    })
  })

/** Nothing happens where it is not frozen, or no longer there. */
export const thaw = (cgroup: Cgroup): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const folder = folderOf(cgroup)
    if (folder === undefined) return Effect.void
    standing.delete(cgroup)
    return Effect.catchIf(
      write(folder, false),
      (error) => error._tag === "CgroupError" && error.reason === "Gone",
      () => Effect.void
    )
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
