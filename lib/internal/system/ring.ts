/** The newest output of a process, as it came: for its log, for an error, and for a reader that comes later. */
import { concat } from "../util/bytes.ts"

/** At least so many of the newest bytes are kept; some more come before the oldest are dropped, so that it happens seldom. */
export const RING_BYTES = 1024 * 1024
const SLACK_BYTES = 256 * 1024

/** A larger part is kept where it was read, a smaller one is copied: else it would keep the whole buffer that it lies in. */
const COPIED_BYTES = 16 * 1024

// Small parts are joined when they come in the same millisecond, and when there are so many that the objects would take more
// memory than the bytes. The joined part has the time of its first byte.
const JOINED_BYTES = 4 * 1024
const PARTS_MAX = 8192

/** Bytes that came at once. */
export interface Part {
  /** Its place among the parts of all outputs of this thread. */
  readonly order: number
  /** In milliseconds since 1970. */
  readonly time: number
  bytes: Uint8Array
}

const NOTHING = new Uint8Array(0)

let added = 0

export class Ring {
  private kept: Array<Part> = []
  /** How many bytes the output has had, how many of them are kept, and how many a reader has got. */
  private total = 0
  private size = 0
  private given = 0

  get parts(): ReadonlyArray<Part> {
    return this.kept
  }

  /** Adds bytes, which a reader gets as well where they are `given`. */
  add(bytes: Uint8Array, given: boolean): void {
    const time = Date.now()
    const last = this.kept.at(-1)
    this.total += bytes.length
    this.size += bytes.length
    if (given) this.given = this.total
    if (
      last !== undefined &&
      last.bytes.length + bytes.length <= JOINED_BYTES &&
      (last.time === time || this.kept.length >= PARTS_MAX)
    )
      last.bytes = concat([last.bytes, bytes])
    else this.kept.push({ order: added++, time, bytes: bytes.length < COPIED_BYTES ? bytes.slice() : bytes })
    if (this.size > RING_BYTES + SLACK_BYTES) this.drop()
  }

  private drop(): void {
    let count = 0
    while (this.size - this.kept[count]!.bytes.length >= RING_BYTES)
      this.size -= this.kept[count++]!.bytes.length
    this.kept = this.kept.slice(count)
  }

  /** How many bytes were dropped before a reader got them. The reader goes on at the first byte that is kept. */
  skip(): number {
    const missed = Math.max(this.total - this.size - this.given, 0)
    this.given += missed
    return missed
  }

  /** The bytes that no reader has got yet, as one part: some of it is lost where only the head of a chunk is taken. */
  unread(): Uint8Array {
    let left = this.total - this.given
    if (left === 0) return NOTHING
    const unread: Array<Uint8Array> = []
    for (let at = this.kept.length - 1; left > 0; at--) {
      const { bytes } = this.kept[at]!
      unread.unshift(bytes.length > left ? bytes.subarray(bytes.length - left) : bytes)
      left -= Math.min(bytes.length, left)
    }
    this.given = this.total
    return concat(unread)
  }
}
