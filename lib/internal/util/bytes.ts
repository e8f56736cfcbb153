const units: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  k: 1024,
  m: 1024 ** 2,
  g: 1024 ** 3,
  t: 1024 ** 4,
  kb: 1000,
  mb: 1000 ** 2,
  gb: 1000 ** 3,
  tb: 1000 ** 4,
  kib: 1024,
  mib: 1024 ** 2,
  gib: 1024 ** 3,
  tib: 1024 ** 4
}

/** Parses bytes from a number or from text with a unit; undefined for any other value. */
export const parseBytes = (value: number | string): number | undefined => {
  const match =
    typeof value === "number"
      ? [String(value), String(value), ""]
      : /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(value.trim())
  const factor = units[match?.[2]?.toLowerCase() ?? "none"]
  if (match === null || factor === undefined) return undefined
  const bytes = Number(match[1]) * factor
  return Number.isFinite(bytes) ? Math.floor(bytes) : undefined
}

/** Concatenates byte arrays. */
export const concat = (chunks: Iterable<Uint8Array>): Uint8Array => {
  let length = 0
  for (const chunk of chunks) {
    length += chunk.length
  }
  const bytes = new Uint8Array(length)
  let offset = 0
  for (const chunk of chunks) {
    bytes.set(chunk, offset)
    offset += chunk.length
  }
  return bytes
}
