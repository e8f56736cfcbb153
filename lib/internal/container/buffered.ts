/** A process whose whole output is kept, and which may be given its whole input. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import type { BufferOptions, Process, ProcessOptions, Result } from "../../Process.ts"
import { captureBoth, OUTPUT_BYTES_MAX, type Outputs } from "../util/captured.ts"
import { invalid } from "../util/validate.ts"
import { withoutPipe } from "./handle.ts"

type Input = NonNullable<BufferOptions["input"]>

const encoder = new TextEncoder()

const streamOf = (input: Input): Stream.Stream<Uint8Array, BerthError> =>
  typeof input === "string"
    ? Stream.succeed(encoder.encode(input))
    : input instanceof Uint8Array
      ? Stream.succeed(input)
      : input

/** Gives a process its input. Whoever has ended needs no more of it. */
export const feed = (to: Process, input: Input): Effect.Effect<void, BerthError> =>
  to.state.stdin === undefined
    ? Effect.fail(withoutPipe())
    : Effect.raceFirst(Stream.run(streamOf(input), to.stdin), Effect.asVoid(to.exit))

/** Checks the options of a call that gives the whole output; throws. The process gets the options that are returned. */
export const bufferedOptions = <O extends ProcessOptions & BufferOptions>(options: O): O => {
  const { input, maxOutputBytes, onOverflow, stdin } = options
  if (stdin === "pipe")
    invalid("stdin", stdin, "the option input: nothing could write to the pipe before this call has ended")
  if (input !== undefined && stdin !== undefined) invalid("stdin", stdin, "no stdin beside the option input")
  if (maxOutputBytes !== undefined && !(maxOutputBytes >= 0))
    invalid("maxOutputBytes", maxOutputBytes, "a number of bytes")
  if (onOverflow !== undefined && onOverflow !== "fail" && onOverflow !== "truncate")
    invalid("onOverflow", onOverflow, '"fail" or "truncate"')
  const pipe = (how: ProcessOptions["stdout"]) => (how === undefined || how === "log" ? "pipe" : how)
  return {
    ...options,
    stdin: input === undefined ? stdin : "pipe",
    stdout: pipe(options.stdout),
    stderr: pipe(options.stderr)
  }
}

/** Reads both outputs to their ends while the process runs. `readStdout` reads stdout in place of `outputs`. */
export const buffered = (
  process: Process,
  options: BufferOptions,
  outputs: Outputs = captureBoth(options.maxOutputBytes),
  readStdout?: Effect.Effect<void, BerthError>
): Effect.Effect<Result, BerthError> => {
  const tooLong = (name: string): ContainerError =>
    new ContainerError({
      reason: "OutputTooLong",
      container: process.id,
      detail: `more than ${options.maxOutputBytes ?? OUTPUT_BYTES_MAX} bytes on ${name}: raise maxOutputBytes, set onOverflow to "truncate", or read it as it comes`,
      stdout: outputs.stdout.soFar(),
      stderr: outputs.stderr.soFar()
    })
  const read = (name: "stdout" | "stderr"): Effect.Effect<void, BerthError> =>
    process.state[name]?.collect(
      outputs[name],
      options.onOverflow === "truncate" ? undefined : () => tooLong(name)
    ) ?? Effect.void
  const whole = Effect.map(
    Effect.all([readStdout ?? read("stdout"), read("stderr"), process.exit], { concurrency: "unbounded" }),
    ([_out, _err, status]) => ({
      ...status,
      stdout: outputs.stdout.soFar(),
      stderr: outputs.stderr.soFar(),
      truncated: outputs.stdout.truncated || outputs.stderr.truncated
    })
  )
  // A failure of the input is the call's, its end is not.
  return options.input === undefined
    ? whole
    : Effect.raceFirst(whole, Effect.zipRight(feed(process, options.input), Effect.never))
}
