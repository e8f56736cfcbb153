/** The processes of pasta that a supervisor has started. */
import * as fs from "node:fs"

const statOf = (pid: string): string => {
  try {
    return fs.readFileSync(`/proc/${pid}/stat`, "utf8")
  } catch {
    return "" // It has ended.
  }
}

/** The name of its file, of which there may be one for newer processors. */
const NAME = "pasta|passt(\\.avx2)?"

export const pastasOf = (supervisor: number): ReadonlyArray<number> =>
  fs
    .readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => new RegExp(`^\\d+ \\((${NAME})\\) \\S ${supervisor} `).test(statOf(pid)))
    .map(Number)
