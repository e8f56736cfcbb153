/**
 * How long a lock is waited for. Whoever can open a file for reading can lock it (flock(2)), a container among them that
 * was given a folder with it, and can keep the lock for as long as it likes.
 */
import * as fs from "node:fs"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { ImageError } from "../../BerthError.ts"
import { read } from "./readFile.ts"

/** Longer than anybody who is at work goes without a sign of it. */
const PATIENCE_MINUTES = 2

/** How often who holds the lock of a file for long gives a sign of being at work: the file's time changes. */
export const SIGN_MILLIS = 20_000

const identityOf = (path: string): { readonly device: string; readonly inode: string } => {
  const { dev, ino } = fs.statSync(path, { bigint: true })
  const [major, minor] = [(dev >> 8n) & 0xfffn, (dev & 0xffn) | ((dev >> 12n) & 0xfff00n)]
  const hex = (part: bigint): string => part.toString(16).padStart(2, "0")
  return { device: `${hex(major)}:${hex(minor)}`, inode: String(ino) }
}

/** Who has a lock of this kind on a file, by proc_locks(5), where some file systems have another number for the device. */
const holderOf = (path: string): string => {
  try {
    const { device, inode } = identityOf(path)
    const holders = read("/proc/locks")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .filter(([, kind, , , , file = ""]) => kind === "FLOCK" && file.endsWith(`:${inode}`))
    const holder = holders.find(([, , , , , file]) => file === `${device}:${inode}`) ?? holders[0]
    const pid = holder?.[4]
    if (pid === undefined || Number(pid) <= 0) return "a process that cannot be seen from here"
    const name = read(`/proc/${pid}/comm`).trim()
    // What was locked by a process stays so while a child has its descriptor.
    return name === ""
      ? `a child of process ${pid}, which has ended`
      : `process ${pid} (${JSON.stringify(name)})`
  } catch {
    return "a process that cannot be seen from here"
  }
}

/** When the waiting began, and the last sign of work that was seen. */
export interface Waiting {
  readonly since: number
  readonly sign: number
}

/** Goes on waiting, or fails where nobody has given a sign of work for too long. */
export const wait = (
  path: string,
  waiting: Waiting | undefined,
  sign: number,
  delayMillis: number
): Effect.Effect<Waiting, ImageError> =>
  Effect.flatMap(Clock.currentTimeMillis, (now): Effect.Effect<Waiting, ImageError> => {
    const next = waiting?.sign === sign ? waiting : { since: now, sign }
    if (now - next.since <= PATIENCE_MINUTES * 60_000) return Effect.as(Effect.sleep(delayMillis), next)
    const detail = `has been locked by ${holderOf(path)} for more than ${PATIENCE_MINUTES} minutes without a sign of work: end that process, and give no container this folder`
    return Effect.fail(new ImageError({ reason: "Storage", subject: path, detail }))
  })
