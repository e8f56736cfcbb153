/** What a network of `berth/promise` does to its boxes, as types. */
import type * as Network from "../../Network.ts"
import type { Box, Closable } from "../../promise.ts"

/**
 * A capture: see `Network.captureToFile`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ClosableCapture extends Closable {
  readonly statistics: () => Promise<Network.CaptureStatistics>
}

/**
 * A capture that the program reads: see `Network.capture`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ReadableCapture extends ClosableCapture {
  /** The bytes of a pcap file. They end when the capture is closed, after the packets until then. */
  readonly stream: AsyncIterable<Uint8Array>
}

/**
 * What a network does to its containers, each until it is closed.
 *
 * @since 0.2.0
 * @category models
 */
export interface NetworkFaults {
  /** Keeps boxes apart: see `Network.partition`. */
  readonly partition: (
    a: Box | ReadonlyArray<Box>,
    b: Box | ReadonlyArray<Box>,
    options?: Network.PartitionOptions
  ) => Promise<Closable>
  /** Limits how fast a box sends and receives: see `Network.rate`. */
  readonly rate: (box: Box, rates: Network.Rates) => Promise<Closable>
  /** Delays, loses, duplicates and damages packets of a box: see `Network.impair`. */
  readonly impair: (box: Box, impairment: Network.Impairment) => Promise<Closable>
  /** Captures the packets of a box: see `Network.capture`. */
  readonly capture: (box: Box) => Promise<ReadableCapture>
  /** The same to a file: see `Network.captureToFile`. */
  readonly captureToFile: (box: Box, path: string) => Promise<ClosableCapture>
}
