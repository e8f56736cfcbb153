/** Unix sockets of the host that lead into a container. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type BerthError, InvalidOption, NetworkError, OperationFailed } from "../../BerthError.ts"
import type { PublishPathOptions } from "../../Connection.ts"
import { AT_FDCWD, native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { EADDRINUSE, ECONNREFUSED, ENOENT, ENOTDIR } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { invalid } from "../util/validate.ts"
import { AF_UNIX, unix } from "./address.ts"
import { heldBy, pathInodes } from "./holders.ts"
import type { Served } from "./proxy.ts"
import { SOCK_STREAM } from "./socket.ts"

/** `sun_path` of unix(7), without the NUL at its end. */
const PATH_BYTES_MAX = 107

const MODE = 0o600

const check = ({ mode = MODE, path }: PublishPathOptions): void => {
  const expected = `an absolute path of a file on the host, of at most ${PATH_BYTES_MAX} bytes`
  const isPath = path.startsWith("/") && !/\/\.{0,2}$/.test(path) && !path.includes("\0")
  if (!isPath || Buffer.byteLength(path) > PATH_BYTES_MAX) invalid("path", path, expected)
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o777) invalid("mode", mode, "from 0 to 0o777")
}

const failed = (container: Served, path: string, syscall: string, errno: number): BerthError => {
  if (errno === ENOENT || errno === ENOTDIR)
    return new InvalidOption({ option: "path", value: path, expected: "a path in a folder that exists" })
  if (errno !== EADDRINUSE)
    return new OperationFailed({ operation: `publish ${path}`, index: -1, syscall, errno, hint: "" })
  return new NetworkError({
    reason: "AddressInUse",
    subject: `container ${container.id}`,
    address: path,
    errno,
    detail: `the path is taken${heldBy(pathInodes(path))}; choose another one, or remove the file`
  })
}

/** Whether a file is a socket that no process has any more: its program was killed. */
export const isLeftover = (path: string): boolean => {
  if (fs.lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return false
  if (pathInodes(path).length > 0) return false
  const fd = native().socketIn(-1, -1, AF_UNIX, SOCK_STREAM)
  if (fd < 0) return false
  const refused = native().connect(fd, unix(path).bytes) === -ECONNREFUSED
  native().close(fd)
  return refused
}

interface Bound {
  readonly fds: Array<number>
  /** Removes the file, unless another one has its place. */
  readonly remove: () => void
}

/** The kernel takes the mode of the socket, less the umask, so nobody can connect who may not; then the rest of it. */
const bind = (container: Served, path: string, mode: number): Bound => {
  const fd = native().socketIn(-1, -1, AF_UNIX, SOCK_STREAM)
  if (fd < 0) throw failed(container, path, "socket", -fd)
  let made = -1
  try {
    fs.chmodSync(`/proc/self/fd/${fd}`, mode)
    const bound = native().bind(fd, unix(path).bytes)
    if (bound < 0) throw failed(container, path, "bind", -bound)
    made = native().openIn(AT_FDCWD, path, O_PATH | O_NOFOLLOW, 0, 0)
    if (made < 0) throw failed(container, path, "openat2", -made)
    fs.chmodSync(`/proc/self/fd/${made}`, mode)
    const { dev, ino } = fs.statSync(`/proc/self/fd/${made}`)
    const remove = (): void => {
      const there = fs.lstatSync(path, { throwIfNoEntry: false })
      if (there?.dev === dev && there.ino === ino) fs.rmSync(path, { force: true })
    }
    return { fds: [fd], remove }
  } catch (error) {
    native().close(fd)
    throw error
  } finally {
    if (made >= 0) native().close(made)
  }
}

const isTaken = (error: unknown): boolean => error instanceof NetworkError && error.errno === EADDRINUSE

/** A bound socket, whose file is there until the scope closes. Whoever takes it out of the list closes it. */
export const bindPath = (
  container: Served,
  options: PublishPathOptions
): Effect.Effect<Array<number>, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    attempt(() => {
      const { mode = MODE, path } = options
      check(options)
      try {
        return bind(container, path, mode)
      } catch (error) {
        if (!isTaken(error) || !isLeftover(path)) throw error
        fs.rmSync(path)
        return bind(container, path, mode)
      }
    }),
    ({ fds, remove }) =>
      Effect.sync(() => fds.forEach((fd) => native().close(fd))).pipe(
        Effect.zipRight(Effect.ignoreLogged(Effect.try(remove)))
      )
  ).pipe(Effect.map(({ fds }) => fds))
