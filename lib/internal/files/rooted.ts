/**
 * Files below a root, by descriptors. openat2(2) resolves a path inside the root, and every operation is on the
 * resulting descriptor, or on a single name in an opened folder by a call that follows no link: no symbolic link, `..`
 * or concurrent rename leads out (CVE-2018-15664, CVE-2019-10152, CVE-2021-30465).
 *
 * All functions throw `Failure`, or an error of node:fs.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import {
  AT_FDCWD,
  native,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  RESOLVE_BENEATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS
} from "../system/addon.ts"
import * as errno from "../util/errno.ts"
import * as Turn from "../util/turn.ts"
import * as asRoot from "./namespaceRoot.ts"

export const { O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK, O_NOCTTY } =
  fs.constants
export const O_FOLDER: number = O_PATH | O_DIRECTORY
export const EISDIR = 21
export const ENXIO = 6
export const EBUSY = 16
export const ENOTEMPTY = 39
export const PATH_MAX = 4096

/** A system call that failed, in the form of node:fs. */
export class Failure extends Error {
  readonly errno: number
  readonly code: string
  readonly syscall: string
  readonly path: string
  /** What to do about it. */
  readonly hint: string

  constructor(number: number, syscall: string, path: string, hint = "") {
    const code = errno.errnoName(number)
    super(`${code}: ${errno.describeErrno(number)}, ${syscall} '${path}'`)
    this.errno = -number
    this.code = code
    this.syscall = syscall
    this.path = path
    this.hint = hint
  }
}

const SHOWN_MAX = 300

/** A path for messages: one longer than the kernel's limit is cut. */
const shown = (path: string): string =>
  path.length < PATH_MAX
    ? path
    : `${path.slice(0, SHOWN_MAX)}... (${path.length} characters; a path has ${PATH_MAX - 1} bytes at most)`

export const fail = (number: number, syscall: string, path: string): never => {
  throw new Failure(number, syscall, shown(path))
}

/** The errno of an error of node:fs, undefined if it is not from a system call. */
export const errnoOf = (error: unknown): number | undefined => {
  const { code, errno: number } = (error ?? {}) as { readonly code?: unknown; readonly errno?: unknown }
  const known = os.constants.errno[code as keyof typeof os.constants.errno] as number | undefined
  return known ?? (error instanceof Failure && typeof number === "number" ? -number : undefined)
}

export const isErrno = (error: unknown, ...numbers: ReadonlyArray<number>): boolean =>
  numbers.includes(errnoOf(error) ?? 0)

/** A path that the kernel resolves to the file of the descriptor, even if another file has its name by now. */
export const via = (fd: number): string => `/proc/self/fd/${fd}`

const check = (path: string): void => {
  if (typeof path !== "string" || path.includes("\0")) {
    const shown = JSON.stringify(path)
    throw Object.assign(new TypeError(`a path must be text without NUL: ${shown}`), {
      code: "ERR_INVALID_ARG_VALUE"
    })
  }
}

/** openat2(2) with the folder as the root; errors name `syscall`. */
export const open = (folder: number, path: string, flags: number, syscall = "open", mode = 0): number => {
  check(path)
  if (Buffer.byteLength(path) >= PATH_MAX) return fail(errno.ENAMETOOLONG, syscall, path)
  const fd = asRoot.openIn(folder, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode & 0o7777)
  return fd < 0 ? fail(-fd, syscall, path) : fd
}

export const SINGLE: number = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

/** Passes the descriptor to `use` and closes it afterwards, after the promise if `use` returns one. */
export const using = <A>(fd: number, use: (fd: number) => A): A => {
  let result: A
  try {
    result = use(fd)
  } catch (error) {
    native().close(fd)
    throw error
  }
  if (result instanceof Promise) return result.finally(() => native().close(fd)) as A
  native().close(fd)
  return result
}

/** Runs a body that may take over a descriptor, which is closed if the body fails. */
export const orClose = async <A>(fd: number, body: () => Promise<A>): Promise<A> => {
  try {
    return await body()
  } catch (error) {
    native().close(fd)
    throw error
  }
}

/** A single name in an opened folder. */
export interface Place {
  readonly folder: number
  readonly name: string
  /** A path for calls of node:fs that do not follow a link in the last place. */
  readonly at: string
  /** The path inside the root, for messages. */
  readonly path: string
}

export const join = (folder: string, name: string): string =>
  folder.endsWith("/") ? `${folder}${name}` : `${folder}/${name}`

export const place = (folder: number, name: string, path: string): Place => ({
  folder,
  name,
  at: `${via(folder)}/${name}`,
  path
})

/** Opens the entry at a place with O_PATH, without following a link; with O_CREAT | O_EXCL, makes a file. */
export const openPlace = (
  at: Place,
  flags: number = O_PATH | O_NOFOLLOW,
  syscall = "open",
  mode = 0
): number => {
  const fd = asRoot.openIn(at.folder, at.name, flags, SINGLE, mode & 0o7777)
  return fd < 0 ? fail(-fd, syscall, at.path) : fd
}

/** Splits a path, without slashes at its end, into folder and name. `""`, `"."` and `".."` are not names. */
export const split = (
  path: string
): { readonly folder: string; readonly name: string; readonly slash: boolean } => {
  const trimmed = path.replace(/\/+$/, "")
  const cut = trimmed.lastIndexOf("/") + 1
  const folder = trimmed.slice(0, cut)
  const name = trimmed.slice(cut)
  return { folder: folder === "" ? (path === trimmed ? "." : "/") : folder, name, slash: path !== trimmed }
}

export const isName = (name: string): boolean => name !== "" && name !== "." && name !== ".."

/**
 * Opens the folder of a path and passes the name in it to `use`. If the path does not end in a name (`/`, `a/..`), it
 * fails with `special` if that folder exists.
 */
export const inFolder = <A>(
  root: number,
  path: string,
  special: number,
  syscall: string,
  use: (at: Place) => A
): A => {
  check(path)
  if (path === "") return fail(errno.ENOENT, syscall, path)
  const { folder, name } = split(path)
  if (!isName(name)) {
    native().close(open(root, path, O_PATH, syscall))
    return fail(special, syscall, path)
  }
  return using(open(root, folder, O_FOLDER, syscall), (fd) => use(place(fd, name, path)))
}

/** The same for a path that may end in a slash, which stands for a folder. */
export const inFolderOf = <A>(
  root: number,
  path: string,
  special: number,
  syscall: string,
  use: (at: Place) => A
): A =>
  inFolder(root, path, special, syscall, (at) => {
    if (path.endsWith("/")) native().close(openPlace(at, O_FOLDER | O_NOFOLLOW, syscall))
    return use(at)
  })

/** Identifies the file of a descriptor, for comparison: a text, because JavaScript's numbers cannot hold 64 bits. */
export const identity = (fd: number): string => `${fs.statSync(via(fd)).dev}:${native().inode(fd).join(":")}`

/** Opens a path of the host by the host's rules. */
export const openHost = (path: string, flags: number): number => {
  check(path)
  if (Buffer.byteLength(path) >= PATH_MAX) return fail(errno.ENAMETOOLONG, "open", path)
  const fd = asRoot.openIn(AT_FDCWD, path, flags, 0, 0)
  return fd < 0 ? fail(-fd, "open", path) : fd
}

export const fsOpen = (path: string, flags: number, mode?: number): Promise<number> =>
  new Promise((resolve, reject) => {
    fs.open(path, flags, mode, (error, fd) => (error ? reject(error) : resolve(fd)))
  })

/** Passes a descriptor of the runtime to `use`, and closes it. */
export const usingOwn = async <A>(fd: number, use: (fd: number) => Promise<A>): Promise<A> => {
  try {
    return await use(fd)
  } finally {
    await fsClose(fd)
  }
}

export const fsClose = (fd: number): Promise<void> =>
  new Promise((resolve, reject) => {
    fs.close(fd, (error) => (error ? reject(error) : resolve()))
  })

/**
 * Converts a descriptor of the kernel to one of the runtime's node:fs, and closes it: Deno's node:fs only knows
 * descriptors that it has opened itself. Undefined if the runtime's numbers are not the kernel's.
 */
const adopt = async (fd: number): Promise<number | undefined> =>
  using(fd, async () => {
    const own = await using(native().memfd(new Uint8Array(0)), async (empty) => {
      const opened = await fsOpen(via(empty), O_RDONLY)
      if (identity(opened) === identity(empty)) return opened
      await fsClose(opened)
    })
    if (own === undefined || native().replace(own, fd) >= 0) return own
    await fsClose(own)
  })

const PROC_SUPER_MAGIC = 0x9fa0

/** Whether a descriptor is in proc(5), whose files describe the process that opens them, or one that they name. */
export const isProc = (fd: number): boolean => fs.statfsSync(via(fd)).type === PROC_SUPER_MAGIC

/** Fails for a kind of file that only processes of the container may open. */
const refuse = (what: string, syscall: string, path: string): never => {
  const hint = `${what} cannot be opened from outside the container: open it with a command inside`
  throw new Failure(errno.EACCES, syscall, path, hint)
}

/**
 * The status of a file whose contents may be opened: a regular file or a folder. A fifo blocks until its other end is
 * open, and a device belongs to the opener: `/dev/tty` is the terminal of this program. A file of proc(5) can block and
 * may have no end.
 */
export const checkContents = (fd: number, path: string, syscall = "open"): fs.Stats => {
  const status = fs.statSync(via(fd))
  if (!status.isFile() && !status.isDirectory()) {
    const kind = status.isFIFO() ? "a fifo" : status.isSocket() ? "a socket" : "a device"
    return refuse(kind, syscall, path)
  }
  return isProc(fd) ? refuse("a file of /proc", syscall, path) : status
}

/** The same for the text of a link in an opened folder, which node:fs reads. */
export const checkLink = (at: Place): void => {
  if (isProc(at.folder)) refuse("a link of /proc", "readlink", at.path)
}

/**
 * open(2) of the file of an O_PATH descriptor, as a descriptor of the runtime. It never blocks, not even for the holder
 * of a lease (fcntl(2)): it fails with EAGAIN.
 */
export const openAgain = async (fd: number, path: string, flags: number): Promise<number> => {
  checkContents(fd, path)
  const now = flags | O_NONBLOCK | O_NOCTTY
  try {
    return await fsOpen(via(fd), now)
  } catch (error) {
    if (!isErrno(error, errno.EACCES)) throw error
    const opened = asRoot.openIn(AT_FDCWD, via(fd), now, 0, 0)
    const own = opened < 0 ? undefined : await adopt(opened)
    if (own === undefined) throw error
    return own
  }
}

const makeFile = async (at: Place, flags: number, mode: number): Promise<number> => {
  try {
    return await fsOpen(at.at, flags, mode)
  } catch (error) {
    if (!isErrno(error, errno.EACCES)) throw error
    const own = await adopt(openPlace(at, flags, "open", mode))
    if (own === undefined) throw error
    return own
  }
}

const ATTEMPTS = 16

/** open(2) inside the root by the rules of `openAgain`; the descriptor may differ from the kernel's number. */
export const openFile = async (root: number, path: string, flags: number, mode = 0o666): Promise<number> => {
  const rest = flags & ~(O_CREAT | O_EXCL)
  const reopen = (fd: number): Promise<number> => using(fd, (opened) => openAgain(opened, path, rest))
  if ((flags & O_CREAT) === 0) return reopen(open(root, path, O_PATH))
  for (let attempt = 0; ; attempt++) {
    if ((flags & O_EXCL) === 0) {
      try {
        return await reopen(open(root, path, O_PATH))
      } catch (error) {
        if (!isErrno(error, errno.ENOENT)) throw error
      }
    }
    if (split(path).slash) return fail(EISDIR, "open", path)
    try {
      // O_EXCL does not follow a link in the last place.
      return await inFolder(root, path, errno.EEXIST, "open", (at) =>
        makeFile(at, flags | O_EXCL | O_NOFOLLOW, mode)
      )
    } catch (error) {
      if (!isErrno(error, errno.EEXIST) || (flags & O_EXCL) !== 0 || attempt === ATTEMPTS) throw error
    }
    // The path is a dangling link, or another process made the file first. O_NONBLOCK, because that file may be a fifo.
    const fd = asRoot.openIn(
      root,
      path,
      (flags & ~O_TRUNC) | O_NONBLOCK | O_NOCTTY,
      RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
      mode & 0o7777
    )
    if (fd >= 0) return reopen(fd)
    if (fd !== -errno.ENOENT) return fail(-fd, "open", path)
    if (attempt === ATTEMPTS) return fail(errno.ENOENT, "open", path)
  }
}

export const readAt = (fd: number, buffer: Uint8Array, length: number, position: number): Promise<number> =>
  new Promise((resolve, reject) =>
    fs.read(fd, buffer, 0, length, position, (error, n) => (error ? reject(error) : resolve(n)))
  )

const CHUNK_BYTES = 1024 * 1024
const WHOLE_BYTES_MAX = 2 ** 31 - 1
/** The limit for a file without a size, as in the kernel's file systems. */
const UNSIZED_BYTES_MAX = 1024 * 1024

/**
 * The contents of the file of an O_PATH descriptor, up to its size when it was opened: a growing file has no end. Fails
 * with EFBIG if it is longer than `max`.
 */
export const readWhole = async (
  fd: number,
  path: string,
  signal: AbortSignal,
  max = WHOLE_BYTES_MAX
): Promise<Uint8Array> => {
  const { size } = checkContents(fd, path)
  if (size > max) return fail(errno.EFBIG, "read", path)
  return usingOwn(await openAgain(fd, path, O_RDONLY), async (own) => {
    const bytes = new Uint8Array(size === 0 ? UNSIZED_BYTES_MAX : size)
    let length = 0
    while (length < bytes.length) {
      signal.throwIfAborted()
      const part = bytes.subarray(length, length + CHUNK_BYTES)
      const n = await readAt(own, part, part.length, length)
      if (n === 0) break
      length += n
    }
    if (size === 0 && length === bytes.length) return fail(errno.EFBIG, "read", path)
    return length === bytes.length ? bytes : bytes.slice(0, length)
  })
}

const LINKS_MAX = 40

/** The path without links, `.` and `..`. */
export const realPath = (root: number, path: string): string => {
  native().close(open(root, path, O_PATH, "realpath"))
  const done: Array<string> = []
  const rest = path.split("/").reverse()
  for (let links = 0; rest.length > 0; ) {
    const name = rest.pop()!
    if (name === "" || name === ".") continue
    if (name === "..") {
      done.pop()
      continue
    }
    const target = inFolder(root, `/${[...done, name].join("/")}`, errno.EINVAL, "realpath", (at) =>
      using(openPlace(at), (fd) =>
        fs.statSync(via(fd)).isSymbolicLink() ? linkText(fd, at.path) : undefined
      )
    )
    if (target === undefined) {
      done.push(name)
      continue
    }
    if (++links > LINKS_MAX) return fail(errno.ELOOP, "realpath", path)
    if (target.startsWith("/")) done.length = 0
    rest.push(...target.split("/").reverse())
  }
  return `/${done.join("/")}`
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

/** The target of a link, by the link's own descriptor. */
export const linkTarget = (fd: number, path: string): Uint8Array => {
  const buffer = new Uint8Array(PATH_MAX)
  const n = native().readLink(fd, buffer)
  return n < 0 ? fail(-n, "readlink", path) : buffer.subarray(0, n)
}

/** The same, with U+FFFD for bytes that are not UTF-8. */
export const linkText = (fd: number, path: string): string => utf8.decode(linkTarget(fd, path))

// `struct linux_dirent64`: two numbers of 64 bits, the length of the record, a type, and the name with a NUL.
const RECORD_LENGTH_AT = 16
const TYPE_AT = 18
const NAME_AT = 19
const ENTRIES_BYTES = 64 * 1024
const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1
const DOT = 0x2e
const isDots = (name: Uint8Array): boolean => name.length <= 2 && name.every((byte) => byte === DOT)

/** An entry of a folder. */
export interface Entry {
  /** The bytes of the name, which need not be UTF-8. */
  readonly name: Uint8Array
  /** False if the file system reports that the entry was not a folder when it was listed. */
  readonly mayBeFolder: boolean
}

const DT_UNKNOWN = 0
const DT_DIR = 4

/** The entries of an opened folder, O_PATH or not, in parts. */
export function* entryParts(folder: number, path: string): Generator<ReadonlyArray<Entry>> {
  const fd = asRoot.openIn(folder, ".", O_RDONLY | O_DIRECTORY, SINGLE, 0)
  if (fd < 0) return fail(-fd, "open", path)
  try {
    const buffer = new Uint8Array(ENTRIES_BYTES)
    for (;;) {
      const entries: Array<Entry> = []
      const length = native().entries(fd, buffer)
      if (length < 0) return fail(-length, "getdents64", path)
      if (length === 0) return
      for (let at = 0; at < length; ) {
        const size = new DataView(buffer.buffer, at).getUint16(RECORD_LENGTH_AT, LITTLE_ENDIAN)
        const name = buffer.slice(at + NAME_AT, buffer.indexOf(0, at + NAME_AT))
        const type = buffer[at + TYPE_AT]
        if (!isDots(name)) entries.push({ name, mayBeFolder: type === DT_DIR || type === DT_UNKNOWN })
        at += size
      }
      yield entries
    }
  } finally {
    native().close(fd)
  }
}

/** lstat(2), undefined if the entry does not exist. */
export const statusOf = (at: Place): fs.Stats | undefined => {
  try {
    return fs.lstatSync(at.at, { throwIfNoEntry: false })
  } catch (error) {
    if (!isErrno(error, errno.EACCES)) throw error
    const fd = asRoot.openIn(at.folder, at.name, O_PATH | O_NOFOLLOW, SINGLE, 0)
    if (fd === -errno.ENOENT) return undefined
    return fd < 0 ? fail(-fd, "lstat", at.path) : using(fd, () => fs.statSync(via(fd)))
  }
}

/** The names in an opened folder, O_PATH or not, with U+FFFD for bytes that are not UTF-8. */
export const names = (fd: number): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(via(fd))
  } catch (error) {
    if (!isErrno(error, errno.EACCES)) throw error
    return [...entryParts(fd, via(fd))].flat().map(({ name }) => utf8.decode(name))
  }
}

/** Continues in the next turn of the event loop if this one is over, and stops if the fiber was interrupted. */
export const turn = async (signal: AbortSignal): Promise<void> => {
  if (Turn.isOver()) await new Promise<void>((resolve) => Turn.next(resolve))
  signal.throwIfAborted()
}

/** An effect of a promise that receives a signal of an interruption; the interruption waits for the promise. */
export const promised = <A>(body: (signal: AbortSignal) => Promise<A>): Effect.Effect<A, unknown> =>
  Effect.async<A, unknown>((resume) => {
    const controller = new AbortController()
    const done = (async () => body(controller.signal))().then(
      (value) => resume(Effect.succeed(value)),
      (error) => resume(Effect.fail(error))
    )
    return Effect.promise(() => {
      controller.abort()
      return done
    })
  })
