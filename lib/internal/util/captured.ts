/** The output of a process, kept up to a limit. */
import { Text } from "./text.ts"

/** The limit of each output where nobody says otherwise. */
export const OUTPUT_BYTES_MAX = 16 * 1024 * 1024

/** The first size of the buffer of `keepBytes`, which doubles. */
const RAW_BYTES = 64 * 1024

/** Called with each part, whether it is kept or not. */
export type Show = (bytes: Uint8Array) => void

export class Captured {
  private readonly text = new Text()
  private readonly show: Show | undefined
  private raw: Uint8Array | undefined
  private used = 0
  private left: number
  private cut = false

  constructor(max = OUTPUT_BYTES_MAX, show?: Show) {
    this.left = max
    this.show = show
  }

  /** Whether there was more than the limit. */
  get truncated(): boolean {
    return this.cut
  }

  /** Keeps the bytes as they are beside their text, from now on. */
  keepBytes(): void {
    this.raw = new Uint8Array(RAW_BYTES)
  }

  /** Returns whether there was room for all of them. */
  add(bytes: Uint8Array): boolean {
    this.show?.(bytes)
    const part = bytes.length > this.left ? bytes.subarray(0, this.left) : bytes
    this.left -= part.length
    this.text.add(part)
    this.keepRaw(part)
    if (part.length < bytes.length) this.cut = true
    return !this.cut
  }

  /** As UTF-8: invalid bytes are U+FFFD. Nothing can be added any more. */
  soFar(): string {
    return this.text.soFar()
  }

  /** What there is since `keepBytes`. */
  bytes(): Uint8Array {
    return this.raw?.slice(0, this.used) ?? new Uint8Array(0)
  }

  private keepRaw(part: Uint8Array): void {
    if (this.raw === undefined) return
    const needed = this.used + part.length
    if (needed > this.raw.length) {
      const larger = new Uint8Array(Math.max(needed, 2 * this.raw.length))
      larger.set(this.raw.subarray(0, this.used))
      this.raw = larger
    }
    this.raw.set(part, this.used)
    this.used = needed
  }
}

/** Both outputs. */
export interface Outputs {
  readonly stdout: Captured
  readonly stderr: Captured
}

export const captureBoth = (
  max: number | undefined,
  show?: Readonly<Record<keyof Outputs, Show>>
): Outputs => ({
  stdout: new Captured(max, show?.stdout),
  stderr: new Captured(max, show?.stderr)
})
