/** errno(3): the numbers are the same on every architecture of Berth. The only table of them. */
const table = {
  EPERM: [1, "operation not permitted"],
  ENOENT: [2, "no such file or directory"],
  ESRCH: [3, "no such process"],
  EINTR: [4, "interrupted"],
  EIO: [5, "input/output error"],
  ENXIO: [6, "no such device or address"],
  E2BIG: [7, "argument list too long"],
  ENOEXEC: [8, "exec format error"],
  EBADF: [9, "bad file descriptor"],
  ECHILD: [10, "no child processes"],
  EAGAIN: [11, "resource temporarily unavailable"],
  ENOMEM: [12, "out of memory"],
  EACCES: [13, "permission denied"],
  EFAULT: [14, "bad address"],
  EBUSY: [16, "device or resource busy"],
  EEXIST: [17, "file exists"],
  EXDEV: [18, "crosses filesystems"],
  ENODEV: [19, "no such device"],
  ENOTDIR: [20, "not a directory"],
  EISDIR: [21, "is a directory"],
  EINVAL: [22, "invalid argument"],
  ENFILE: [23, "too many open files in the system"],
  EMFILE: [24, "too many open files"],
  ETXTBSY: [26, "text file busy"],
  EFBIG: [27, "file too large"],
  ENOSPC: [28, "no space left on device"],
  EROFS: [30, "read-only file system"],
  EMLINK: [31, "too many links"],
  EPIPE: [32, "broken pipe"],
  ERANGE: [34, "result too large"],
  ENAMETOOLONG: [36, "file name too long"],
  ENOSYS: [38, "not implemented by this kernel"],
  ENOTEMPTY: [39, "directory not empty"],
  ELOOP: [40, "too many symbolic links"],
  ENODATA: [61, "no data available"],
  EPROTO: [71, "protocol error"],
  EBADMSG: [74, "bad message"],
  EOVERFLOW: [75, "value too large"],
  ELIBACC: [79, "cannot access a shared library"],
  EMSGSIZE: [90, "message too long"],
  ENOTSUP: [95, "not supported"],
  EAFNOSUPPORT: [97, "address family not supported"],
  EADDRINUSE: [98, "address in use"],
  EADDRNOTAVAIL: [99, "address not available"],
  ENETDOWN: [100, "network is down"],
  ENETUNREACH: [101, "network unreachable"],
  ECONNRESET: [104, "connection reset"],
  ENOTCONN: [107, "not connected"],
  ETOOMANYREFS: [109, "too many open files in unread messages"],
  ETIMEDOUT: [110, "timed out"],
  ECONNREFUSED: [111, "connection refused"],
  EHOSTUNREACH: [113, "host unreachable"],
  EINPROGRESS: [115, "in progress"],
  ESTALE: [116, "stale file handle"],
  EDQUOT: [122, "disk quota exceeded"]
} as const satisfies Readonly<Record<string, readonly [errno: number, text: string]>>

const byNumber: ReadonlyMap<number, readonly [name: string, text: string]> = new Map(
  Object.entries(table).map(([name, [errno, text]]) => [errno, [name, text]])
)

export const errnoName = (errno: number): string => byNumber.get(errno)?.[0] ?? `errno ${errno}`

export const describeErrno = (errno: number): string => byNumber.get(errno)?.[1] ?? "see errno(3)"

export const EPERM = table.EPERM[0]
export const ENOENT = table.ENOENT[0]
export const ESRCH = table.ESRCH[0]
export const EINTR = table.EINTR[0]
export const EIO = table.EIO[0]
export const E2BIG = table.E2BIG[0]
export const ENOEXEC = table.ENOEXEC[0]
export const EAGAIN = table.EAGAIN[0]
export const ENOMEM = table.ENOMEM[0]
export const EACCES = table.EACCES[0]
export const EBUSY = table.EBUSY[0]
export const EEXIST = table.EEXIST[0]
export const EXDEV = table.EXDEV[0]
export const ENODEV = table.ENODEV[0]
export const ENOTDIR = table.ENOTDIR[0]
export const EINVAL = table.EINVAL[0]
export const ENFILE = table.ENFILE[0]
export const EMFILE = table.EMFILE[0]
export const EFBIG = table.EFBIG[0]
export const ENOSPC = table.ENOSPC[0]
export const EROFS = table.EROFS[0]
export const EPIPE = table.EPIPE[0]
export const ENAMETOOLONG = table.ENAMETOOLONG[0]
export const ENOSYS = table.ENOSYS[0]
export const ELOOP = table.ELOOP[0]
export const ENODATA = table.ENODATA[0]
export const ESTALE = table.ESTALE[0]
export const EDQUOT = table.EDQUOT[0]
export const ECONNRESET = table.ECONNRESET[0]
export const ETIMEDOUT = table.ETIMEDOUT[0]

const advice: Readonly<Record<number, string>> = {
  [ENFILE]:
    "This machine has reached its limit of open files (fs.file-max): close some, or raise it with sysctl",
  [EMFILE]:
    "This program or its supervisor has reached its limit of open files: close unused files, or raise the limit (ulimit -n, or LimitNOFILE in a unit of systemd)",
  [table.ETOOMANYREFS[0]]:
    "The processes of this user, including those in its containers, have reached the limit of open files in unread messages: end the senders, or raise the limit of open files (ulimit -n)"
}

/** Advice for limits of the machine or of the program, which any operation can reach. */
export const adviceOf = (errno: number): string | undefined => advice[errno]
export const EAFNOSUPPORT = table.EAFNOSUPPORT[0]
export const EADDRINUSE = table.EADDRINUSE[0]
export const EADDRNOTAVAIL = table.EADDRNOTAVAIL[0]
export const ENETDOWN = table.ENETDOWN[0]
export const ENETUNREACH = table.ENETUNREACH[0]
export const ECONNREFUSED = table.ECONNREFUSED[0]
export const EHOSTUNREACH = table.EHOSTUNREACH[0]
export const EINPROGRESS = table.EINPROGRESS[0]
