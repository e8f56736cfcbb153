/** Copies of containers that last as long as a test wants. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth } from "../../lib/index.ts"
import { until } from "./leftovers.ts"

/** A script that makes so many files that a copy of them can be caught. */
export const manyFiles =
  "mkdir /many; i=0; while [ $i -lt 60 ]; do i=$((i+1)); mkdir /many/$i; (cd /many/$i; seq 200 | xargs touch); done"

const stop = (folder: string): number | undefined => {
  for (const name of fs.readdirSync("/proc")) {
    try {
      if (!/^\d+$/.test(name) || !fs.readFileSync(`/proc/${name}/cmdline`, "utf8").startsWith("berth-copy"))
        continue
      if (!fs.readFileSync(`/proc/${name}/cmdline`, "utf8").includes(folder)) continue
      process.kill(Number(name), "SIGSTOP")
      return Number(name)
    } catch {
      // It has ended.
    }
  }
  return undefined
}

/** Waits until a supervisor with this state folder copies a container, and stops the copy; gives the pid of its program. */
export const catchCopy = async (folder: string): Promise<number> => {
  let pid: number | undefined
  await until("a copy that can be stopped", () => {
    pid = stop(folder)
    return pid !== undefined
  })
  return pid!
}

/** The same for this Berth. */
export const caught: Effect.Effect<number, never, Berth.Berth> = Effect.flatMap(
  Berth.Berth,
  ({ supervisor }) => Effect.promise(() => catchCopy(supervisor.folder))
)
