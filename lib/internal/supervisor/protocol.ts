/** The messages of native/supervisor/protocol.h and the numbers of native/supervisor/plan.h, by the same names. */

/** The end of a unit's process. */
export interface Ended {
  /** The status of wait(2). */
  readonly status: number
  readonly userMicros: number
  readonly systemMicros: number
  readonly maxRssKiB: number
}

export const REQUEST_START = 1
export const REQUEST_RELEASE = 2
export const REQUEST_MAPPED = 3
export const REQUEST_SHARE = 4
export const REQUEST_ATTACH = 5
export const REQUEST_RENEW = 6
export const REPLY_READY = 1
export const REPLY_STARTED = 2
export const REPLY_FAILED = 3
export const REPLY_EXITED = 4
export const REPLY_RELEASED = 5
export const REPLY_UNMAPPED = 6
export const REPLY_ENDED = 7
export const REPLY_SHARED = 8
export const REQUEST_BYTES = 16
export const REPLY_BYTES = 152
export const MESSAGE_BYTES_MAX = 160 * 1024
export const PLAN_BYTES_MAX = 32 * 1024 * 1024
export const PLAN_MAGIC = 0x4e4c5042
export const PLAN_VERSION = 1
/** The index of a descriptor that a plan leaves out. */
export const NO_FD = 0xffffffff

/** One struct reply, and the descriptors in its message. */
export interface Reply {
  readonly type: number
  readonly id: number
  readonly pid: number
  readonly descriptors: readonly [number, number]
  readonly ended: Ended
  readonly operation: number
  readonly errno: number
  readonly syscall: () => string
  /** What the kernel says about the failure; empty if it says nothing. */
  readonly text: () => string
}

const ascii = new TextDecoder("latin1")

export const readReply = (view: DataView, descriptors: readonly [number, number]): Reply => ({
  type: view.getUint32(0, true),
  id: view.getUint32(4, true),
  pid: view.getInt32(8, true),
  descriptors,
  ended: {
    status: view.getInt32(12, true),
    userMicros: Number(view.getBigUint64(16, true)),
    systemMicros: Number(view.getBigUint64(24, true)),
    maxRssKiB: Number(view.getBigUint64(32, true))
  },
  operation: view.getUint32(40, true),
  errno: view.getInt32(44, true),
  // The name of a failed system call, out of the last reply. A container may have written the bytes, so nothing that a
  // terminal would interpret passes.
  syscall: () => ascii.decode(new Uint8Array(view.buffer, 48, 24)).replace(/[^\w()].*$/s, ""),
  text: () => ascii.decode(new Uint8Array(view.buffer, 72, 80)).replace(/[^ -~].*$/s, "")
})

export const encodeRequest = (type: number, id: number, planBytes: number, body: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(REQUEST_BYTES + body.length)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, type, true)
  view.setUint32(4, id, true)
  view.setUint32(8, planBytes, true)
  bytes.set(body, REQUEST_BYTES)
  return bytes
}
