/**
 * The addon, loaded on first use so that the library can be imported on every system, and its constants. Every function
 * returns the result of the system call, or -errno.
 */
import { constants } from "node:fs"
import { createRequire } from "node:module"
import { programPath } from "./nativePart.ts"

export interface Native {
  /** `[pid, pidfd]`, or `[-errno, 0]`. With a gate, the process that it starts ends at once, and leaves the supervisor alone. */
  readonly startSupervisor: (
    program: string,
    folder: string,
    inherited: ReadonlyArray<number>,
    mode: "root" | "single-id" | "ranges",
    gate: string
  ) => readonly [number, number]
  /** `[ours, theirs]`, SOCK_SEQPACKET; ours is non-blocking. */
  readonly socketpair: () => readonly [number, number]
  /** `[read end, write end]`; the end numbered `ours` is non-blocking. */
  readonly pipe: (ours: 0 | 1, bytes: number) => readonly [number, number]
  readonly enlargePipe: (fd: number, bytes: number) => number
  readonly send: (socket: number, bytes: Uint8Array, descriptors: ReadonlyArray<number>) => number
  /** `[bytes received, descriptor or -1, descriptor or -1]`. */
  readonly receive: (socket: number, bytes: Uint8Array) => readonly [number, number, number]
  readonly read: (fd: number, bytes: Uint8Array) => number
  readonly write: (fd: number, bytes: Uint8Array, offset: number) => number
  /** close(2), after the loop has forgotten the descriptor. */
  readonly close: (fd: number) => number
  /** close(2) on another thread, for a descriptor that may be the last one of a mount. */
  readonly closeRoot: (fd: number) => number
  /** openat2(2): `folder` is a descriptor or AT_FDCWD, `resolve` of RESOLVE_*; `mode` is for O_CREAT. */
  readonly openIn: (
    folder: number,
    path: string | Uint8Array,
    flags: number,
    resolve: number,
    mode: number
  ) => number
  /** The same as root of a user namespace, given by a descriptor, that this process's user has made; never blocks. */
  readonly openAsRoot: (
    namespace: number,
    folder: number,
    path: string | Uint8Array,
    flags: number,
    resolve: number,
    mode: number
  ) => number
  /** One of the calls of native/addon/as_root.h, as root of a user namespace. */
  readonly changeAsRoot: (
    namespace: number,
    change: number,
    folder: number,
    name: string,
    other: number,
    text: string,
    a: number,
    b: number
  ) => number
  /** `[seconds, nanoseconds]` of the last change of the contents, or `[-errno, -1]`. This and the next eight take O_PATH. */
  readonly modified: (fd: number) => readonly [number, number]
  /** The inode number in two halves of 32 bits, the high one first, or `[-errno, 0]`. */
  readonly inode: (fd: number) => readonly [number, number]
  readonly setModified: (fd: number, seconds: number, nanoseconds: number) => number
  /** listxattr(2): the names, each ended by a NUL. */
  readonly xattrs: (fd: number, bytes: Uint8Array) => number
  readonly xattr: (fd: number, name: string, bytes: Uint8Array) => number
  /** The same as root of a user namespace. */
  readonly xattrAsRoot: (namespace: number, fd: number, name: string, bytes: Uint8Array) => number
  readonly setXattr: (fd: number, name: string, bytes: Uint8Array) => number
  readonly access: (fd: number, mode: number) => number
  /** A non-blocking inotify(7) that watches one file or folder. */
  readonly inotify: (fd: number, mask: number) => number
  readonly inotifyAsRoot: (namespace: number, fd: number, mask: number) => number
  /** A new non-blocking eventfd(2). */
  readonly eventfd: () => number
  /** `[start, end]` of the next data in a file, which is read next, or `[-errno, 0]`: ENXIO if only holes follow. */
  readonly extent: (fd: number, offset: number) => readonly [number, number]
  /** mkfifoat(2), for a single name. */
  readonly makeFifo: (folder: number, name: string, mode: number) => number
  /** getdents64(2) of a folder that is open for reading; 0 at its end. */
  readonly entries: (fd: number, bytes: Uint8Array) => number
  /** readlinkat(2) by the descriptor of the link itself. */
  readonly readLink: (fd: number, bytes: Uint8Array) => number
  readonly duplicate: (fd: number) => number
  /** dup3(2): makes `fd` a duplicate of `by`, without a moment in which it is closed. */
  readonly replace: (fd: number, by: number) => number
  /** TIOCSWINSZ: sets the size of a terminal. */
  readonly resize: (terminal: number, rows: number, columns: number) => number
  readonly memfd: (bytes: Uint8Array) => number
  readonly flock: (fd: number, operation: number) => number
  readonly signal: (pidfd: number, number: number) => number
  /** Reaps a child of this process that has ended, by its pidfd. */
  readonly reap: (pidfd: number) => number
  /** `[bytes of the program, 0]`, or `[-errno, index of the faulty rule]`; native/addon/seccomp.h has the form. */
  readonly seccompCompile: (policy: Uint8Array, program: Uint8Array) => readonly [number, number]
  /** The name of a system call of this architecture, or "" if libseccomp does not know it. */
  readonly seccompName: (number: number) => string
  /** SECCOMP_IOCTL_NOTIF_RECV and _SEND, with struct seccomp_notif, zeroed before, and its response. */
  readonly seccompReceive: (listener: number, request: Uint8Array) => number
  readonly seccompAnswer: (listener: number, answer: Uint8Array) => number
  /** socket(2), which does not block, in the network namespace of a process; -1 for this process's own. */
  readonly socketIn: (namespace: number, pidfd: number, family: number, type: number) => number
  /** connect(2) to a `struct sockaddr`; -EINPROGRESS where the result is not known yet. */
  readonly connect: (fd: number, address: Uint8Array) => number
  /** The result of a connect that was in progress: 0, or -errno, -EINPROGRESS where it still is. */
  readonly connected: (fd: number) => number
  /** bind(2), with SO_REUSEADDR for a stream, and IPV6_V6ONLY. */
  readonly bind: (fd: number, address: Uint8Array) => number
  /** listen(2), with as long a queue as the kernel allows. */
  readonly listen: (fd: number) => number
  /** accept4(2): a connection, which does not block. */
  readonly accept: (fd: number) => number
  /** getsockname(2): the length of the address that is written to `address`. */
  readonly socketAddress: (fd: number, address: Uint8Array) => number
  /** shutdown(2) of the sending half. */
  readonly shutdown: (fd: number) => number
  /** Leaves the closing of a descriptor to the runtime, which has taken it over. */
  readonly disown: (fd: number) => number
  /** Binds a packet(7) socket to an interface; the kernel keeps at most so many bytes of packets for it. */
  readonly capture: (fd: number, index: number, buffer: number) => number
  /**
   * Writes packets as records of a pcap file, of each at most so many bytes: `[length, reason]`, where the reason why there are no more
   * is 0 for lack of room, or -errno: -EAGAIN where no packet is left.
   */
  readonly packets: (fd: number, bytes: Uint8Array, most: number) => readonly [number, number]
  /** `[packets, of which dropped]` since the last call, or `[-errno, 0]`. */
  readonly packetStatistics: (fd: number) => readonly [number, number]
  readonly startLoop: (ready: (token: number, events: number) => void) => number
  readonly watch: (fd: number, events: number, token: number) => number
  readonly keepAlive: (alive: boolean) => number
}

/** Constants of open(2), openat2(2), flock(2) and epoll(7). */
export const AT_FDCWD = -100
export const O_PATH = 0o10000000
/** Values for this architecture; on a system that lacks them they are never used. */
export const O_DIRECTORY = constants.O_DIRECTORY ?? 0
export const O_NOFOLLOW = constants.O_NOFOLLOW ?? 0
export const RESOLVE_NO_XDEV = 0x01
export const RESOLVE_NO_MAGICLINKS = 0x02
export const RESOLVE_NO_SYMLINKS = 0x04
export const RESOLVE_BENEATH = 0x08
export const RESOLVE_IN_ROOT = 0x10
export const LOCK_SH = 1
export const LOCK_EX = 2
export const LOCK_NB = 4
export const LOCK_UN = 8
export const EPOLLIN = 0x001
export const EPOLLPRI = 0x002
export const EPOLLOUT = 0x004
export const EPOLLERR = 0x008
export const EPOLLHUP = 0x010

// A process loads a library once.
let loaded: Native | undefined

/** The addon; throws if it cannot be loaded, which only `Berth.layer` handles. */
export const native = (): Native => {
  if (loaded === undefined)
    loaded = createRequire(programPath("berth.node"))(programPath("berth.node")) as Native
  return loaded
}
