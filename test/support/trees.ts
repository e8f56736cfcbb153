/** What a tree of files is, in every respect that a layer can say. */
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"

const latin1 = new TextDecoder("latin1")

const field = (header: Uint8Array, at: number, width: number): Uint8Array => {
  const bytes = header.subarray(at, at + width)
  const end = bytes.indexOf(0)
  return end < 0 ? bytes : bytes.subarray(0, end)
}

const octal = (header: Uint8Array, at: number, width: number): number =>
  Number.parseInt(latin1.decode(field(header, at, width)).trim() || "0", 8)

const recordsIn = (body: Uint8Array): Map<string, Uint8Array> => {
  const records = new Map<string, Uint8Array>()
  for (let at = 0; at < body.length; ) {
    const space = body.indexOf(0x20, at)
    const length = Number(latin1.decode(body.subarray(at, space)))
    const equals = body.indexOf(0x3d, space)
    records.set(latin1.decode(body.subarray(space + 1, equals)), body.slice(equals + 1, at + length - 1))
    at += length
  }
  return records
}

const kinds: Readonly<Record<string, string>> = {
  "0": "file",
  "2": "symlink",
  "3": "character",
  "4": "block",
  "5": "folder",
  "6": "fifo"
}

export type Node = Readonly<Record<string, string | number | ReadonlyArray<string>>>

/** Each path, in latin1 so that no byte of it is lost, with all that GNU tar says of it; `linked` are its other names. */
export const treeOf = (folder: string): Record<string, Node> => {
  const args = ["--format=posix", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*"]
  const tar = execFileSync(
    "tar",
    [...args, "--pax-option=delete=atime,delete=ctime", "-C", folder, "-cf", "-", "."],
    {
      maxBuffer: 2 ** 28,
      env: { ...process.env, LC_ALL: "C" },
      stdio: ["ignore", "pipe", "ignore"]
    }
  )
  const nodes: Record<string, Node> = {}
  const groups = new Map<string, Array<string>>()
  let pax = new Map<string, Uint8Array>()
  for (let at = 0; at + 512 <= tar.length; ) {
    const header = tar.subarray(at, at + 512)
    if (header[0] === 0) break
    const type = String.fromCharCode(header[156]!)
    const text = (key: string): string | undefined => {
      const value = pax.get(key)
      return value === undefined ? undefined : latin1.decode(value)
    }
    const size = Number(text("size") ?? octal(header, 124, 12))
    const body = tar.subarray(at + 512, at + 512 + size)
    at += 512 + Math.ceil(size / 512) * 512
    if (type === "x") {
      pax = recordsIn(body)
      continue
    }
    const prefix = latin1.decode(field(header, 345, 155))
    const short = latin1.decode(field(header, 0, 100))
    const clean = (path: string) => path.replace(/^\.\//, "").replace(/\/+$/, "") || "."
    const path = clean(text("path") ?? (prefix === "" ? short : `${prefix}/${short}`))
    const link = text("linkpath") ?? latin1.decode(field(header, 157, 100))
    if (type === "1") groups.get(clean(link))!.push(path)
    else {
      groups.set(path, [path])
      nodes[path] = {
        kind: kinds[type] ?? type,
        mode: octal(header, 100, 8).toString(8),
        uid: Number(text("uid") ?? octal(header, 108, 8)),
        gid: Number(text("gid") ?? octal(header, 116, 8)),
        mtime: text("mtime") ?? String(octal(header, 136, 12)),
        ...(type === "2" ? { target: link } : {}),
        ...(type === "3" || type === "4"
          ? { device: `${octal(header, 329, 8)}:${octal(header, 337, 8)}` }
          : {}),
        ...(type === "0"
          ? { size, content: createHash("sha256").update(body).digest("hex").slice(0, 16) }
          : {}),
        xattrs: [...pax]
          .flatMap(([key, value]) =>
            key.startsWith("SCHILY.xattr.") ? [`${key.slice(13)}=${latin1.decode(value)}`] : []
          )
          .sort()
      }
    }
    pax = new Map()
  }
  for (const [path, group] of groups)
    if (group.length > 1)
      for (const name of group) nodes[name] = { ...nodes[path]!, linked: [...group].sort() }
  return nodes
}
