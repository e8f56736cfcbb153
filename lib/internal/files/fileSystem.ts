/** The files of a container as `@effect/platform`'s FileSystem, which behaves as platform-node's on the host. */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { promisify } from "node:util"
import { type PlatformError, SystemError } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Container } from "../../Container.ts"
import { type Ids, outside } from "../ids/idMaps.ts"
import { native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { EEXIST, EINVAL, ELOOP, ENOENT, ENOTDIR } from "../util/errno.ts"
import { noFiles } from "./archiveCopy.ts"
import { copyFile, copy as copyTree } from "./cpCopy.ts"
import { watch } from "./inotify.ts"
import * as changes from "./mutations.ts"
import * as asRoot from "./namespaceRoot.ts"
import { infoOf, OpenFile } from "./openFile.ts"
import { platformError } from "./platformError.ts"
import * as inRoot from "./rooted.ts"
import { entriesOf, textsOf, walk } from "./walk.ts"

type Result<A> = Effect.Effect<A, PlatformError>

const flags: Readonly<Record<string, number>> = {
  r: inRoot.O_RDONLY,
  "r+": inRoot.O_RDWR,
  w: inRoot.O_WRONLY | inRoot.O_CREAT | inRoot.O_TRUNC,
  wx: inRoot.O_WRONLY | inRoot.O_CREAT | inRoot.O_TRUNC | inRoot.O_EXCL,
  "w+": inRoot.O_RDWR | inRoot.O_CREAT | inRoot.O_TRUNC,
  "wx+": inRoot.O_RDWR | inRoot.O_CREAT | inRoot.O_TRUNC | inRoot.O_EXCL,
  a: inRoot.O_WRONLY | inRoot.O_CREAT | inRoot.O_APPEND,
  ax: inRoot.O_WRONLY | inRoot.O_CREAT | inRoot.O_APPEND | inRoot.O_EXCL,
  "a+": inRoot.O_RDWR | inRoot.O_CREAT | inRoot.O_APPEND,
  "ax+": inRoot.O_RDWR | inRoot.O_CREAT | inRoot.O_APPEND | inRoot.O_EXCL
}

const flagsOf = (flag: string): number => {
  const known = Object.hasOwn(flags, flag) ? flags[flag] : undefined
  if (known !== undefined) return known
  const message = `a flag is one of ${Object.keys(flags).join(", ")}: ${JSON.stringify(flag)}`
  throw Object.assign(new TypeError(message), { code: "ERR_INVALID_ARG_VALUE" })
}

/** The host's id of an id in the container. node:fs refuses an invalid id; -1 means no change. */
const hostId = (ranges: Ids["uids"], id: number, path: string): number => {
  if (!Number.isInteger(id) || id < 0) return id
  const isMapped = ranges.some(({ container, size }) => id >= container && id - container < size)
  return isMapped ? outside(ranges, id) : inRoot.fail(EINVAL, "chown", path)
}

/** The limit of readFile in memory: a container makes files of any size, and devices and fifos have no end. */
const READ_BYTES_MAX = 512 * 1024 * 1024

const tooLarge = (path: string): SystemError =>
  new SystemError({
    module: "FileSystem",
    method: "readFile",
    reason: "BadResource",
    pathOrDescriptor: path,
    syscall: "read",
    description: `EFBIG: file too large, read '${path}': the limit of readFile is ${READ_BYTES_MAX} bytes: use stream`
  })

const temporary = (): string => randomBytes(4).toString("base64url").slice(0, 6).replaceAll(/[-_]/g, "x")

export const make = (container: Container): FileSystem.FileSystem => {
  const { elsewhere } = container.state
  if (elsewhere !== undefined) return elsewhere.fileSystem
  const rootFor = (method: string, path: string): number => {
    const { root } = container.state
    if (root >= 0) return root
    const description = `container ${container.id}: ${noFiles}`
    throw new SystemError({
      module: "FileSystem",
      method,
      reason: "BadResource",
      pathOrDescriptor: path,
      description
    })
  }

  const mapped =
    (method: string, path: string, always = false) =>
    (error: unknown): PlatformError =>
      error instanceof SystemError ? error : platformError(method, path, always)(error)

  // Such a call takes microseconds: it is made synchronously, so that its descriptor never outlives it.
  const attempt = <A>(method: string, path: string, body: (root: number) => A): Result<A> =>
    Effect.try({ try: () => body(rootFor(method, path)), catch: mapped(method, path) })

  const attemptLong = <A>(
    method: string,
    path: string,
    body: (root: number, signal: AbortSignal) => Promise<A>,
    always = false
  ): Result<A> =>
    Effect.mapError(
      // A duplicate, because the container's descriptor may be closed in the meantime.
      inRoot.promised(async (signal) =>
        inRoot.using(native().duplicate(rootFor(method, path)), (root) => body(root, signal))
      ),
      mapped(method, path, always)
    )

  /** The file at a path, for calls that follow links. */
  const on = <A>(root: number, path: string, syscall: string, use: (fd: number) => A): A =>
    inRoot.using(inRoot.open(root, path, O_PATH, syscall), use)

  const ids = (): Ids => container.state.base.ids

  const open =
    (method: string) =>
    (
      path: string,
      options?: FileSystem.OpenFileOptions
    ): Effect.Effect<OpenFile, PlatformError, Scope.Scope> =>
      Effect.acquireRelease(
        Effect.map(
          attemptLong(method, path, (root) =>
            inRoot.openFile(root, path, flagsOf(options?.flag ?? "r"), options?.mode)
          ),
          (fd) => new OpenFile(fd, options?.flag?.startsWith("a") ?? false, ids())
        ),
        (file) => Effect.sync(() => file.close())
      )

  const remove =
    (method: string) =>
    (path: string, options?: FileSystem.RemoveOptions): Result<void> =>
      attemptLong(method, path, async (root, signal) => {
        try {
          await inRoot.inFolderOf(root, path, inRoot.EBUSY, "rm", async (at) => {
            if (options?.recursive === true) return changes.removeTree(at, signal)
            if (!changes.statusOf(at).isDirectory()) return changes.unlink(at)
            const message = "Path is a directory: rm removes it with recursive: true"
            throw Object.assign(new Error(message), { code: "ERR_FS_EISDIR", syscall: "rm" })
          })
        } catch (error) {
          if (options?.force !== true || !inRoot.isErrno(error, ENOENT)) throw error
        }
      })

  const makeTempDirectory =
    (method: string) =>
    (options?: FileSystem.MakeTempDirectoryOptions): Result<string> => {
      const folder = typeof options?.directory === "string" ? options.directory : "/tmp"
      const start = inRoot.join(folder.replace(/(?<=.)\/+$/, "") || ".", options?.prefix ?? "")
      return attempt(method, start, (root) => {
        for (;;) {
          const path = `${start}${temporary()}`
          try {
            changes.makeFolder(root, path, 0o700, false)
            return path
          } catch (error) {
            if (!inRoot.isErrno(error, EEXIST)) throw error
          }
        }
      })
    }

  const makeTempFile =
    (method: string) =>
    (options?: FileSystem.MakeTempFileOptions): Result<string> =>
      makeTempDirectory(method)(options).pipe(
        Effect.map((folder) => `${folder}/${randomBytes(6).toString("hex")}${options?.suffix ?? ""}`),
        Effect.tap((path) => Effect.scoped(open(method)(path, { flag: "w+" })))
      )

  const readFolder = async (top: number, signal: AbortSignal): Promise<Array<string>> => {
    const found: Array<string> = []
    const namesIn = (folder: number, prefix: string) => entriesOf(folder, prefix, signal)
    const names = await namesIn(top, "")
    for await (const { enter, folder, name: entry, state } of walk({
      top,
      state: "",
      names,
      namesIn,
      signal
    })) {
      const { mayBeFolder, name } = entry
      const path = `${state}${name}`
      found.push(path)
      if (!mayBeFolder) continue
      try {
        const fd = inRoot.openPlace(inRoot.place(folder, name, path), inRoot.O_FOLDER | O_NOFOLLOW)
        enter(fd, `${path}/`)
      } catch (error) {
        // Not a folder, or removed in the meantime.
        if (!inRoot.isErrno(error, ENOENT, ENOTDIR, ELOOP)) throw error
      }
    }
    return found
  }

  const stat = (path: string): Result<FileSystem.File.Info> =>
    attempt("stat", path, (root) =>
      infoOf(
        on(root, path, "stat", (fd) => fs.statSync(inRoot.via(fd))),
        ids()
      )
    )

  return FileSystem.make({
    access: (path, options) =>
      attempt("access", path, (root) => {
        const read = options?.readable === true ? fs.constants.R_OK : 0
        const write = options?.writable === true ? fs.constants.W_OK : 0
        inRoot.using(inRoot.open(root, path, O_PATH, "access"), (fd) => {
          const result = asRoot.access(fd, fs.constants.F_OK | read | write)
          if (result < 0) inRoot.fail(-result, "access", path)
        })
      }),
    chmod: (path, mode) =>
      attempt("chmod", path, (root) => on(root, path, "chmod", (fd) => changes.chmod(fd, mode, path))),
    chown: (path, uid, gid) =>
      attempt("chown", path, (root) =>
        on(root, path, "chown", (fd) => {
          const { gids, uids } = ids()
          changes.chown(fd, hostId(uids, uid, path), hostId(gids, gid, path), path)
        })
      ),
    copy: (from, to, options) =>
      attemptLong("copy", from, (root, signal) => copyTree(root, from, to, options ?? {}, signal)),
    copyFile: (from, to) => attemptLong("copyFile", from, (root, signal) => copyFile(root, from, to, signal)),
    link: (from, to) =>
      attempt("link", from, (root) =>
        inRoot.inFolderOf(root, from, 1, "link", (existing) =>
          inRoot.inFolderOf(root, to, EEXIST, "link", (made) => changes.link(existing, made))
        )
      ),
    makeDirectory: (path, options) =>
      attempt("makeDirectory", path, (root) =>
        changes.makeFolder(root, path, options?.mode ?? 0o777, options?.recursive ?? false)
      ),
    makeTempDirectory: makeTempDirectory("makeTempDirectory"),
    makeTempDirectoryScoped: (options) =>
      Effect.acquireRelease(makeTempDirectory("makeTempDirectoryScoped")(options), (path) =>
        Effect.orDie(remove("makeTempDirectoryScoped")(path, { recursive: true }))
      ),
    makeTempFile: makeTempFile("makeTempFile"),
    makeTempFileScoped: (options) =>
      Effect.acquireRelease(makeTempFile("makeTempFileScoped")(options), (path) =>
        Effect.orDie(remove("makeTempFileScoped")(inRoot.split(path).folder, { recursive: true }))
      ),
    open: open("open"),
    readDirectory: (path, options) =>
      attemptLong(
        "readDirectory",
        path,
        (root, signal) =>
          inRoot.using(inRoot.open(root, path, inRoot.O_FOLDER, "scandir"), async (folder) => {
            return options?.recursive === true
              ? readFolder(folder, signal)
              : [...(await textsOf(folder, path, signal))]
          }),
        true
      ),
    readFile: (path) =>
      attemptLong("readFile", path, (root, signal) =>
        on(root, path, "open", (fd) => {
          if (fs.statSync(inRoot.via(fd)).size > READ_BYTES_MAX) throw tooLarge(path)
          return inRoot.readWhole(fd, path, signal)
        })
      ),
    readLink: (path) =>
      attempt("readLink", path, (root) => {
        if (path.endsWith("/")) on(root, path, "readlink", () => inRoot.fail(EINVAL, "readlink", path))
        return inRoot.inFolder(root, path, EINVAL, "readlink", changes.readLink)
      }),
    realPath: (path) => attempt("realPath", path, (root) => inRoot.realPath(root, path)),
    remove: remove("remove"),
    rename: (from, to) =>
      attempt("rename", from, (root) =>
        inRoot.inFolderOf(root, from, inRoot.EBUSY, "rename", (old) =>
          inRoot.inFolder(root, to, inRoot.EBUSY, "rename", (made) => {
            if (to.endsWith("/") && !changes.statusOf(old).isDirectory())
              return inRoot.fail(ENOTDIR, "rename", to)
            return changes.rename(old, made)
          })
        )
      ),
    stat,
    symlink: (target, path) =>
      attempt("symlink", target, (root) =>
        inRoot.inFolderOf(root, path, EEXIST, "symlink", (at) => changes.symlink(target, at))
      ),
    truncate: (path, length) =>
      attemptLong("truncate", path, (root) =>
        on(root, path, "open", async (fd) =>
          inRoot.usingOwn(await inRoot.openAgain(fd, path, inRoot.O_WRONLY), (own) =>
            promisify(fs.ftruncate)(own, length === undefined ? undefined : Number(length))
          )
        )
      ),
    utimes: (path, atime, mtime) =>
      attempt("utime", path, (root) =>
        on(root, path, "utime", (fd) => changes.utimes(fd, atime, mtime, path))
      ),
    watch: (path, options) =>
      Stream.unwrap(
        Effect.map(stat(path), () =>
          Stream.suspend(() => watch(container.state.root, path, options?.recursive === true))
        )
      ),
    writeFile: (path, data, options) =>
      attemptLong("writeFile", path, async (root, signal) => {
        const fd = await inRoot.openFile(root, path, flagsOf(options?.flag ?? "w"), options?.mode)
        await inRoot.usingOwn(fd, (own) => promisify(fs.writeFile)(own, data, { signal }))
      })
  })
}
