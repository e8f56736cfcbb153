/**
 * A tar writer that can write what no sane tar holds: every header byte is the test's to choose.
 */

export type Bytes = string | Uint8Array

export interface Fields {
  readonly name: Bytes
  /** The type flag: "0" file, "1" hard link, "2" symlink, "3" char, "4" block, "5" folder, "6" fifo, ... */
  readonly type?: string
  readonly mode?: number
  /** Numbers that octal can't hold, negative ones too, are written in base 256. */
  readonly uid?: number | bigint
  readonly gid?: number | bigint
  readonly mtime?: number | bigint
  /** The size field; the content's length unless given. */
  readonly size?: number | bigint
  readonly link?: Bytes
  readonly format?: "ustar" | "gnu" | "v7"
  readonly prefix?: Bytes
  readonly major?: number
  readonly minor?: number
  readonly content?: Bytes
  /** Changes the raw block before the checksum is made. */
  readonly patch?: (block: Uint8Array) => void
}

const encoder = new TextEncoder()

export const bytes = (text: Bytes): Uint8Array => (typeof text === "string" ? encoder.encode(text) : text)

export const concat = (...parts: ReadonlyArray<Bytes>): Uint8Array => {
  const arrays = parts.map(bytes)
  const whole = new Uint8Array(arrays.reduce((length, part) => length + part.length, 0))
  let at = 0
  for (const part of arrays) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

export const latin1 = (text: string): Uint8Array =>
  Uint8Array.from(text, (character) => character.charCodeAt(0))

const padded = (content: Uint8Array): Uint8Array =>
  concat(content, new Uint8Array((512 - (content.length % 512)) % 512))

const put = (block: Uint8Array, at: number, width: number, text: Bytes): void => {
  if (text !== "") block.set(bytes(text).subarray(0, width), at)
}

/** Octal with a final NUL, or GNU's base 256 (two's complement with the top bit set) where that is too small. */
export const number = (block: Uint8Array, at: number, width: number, value: number | bigint): void => {
  let rest = BigInt(value)
  if (rest >= 0n && rest < 1n << BigInt(3 * (width - 1))) {
    put(block, at, width, rest.toString(8).padStart(width - 1, "0"))
    return
  }
  for (let k = width - 1; k >= 0; k--) {
    block[at + k] = Number(rest & 0xffn)
    rest >>= 8n
  }
  block[at] = value < 0 ? 0xff : block[at]! | 0x80
}

export const header = (fields: Fields): Uint8Array => {
  const block = new Uint8Array(512)
  const type = fields.type ?? "0"
  put(block, 0, 100, fields.name)
  number(block, 100, 8, fields.mode ?? (type === "5" ? 0o755 : 0o644))
  number(block, 108, 8, fields.uid ?? 0)
  number(block, 116, 8, fields.gid ?? 0)
  number(block, 124, 12, fields.size ?? bytes(fields.content ?? "").length)
  number(block, 136, 12, fields.mtime ?? 1_000_000_000)
  put(block, 148, 8, "        ")
  put(block, 156, 1, type)
  put(block, 157, 100, fields.link ?? "")
  if (fields.format !== "v7") put(block, 257, 8, fields.format === "gnu" ? "ustar  \0" : "ustar\x0000")
  number(block, 329, 8, fields.major ?? 0)
  number(block, 337, 8, fields.minor ?? 0)
  put(block, 345, 155, fields.prefix ?? "")
  fields.patch?.(block)
  let sum = 0
  for (const byte of block) sum += byte
  put(block, 148, 8, `${sum.toString(8).padStart(6, "0")}\0 `)
  return block
}

export const entry = (fields: Fields): Uint8Array => {
  const content = bytes(fields.content ?? "")
  return content.length === 0 ? header(fields) : concat(header(fields), padded(content))
}

type More = Omit<Fields, "name" | "type">

export const file = (name: Bytes, content: Bytes = "", more: More = {}): Uint8Array =>
  entry({ name, content, ...more })
export const folder = (name: Bytes, more: More = {}): Uint8Array => entry({ name, type: "5", ...more })
export const symlink = (name: Bytes, link: Bytes, more: More = {}): Uint8Array =>
  entry({ name, link, type: "2", mode: 0o777, ...more })
export const hardlink = (name: Bytes, link: Bytes, more: More = {}): Uint8Array =>
  entry({ name, link, type: "1", ...more })

/** A PAX header for the next entry ("x"), or for all that follow ("g"). */
export const pax = (records: ReadonlyArray<readonly [string, Bytes]>, type: "x" | "g" = "x"): Uint8Array =>
  entry({
    name: "PaxHeaders/x",
    type,
    content: concat(
      ...records.map(([key, value]) => {
        const rest = concat(` ${key}=`, value, "\n")
        // The length counts its own digits.
        let length = rest.length + 1
        while (String(length).length + rest.length !== length) length = String(length).length + rest.length
        return concat(String(length), rest)
      })
    )
  })

/** GNU's long name ("L") or long link target ("K") for the next entry. */
export const long = (type: "L" | "K", text: Bytes): Uint8Array =>
  entry({ name: "././@LongLink", type, format: "gnu", content: concat(text, "\0") })

export const end = new Uint8Array(1024)

export const tar = (...entries: ReadonlyArray<Uint8Array>): Uint8Array => concat(...entries, end)

/** The records of the first PAX header in a tar, as GNU tar's --xattrs writes them. */
export const paxRecords = (archive: Uint8Array): Map<string, Uint8Array> => {
  const records = new Map<string, Uint8Array>()
  if (archive[156] !== "x".charCodeAt(0)) return records
  const size = Number.parseInt(new TextDecoder().decode(archive.subarray(124, 135)), 8)
  for (let at = 512; at < 512 + size; ) {
    const space = archive.indexOf(0x20, at)
    const length = Number(new TextDecoder().decode(archive.subarray(at, space)))
    const equals = archive.indexOf(0x3d, space)
    const key = new TextDecoder().decode(archive.subarray(space + 1, equals))
    records.set(key, archive.slice(equals + 1, at + length - 1))
    at += length
  }
  return records
}

/** A zstd frame of one raw block per piece (RFC 8878): no window beyond the content, no checksum. */
export const zstdFrame = (content: Uint8Array): Uint8Array => {
  const blocks: Array<Uint8Array> = []
  const step = 100_000
  for (let at = 0; at < content.length || at === 0; at += step) {
    const piece = content.subarray(at, at + step)
    const value = (piece.length << 3) | (at + step >= content.length ? 1 : 0)
    blocks.push(Uint8Array.of(value & 0xff, (value >> 8) & 0xff, value >> 16), piece)
  }
  // Frame header descriptor 0: a window descriptor and no content size. 0x38 is a window of 128 KiB.
  return concat(Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38), ...blocks)
}

export const zstdSkippable = (content: Uint8Array): Uint8Array => {
  const head = new DataView(new ArrayBuffer(8))
  head.setUint32(0, 0x184d2a50, true)
  head.setUint32(4, content.length, true)
  return concat(new Uint8Array(head.buffer), content)
}
