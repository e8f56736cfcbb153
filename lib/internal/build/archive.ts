/** Which files are archives of tar, by their first bytes. */

export const HEADER_BYTES = 512

const magics = {
  gzip: "1f8b",
  bzip2: "425a68",
  xz: "fd377a585a00",
  zstd: "28b52ffd"
} as const

export type Compression = keyof typeof magics | "none"

/** Where a header of tar has the sum of its bytes, in octal digits, which counts as spaces there itself. */
const CHECKSUM = { start: 148, end: 156 } as const

const isTar = (head: Uint8Array): boolean => {
  if (head.length < HEADER_BYTES || head[0] === 0) return false
  const { end, start } = CHECKSUM
  const sum = head.reduce((all, byte, at) => all + (at >= start && at < end ? 0x20 : byte), 0)
  const text = String.fromCharCode(...head.subarray(start, end))
    .replaceAll("\0", " ")
    .trim()
  return /^[0-7]+$/.test(text) && Number.parseInt(text, 8) === sum
}

/** How a file that begins so is compressed, if it may be an archive of tar; undefined for any other file. */
export const compressionOf = (head: Uint8Array): Compression | undefined => {
  const hex = Buffer.from(head).toString("hex")
  const found = Object.entries(magics).find(([, magic]) => hex.startsWith(magic))
  return found !== undefined ? (found[0] as Compression) : isTar(head) ? "none" : undefined
}
