/** Reads the machine's second serial port: for each mode, the output of node's test runner between two marker lines. */

export interface Outcome {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  /** The reason why the mode counts as failed. */
  readonly problem: string | undefined
}

const total = (lines: ReadonlyArray<string>, name: string): number =>
  lines.reduce((sum, line) => sum + Number(new RegExp(`^[#ℹ] ${name} (\\d+)$`).exec(line)?.[1] ?? 0), 0)

/** Node counts a file without tests as one passed test with the file's name. */
const emptyFiles = (lines: ReadonlyArray<string>): ReadonlyArray<string> =>
  lines.flatMap((line) => /^✔ (\S+\.test\.[jt]s) \(/.exec(line)?.[1] ?? [])

/** The lines between the two markers of a mode, and the exit code in the second marker. */
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
 * The outcome of a mode. It has failed if a test has failed, the runner's exit code is not 0, no test was run (skipped
 * tests do not count), a file has no test, or the output stops before the runner's end.
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

/** The contents of a benchmark's result file; undefined if the benchmark did not end well. */
export const result = (output: string, mode: string, benchmark: string): string | undefined => {
  const { between, code } = section(output, mode)
  const at = between.indexOf(`== berth-vm result ${benchmark}`)
  return code !== "0" || at < 0 ? undefined : `${between.slice(at + 1).join("\n")}\n`
}
