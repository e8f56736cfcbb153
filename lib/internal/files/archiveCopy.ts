/**
 * Copies files and trees into a container's root, out of it, and on the host, by descriptors on both sides: if a
 * container replaces a file at the same time, the copy has the file that was opened, and no path leads out of the root
 * (CVE-2018-15664, CVE-2019-10152).
 */

import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import type { Container, CopyOutOptions } from "../../Container.ts"
import { native, O_NOFOLLOW, O_PATH, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { EACCES, EEXIST, EFBIG, EINVAL, ENOENT, ENOTDIR } from "../util/errno.ts"
import { failedAs } from "./fileFailure.ts"
import { type Metadata, metadataOf, setMetadata } from "./metadata.ts"
import * as changes from "./mutations.ts"
import * as asRoot from "./namespaceRoot.ts"
import * as inRoot from "./rooted.ts"
import { Descent, textsOf, walk } from "./walk.ts"

/** The reason why the files of a container cannot be reached. */
export const noFiles =
  "its files cannot be reached: its scope has closed, or it was spawned in a mount namespace that had a root already"

export const noFilesError = (container: Container): ContainerError =>
  new ContainerError({ reason: "NotRunning", container: container.id, detail: noFiles })

/** The descriptor of a container's root. */
export const rootOf = (container: Container): number => {
  const { root } = container.state
  if (root < 0) throw noFilesError(container)
  return root
}

/** One side of a copy: how it opens a path, and how it resolves links. */
export interface Side {
  readonly open: (path: string, flags: number) => number
  readonly real: (path: string) => string
  /** Whether a target that is a link is followed. */
  readonly follows: boolean
}

/**
 * A link on the host may come from an earlier copy out of a container: it is replaced, and only followed if the path
 * ends in a slash.
 */
export const host: Side = { open: inRoot.openHost, real: (path) => fs.realpathSync(path), follows: false }

export const inside = (root: number): Side => ({
  open: (path, flags) => inRoot.open(root, path, flags),
  real: (path) => inRoot.realPath(root, path),
  follows: true
})

/** The source of a copy. Without a name, the contents of the folder are the source. */
export interface Source {
  readonly folder: number
  readonly name: string | undefined
  readonly path: string
}

/** Passes the source to `use`: `a` is the entry, even a link; `a/` is a link's target; `a/.` is its contents. */
export const fromSource = <A>(side: Side, path: string, use: (source: Source) => Promise<A>): Promise<A> => {
  const { folder, name, slash } = inRoot.split(path)
  if (!inRoot.isName(name))
    return inRoot.using(side.open(path, inRoot.O_FOLDER), (fd) => use({ folder: fd, name: undefined, path }))
  if (!slash) return inRoot.using(side.open(folder, inRoot.O_FOLDER), (fd) => use({ folder: fd, name, path }))
  native().close(side.open(path, inRoot.O_FOLDER))
  const real = inRoot.split(side.real(path))
  return inRoot.using(side.open(real.folder, inRoot.O_FOLDER), (fd) =>
    use({ folder: fd, name: real.name, path })
  )
}

/** The names in an opened folder. */
export const namesIn = async (
  folder: number,
  path: string,
  signal: AbortSignal
): Promise<ReadonlyArray<string>> => {
  const names = await textsOf(folder, path, signal)
  // A name that is not UTF-8 contains U+FFFD, and the file could not be found by it.
  const strange = names.find((name) => name.includes("\ufffd"))
  if (strange === undefined) return names
  return inRoot.fail(EINVAL, "readdir", `${inRoot.join(path, strange)} (a name that is not UTF-8)`)
}

// By a descriptor: the container cannot put a fifo there, which would block.
const READING = inRoot.O_RDONLY | inRoot.O_NONBLOCK | inRoot.O_NOCTTY

const CHUNK_BYTES = 1024 * 1024
const ENXIO = inRoot.ENXIO

/** For reads in a thread of the runtime; undefined for a file that this user may not open by itself. */
const openOwn = (fd: number): Promise<number | undefined> =>
  inRoot.fsOpen(inRoot.via(fd), READING).catch((error: unknown) => {
    if (inRoot.isErrno(error, EACCES)) return undefined
    throw error
  })

const readNext = (kernel: number, buffer: Uint8Array): number => {
  const n = native().read(kernel, buffer)
  return n < 0 ? inRoot.fail(-n, "read", inRoot.via(kernel)) : n
}

export const writeAt = async (fd: number, bytes: Uint8Array, position: number): Promise<void> => {
  for (let at = 0; at < bytes.length; ) {
    at += await new Promise<number>((resolve, reject) =>
      fs.write(fd, bytes, at, bytes.length - at, position + at, (error, n) =>
        error ? reject(error) : resolve(n)
      )
    )
  }
}

/** Up to this size, reads and writes are synchronous, because a thread would cost more. */
export const SMALL_BYTES = 64 * 1024

/** The contents of a small file without holes; undefined for any other file. */
const smallContents = (fd: number, size: number): Uint8Array | undefined => {
  if (size > SMALL_BYTES) return undefined
  return inRoot.using(inRoot.openHost(inRoot.via(fd), READING), (kernel) => {
    const bytes = new Uint8Array(size)
    for (let at = 0; at < size; ) {
      const n = native().read(kernel, bytes.subarray(at))
      if (n < 0) return inRoot.fail(-n, "read", inRoot.via(fd))
      if (n === 0) return undefined
      at += n
    }
    const [start, end] = native().extent(kernel, 0)
    return start === 0 && end >= size ? bytes : undefined
  })
}

/** Writes to a descriptor of the kernel at its position. */
export const writeSmall = (fd: number, bytes: Uint8Array, path: string): void => {
  for (let at = 0; at < bytes.length; ) {
    const n = native().write(fd, bytes, at)
    if (n < 0) return inRoot.fail(-n, "write", path)
    at += n
  }
}

/** The bytes of a file up to `size`, in parts with their offsets; holes are skipped. */
export async function* contents(
  fd: number,
  size: number,
  signal: AbortSignal
): AsyncGenerator<readonly [offset: number, bytes: Uint8Array]> {
  if (size === 0) return
  const small = smallContents(fd, size)
  if (small !== undefined) return yield [0, small]
  const kernel = inRoot.openHost(inRoot.via(fd), READING)
  let file: number | undefined
  try {
    file = await openOwn(fd)
    const buffer = new Uint8Array(Math.min(CHUNK_BYTES, size))
    for (let offset = 0; offset < size; ) {
      const extent = native().extent(kernel, offset)
      if (extent[0] === -ENXIO) return
      // If the file system does not report holes, the whole file is data.
      const [start, end] = extent[0] < 0 ? [offset, size] : extent
      for (offset = start; offset < Math.min(end, size); ) {
        // A container's file can have any number of extents, and synchronous reads block other work.
        await inRoot.turn(signal)
        const length = Math.min(buffer.length, end - offset, size - offset)
        const n =
          file === undefined
            ? readNext(kernel, buffer.subarray(0, length))
            : await inRoot.readAt(file, buffer, length, offset)
        if (n === 0) return
        yield [offset, buffer.subarray(0, n)]
        offset += n
      }
    }
  } finally {
    native().close(kernel)
    if (file !== undefined) await inRoot.fsClose(file)
  }
}

/** Makes a new, empty file at a place and replaces an existing one; a file with a mount on it is emptied. */
export const makeFile = (at: inRoot.Place): number => {
  const existing = inRoot.statusOf(at)
  if (existing?.isDirectory() === true) return inRoot.fail(inRoot.EISDIR, "open", at.path)
  try {
    if (existing !== undefined) changes.unlink(at)
  } catch (error) {
    if (!inRoot.isErrno(error, inRoot.EBUSY) || existing?.isFile() !== true) throw error
    const flags = inRoot.O_RDWR | inRoot.O_TRUNC | inRoot.O_NONBLOCK | inRoot.O_NOCTTY | O_NOFOLLOW
    return inRoot.openPlace(at, flags)
  }
  return inRoot.openPlace(at, inRoot.O_RDWR | inRoot.O_CREAT | inRoot.O_EXCL | O_NOFOLLOW, "open", 0o600)
}

/** Removes an entry that is not a folder, so that a link or a fifo can take its place. */
export const clear = (at: inRoot.Place): void => {
  const existing = inRoot.statusOf(at)
  if (existing?.isDirectory() === true) inRoot.fail(inRoot.EISDIR, "open", at.path)
  if (existing !== undefined) changes.unlink(at)
}

/** Removes a file that was not copied to its end, which would look like the file. */
const discard = (at: inRoot.Place): void => {
  try {
    clear(at)
  } catch {
    // Something else has its place by now.
  }
}

/** Makes a folder, inaccessible to others until its mode is set; returns whether it was missing. */
export const makeFolder = (at: inRoot.Place): boolean => {
  try {
    changes.mkdir(at, 0o700)
    return true
  } catch (error) {
    if (!inRoot.isErrno(error, EEXIST)) throw error
    native().close(inRoot.openPlace(at, inRoot.O_FOLDER | O_NOFOLLOW, "mkdir"))
    return false
  }
}

// The number of names of 255 bytes in the longest path that the kernel takes.
const NAMES_AT_ONCE = 15

/** Opens a folder below another, at any depth. */
const openBelow = (top: number, relative: string): number => {
  const names = relative.split("/")
  let fd = native().duplicate(top)
  for (let k = 0; k < names.length; k += NAMES_AT_ONCE)
    fd = inRoot.using(fd, () => {
      const path = names.slice(k, k + NAMES_AT_ONCE).join("/")
      const next = asRoot.openIn(fd, path, inRoot.O_FOLDER, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, 0)
      return next < 0 ? inRoot.fail(-next, "link", relative) : next
    })
  return fd
}

/** Makes a hard link to the file that was copied to `relative` below an opened folder. */
export const linkFrom = (top: number, relative: string, at: inRoot.Place): void => {
  const { folder, name } = inRoot.split(relative)
  inRoot.using(openBelow(top, folder.replace(/\/$/, "")), (fd) =>
    changes.link(inRoot.place(fd, name, relative), at)
  )
}

interface Copy {
  /** The folder on the target's side to which the paths in `links` are relative. */
  readonly top: number
  readonly links: Map<string, string>
  readonly signal: AbortSignal
  /** The metadata of the source that the target gets. */
  readonly keep: (metadata: Metadata, isFolder: boolean) => Metadata
  /** Whether an entry at a path of the source is copied. Default: all are. */
  readonly isTaken?: (path: string) => boolean
  /** Whether copies of a user without root get owners of the user's subordinate ids. Default: the user owns them. */
  readonly gives?: boolean
}

const keepAll = (metadata: Metadata): Metadata => metadata

/**
 * The metadata without anything from which the host's kernel derives rights: the container sets it for itself, and its
 * root has no rights on the host.
 */
export const withoutPrivileges = (metadata: Metadata): Metadata => ({
  ...metadata,
  mode: metadata.mode & 0o1777,
  xattrs: metadata.xattrs.filter(([name]) => !/^(security|trusted)\./.test(name))
})

/** Copies between two files, by descriptors of any kind, extent by extent: holes stay holes and take no time. */
export const copyContents = async (
  from: number,
  to: number,
  size: number,
  path: string,
  signal: AbortSignal
): Promise<void> => {
  // Larger than any disk, and than JavaScript's exact numbers.
  if (!Number.isSafeInteger(size)) return inRoot.fail(EFBIG, "ftruncate", path)
  await inRoot.usingOwn(await inRoot.openAgain(to, path, inRoot.O_WRONLY | inRoot.O_TRUNC), async (file) => {
    for await (const [offset, bytes] of contents(from, size, signal)) await writeAt(file, bytes, offset)
    fs.ftruncateSync(file, size)
  })
}

/** Copies any entry except a folder. */
const copyLeaf = async (
  copy: Copy,
  from: number,
  status: fs.Stats,
  source: inRoot.Place,
  { at, relative }: Target
): Promise<void> => {
  const metadata = copy.keep(metadataOf(from, status, source.path), false)
  const key = status.nlink > 1 ? inRoot.identity(from) : undefined
  const made = key === undefined ? undefined : copy.links.get(key)
  if (made !== undefined) {
    clear(at)
    return linkFrom(copy.top, made, at)
  }
  if (status.isFile()) {
    await inRoot.using(makeFile(at), async (to) => {
      const small = smallContents(from, status.size)
      try {
        if (small !== undefined) writeSmall(to, small, at.path)
        else await copyContents(from, to, status.size, at.path, copy.signal)
      } catch (error) {
        discard(at)
        throw error
      }
      setMetadata(to, metadata, at.path, copy.gives)
    })
  } else {
    clear(at)
    if (status.isSymbolicLink()) changes.symlink(inRoot.linkText(from, source.path), at)
    else if (status.isFIFO()) {
      const result = native().makeFifo(at.folder, at.name, 0o600)
      if (result < 0) inRoot.fail(-result, "mkfifo", at.path)
    } else inRoot.fail(EINVAL, "mknod", `${source.path} (a device, which is not copied)`)
    inRoot.using(inRoot.openPlace(at), (to) => setMetadata(to, metadata, at.path, copy.gives))
  }
  if (key !== undefined) copy.links.set(key, relative)
}

/** A place on the target's side. */
interface Target {
  readonly at: inRoot.Place
  /** The path relative to the folder in which the copy began. */
  readonly relative: string
}

/** A folder on both sides. */
interface Pair {
  readonly from: string
  readonly to: string
  readonly relative: string
}

/** Copies the contents of a folder, or one entry of it, into `copy.top`; a single entry may get another name. */
const copyBelow = async (
  copy: Copy,
  from: number,
  start: Pair,
  only?: { readonly name: string; readonly as: string }
): Promise<void> => {
  const { signal } = copy
  const into = new Descent(copy.top)
  const names = only === undefined ? await namesIn(from, start.from, signal) : [only.name]
  const inFolder = (fd: number, { from: path }: Pair) => namesIn(fd, path, signal)
  try {
    for await (const visit of walk({ top: from, state: start, names, namesIn: inFolder, signal })) {
      const { enter, folder, state } = visit
      const name = only !== undefined && state === start ? only.as : visit.name
      const source = inRoot.place(folder, visit.name, inRoot.join(state.from, visit.name))
      if (copy.isTaken?.(source.path) === false) continue
      const at = inRoot.place(into.fd, name, inRoot.join(state.to, name))
      const relative = state.relative === "" ? name : `${state.relative}/${name}`
      const opened = inRoot.openPlace(source)
      const isEntered = await inRoot.orClose(opened, async () => {
        const status = fs.statSync(inRoot.via(opened))
        if (!status.isDirectory()) {
          if (!status.isSocket()) await copyLeaf(copy, opened, status, source, { at, relative })
          return false
        }
        const metadata = copy.keep(metadataOf(opened, status, source.path), true)
        const isNew = makeFolder(at)
        into.down(inRoot.openPlace(at, inRoot.O_FOLDER | O_NOFOLLOW))
        enter(opened, { from: source.path, to: at.path, relative }, () => {
          if (isNew) setMetadata(into.fd, metadata, at.path, copy.gives)
          into.up()
        })
        return true
      })
      if (!isEntered) native().close(opened)
    }
  } finally {
    into.close()
  }
}

/** The status of a path, undefined if it does not exist. */
const existing = (side: Side, path: string): number | undefined => {
  try {
    return side.open(path, side.follows ? O_PATH : O_PATH | O_NOFOLLOW)
  } catch (error) {
    if (inRoot.isErrno(error, ENOENT)) return undefined
    throw error
  }
}

const parentOf = (path: string): string => inRoot.split(path).folder

/** Whether a source is a folder, or the contents of one. */
export const isFolder = ({ folder, name, path }: Source): boolean =>
  name === undefined ||
  inRoot.using(inRoot.openPlace(inRoot.place(folder, name, path), undefined, "lstat"), (fd) =>
    fs.statSync(inRoot.via(fd)).isDirectory()
  )

export const copyTo = async (
  source: Source,
  side: Side,
  path: string,
  how: Omit<Copy, "top" | "links">
): Promise<void> => {
  const links = new Map<string, string>()
  const { folder, name } = source
  const into = (fd: number, as: string, at: string): Promise<void> =>
    copyBelow(
      { ...how, top: fd, links },
      folder,
      // The parents, because the walk appends the name.
      { from: parentOf(source.path), to: parentOf(at), relative: "" },
      { name: name!, as }
    )
  const all = (fd: number, at: string): Promise<void> =>
    copyBelow({ ...how, top: fd, links }, folder, { from: source.path, to: at, relative: "" })
  const ofFolder = isFolder(source)
  const found = existing(side, path)
  const asNew = (at: string): Promise<void> => {
    const target = inRoot.split(at)
    if (!inRoot.isName(target.name) || (target.slash && !ofFolder)) return inRoot.fail(ENOENT, "open", at)
    return inRoot.using(side.open(target.folder, inRoot.O_FOLDER), async (fd) => {
      if (name !== undefined) return into(fd, target.name, at)
      const place = inRoot.place(fd, target.name, at)
      makeFolder(place)
      await inRoot.using(inRoot.openPlace(place, inRoot.O_FOLDER | O_NOFOLLOW), async (to) => {
        await all(to, at)
        setMetadata(
          to,
          how.keep(metadataOf(folder, fs.statSync(inRoot.via(folder)), source.path), true),
          at,
          how.gives
        )
      })
    })
  }
  if (found === undefined) return asNew(path)
  return inRoot.using(found, (fd) => {
    if (fs.statSync(inRoot.via(fd)).isDirectory())
      return name === undefined ? all(fd, path) : into(fd, name, inRoot.join(path, name))
    return ofFolder ? inRoot.fail(ENOTDIR, "mkdir", path) : asNew(side.follows ? side.real(path) : path)
  })
}

const copy = (
  from: string,
  to: string,
  container: Container,
  way: "in" | "out",
  keep: Copy["keep"]
): Effect.Effect<void, BerthError> =>
  Effect.mapError(
    inRoot.promised((signal) =>
      // A duplicate, because the container's descriptor may be closed in the meantime.
      inRoot.using(native().duplicate(rootOf(container)), async (root) => {
        const box = inside(root)
        const [source, target] = way === "in" ? [host, box] : [box, host]
        await fromSource(source, from, (found) => copyTo(found, target, to, { keep, signal }))
      })
    ),
    failedAs(`copy ${from} -> ${to}`)
  )

const spanOf = (container: Container, way: "In" | "Out") =>
  Effect.withSpan(`berth.Container.copy${way}`, {
    attributes: { "container.id": container.id },
    captureStackTrace: false
  })

/** What a copy out of a container keeps. */
export const keptOut = ({ keepPrivileges = false }: CopyOutOptions): Copy["keep"] =>
  keepPrivileges ? keepAll : withoutPrivileges

export const copyIn: {
  (hostPath: string, containerPath: string): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, hostPath: string, containerPath: string): Effect.Effect<void, BerthError>
} = dual(3, (container: Container, hostPath: string, containerPath: string) =>
  (
    container.state.elsewhere?.copyIn(hostPath, containerPath) ??
    copy(hostPath, containerPath, container, "in", keepAll)
  ).pipe(spanOf(container, "In"))
)

export const copyOut: {
  (
    containerPath: string,
    hostPath: string,
    options?: CopyOutOptions
  ): (container: Container) => Effect.Effect<void, BerthError>
  (
    container: Container,
    containerPath: string,
    hostPath: string,
    options?: CopyOutOptions
  ): Effect.Effect<void, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, containerPath: string, hostPath: string, options: CopyOutOptions = {}) =>
    (
      container.state.elsewhere?.copyOut(containerPath, hostPath, options) ??
      copy(containerPath, hostPath, container, "out", keptOut(options))
    ).pipe(spanOf(container, "Out"))
)
