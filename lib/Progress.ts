/**
 * The progress of a pull or a push.
 *
 * @since 0.1.0
 */
import type { Digest } from "./Reference.ts"

/**
 * The state of a layer: it waits for its turn, is downloaded or uploaded, is unpacked, and is done. A layer that is
 * `present` existed already and was not transferred.
 *
 * @since 0.1.0
 * @category models
 */
export type Phase = "waiting" | "downloading" | "uploading" | "unpacking" | "present" | "done"

/**
 * A step of one layer.
 *
 * @since 0.1.0
 * @category models
 */
export interface Progress {
  readonly _tag: "Layer"
  /** The digest of the blob. */
  readonly digest: Digest
  readonly phase: Phase
  /** The number of bytes transferred. */
  readonly bytes: number
  /** The blob's size in bytes, compressed. */
  readonly size: number
}

/**
 * Receives each step, synchronously: it must not throw, or take long.
 *
 * @since 0.1.0
 * @category models
 */
export type Listener = (progress: Progress) => void

/**
 * @since 0.1.0
 * @category models
 */
export interface ProgressOptions {
  /**
   * A bar for each layer on standard error if that is a terminal (`auto`), nothing (`none`), or a function that
   * receives each step. Default: `auto`.
   */
  readonly progress?: "auto" | "none" | Listener | undefined
}
