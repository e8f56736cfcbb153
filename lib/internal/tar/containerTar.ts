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

interface Archived {
  /** The maps between the ids in the archive and those of the files. */
  readonly ids: Ids
  /** The name of the source in the archive. Default: its own; contents alone have none. */
  readonly as?: string | undefined
  readonly maxHoleBytes?: ArchiveOptions["maxHoleBytes"]
  /** Throws for a file that is refused. Default: sockets and devices are left out. */
  readonly check?: (status: fs.Stats, path: string) => void
}

/** The archive of an opened source; throws. */
export async function* archiveFrom(
  { folder, name, path }: copy.Source,
  { as, check, ids, maxHoleBytes }: Archived,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const above = name === undefined ? path : inRoot.split(path).folder
  const shown = (member: Uint8Array): string =>
    member.length === 0 ? above : inRoot.join(above, utf8.decode(member))
  const writing: members.Writing = {
    ids,
    holes: members.holesOf(maxHoleBytes),
    signal,
    links: new Map(),
    resolve: inRoot.SINGLE,
    isLeftOut: () => false,
    instead: (status, folder, name) => {
      check?.(status, shown(members.join(folder, name)))
      return isNoMember(status) ? members.NOTHING : undefined
    },
    attributes: (fd, member) => ({ xattrs: xattrsOf(fd, shown(member)), mark: members.NOTHING }),
    shown
  }
  const encoded = (text: string): Uint8Array => new TextEncoder().encode(text)
  if (as === undefined) {
    const names = name === undefined ? await namesOf(folder, above, signal) : [encoded(name)]
    yield* members.below(writing, folder, names, members.NOTHING)
  } else {
    const own =
      name === undefined
        ? native().duplicate(folder)
        : inRoot.openPlace(inRoot.place(folder, name, path), undefined, "lstat")
    try {
      yield* members.whole(writing, own, encoded(as))
    } finally {
      native().close(own)
    }
  }
  yield tar.end
}

/** A source whose folder is the caller's to close. */
export const openSource = (side: copy.Side, path: string): Promise<copy.Source> =>
  copy.fromSource(side, path, async (source) => ({ ...source, folder: native().duplicate(source.folder) }))

/** The archive of a path in an opened root; throws. */
export async function* archiveOf(
  { ids, root }: { readonly root: number; readonly ids: Ids },
  path: string,
  { maxHoleBytes }: ArchiveOptions,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  const source = await openSource(copy.inside(root), path)
  try {
    yield* archiveFrom(source, { ids, maxHoleBytes }, signal)
  } finally {
    native().close(source.folder)
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
export class Unpacking implements tar.Handler {
  /** A duplicate, which the extraction closes. */
  private readonly root: number
  private readonly folder: string
  private readonly ids: Ids
  /** The metadata that a file gets. */
  private readonly keep: (metadata: Metadata, isFolder: boolean) => Metadata
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

  constructor(root: number, folder: string, ids: Ids, keep: Unpacking["keep"] = (metadata) => metadata) {
    this.root = root
    this.folder = folder
    this.ids = ids
    this.keep = keep
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
    const own = {
      ...entry,
      uid: outside(this.ids.uids, entry.uid),
      gid: outside(this.ids.gids, entry.gid),
      xattrs: entry.xattrs.filter(([name]) => isKept(name))
    }
    const kept = { ...own, ...this.keep(own, entry.kind === "folder") }
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

type Spanned = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Extracts an archive. */
export const unpacked = (
  open: () => Unpacking,
  failed: (error: unknown) => BerthError,
  inSpan: Spanned = (effect) => effect
): Sink.Sink<void, Uint8Array, never, BerthError> =>
  Sink.unwrapScoped(
    Effect.gen(function* () {
      const unpacking = yield* Effect.acquireRelease(
        inSpan(Effect.try({ try: open, catch: failed })),
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

export const tarIn: {
  (path: string): (container: Container) => Sink.Sink<void, Uint8Array, never, BerthError>
  (container: Container, path: string): Sink.Sink<void, Uint8Array, never, BerthError>
} = dual(2, (container: Container, path: string) => {
  const { elsewhere } = container.state
  if (elsewhere !== undefined) return elsewhere.tarIn(path)
  const open = (): Unpacking => {
    const root = copy.rootOf(container)
    native().close(inRoot.open(root, path, inRoot.O_FOLDER))
    return new Unpacking(native().duplicate(root), inRoot.realPath(root, path), idsOf(container))
  }
  // A sink has no withSpan, so each of its effects gets the span.
  return Sink.unwrapScoped(
    Effect.map(
      Effect.makeSpanScoped("berth.Container.tarIn", {
        attributes: { "container.id": container.id },
        captureStackTrace: false
      }),
      (span) => unpacked(open, failedAs(`unpack into ${path}`), Effect.withParentSpan(span))
    )
  )
})
