/** Messages of rtnetlink(7) for the queues in front of interfaces, which tc(8) calls qdiscs. */
import { attribute, type Bytes, message, NLM_F_CREATE, NLM_F_REPLACE, text, Writer } from "./netlink.ts"

/** The parent of a queue that is right in front of the interface. */
const ROOT = 0xffffffff

/** A queue, by a number from 1 to 65535 that no other of the interface has. */
export interface Queue {
  readonly index: number
  readonly id: number
  /** The queue that it is in, or undefined if it is right in front of the interface, where it replaces the one before. */
  readonly inside?: number | undefined
}

/** `struct tcmsg`. */
const header = ({ id, index, inside }: Queue): Bytes =>
  new Writer()
    .u32(0)
    .u32(index)
    .u32(id * 2 ** 16)
    .u32(inside === undefined ? ROOT : inside * 2 ** 16 + 1)
    .u32(0).bytes

const make = (queue: Queue, kind: string, options: Bytes): Bytes =>
  message(36, NLM_F_CREATE | NLM_F_REPLACE, header(queue), attribute(1, text(kind)), attribute(2, options))

/** Removes the queue in front of an interface, with those in it. */
export const removeQueue = (index: number): Bytes => message(37, 0, header({ index, id: 0 }))

const FRAME_BYTES = 1514
const TC_LINKLAYER_ETHERNET = 1

/**
 * Sends so many bytes a second: tc-tbf(8). What is sent at once is a hundredth of a second's, and two packets at least; what waits is a
 * tenth of a second's, and ten packets at least. More is dropped.
 */
export const slowly = (queue: Queue, bytesPerSecond: number): Bytes => {
  const burst = Math.max(Math.ceil(bytesPerSecond / 100), 2 * FRAME_BYTES)
  const limit = burst + Math.max(Math.ceil(bytesPerSecond / 10), 10 * FRAME_BYTES)
  // `struct tc_ratespec`, whose rate is of 32 bits, and the one of a peak that is not wanted.
  const rate = new Writer()
    .u8(0, TC_LINKLAYER_ETHERNET)
    .u16(0)
    .u16(0)
    .u16(0)
    .u32(Math.min(bytesPerSecond, 2 ** 32 - 1))
  const parameters = [...rate.bytes, ...new Writer().u32(0).u32(0).u32(0).u32(limit).u32(0).u32(0).bytes]
  return make(queue, "tbf", [
    ...attribute(1, parameters),
    ...attribute(4, new Writer().u64(bytesPerSecond).bytes),
    ...attribute(6, new Writer().u32(burst).bytes)
  ])
}

export interface Faults {
  readonly delayNanos: number
  readonly jitterNanos: number
  /** Probabilities, from 0 to 1. */
  readonly loss: number
  readonly duplicate: number
  readonly corrupt: number
}

const PACKETS_MAX = 10_000

/** A probability as the kernel has it. */
const share = (probability: number): number => Math.round(probability * (2 ** 32 - 1))

/** Delays packets, and loses, duplicates or damages some: tc-netem(8). Delays in nanoseconds are since Linux 4.15. */
export const badly = (queue: Queue, { corrupt, delayNanos, duplicate, jitterNanos, loss }: Faults): Bytes =>
  make(queue, "netem", [
    // `struct tc_netem_qopt`: delay, limit, loss, gap, duplicates, jitter.
    ...new Writer().u32(0).u32(PACKETS_MAX).u32(share(loss)).u32(0).u32(share(duplicate)).u32(0).bytes,
    ...attribute(4, new Writer().u32(share(corrupt)).u32(0).bytes),
    ...attribute(10, new Writer().u64(delayNanos).bytes),
    ...attribute(11, new Writer().u64(jitterNanos).bytes)
  ])
