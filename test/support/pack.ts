/** Runs native/pack on a folder, in a mount namespace of its own. */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { makeTemporaryFolder, remove } from "./effect.ts"
import { env, native } from "./unpack.ts"

export interface Packed {
  readonly status: number | null
  /** The report's words. */
  readonly report: ReadonlyArray<string>
  readonly blob: Buffer
}

const script = 'mount --bind "$2" "$1/from" && exec "$0" "$@" <>"$1.blob"'

/** The blob of a layer, and the report of the program. `before` is shell code in front of it. */
export const pack = (upper: string, options: ReadonlyArray<string> = [], before = ""): Packed => {
  const work = makeTemporaryFolder()
  try {
    fs.mkdirSync(`${work}/from`)
    fs.writeFileSync(`${work}.blob`, "")
    const text = `${before} ${script.replace('"$@"', `${options.join(" ")} "$1"`)}`
    const done = spawnSync("unshare", ["--mount", "sh", "-c", text, `${native}/berth-pack`, work, upper], {
      env,
      encoding: "utf8"
    })
    if (done.stderr !== "") throw new Error(done.stderr)
    return {
      status: done.status,
      report: done.stdout.trimEnd().split(" ").map(decodeURIComponent),
      blob: fs.readFileSync(`${work}.blob`)
    }
  } finally {
    fs.rmSync(`${work}.blob`, { force: true })
    remove(work)
  }
}
