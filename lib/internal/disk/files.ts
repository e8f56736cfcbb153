/** File operations of the store and the layers: bounded reads, durable writes, exclusive access between fibers. */
import { randomBytes } from "node:crypto"
import { closeSync, constants, fstatSync, openSync, readSync, statSync } from "node:fs"
import type { PlatformError } from "@effect/platform/Error"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { ImageError } from "../../BerthError.ts"
import { concat } from "../util/bytes.ts"
import { tooLarge } from "./tooLarge.ts"

/** The text of a disk's errno, with advice if there is any. */
export const storageDetail = (code: string, text: string, folder: string): string =>
  code === "ENOSPC" || code === "EDQUOT"
    ? `the disk is full (${code}): make room on the filesystem of ${folder}`
    : code === "EROFS"
      ? `the filesystem of ${folder} is read-only (EROFS): give Berth another folder`
      : text

/** A failure of the file system as an `ImageError` with `Storage`; callers handle `NotFound` before. */
export const storageError =
  (subject: string, folder: string = subject) =>
  (error: PlatformError): ImageError => {
    const cause = (error as { cause?: { code?: unknown } }).cause
    const code = typeof cause?.code === "string" ? cause.code : ""
    return new ImageError({
      reason: "Storage",
      subject,
      detail: storageDetail(code, error.message, folder),
      cause: error
    })
  }

/** Maps the failures of file system effects to `Storage` errors about `subject`. */
export const io =
  (subject: string, folder: string = subject) =>
  <A, R>(effect: Effect.Effect<A, PlatformError, R>): Effect.Effect<A, ImageError, R> =>
    Effect.mapError(effect, storageError(subject, folder))

export const isNotFound = (error: PlatformError): boolean =>
  error._tag === "SystemError" && (error.reason === "NotFound" || error.reason === "BadResource")

/** Up to this size, a file is read at once: each step of an asynchronous read takes longer than all of it. */
const SMALL_BYTES = 64 * 1024

/** The bytes of a small regular file; undefined for any other, and if something fails. */
const readSmall = (path: string, limit: number): Uint8Array | undefined => {
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    try {
      const info = fstatSync(fd)
      if (!info.isFile() || info.size > Math.min(limit, SMALL_BYTES)) return undefined
      const bytes = new Uint8Array(info.size + 1)
      const length = readSync(fd, bytes, 0, bytes.length, 0)
      // It may be growing.
      return length === info.size ? bytes.subarray(0, length) : undefined
    } finally {
      closeSync(fd)
    }
  } catch {
    return undefined
  }
}

/** Reads a regular file of at most `limit` bytes; none if the file does not exist. */
export const readBounded = (
  fs: FileSystem.FileSystem,
  path: string,
  subject: string,
  limit: number
): Effect.Effect<Option.Option<Uint8Array>, ImageError> =>
  Effect.gen(function* () {
    const small = readSmall(path, limit)
    if (small !== undefined) return Option.some(small)
    const info = yield* fs.stat(path)
    if (info.type !== "File") {
      const detail = `${path} is not a regular file: move it away, and pull or load the image again`
      return yield* new ImageError({ reason: "Corrupt", subject, detail })
    }
    if (info.size > limit) return yield* tooLarge(subject, Number(info.size), limit)
    const chunks = yield* Stream.runCollect(fs.stream(path, { bytesToRead: limit + 1 }))
    const bytes = concat(chunks)
    return bytes.length > limit ? yield* tooLarge(subject, bytes.length, limit) : Option.some(bytes)
  }).pipe(
    Effect.catchIf(
      (error): error is PlatformError => error._tag !== "ImageError",
      (error) => (isNotFound(error) ? Effect.succeedNone : Effect.fail(storageError(subject)(error)))
    )
  )

/** The kind of entry at a path, without following links; undefined if it does not exist. */
const kindAt = (
  fs: FileSystem.FileSystem,
  path: string
): Effect.Effect<FileSystem.File.Type | undefined, PlatformError> =>
  // Only a symbolic link has a target to read.
  Effect.matchEffect(fs.readLink(path), {
    onSuccess: () => Effect.succeed("SymbolicLink" as const),
    onFailure: () =>
      fs.stat(path).pipe(
        Effect.map(({ type }) => type),
        Effect.catchIf(isNotFound, () => Effect.succeed(undefined))
      )
  })

/** Moves an entry of another kind away from the target of a rename(2), which only replaces the same kind. */
export const clearWay = (
  fs: FileSystem.FileSystem,
  path: string,
  kind: "File" | "Directory"
): Effect.Effect<void, PlatformError> =>
  Effect.flatMap(kindAt(fs, path), (found) =>
    found === undefined || found === kind
      ? Effect.void
      : fs.rename(path, `${path}.broken-${randomBytes(8).toString("hex")}`)
  )

export const isFolder = (fs: FileSystem.FileSystem, path: string): Effect.Effect<boolean, PlatformError> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(statSync(path, { throwIfNoEntry: false })?.isDirectory() === true)
    } catch {
      // For the error in the platform's form.
      return Effect.map(fs.stat(path), ({ type }) => type === "Directory")
    }
  }).pipe(Effect.catchIf(isNotFound, () => Effect.succeed(false)))

/** Makes a rename inside the folder durable against a power cut. */
export const syncFolder = (fs: FileSystem.FileSystem, folder: string): Effect.Effect<void, PlatformError> =>
  Effect.scoped(Effect.flatMap(fs.open(folder, { flag: "r" }), (file) => file.sync))

/** Replaces a file atomically: every reader sees the old or the new content. Call under a lock. */
export const replaceFile = (
  fs: FileSystem.FileSystem,
  folder: string,
  name: string,
  bytes: Uint8Array
): Effect.Effect<void, PlatformError> => {
  const temporary = `${folder}/.${name}.new`
  return Effect.scoped(
    Effect.gen(function* () {
      const file = yield* fs.open(temporary, { flag: "w", mode: 0o644 })
      yield* file.writeAll(bytes)
      yield* file.sync
    })
  ).pipe(
    Effect.zipRight(fs.rename(temporary, `${folder}/${name}`)),
    Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true }))),
    Effect.zipRight(syncFolder(fs, folder))
  )
}

/** Writes a part of a stream, which may be empty: the platform's File refuses to write zero bytes. */
export const append = (file: FileSystem.File, bytes: Uint8Array): Effect.Effect<void, PlatformError> =>
  bytes.length === 0 ? Effect.void : file.writeAll(bytes)

/** The holder of a key, and the number of waiting fibers. */
export type Turns = Map<string, { readonly semaphore: Effect.Semaphore; users: number }>

/** Runs one fiber of a Berth at a time for a key; if a fiber is interrupted, the next one runs. */
export const oneAtATime =
  ({ turns }: { readonly turns: Turns }, key: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const turn = turns.get(key) ?? { semaphore: Effect.unsafeMakeSemaphore(1), users: 0 }
        turn.users++
        turns.set(key, turn)
        return turn
      }),
      (turn) => turn.semaphore.withPermits(1)(effect),
      (turn) =>
        Effect.sync(() => {
          if (--turn.users === 0) {
            turns.delete(key)
          }
        })
    )
