/** What the machine says on its second serial port: for each mode, node's test runner between two lines. */

export interface Outcome {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  /** Why the mode counts as failed, if so. */
  readonly problem: string | undefined
}

const total = (lines: ReadonlyArray<string>, name: string): number =>
  lines.reduce((sum, line) => sum + Number(new RegExp(`^[#ℹ] ${name} (\\d+)$`).exec(line)?.[1] ?? 0), 0)

/** Node counts a file that has no test as one that has passed, under the file's own name. */
const emptyFiles = (lines: ReadonlyArray<string>): ReadonlyArray<string> =>
  lines.flatMap((line) => /^✔ (\S+\.test\.[jt]s) \(/.exec(line)?.[1] ?? [])

/** The lines that came between the two of a mode, and the exit code that the second tells. */
const section = (output: string, mode: string) => {
  const lines = output.split(/\r*\n/)
  const begin = lines.indexOf(`== berth-vm begin ${mode}`)
  const end = lines.findIndex((line) => line.startsWith(`== berth-vm end ${mode} `))
  const code = lines[end]?.split(" ").at(-1)
  return {
    between: begin < 0 ? [] : lines.slice(begin + 1, end < 0 ? undefined : end),
    code,
    lost:
      begin < 0
        ? "the machine ended before its tests began"
        : code === undefined
          ? "the machine ended before its tests did"
          : undefined
  }
}

/**
 * How a mode ended. It has failed when a test has, when the runner's exit code says so, when no test was run to its end
 * (a skipped one was not) or a file has none, and when the output stops before the runner has.
 */
export const outcome = (output: string, mode: string): Outcome => {
  const { between, code, lost } = section(output, mode)
  const empty = emptyFiles(between)
  const passed = total(between, "pass") - empty.length
  const failed = total(between, "fail") + total(between, "cancelled")
  const problem =
    lost ??
    (failed > 0
      ? `${failed} failed`
      : code !== "0"
        ? `the test runner ended with exit code ${code}`
        : empty.length > 0
          ? `there is no test in ${empty.join(" ")}`
          : passed <= 0
            ? "no test was run"
            : undefined)
  return { passed, failed, skipped: total(between, "skipped"), problem }
}

/** What a benchmark has written, as it is in its file; undefined where it did not come to its end. */
export const result = (output: string, mode: string, benchmark: string): string | undefined => {
  const { between, code } = section(output, mode)
  const at = between.indexOf(`== berth-vm result ${benchmark}`)
  return code !== "0" || at < 0 ? undefined : `${between.slice(at + 1).join("\n")}\n`
}
