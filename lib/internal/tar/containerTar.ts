/** Writes a container's files as a tar archive, and extracts an archive into them. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidData } from "../../BerthError.ts"
import type { ArchiveOptions, Container } from "../../Container.ts"
import * as copy from "../files/archiveCopy.ts"
import { failedAs } from "../files/fileFailure.ts"
import { isKept, type Metadata, setMetadata, xattrsOf } from "../files/metadata.ts"
import * as changes from "../files/mutations.ts"
import * as inRoot from "../files/rooted.ts"
import { namesOf } from "../files/walk.ts"
import { type Ids, outside } from "../ids/idMaps.ts"
import { native, O_NOFOLLOW } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { EEXIST, ENOENT, ENOTDIR } from "../util/errno.ts"
import * as tar from "./format.ts"
import * as members from "./members.ts"

/** The maps between the ids in an archive, which are the container's, and those on the host. */
const idsOf = ({ state }: Container): Ids => state.base.ids

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

/** A socket is useless without its process, and a device belongs to the host. */
const isNoMember = (status: fs.Stats): boolean =>
  status.isSocket() || status.isCharacterDevice() || status.isBlockDevice()

/** An opened root, and the ids of its files. */
interface Root {
  readonly root: number
  readonly ids: Ids
}

/** The archive of a path in a root; throws. */
export async function* archiveOf(
  { ids, root }: Root,
  path: string,
  options: ArchiveOptions,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const holes = members.holesOf(options.maxHoleBytes)
  const side = copy.inside(root)
  const opened = await copy.fromSource(side, path, async (source) => ({
    ...source,
    folder: native().duplicate(source.folder)
  }))
  const { folder, name } = opened
  const above = name === undefined ? path : inRoot.split(path).folder
  const shown = (member: Uint8Array): string =>
    member.length === 0 ? above : inRoot.join(above, utf8.decode(member))
  const writing: members.Writing = {
    ids,
    holes,
    signal,
    links: new Map(),
    resolve: inRoot.SINGLE,
    isLeftOut: () => false,
    instead: (status) => (isNoMember(status) ? members.NOTHING : undefined),
    attributes: (fd, member) => ({ xattrs: xattrsOf(fd, shown(member)), mark: members.NOTHING }),
    shown
  }
  try {
    const names = name === undefined ? await namesOf(folder, above, signal) : [new TextEncoder().encode(name)]
    yield* members.below(writing, folder, names, members.NOTHING)
    yield tar.end
  } finally {
    native().close(folder)
  }
}

export const tarOut: {
  (path: string, options?: ArchiveOptions): (container: Container) => Stream.Stream<Uint8Array, BerthError>
  (container: Container, path: string, options?: ArchiveOptions): Stream.Stream<Uint8Array, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, path: string, options: ArchiveOptions = {}) =>
    container.state.elsewhere?.tarOut(path, options) ??
    members
      .streamed(
        (signal) => archiveOf({ root: copy.rootOf(container), ids: idsOf(container) }, path, options, signal),
        failedAs(`archive ${path}`)
      )
      .pipe(
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
  return Buffer.compare(bytes, members.ZEROS.subarray(0, bytes.length)) === 0
}

/** Extracts the members of an archive into a folder of a root. */
class Unpacking implements tar.Handler {
  /** A duplicate, which the extraction closes. */
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
  /** New folders, whose times are set at the end, after their last change. */
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
        const expected = "no device: devices cannot be opened in a container's root"
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
        // An existing link to a folder stays, for example /lib to usr/lib.
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
    // Aligned blocks of zeros become holes: `start` is the beginning of the unwritten data.
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
          // The archive itself, or the container, may have replaced the entry.
          if (!inRoot.isErrno(error, ENOENT, ENOTDIR)) throw error
        }
      })
  }

  /** Closes all descriptors. */
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
  const { elsewhere } = container.state
  if (elsewhere !== undefined) return elsewhere.tarIn(path)
  const failed = failedAs(`unpack into ${path}`)
  return Sink.unwrapScoped(
    Effect.gen(function* () {
      // A sink has no withSpan, so each of its effects gets the span.
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
