/**
 * Locks between processes: flock(2). A process that can open a file for reading can lock it for any time, including a
 * container that has the folder mounted. So a waiter gives up when the holder has given no sign of work for too long.
 */
import * as fs from "node:fs"
import type { PlatformError } from "@effect/platform/Error"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { ImageError } from "../../BerthError.ts"
import { AT_FDCWD, LOCK_EX, LOCK_NB, LOCK_SH, native, O_DIRECTORY } from "../system/addon.ts"
import { describeErrno, EAGAIN, EINTR, errnoName } from "../util/errno.ts"
import { read } from "../util/readFile.ts"
import { storageError } from "./files.ts"

export type Kind = "exclusive" | "shared"

/** Takes the lock of an opened file: 0, EAGAIN if another process has it, or another errno. */
export const tryLock = (fd: number, kind: Kind): number => {
  const result = native().flock(fd, (kind === "shared" ? LOCK_SH : LOCK_EX) | LOCK_NB)
  return result === -EINTR ? EAGAIN : -result
}

const refused = (path: string, errno: number): ImageError =>
  new ImageError({
    reason: "Storage",
    subject: path,
    detail: `flock: ${errnoName(errno)} (${describeErrno(errno)})`
  })

/** A holder that works gives a sign of it more often than this. */
const PATIENCE_MINUTES = 2

/** The interval at which a long-time holder signs that it works, by changing the file's time. */
const SIGN_MILLIS = 20_000

const identityOf = (path: string): { readonly device: string; readonly inode: string } => {
  const { dev, ino } = fs.statSync(path, { bigint: true })
  const [major, minor] = [(dev >> 8n) & 0xfffn, (dev & 0xffn) | ((dev >> 12n) & 0xfff00n)]
  const hex = (part: bigint): string => part.toString(16).padStart(2, "0")
  return { device: `${hex(major)}:${hex(minor)}`, inode: String(ino) }
}

/**
 * The process that has this kind of lock, from proc_locks(5), where some file systems show another device number; undefined if it
 * cannot be seen from here.
 */
export const holderPid = (path: string): number | undefined => {
  try {
    const { device, inode } = identityOf(path)
    const holders = read("/proc/locks")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .filter(([, kind, , , , file = ""]) => kind === "FLOCK" && file.endsWith(`:${inode}`))
    const holder = holders.find(([, , , , , file]) => file === `${device}:${inode}`) ?? holders[0]
    const pid = Number(holder?.[4])
    return pid > 0 ? pid : undefined
  } catch {
    return undefined
  }
}

/** The process that has this kind of lock, for a message. */
export const holderOf = (path: string): string => {
  const pid = holderPid(path)
  if (pid === undefined) return "a process that cannot be seen from here"
  const name = read(`/proc/${pid}/comm`).trim()
  // A lock stays while a child of the process that took it has its descriptor.
  return name === ""
    ? `a child of process ${pid}, which has ended`
    : `process ${pid} (${JSON.stringify(name)})`
}

/** Another process has the lock: the time of its last sign of work, 0 if holders of this lock give no signs. */
interface Held {
  readonly sign: number
}

const isHeld = (outcome: unknown): outcome is Held =>
  typeof outcome === "object" && outcome !== null && "sign" in outcome

const FIRST_DELAY_MILLIS = 1
const DELAY_MILLIS_MAX = 50

/**
 * Retries until the lock is free: it polls, because a blocking flock(2) would stop the event loop. Fails with `Storage`
 * if the holder gives no sign of work for too long.
 */
const polled = <A, E, R>(
  path: string,
  attempt: Effect.Effect<A | Held, E, R>
): Effect.Effect<A, E | ImageError, R> => {
  const again = (since: number, last: number, delay: number): Effect.Effect<A, E | ImageError, R> =>
    Effect.flatMap(attempt, (outcome) =>
      isHeld(outcome)
        ? Effect.flatMap(Clock.currentTimeMillis, (now) => {
            const began = outcome.sign === last ? since : now
            if (now - began > PATIENCE_MINUTES * 60_000) return keptTooLong(path)
            const next = again(began, outcome.sign, Math.min(delay * 2, DELAY_MILLIS_MAX))
            return Effect.zipRight(Effect.sleep(delay), next)
          })
        : Effect.succeed(outcome)
    )
  // File times are never negative, so the first time seen counts as a sign.
  return again(0, -1, FIRST_DELAY_MILLIS)
}

const keptTooLong = (path: string): ImageError =>
  new ImageError({
    reason: "Storage",
    subject: path,
    detail: `has been locked by ${holderOf(path)} for more than ${PATIENCE_MINUTES} minutes without a sign of work: end that process, and do not mount the folder into a container`
  })

/** Waits for the lock of an opened file or folder; the path is for errors. */
export const lock = (fd: number, path: string, kind: Kind): Effect.Effect<void, ImageError> =>
  polled<void, ImageError, never>(
    path,
    Effect.suspend((): Effect.Effect<void | Held, ImageError> => {
      const errno = tryLock(fd, kind)
      if (errno === EAGAIN) return Effect.succeed({ sign: 0 })
      return errno === 0 ? Effect.void : refused(path, errno)
    })
  )

/** Runs an effect while this process holds the lock of a folder. */
export const withFolderLock =
  (path: string, kind: Kind) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | ImageError, R> =>
    Effect.acquireUseRelease(
      Effect.suspend(() => {
        const fd = native().openIn(AT_FDCWD, path, O_DIRECTORY, 0, 0)
        if (fd >= 0) return Effect.succeed(fd)
        const detail = `open: ${errnoName(-fd)} (${describeErrno(-fd)})`
        return Effect.fail(new ImageError({ reason: "Storage", subject: path, detail }))
      }),
      (fd) => Effect.zipRight(lock(fd, path, kind), effect),
      (fd) => Effect.sync(() => native().close(fd))
    )

/** The file, with its lock; "stale" if the locked file is not the file at the path any more. */
const lockFile = (
  fs: FileSystem.FileSystem,
  path: string
): Effect.Effect<Held | "stale" | { readonly file: FileSystem.File }, ImageError, Scope.Scope> =>
  Effect.gen(function* () {
    const file = yield* fs.open(path, { flag: "a", mode: 0o600 })
    const errno = tryLock(file.fd, "exclusive")
    if (errno === EAGAIN)
      return { sign: Option.match((yield* file.stat).mtime, { onNone: () => 0, onSome: Number }) }
    if (errno !== 0) return yield* refused(path, errno)
    // The previous holder may have renamed or removed the file: then this lock has no effect.
    const [mine, theirs] = yield* Effect.all([file.stat, Effect.option(fs.stat(path))])
    const same = Option.exists(
      theirs,
      (info) => info.dev === mine.dev && Option.getOrNull(info.ino) === Option.getOrNull(mine.ino)
    )
    return same ? { file } : ("stale" as const)
  }).pipe(
    Effect.catchIf(
      (error): error is PlatformError => error._tag !== "ImageError",
      (error) => Effect.fail(storageError(path)(error))
    )
  )

/** Changes the file's time until the scope closes, so that others can see that its holder works. */
const giveSigns = (file: FileSystem.File): Effect.Effect<unknown, never, Scope.Scope> =>
  Effect.sync(() => native().setModified(file.fd, Math.floor(Date.now() / 1000), 0)).pipe(
    Effect.delay(SIGN_MILLIS),
    Effect.forever,
    Effect.interruptible,
    Effect.forkScoped
  )

/** Runs on the file before it is closed, if the lock was held, whether `use` succeeded or not. */
type After = (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void>

type Outcome<A> = Held | "stale" | { readonly value: A }

const attempt = <A, E, R>(
  fs: FileSystem.FileSystem,
  path: string,
  use: (file: FileSystem.File) => Effect.Effect<A, E, R>,
  after: After
): Effect.Effect<Outcome<A>, E | ImageError, R> =>
  // Uninterruptible, so that a created file always has a finalizer that removes it.
  Effect.uninterruptibleMask((restore) =>
    Effect.scoped(
      Effect.flatMap(
        lockFile(fs, path),
        (locked): Effect.Effect<Outcome<A>, E, R | Scope.Scope> =>
          locked === "stale" || isHeld(locked)
            ? Effect.succeed(locked)
            : Effect.zipRight(
                giveSigns(locked.file),
                Effect.map(Effect.onExit(restore(use(locked.file)), after), (value) => ({ value }))
              )
      )
    )
  ) as Effect.Effect<Outcome<A>, E | ImageError, R>

const nothing: After = () => Effect.void

/**
 * Runs `use` while this process holds the lock of the file, which is made if it is missing. The holder may rename or
 * remove the file, in `after` at the latest. Between fibers of one process, `oneAtATime` avoids the polling.
 */
export const withFileLock = <A, E, R>(
  fs: FileSystem.FileSystem,
  path: string,
  use: (file: FileSystem.File) => Effect.Effect<A, E, R>,
  after: After = nothing
): Effect.Effect<A, E | ImageError, R> => {
  const once: Effect.Effect<Held | { readonly value: A }, E | ImageError, R> = Effect.flatMap(
    attempt(fs, path, use, after),
    (outcome) => (outcome === "stale" ? once : Effect.succeed(outcome))
  )
  return Effect.map(polled<{ readonly value: A }, E | ImageError, R>(path, once), ({ value }) => value)
}

/** The same, but does nothing and gives none if something else holds the lock. */
export const tryFileLock = <A, E, R>(
  fs: FileSystem.FileSystem,
  path: string,
  use: (file: FileSystem.File) => Effect.Effect<A, E, R>,
  after: After = nothing
): Effect.Effect<Option.Option<A>, E | ImageError, R> =>
  Effect.flatMap(attempt(fs, path, use, after), (outcome) =>
    outcome === "stale"
      ? tryFileLock(fs, path, use, after)
      : Effect.succeed(isHeld(outcome) ? Option.none() : Option.some(outcome.value))
  )
