/**
 * The digests of files of one context, kept from build to build by the files' states: device, inode, size, and the times of the
 * last change of contents and of metadata. The second one counts because a program can set the first one back.
 */
import { createHash, randomBytes } from "node:crypto"
import * as fs from "node:fs/promises"
import type { Berth } from "../../Berth.ts"
import * as Store from "../store/store.ts"
import type { Index } from "./files.ts"

/** A file may change twice within one tick of the file system's clock: one that is younger is read again next time. */
const SETTLED_MILLIS = 2000

const ENTRIES_MAX = 500_000

const folderOf = (berth: Berth): string => `${berth.folder}/build`

const fileOf = (berth: Berth, context: string): string =>
  `${folderOf(berth)}/${createHash("sha256").update(context).digest("hex")}.json`

export interface KeptIndex extends Index {
  /** Keeps what this build has used. Without room for it, the next build reads the files again. */
  readonly save: () => Promise<void>
}

const load = async (file: string): Promise<ReadonlyMap<string, string>> => {
  try {
    const entries: unknown = JSON.parse(await fs.readFile(file, "utf8"))
    return new Map(
      (Array.isArray(entries) ? entries : []).filter(
        (entry): entry is [string, string] =>
          Array.isArray(entry) && typeof entry[0] === "string" && /^[0-9a-f]{64}$/.test(String(entry[1]))
      )
    )
  } catch {
    return new Map()
  }
}

export const open = async (berth: Berth, context: string): Promise<KeptIndex> => {
  const file = fileOf(berth, context)
  const known = await load(file)
  const used = new Map<string, string>()
  let isNew = false
  return {
    get: (state) => {
      const digest = known.get(state) ?? used.get(state)
      if (digest !== undefined) used.set(state, digest)
      return digest
    },
    set: (state, digest, changedMillis) => {
      if (Date.now() - changedMillis < SETTLED_MILLIS || used.size >= ENTRIES_MAX) return
      used.set(state, digest)
      isNew = true
    },
    save: async () => {
      if (!isNew) return
      // Sweeps clean up that folder.
      const partial = `${Store.partialFolder(berth)}/index-${randomBytes(8).toString("hex")}`
      try {
        await fs.mkdir(folderOf(berth), { recursive: true, mode: 0o700 })
        await fs.writeFile(partial, JSON.stringify([...used]), { mode: 0o600 })
        await fs.rename(partial, file)
      } catch {
        await fs.rm(partial, { force: true })
      }
    }
  }
}
