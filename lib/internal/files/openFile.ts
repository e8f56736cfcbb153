/** A File of `@effect/platform`, on a descriptor of node:fs. */
import * as fs from "node:fs"
import { type PlatformError, SystemError } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Ids, inside } from "../ids/idMaps.ts"
import { platformError } from "./platformError.ts"

const typeOf = (status: fs.Stats): FileSystem.File.Type =>
  status.isFile()
    ? "File"
    : status.isDirectory()
      ? "Directory"
      : status.isSymbolicLink()
        ? "SymbolicLink"
        : status.isBlockDevice()
          ? "BlockDevice"
          : status.isCharacterDevice()
            ? "CharacterDevice"
            : status.isFIFO()
              ? "FIFO"
              : status.isSocket()
                ? "Socket"
                : "Unknown"

/** The status of a file, with the ids of a container. */
export const infoOf = (status: fs.Stats, ids: Ids): FileSystem.File.Info => ({
  type: typeOf(status),
  mtime: Option.fromNullable(status.mtime),
  atime: Option.fromNullable(status.atime),
  birthtime: Option.fromNullable(status.birthtime),
  dev: status.dev,
  rdev: Option.fromNullable(status.rdev),
  ino: Option.fromNullable(status.ino),
  mode: status.mode,
  nlink: Option.fromNullable(status.nlink),
  uid: Option.some(inside(ids.uids, status.uid)),
  gid: Option.some(inside(ids.gids, status.gid)),
  size: FileSystem.Size(status.size),
  blksize: Option.map(Option.fromNullable(status.blksize), FileSystem.Size),
  blocks: Option.fromNullable(status.blocks)
})

type Callback<A> = (error: NodeJS.ErrnoException | null, value: A) => void

export class OpenFile implements FileSystem.File {
  readonly [FileSystem.FileTypeId]: FileSystem.FileTypeId = FileSystem.FileTypeId
  readonly fd: FileSystem.File.Descriptor
  private readonly append: boolean
  private readonly ids: Ids
  private readonly semaphore = Effect.unsafeMakeSemaphore(1)
  private position = 0n
  private pending = 0
  private closed = false

  constructor(fd: number, append: boolean, ids: Ids) {
    this.fd = FileSystem.FileDescriptor(fd)
    this.append = append
    this.ids = ids
  }

  /**
   * Closes the descriptor after the calls that were interrupted: a later one could reach another file with the same
   * number.
   */
  close(): void {
    this.closed = true
    if (this.pending === 0) fs.close(this.fd, () => {})
  }

  private call<A>(method: string, start: (done: Callback<A>) => void): Effect.Effect<A, PlatformError> {
    return Effect.async((resume) => {
      const mapped = platformError(method, this.fd)
      this.pending++
      const settle = (exit: Effect.Effect<A, PlatformError>): void => {
        this.pending--
        if (this.closed) this.close()
        resume(exit)
      }
      try {
        start((error, value) => settle(error ? Effect.fail(mapped(error)) : Effect.succeed(value)))
      } catch (error) {
        settle(Effect.fail(mapped(error)))
      }
    })
  }

  get stat(): Effect.Effect<FileSystem.File.Info, PlatformError> {
    return Effect.map(
      this.call<fs.Stats>("stat", (done) => fs.fstat(this.fd, done)),
      (status) => infoOf(status, this.ids)
    )
  }

  get sync(): Effect.Effect<void, PlatformError> {
    return this.call<void>("sync", (done) => fs.fsync(this.fd, done as fs.NoParamCallback))
  }

  seek(offset: FileSystem.SizeInput, from: FileSystem.SeekMode): Effect.Effect<bigint> {
    return this.semaphore.withPermits(1)(
      Effect.sync(() => {
        if (from === "start") this.position = BigInt(offset)
        else if (from === "current") this.position += BigInt(offset)
        return this.position
      })
    )
  }

  private readInto(method: string, buffer: Uint8Array): Effect.Effect<number, PlatformError> {
    return Effect.map(
      this.call<number>(method, (done) =>
        fs.read(this.fd, buffer, 0, buffer.length, Number(this.position), done)
      ),
      (bytes) => {
        this.position += BigInt(bytes)
        return bytes
      }
    )
  }

  read(buffer: Uint8Array): Effect.Effect<FileSystem.Size, PlatformError> {
    return this.semaphore.withPermits(1)(Effect.map(this.readInto("read", buffer), FileSystem.Size))
  }

  readAlloc(size: FileSystem.SizeInput): Effect.Effect<Option.Option<Uint8Array>, PlatformError> {
    return this.semaphore.withPermits(1)(
      Effect.suspend(() => {
        const buffer = new Uint8Array(Number(size))
        return Effect.map(this.readInto("readAlloc", buffer), (bytes) =>
          bytes === 0 ? Option.none() : Option.some(bytes === buffer.length ? buffer : buffer.slice(0, bytes))
        )
      })
    )
  }

  truncate(length?: FileSystem.SizeInput): Effect.Effect<void, PlatformError> {
    return this.semaphore.withPermits(1)(
      Effect.map(
        this.call<void>("truncate", (done) =>
          fs.ftruncate(this.fd, length ? Number(length) : undefined, done as fs.NoParamCallback)
        ),
        () => {
          const end = BigInt(length ?? 0)
          if (!this.append && this.position > end) this.position = end
        }
      )
    )
  }

  private writeFrom(method: string, buffer: Uint8Array): Effect.Effect<number, PlatformError> {
    return Effect.map(
      this.call<number>(method, (done) =>
        fs.write(this.fd, buffer, 0, buffer.length, this.append ? null : Number(this.position), done)
      ),
      (bytes) => {
        if (!this.append) this.position += BigInt(bytes)
        return bytes
      }
    )
  }

  write(buffer: Uint8Array): Effect.Effect<FileSystem.Size, PlatformError> {
    return this.semaphore.withPermits(1)(Effect.map(this.writeFrom("write", buffer), FileSystem.Size))
  }

  private writeRest(buffer: Uint8Array): Effect.Effect<void, PlatformError> {
    return Effect.flatMap(this.writeFrom("writeAll", buffer), (bytes) =>
      bytes === 0
        ? Effect.fail(
            new SystemError({
              module: "FileSystem",
              method: "writeAll",
              reason: "WriteZero",
              pathOrDescriptor: this.fd,
              description: "write returned 0 bytes written"
            })
          )
        : bytes < buffer.length
          ? this.writeRest(buffer.subarray(bytes))
          : Effect.void
    )
  }

  writeAll(buffer: Uint8Array): Effect.Effect<void, PlatformError> {
    return this.semaphore.withPermits(1)(this.writeRest(buffer))
  }
}
