/** Text of other programs. A container writes any bytes, any number of them, in parts of any size. */

/** At most 200 characters, on one line. */
export const quote = (text: string): string =>
  JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}...` : text)

/** The number of characters that are examined at the end of a text. */
const LAST_CHARACTERS = 64 * 1024

/** The last lines of a text, which may have millions. */
export const lastLines = (text: string, count: number): ReadonlyArray<string> =>
  text.trimEnd().slice(-LAST_CHARACTERS).split("\n").slice(-count)

/** The last lines of a log, for the end of a message. */
export const printLog = (lines: ReadonlyArray<string> = []): string =>
  lines.length === 0 ? "" : `. Last lines of its log:\n${lines.join("\n")}`

// Smaller parts are joined first: an object for each would take a hundred times as many bytes.
const PART_BYTES = 4 * 1024

/** Decodes bytes as UTF-8 while they arrive: decoding many bytes at once takes long. */
export class Text {
  private readonly decoder = new TextDecoder()
  private text = ""
  private parts: Uint8Array | undefined
  private used = 0

  add(bytes: Uint8Array): void {
    if (this.used + bytes.length > PART_BYTES) this.decodeParts()
    if (bytes.length > PART_BYTES) this.text += this.decoder.decode(bytes, { stream: true })
    else {
      this.parts ??= new Uint8Array(PART_BYTES)
      this.parts.set(bytes, this.used)
      this.used += bytes.length
    }
  }

  private decodeParts(): void {
    if (this.used > 0) this.text += this.decoder.decode(this.parts!.subarray(0, this.used), { stream: true })
    this.used = 0
  }

  /** The text so far. An incomplete character at the end becomes U+FFFD, so nothing can be added any more. */
  soFar(): string {
    this.decodeParts()
    this.text += this.decoder.decode()
    return this.text
  }
}

/** Splits bytes into lines, which may come in any parts. A line without an end is split once it is too long. */
export class Lines {
  private readonly decoder = new TextDecoder()
  private readonly max: number
  private readonly exceeded: () => void
  private rest = ""

  /** A line of more than `max` characters is split into several, unless `exceeded` throws. */
  constructor(max: number, exceeded: () => void = () => {}) {
    this.max = max
    this.exceeded = exceeded
  }

  take(bytes: Uint8Array): ReadonlyArray<string> {
    return this.split(this.decoder.decode(bytes, { stream: true }))
  }

  end(): ReadonlyArray<string> {
    const lines = this.split(this.decoder.decode())
    const rest = this.rest
    this.rest = ""
    return rest === "" ? lines : [...lines, rest]
  }

  private split(text: string): ReadonlyArray<string> {
    // The beginning of a long line is not searched again with each part of it.
    const lines = text.includes("\n") ? (this.rest + text).split("\n") : [this.rest + text]
    const cut = lines.some((line) => line.length > this.max) ? lines.flatMap((line) => this.cut(line)) : lines
    this.rest = cut.pop()!
    return cut
  }

  private cut(line: string): ReadonlyArray<string> {
    if (line.length <= this.max) return [line]
    this.exceeded()
    return Array.from({ length: Math.ceil(line.length / this.max) }, (_, k) =>
      line.slice(k * this.max, (k + 1) * this.max)
    )
  }
}
