/** The one errno table: errno(3), Linux numbers that are the same on every architecture Berth builds for. */
const table: Readonly<Record<number, readonly [name: string, text: string]>> = {
  1: ["EPERM", "operation not permitted"],
  2: ["ENOENT", "no such file or directory"],
  3: ["ESRCH", "no such process"],
  4: ["EINTR", "interrupted"],
  5: ["EIO", "input/output error"],
  6: ["ENXIO", "no such device or address"],
  7: ["E2BIG", "argument list too long"],
  8: ["ENOEXEC", "exec format error"],
  9: ["EBADF", "bad file descriptor"],
  10: ["ECHILD", "no child processes"],
  11: ["EAGAIN", "resource temporarily unavailable"],
  12: ["ENOMEM", "out of memory"],
  13: ["EACCES", "permission denied"],
  14: ["EFAULT", "bad address"],
  16: ["EBUSY", "device or resource busy"],
  17: ["EEXIST", "file exists"],
  18: ["EXDEV", "crosses filesystems"],
  19: ["ENODEV", "no such device"],
  20: ["ENOTDIR", "not a directory"],
  21: ["EISDIR", "is a directory"],
  22: ["EINVAL", "invalid argument"],
  23: ["ENFILE", "too many open files in the system"],
  24: ["EMFILE", "too many open files"],
  26: ["ETXTBSY", "text file busy"],
  27: ["EFBIG", "file too large"],
  28: ["ENOSPC", "no space left on device"],
  30: ["EROFS", "read-only file system"],
  31: ["EMLINK", "too many links"],
  32: ["EPIPE", "broken pipe"],
  34: ["ERANGE", "result too large"],
  36: ["ENAMETOOLONG", "file name too long"],
  38: ["ENOSYS", "not implemented by this kernel"],
  39: ["ENOTEMPTY", "directory not empty"],
  40: ["ELOOP", "too many symbolic links"],
  61: ["ENODATA", "no data available"],
  71: ["EPROTO", "protocol error"],
  74: ["EBADMSG", "bad message"],
  75: ["EOVERFLOW", "value too large"],
  79: ["ELIBACC", "cannot access a shared library"],
  90: ["EMSGSIZE", "message too long"],
  95: ["ENOTSUP", "not supported"],
  98: ["EADDRINUSE", "address in use"],
  104: ["ECONNRESET", "connection reset"],
  107: ["ENOTCONN", "not connected"],
  109: ["ETOOMANYREFS", "too many open files in unread messages"],
  110: ["ETIMEDOUT", "timed out"],
  111: ["ECONNREFUSED", "connection refused"],
  116: ["ESTALE", "stale file handle"],
  122: ["EDQUOT", "disk quota exceeded"]
}

export const errnoName = (errno: number): string => table[errno]?.[0] ?? `errno ${errno}`

export const describeErrno = (errno: number): string => table[errno]?.[1] ?? "see errno(3)"

const advice: Readonly<Record<number, string>> = {
  23: "The machine has reached its limit of open files (fs.file-max): close some, or raise it with sysctl",
  24: "This program, or its supervisor, has reached its limit of open files: close unused files, or raise the limit (ulimit -n, or LimitNOFILE in a unit of systemd)",
  109: "The processes of this user, including those in its containers, have sent each other as many open files as the limit allows: end the senders, or raise the limit (ulimit -n)"
}

/** What to do about it, whatever has failed with it: it is a limit of the machine's or of the program's. */
export const adviceOf = (errno: number): string | undefined => advice[errno]

export const EPERM = 1
export const ENOENT = 2
export const ESRCH = 3
export const EINTR = 4
export const EIO = 5
export const E2BIG = 7
export const ENOEXEC = 8
export const EAGAIN = 11
export const ENOMEM = 12
export const EACCES = 13
export const EBUSY = 16
export const EEXIST = 17
export const EXDEV = 18
export const ENODEV = 19
export const ENOTDIR = 20
export const EINVAL = 22
export const ENFILE = 23
export const EMFILE = 24
export const EFBIG = 27
export const ENOSPC = 28
export const EROFS = 30
export const EPIPE = 32
export const ENAMETOOLONG = 36
export const ENOSYS = 38
export const ELOOP = 40
export const ENODATA = 61
export const ELIBACC = 79
export const ESTALE = 116
export const EDQUOT = 122
export const ECONNRESET = 104
export const ETIMEDOUT = 110
