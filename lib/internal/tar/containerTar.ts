/** A container's files as a tar archive, and an archive into them. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidData, OperationFailed } from "../../BerthError.ts"
import type { ArchiveOptions, Container } from "../../Container.ts"
import * as copy from "../files/archiveCopy.ts"
import { failedAs } from "../files/fileFailure.ts"
import { isKept, type Metadata, metadataOf, setMetadata } from "../files/metadata.ts"
import * as changes from "../files/mutations.ts"
import * as inRoot from "../files/rooted.ts"
import { type Visit, walk } from "../files/walk.ts"
import { type Ids, inside, outside } from "../ids/idMaps.ts"
import { native, O_NOFOLLOW } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { EEXIST, EFBIG, ENAMETOOLONG, ENOENT, ENOTDIR } from "../util/errno.ts"
import { bytes as checkBytes } from "../util/validate.ts"
import * as tar from "./format.ts"

/** What the tar of a container's files takes; undefined of a socket or a device. */
export const kindOf = (status: fs.Stats): tar.Kind | undefined =>
  status.isFile()
    ? "file"
    : status.isDirectory()
      ? "folder"
      : status.isSymbolicLink()
        ? "symlink"
        : status.isFIFO()
          ? "fifo"
          : undefined

const ZEROS = new Uint8Array(64 * 1024)

/** How many zeros an archive may yet have for holes. */
export interface Holes {
  readonly max: number
  left: number
}

/** A hole costs the container nothing, and its zeros cost the reader time: no archive has more of them unless asked. */
const HOLE_BYTES_DEFAULT = 16 * 1024 ** 3

/** What the option allows; throws. */
export const holesOf = (maxHoleBytes: number | string = HOLE_BYTES_DEFAULT): Holes => {
  const max = checkBytes("maxHoleBytes", maxHoleBytes)
  return { max, left: max }
}

/** The zeros of a hole, in parts, between which others have their turn. */
async function* hole(
  { holes, signal }: Pick<Writing, "holes" | "signal">,
  count: number,
  path: string
): AsyncGenerator<Uint8Array> {
  if (count > holes.left)
    throw new OperationFailed({
      operation: `archive ${path}`,
      index: -1,
      syscall: "read",
      errno: EFBIG,
      hint: `Holes are written as zeros, and with this file they exceed ${holes.max} bytes: raise maxHoleBytes, or leave the file out`
    })
  holes.left -= count
  for (let left = count; left > 0; left -= ZEROS.length) {
    await inRoot.turn(signal)
    yield ZEROS.subarray(0, Math.min(left, ZEROS.length))
  }
}

/** Whose ids an archive has: the container's, which on the host may be others. */
const idsOf = ({ state }: Container): Ids => state.base?.ids ?? state.berth.ids

interface Writing {
  readonly links: Map<string, string>
  readonly ids: Ids
  readonly holes: Holes
  readonly signal: AbortSignal
}

/** Exactly `size` bytes to whole blocks, whatever the file has become by now. */
export async function* fileContents(
  writing: Pick<Writing, "holes" | "signal">,
  fd: number,
  size: number,
  path: string
): AsyncGenerator<Uint8Array> {
  // More than any archive may have, and than JavaScript can tell the offsets of.
  if (!Number.isSafeInteger(size)) yield* hole(writing, size, path)
  let at = 0
  for await (const [offset, bytes] of copy.contents(fd, size, writing.signal)) {
    yield* hole(writing, offset - at, path)
    // A consumer may keep what it was given, and the buffer is used again.
    yield bytes.slice()
    at = offset + bytes.length
  }
  yield* hole(writing, size - at, path)
  if (tar.padding(size) > 0) yield ZEROS.subarray(0, tar.padding(size))
}

/** A folder of the container, and its name in the archive. */
interface Folder {
  readonly path: string
  readonly name: string
}

/** Fails for a name that no system could unpack. */
export const checkName = (name: string): void => {
  if (Buffer.byteLength(name) >= inRoot.PATH_MAX) inRoot.fail(ENAMETOOLONG, "archive", name)
}

/** One member, and whether it is a folder that is gone into. */
async function* member(
  writing: Writing,
  { enter, folder, name: last, state }: Visit<string, Folder>
): AsyncGenerator<Uint8Array> {
  const at = inRoot.place(folder, last, inRoot.join(state.path, last))
  const name = state.name === "" ? last : `${state.name}/${last}`
  checkName(name)
  const fd = inRoot.openPlace(at)
  let isEntered = false
  try {
    const status = fs.statSync(inRoot.via(fd))
    const kind = kindOf(status)
    // A socket is nothing without its process, and a device is the host's.
    if (kind === undefined) return
    const key = status.nlink > 1 && kind !== "folder" ? inRoot.identity(fd) : undefined
    const first = key === undefined ? undefined : writing.links.get(key)
    const found = metadataOf(fd, status, at.path)
    const { gids, uids } = writing.ids
    const metadata = { ...found, uid: inside(uids, found.uid), gid: inside(gids, found.gid) }
    if (first !== undefined) {
      yield tar.encode({ ...metadata, xattrs: [], kind: "link", name, size: 0, link: first })
      return
    }
    if (key !== undefined) writing.links.set(key, name)
    const link = kind === "symlink" ? inRoot.linkTarget(fd, at.path) : ""
    const size = kind === "file" ? status.size : 0
    yield tar.encode({ ...metadata, kind, name, size, link })
    if (kind === "file") yield* fileContents(writing, fd, size, at.path)
    if (kind !== "folder") return
    enter(fd, { path: at.path, name })
    isEntered = true
  } finally {
    if (!isEntered) native().close(fd)
  }
}

async function* archive(
  container: Container,
  path: string,
  options: ArchiveOptions,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const holes = holesOf(options.maxHoleBytes)
  const side = copy.inside(copy.rootOf(container))
  const writing: Writing = { links: new Map(), ids: idsOf(container), holes, signal }
  const opened = await copy.fromSource(side, path, async (source) => ({
    ...source,
    folder: native().duplicate(source.folder)
  }))
  const namesIn = (fd: number, folder: Folder) => copy.namesIn(fd, folder.path, signal)
  try {
    const { folder: top, name } = opened
    const state: Folder = { path: name === undefined ? path : inRoot.split(path).folder, name: "" }
    const names = name === undefined ? await namesIn(top, state) : [name]
    for await (const visit of walk({ top, state, names, namesIn, signal })) yield* member(writing, visit)
    yield tar.end
  } finally {
    native().close(opened.folder)
  }
}

export const tarOut: {
  (path: string, options?: ArchiveOptions): (container: Container) => Stream.Stream<Uint8Array, BerthError>
  (container: Container, path: string, options?: ArchiveOptions): Stream.Stream<Uint8Array, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, path: string, options: ArchiveOptions = {}) =>
    Stream.suspend(() => {
      const controller = new AbortController()
      return Stream.fromAsyncIterable(
        archive(container, path, options, controller.signal),
        failedAs(`archive ${path}`)
      ).pipe(Stream.ensuring(Effect.sync(() => controller.abort())))
    }).pipe(
      Stream.withSpan("berth.Container.tarOut", {
        attributes: { "container.id": container.id },
        captureStackTrace: false
      })
    )
)

const HOLE_BYTES = 4096

const isZero = (bytes: Uint8Array): boolean => {
  // Data seldom begins with a zero.
  if (bytes[0] !== 0) return false
  return Buffer.compare(bytes, ZEROS.subarray(0, bytes.length)) === 0
}

/** Takes the members of an archive into a folder of a root. */
class Unpacking implements tar.Handler {
  /** A descriptor of its own. */
  private readonly root: number
  private readonly folder: string
  private readonly ids: Ids
  private file:
    | {
        readonly fd: number
        readonly handle: number | undefined
        readonly entry: tar.Entry
        position: number
      }
    | undefined
  /** Folders that were made, whose times are set when nothing changes them any more. */
  private readonly folders: Array<readonly [fd: string, metadata: Metadata]> = []

  constructor(root: number, folder: string, ids: Ids) {
    this.root = root
    this.folder = folder
    this.ids = ids
  }

  private pathOf(name: string): string {
    const parts = name.split("/").filter((part) => part !== "" && part !== ".")
    if (parts.includes("..") || name.includes("\0"))
      throw new InvalidData({ format: "tar", value: JSON.stringify(name), expected: "names without .." })
    return parts.length === 0 ? this.folder : inRoot.join(this.folder, parts.join("/"))
  }

  private inFolder<A>(path: string, use: (at: inRoot.Place) => A): A {
    try {
      return inRoot.inFolder(this.root, path, EEXIST, "open", use)
    } catch (error) {
      if (!inRoot.isErrno(error, ENOENT)) throw error
    }
    changes.makeFolder(this.root, inRoot.split(path).folder, 0o755, true)
    return inRoot.inFolder(this.root, path, EEXIST, "open", use)
  }

  async entry(entry: tar.Entry): Promise<void> {
    const path = this.pathOf(entry.name)
    const kept = {
      ...entry,
      uid: outside(this.ids.uids, entry.uid),
      gid: outside(this.ids.gids, entry.gid),
      xattrs: entry.xattrs.filter(([name]) => isKept(name))
    }
    if (entry.kind === "folder") return this.makeFolder(path, kept)
    if (path === this.folder)
      throw new InvalidData({ format: "tar", value: JSON.stringify(entry.name), expected: "a name" })
    await this.inFolder(path, async (at) => {
      if (entry.kind === "file") {
        const fd = copy.makeFile(at)
        try {
          this.file = {
            fd,
            handle:
              entry.size > copy.SMALL_BYTES
                ? await inRoot.fsOpen(inRoot.via(fd), inRoot.O_WRONLY)
                : undefined,
            entry: kept,
            position: 0
          }
        } catch (error) {
          native().close(fd)
          throw error
        }
        return
      }
      copy.clear(at)
      if (entry.kind === "link") {
        const target = this.pathOf(entry.link)
        return inRoot.inFolder(this.root, target, EEXIST, "link", (from) => fs.linkSync(from.at, at.at))
      }
      if (entry.kind === "symlink") fs.symlinkSync(entry.link, at.at)
      else if (entry.kind === "fifo") {
        const result = native().makeFifo(at.folder, at.name, 0o600)
        if (result < 0) inRoot.fail(-result, "mkfifo", path)
      } else {
        const expected = "no devices: the root of a container opens none"
        throw new InvalidData({ format: "tar", value: JSON.stringify(entry.name), expected })
      }
      inRoot.using(inRoot.openPlace(at), (fd) => setMetadata(fd, kept, path))
    })
  }

  private makeFolder(path: string, metadata: Metadata): void {
    if (path === this.folder) return
    const made = this.inFolder(path, (at) => {
      try {
        return copy.makeFolder(at)
      } catch (error) {
        // A link to a folder stays what it is, as where /lib is usr/lib.
        if (!inRoot.isErrno(error, ENOTDIR)) throw error
        native().close(inRoot.open(this.root, path, inRoot.O_FOLDER, "mkdir"))
        return false
      }
    })
    if (made) this.folders.push([path, metadata])
  }

  async contents(bytes: Uint8Array): Promise<void> {
    const { file } = this
    if (file === undefined) return
    if (file.handle === undefined) return copy.writeSmall(file.fd, bytes, file.entry.name)
    // Aligned parts of nothing but zeros become holes: `start` is where the data began that is not written yet.
    let start = 0
    for (let at = 0; at < bytes.length; ) {
      const next = Math.min(bytes.length, at + HOLE_BYTES - ((file.position + at) % HOLE_BYTES))
      if (isZero(bytes.subarray(at, next))) {
        if (start < at) await copy.writeAt(file.handle, bytes.subarray(start, at), file.position + start)
        start = next
      }
      at = next
    }
    if (start < bytes.length) await copy.writeAt(file.handle, bytes.subarray(start), file.position + start)
    file.position += bytes.length
  }

  async done(): Promise<void> {
    const { file } = this
    if (file === undefined) return
    this.file = undefined
    try {
      if (file.handle !== undefined) {
        fs.ftruncateSync(file.handle, file.entry.size)
        await inRoot.fsClose(file.handle)
      }
      setMetadata(file.fd, file.entry, file.entry.name)
    } finally {
      native().close(file.fd)
    }
  }

  finish(): void {
    for (const [path, metadata] of this.folders.toReversed())
      inRoot.inFolder(this.root, path, EEXIST, "open", (at) => {
        try {
          inRoot.using(inRoot.openPlace(at, inRoot.O_FOLDER | O_NOFOLLOW), (fd) =>
            setMetadata(fd, metadata, path)
          )
        } catch (error) {
          // The archive itself, or the container, may have put something else there.
          if (!inRoot.isErrno(error, ENOENT, ENOTDIR)) throw error
        }
      })
  }

  /** Closes what is open. */
  async release(): Promise<void> {
    native().close(this.root)
    if (this.file === undefined) return
    native().close(this.file.fd)
    if (this.file.handle !== undefined) await inRoot.fsClose(this.file.handle)
  }
}

export const tarIn: {
  (path: string): (container: Container) => Sink.Sink<void, Uint8Array, never, BerthError>
  (container: Container, path: string): Sink.Sink<void, Uint8Array, never, BerthError>
} = dual(2, (container: Container, path: string) => {
  const failed = failedAs(`unpack into ${path}`)
  return Sink.unwrapScoped(
    Effect.gen(function* () {
      // A sink has no withSpan: its span is that of each of its effects.
      const inSpan = Effect.withParentSpan(
        yield* Effect.makeSpanScoped("berth.Container.tarIn", {
          attributes: { "container.id": container.id },
          captureStackTrace: false
        })
      )
      const unpacking = yield* Effect.acquireRelease(
        Effect.try({
          try: () => {
            const root = copy.rootOf(container)
            native().close(inRoot.open(root, path, inRoot.O_FOLDER))
            return new Unpacking(native().duplicate(root), inRoot.realPath(root, path), idsOf(container))
          },
          catch: failed
        }).pipe(inSpan),
        (made) => Effect.promise(() => made.release())
      )
      const reader = new tar.Reader(unpacking)
      return Sink.forEach((bytes: Uint8Array) =>
        inSpan(Effect.uninterruptible(Effect.tryPromise({ try: () => reader.write(bytes), catch: failed })))
      ).pipe(
        Sink.mapEffect(() =>
          Effect.try({
            try: () => {
              reader.end()
              unpacking.finish()
            },
            catch: failed
          }).pipe(inSpan)
        )
      )
    })
  )
})
