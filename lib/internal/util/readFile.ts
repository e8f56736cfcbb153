/** Reads files of the host about processes and cgroups that may have ended: a file that cannot be read is empty. */
import * as fs from "node:fs"

export const read = (path: string): string => {
  try {
    return fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

/**
 * Reads a file of the kernel about a container, in a thread of the runtime: up to `max` bytes, or until `isEnough` is
 * true of the part that was read last.
 */
export const readBounded = async (
  path: string,
  max: number,
  isEnough: (part: Buffer) => boolean = () => false
): Promise<Buffer> => {
  try {
    const file = await fs.promises.open(path, "r")
    try {
      const parts: Array<Buffer> = []
      for (let length = 0; length < max; ) {
        const buffer = Buffer.alloc(Math.min(max - length, PART_BYTES))
        const { bytesRead } = await file.read(buffer, 0, buffer.length, null)
        if (bytesRead === 0) break
        length += bytesRead
        parts.push(buffer.subarray(0, bytesRead))
        if (isEnough(parts.at(-1)!)) break
      }
      return Buffer.concat(parts)
    } finally {
      await file.close()
    }
  } catch {
    return Buffer.alloc(0)
  }
}

const PART_BYTES = 64 * 1024

export const link = (path: string): string => {
  try {
    return fs.readlinkSync(path)
  } catch {
    return ""
  }
}

export const list = (folder: string): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

export const isFolder = (path: string): boolean => {
  try {
    return fs.statSync(path).isDirectory()
  } catch {
    return false
  }
}
