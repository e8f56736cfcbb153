/**
 * The POSIX pax format (pax(1)), written, and read together with GNU's long names. Libraries for it treat the values of
 * pax as text, but an xattr is bytes: a `security.capability` would be corrupted.
 */
import { InvalidData } from "../../BerthError.ts"
import type { Metadata } from "../files/metadata.ts"
import { concat } from "../util/bytes.ts"

export type Kind = "file" | "link" | "symlink" | "character" | "block" | "folder" | "fifo"

export interface Entry extends Metadata {
  readonly kind: Kind
  /** The name, without slashes at the end. */
  readonly name: string
  /** The size of a file's contents. */
  readonly size: number
  /** The target of a link; `""` for other entries. */
  readonly link: string
}

/** An entry as it is written: a name on Linux is bytes, which need not be UTF-8. */
export interface Member extends Omit<Entry, "name" | "link"> {
  readonly name: string | Uint8Array
  readonly link: string | Uint8Array
  /** The number of a character or block device. */
  readonly device?: readonly [major: number, minor: number] | undefined
}

export const BLOCK = 512
const kinds: ReadonlyArray<Kind> = ["file", "link", "symlink", "character", "block", "folder", "fifo"]
// The limit of long names and attributes, which are kept in memory (an xattr is at most 64 KiB, a path 4096).
const EXTENDED_BYTES_MAX = 1024 * 1024
// The highest id; 2^32 - 1 means "no change" to chown(2).
const ID_MAX = 2 ** 32 - 2

const encoder = new TextEncoder()
const decoder = new TextDecoder("utf-8", { fatal: true })

const invalid = (value: string, expected: string): never => {
  throw new InvalidData({ format: "tar", value, expected })
}

/** The number of padding bytes up to a whole block. */
export const padding = (size: number): number => (BLOCK - (size % BLOCK)) % BLOCK

const octal = (value: number, digits: number): Uint8Array =>
  encoder.encode(value.toString(8).padStart(digits, "0"))

const fitsOctal = (value: number, digits: number): boolean => value >= 0 && value < 8 ** digits

const block = (
  type: string,
  name: Uint8Array,
  link: Uint8Array,
  fields: Pick<Member, "mode" | "uid" | "gid" | "size" | "seconds" | "device">
): Uint8Array => {
  const header = new Uint8Array(BLOCK)
  const put = (at: number, value: number, digits: number): void =>
    header.set(octal(fitsOctal(value, digits) ? value : 0, digits), at)
  header.set(name.subarray(0, 100), 0)
  put(100, fields.mode, 7)
  put(108, fields.uid, 7)
  put(116, fields.gid, 7)
  put(124, fields.size, 11)
  put(136, fields.seconds, 11)
  header.fill(0x20, 148, 156)
  header.set(encoder.encode(type), 156)
  header.set(link.subarray(0, 100), 157)
  header.set(encoder.encode("ustar\u000000"), 257)
  fields.device?.forEach((half, k) => put(329 + 8 * k, half, 7))
  header.set(
    octal(
      header.reduce((sum, byte) => sum + byte, 0),
      6
    ),
    148
  )
  header[154] = 0
  return header
}

/** `length key=value\n`, where the length includes its own digits. */
const record = (key: string, value: Uint8Array): Uint8Array => {
  const rest = encoder.encode(` ${key}=`)
  const size = rest.length + value.length + 1
  let length = size + String(size).length
  if (String(length).length !== String(size).length) length = size + String(length).length
  return concat([encoder.encode(String(length)), rest, value, encoder.encode("\n")])
}

const time = (seconds: number, nanoseconds: number): string => {
  // The fraction has the sign of the number: half a second before 1970 is -0.5.
  const negative = seconds < 0 && nanoseconds > 0
  const whole = negative ? seconds + 1 : seconds
  const fraction = String(negative ? 1e9 - nanoseconds : nanoseconds).padStart(9, "0")
  const sign = negative && whole === 0 ? "-" : ""
  return nanoseconds === 0 ? `${seconds}` : `${sign}${whole}.${fraction.replace(/0+$/, "")}`
}

const bytesOf = (name: string | Uint8Array): Uint8Array =>
  typeof name === "string" ? encoder.encode(name) : name

/** The header of an entry, which its contents follow. */
export const encode = (entry: Member): Uint8Array => {
  const path = bytesOf(entry.name)
  const name = entry.kind === "folder" ? concat([path, encoder.encode("/")]) : path
  const link = bytesOf(entry.link)
  const isPlain = (bytes: Uint8Array): boolean => bytes.length <= 100 && bytes.every((byte) => byte < 0x80)
  const number = (key: string, value: number, digits: number): ReadonlyArray<Uint8Array> =>
    fitsOctal(value, digits) ? [] : [record(key, encoder.encode(String(value)))]
  const mtime = entry.nanoseconds !== 0 || !fitsOctal(entry.seconds, 11)
  const records = [
    ...(isPlain(name) ? [] : [record("path", name)]),
    ...(isPlain(link) ? [] : [record("linkpath", link)]),
    ...number("size", entry.size, 11),
    ...number("uid", entry.uid, 7),
    ...number("gid", entry.gid, 7),
    ...(mtime ? [record("mtime", encoder.encode(time(entry.seconds, entry.nanoseconds)))] : []),
    ...entry.xattrs.map(([key, value]) => record(`SCHILY.xattr.${key}`, value))
  ]
  const header = block(String(kinds.indexOf(entry.kind)), name, link, entry)
  if (records.length === 0) return header
  const extended = concat(records)
  const plain = { mode: 0o644, uid: 0, gid: 0, seconds: 0, size: extended.length }
  return concat([
    block("x", encoder.encode("PaxHeader"), new Uint8Array(0), plain),
    extended,
    new Uint8Array(padding(extended.length)),
    header
  ])
}

/** Two empty blocks. */
export const end: Uint8Array = new Uint8Array(2 * BLOCK)

const text = (bytes: Uint8Array): string => {
  try {
    return decoder.decode(bytes)
  } catch {
    return invalid(JSON.stringify(new TextDecoder().decode(bytes)), "names in UTF-8")
  }
}

const field = (header: Uint8Array, at: number, length: number): Uint8Array => {
  const bytes = header.subarray(at, at + length)
  const nul = bytes.indexOf(0)
  return nul < 0 ? bytes : bytes.subarray(0, nul)
}

const integer = (value: number, what: string): number =>
  Number.isSafeInteger(value) ? value : invalid(what, "a number that this machine can hold")

const id = (value: number): number =>
  value >= 0 && value <= ID_MAX ? value : invalid(String(value), `an owner from 0 to ${ID_MAX}`)

/** Octal, or in base 256 if the first bit is set. */
const numberAt = (header: Uint8Array, at: number, length: number): number => {
  const bytes = header.subarray(at, at + length)
  if (((bytes[0] ?? 0) & 0x80) !== 0) {
    const bits = bytes.reduce((sum, byte, k) => (sum << 8n) | BigInt(k === 0 ? byte & 0x7f : byte), 0n)
    const width = length * 8 - 1
    return integer(Number(BigInt.asIntN(width, bits)), `header field of ${bits}`)
  }
  const digits = text(field(header, at, length)).trim()
  if (!/^[0-7]*$/.test(digits)) return invalid(JSON.stringify(digits), "a header with octal numbers")
  return integer(digits === "" ? 0 : Number.parseInt(digits, 8), digits)
}

const isWhole = (header: Uint8Array): boolean => {
  const sum = header.reduce((total, byte, k) => total + (k >= 148 && k < 156 ? 0x20 : byte), 0)
  return sum === numberAt(header, 148, 8)
}

type Records = Map<string, Uint8Array>

const records = (bytes: Uint8Array, into: Records): void => {
  const broken = (): never => invalid("a broken pax header", "records of `length key=value`")
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at)
    const digits = space < 0 ? "" : text(bytes.subarray(at, space))
    const length = Number(digits)
    if (!/^[1-9]\d{0,7}$/.test(digits) || at + length > bytes.length || bytes[at + length - 1] !== 0x0a)
      broken()
    const body = bytes.subarray(space + 1, at + length - 1)
    const equals = body.indexOf(0x3d)
    if (equals < 1) broken()
    into.set(text(body.subarray(0, equals)), body.slice(equals + 1))
    at += length
  }
}

/** Receives the entries of an archive. */
export interface Handler {
  readonly entry: (entry: Entry) => Promise<void>
  /** A part of the contents of the entry; the caller reuses the bytes afterwards. */
  readonly contents: (bytes: Uint8Array) => Promise<void>
  /** Called after the contents, even if they are empty. */
  readonly done: () => Promise<void>
}

/** Reads an archive in parts of any size. */
export class Reader {
  private readonly handler: Handler
  private readonly header = new Uint8Array(BLOCK)
  private filled = 0
  private left = 0
  private pad = 0
  private ended = false
  private extended: { readonly type: string; readonly parts: Array<Uint8Array> } | undefined
  private readonly global: Records = new Map()
  private local: Records = new Map()

  constructor(handler: Handler) {
    this.handler = handler
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length && !this.ended; ) {
      if (this.left > 0) {
        const part = bytes.subarray(at, at + this.left)
        at += part.length
        this.left -= part.length
        if (this.extended === undefined) await this.handler.contents(part)
        else this.extended.parts.push(part.slice())
        if (this.left === 0) await this.finish()
      } else if (this.pad > 0) {
        const skipped = Math.min(this.pad, bytes.length - at)
        at += skipped
        this.pad -= skipped
      } else {
        const part = bytes.subarray(at, at + BLOCK - this.filled)
        this.header.set(part, this.filled)
        this.filled += part.length
        at += part.length
        if (this.filled < BLOCK) return
        this.filled = 0
        await this.begin()
      }
    }
  }

  /** Skips the contents of a member, and returns their number of bytes in the archive. */
  skip(): number {
    const bytes = this.left + this.pad
    this.left = 0
    this.pad = 0
    return bytes
  }

  /** Fails if the archive is truncated; as in tar(1), the last two blocks may be missing. */
  end(): void {
    if (this.left > 0 || this.filled > 0 || this.extended !== undefined)
      invalid("an archive that is cut off", "a whole one")
  }

  private async begin(): Promise<void> {
    const { header } = this
    if (header.every((byte) => byte === 0)) {
      this.ended = true
      return
    }
    if (!isWhole(header)) return invalid("a broken header", "a tar archive, not compressed")
    const type = header[156] === 0 ? "0" : String.fromCharCode(header[156] ?? 0)
    const size = numberAt(header, 124, 12)
    if ("xgLK".includes(type)) {
      if (size < 0 || size > EXTENDED_BYTES_MAX)
        return invalid(`a header of ${size} bytes`, `at most ${EXTENDED_BYTES_MAX}`)
      this.extended = { type, parts: [] }
      return this.body(size)
    }
    const entry = this.entryOf(type, size)
    this.local = new Map()
    await this.handler.entry(entry)
    return this.body(entry.size)
  }

  private body(size: number): Promise<void> {
    this.left = size
    this.pad = padding(size)
    return size === 0 ? this.finish() : Promise.resolve()
  }

  private async finish(): Promise<void> {
    if (this.extended === undefined) return this.handler.done()
    const { type, parts } = this.extended
    this.extended = undefined
    const bytes = concat(parts)
    if (type === "g") records(bytes, this.global)
    else if (type === "x") records(bytes, this.local)
    else this.local.set(type === "L" ? "path" : "linkpath", field(bytes, 0, bytes.length).slice())
  }

  private entryOf(type: string, plainSize: number): Entry {
    const { header } = this
    const pax = new Map([...this.global, ...this.local])
    const value = (key: string): string | undefined => {
      const bytes = pax.get(key)
      return bytes === undefined || bytes.length === 0 ? undefined : text(bytes)
    }
    const number = (key: string, otherwise: number): number => {
      const given = value(key)
      if (given === undefined) return otherwise
      return /^\d+$/.test(given) ? integer(Number(given), given) : invalid(`${key}=${given}`, "a number")
    }
    const isUstar = text(field(header, 257, 6)) === "ustar"
    const prefix = isUstar ? text(field(header, 345, 155)) : ""
    const short = text(field(header, 0, 100))
    const path = value("path") ?? (prefix === "" ? short : `${prefix}/${short}`)
    if ([...pax.keys()].some((key) => key.startsWith("GNU.sparse.")) || type === "S")
      return invalid(path, "no sparse member: make the archive without --sparse")
    const kind = type === "7" ? "file" : kinds[Number(type)]
    if (!/^[0-7]$/.test(type) || kind === undefined)
      return invalid(path, `a member of a type of pax(1), not ${JSON.stringify(type)}`)
    const isFolder = kind === "folder" || (kind === "file" && path.endsWith("/"))
    const size = number("size", plainSize)
    if (size < 0) return invalid(path, "a member with a size of 0 or more")
    return {
      kind: isFolder ? "folder" : kind,
      name: path.replace(/\/+$/, ""),
      // A folder or a link may have a size in its header, but has no contents.
      size: kind === "file" && !isFolder ? size : 0,
      link: value("linkpath") ?? text(field(header, 157, 100)),
      mode: numberAt(header, 100, 8) & 0o7777,
      uid: id(number("uid", numberAt(header, 108, 8))),
      gid: id(number("gid", numberAt(header, 116, 8))),
      ...timeOf(value("mtime"), numberAt(header, 136, 12)),
      xattrs: [...pax].flatMap(([key, bytes]) =>
        key.startsWith("SCHILY.xattr.") ? [[key.slice("SCHILY.xattr.".length), bytes] as const] : []
      )
    }
  }
}

const timeOf = (
  given: string | undefined,
  otherwise: number
): { readonly seconds: number; readonly nanoseconds: number } => {
  if (given === undefined) return { seconds: otherwise, nanoseconds: 0 }
  const [, sign = "", whole = "", fraction = ""] =
    /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(given) ?? invalid(given, "a time")
  const nanoseconds = Number(fraction.slice(0, 9).padEnd(9, "0"))
  const seconds = Number(whole)
  if (sign === "") return { seconds, nanoseconds }
  return nanoseconds === 0
    ? { seconds: -seconds, nanoseconds: 0 }
    : { seconds: -seconds - 1, nanoseconds: 1e9 - nanoseconds }
}
