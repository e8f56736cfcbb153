/**
 * How far a pull or a push has come.
 *
 * @since 0.1.0
 */
import type { Digest } from "./Reference.ts"

/**
 * What happens to a layer: it waits for its turn, is downloaded or uploaded, is unpacked, and is done. One that is
 * `present` was there already, and nothing of it moved.
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
  /** Of the blob. */
  readonly digest: Digest
  readonly phase: Phase
  /** Bytes that have moved. */
  readonly bytes: number
  /** The blob's size in bytes, compressed as it is. */
  readonly size: number
}

/**
 * Is told of each step, synchronously: it must not throw, or take long.
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
   * A bar for each layer on standard error where that is a terminal (`auto`), nothing (`none`), or a function that is
   * told of each step. Default: `auto`.
   */
  readonly progress?: "auto" | "none" | Listener | undefined
}
