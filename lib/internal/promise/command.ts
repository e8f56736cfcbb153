/** Commands inside a container as promises: awaited as a whole, or read line by line. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError, InvalidOption, NonZeroExit, WaitFailed } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type { Process } from "../../Process.ts"
import type { Command, Input, InsideOptions } from "../../promise.ts"
import { buffered, bufferedOptions } from "../container/buffered.ts"
import { signalGroup } from "../container/commandExecutor.ts"
import { captureBoth, OUTPUT_BYTES_MAX, type Outputs, type Show } from "../util/captured.ts"
import { printWords } from "../util/commandTemplate.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalNumber } from "../util/signals.ts"
import { Lines, lastLines as lastLinesOf } from "../util/text.ts"
import { letOthersRun } from "../util/turn.ts"
import { duration } from "../util/validate.ts"
import { rejectionOf, siteOf } from "./rejection.ts"
import type { Shared } from "./runtime.ts"

const LAST_LINES = 20

const encoder = new TextEncoder()

const bytesOf = (part: string | Uint8Array): Uint8Array =>
  typeof part === "string" ? encoder.encode(part) : part

/** The input of a command as a stream. An error of its iterator is a defect of the stream; the end waits for no iterator. */
export const streamOf = (input: Input): Stream.Stream<Uint8Array> => {
  if (typeof input === "string" || input instanceof Uint8Array) return Stream.succeed(bytesOf(input))
  return Stream.unwrapScoped(
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() =>
          Symbol.asyncIterator in input ? input[Symbol.asyncIterator]() : input[Symbol.iterator]()
        ),
        (iterator) => Effect.sync(() => void Promise.resolve(iterator.return?.()).catch(() => {}))
      ),
      (iterator) =>
        Stream.repeatEffectOption(
          Effect.flatMap(
            // Values that are there at once are taken without a turn of the event loop, so others would starve.
            Effect.zipRight(
              letOthersRun,
              Effect.promise(async () => iterator.next())
            ),
            (next) => (next.done === true ? Effect.fail(Option.none()) : Effect.succeed(bytesOf(next.value)))
          )
        )
    )
  )
}

/** The stdout of a command, for the command that reads it. */
class Output implements AsyncIterable<Uint8Array> {
  private readonly bytes: AsyncIterator<Uint8Array, undefined>

  constructor(bytes: AsyncIterator<Uint8Array, undefined>) {
    this.bytes = bytes
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array, undefined> {
    return this.bytes
  }

  /** Ends the command, and waits for its end. */
  async close(): Promise<void> {
    await this.bytes.return?.()
  }
}

/** Asks a command that has not begun for its stdout. */
const outputs = new WeakMap<object, () => Output>()

/** An input; for a command, its stdout. Call it in the statement of that command. */
const inputOf = <I extends Input | undefined>(input: I): I | Output =>
  (typeof input === "object" ? outputs.get(input)?.() : undefined) ?? input

/** Ends the command whose stdout is this input. */
const closeInput = async (input: Input | undefined): Promise<void> => {
  if (input instanceof Output) await input.close()
}

/** Calls `use` with an input, or with the stdout of a command, which ends afterwards. */
export const withInput = async <I extends Input | undefined, A>(
  input: I,
  use: (input: I | Output) => Promise<A>
): Promise<A> => {
  const taken = inputOf(input)
  try {
    return await use(taken)
  } finally {
    await closeInput(taken)
  }
}

/** A command in a scope, whose end kills it and its children in its process group. */
const startIn = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  options: Container.ExecOptions
): Effect.Effect<Process, BerthError, Scope.Scope> =>
  // Not acquireRelease: a container may hold up a start, which must stay interruptible.
  Effect.tap(Container.execStream(box, words, options), (started) =>
    Effect.addFinalizer((exit) => (Exit.isFailure(exit) ? signalGroup(started, 9) : Effect.void))
  )

const LINES_BYTES = 8 * 1024

/** Splits stdout into lines, as fast as the reader takes them. A line without an end fails at the limit. */
const hand = (
  from: Process,
  { maxOutputBytes = OUTPUT_BYTES_MAX }: InsideOptions,
  to: Handoff<string>
): Effect.Effect<void, BerthError> => {
  const lines = new Lines(maxOutputBytes, () => {
    const detail = `more than ${maxOutputBytes} bytes in a line on stdout: raise maxOutputBytes`
    throw new ContainerError({ reason: "OutputTooLong", container: from.id, detail })
  })
  const put = (take: () => ReadonlyArray<string>): Effect.Effect<void, BerthError> =>
    Effect.flatMap(Effect.zipRight(letOthersRun, attempt(take)), (all) =>
      to.put(all.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line)))
    )
  // A part of nothing but line ends has a line for each byte.
  const parts = (bytes: Uint8Array): ReadonlyArray<Uint8Array> =>
    Array.from({ length: Math.ceil(bytes.length / LINES_BYTES) }, (_, k) =>
      bytes.subarray(k * LINES_BYTES, (k + 1) * LINES_BYTES)
    )
  return Effect.zipRight(
    Stream.runForEach(from.stdout, (bytes) =>
      Effect.forEach(parts(bytes), (part) => put(() => lines.take(part)), { discard: true })
    ),
    put(() => lines.end())
  )
}

/** The options of a command of a template. */
interface Settings {
  options: InsideOptions
  nothrow: boolean
  timeout: Duration.Duration | undefined
  lines: Handoff<string> | undefined
  /** Receives the bytes of stdout at the end. */
  takeBytes: ((bytes: Uint8Array) => void) | undefined
  /** The other command that reads its stdout. */
  output: Handoff<Uint8Array> | undefined
  readonly onStart: (started: Process) => Effect.Effect<void, BerthError>
}

/** Hands items from a producer to a consumer; each waits for the other. */
class Handoff<A> {
  private items: Array<A> = []
  private asked: (() => void) | undefined
  private taken: (() => void) | undefined
  private ended = false

  /** Waits until the consumer has taken all of them. */
  put(items: ReadonlyArray<A>): Effect.Effect<void> {
    return Effect.async((resume) => {
      if (this.ended || items.length === 0) return resume(Effect.void)
      for (const item of items) this.items.push(item)
      this.taken = () => resume(Effect.void)
      this.asked?.()
    })
  }

  end(): void {
    this.ended = true
    this.asked?.()
    this.taken?.()
  }

  async next(): Promise<IteratorResult<A, undefined>> {
    if (this.items.length === 0) this.taken?.()
    while (this.items.length === 0 && !this.ended)
      await new Promise<void>((resolve) => {
        this.asked = resolve
      })
    return this.items.length > 0
      ? { done: false, value: this.items.shift()! }
      : { done: true, value: undefined }
  }
}

const showing: Readonly<Record<keyof Outputs, Show>> = {
  stdout: (bytes) => process.stdout.write(bytes),
  stderr: (bytes) => process.stderr.write(bytes)
}

/** The options of an exec for a command with an input; throws. */
const execOptions = ({ input, ...options }: InsideOptions): Container.ExecOptions =>
  bufferedOptions({ ...options, input: input === undefined ? undefined : streamOf(input) })

/** Runs a command and gives its output; a reader of lines or another command gets stdout instead. */
const execute = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  { lines, onStart, options, output, takeBytes }: Omit<Settings, "nothrow" | "timeout">,
  written: Outputs
): Effect.Effect<Container.Result, BerthError> =>
  Effect.gen(function* () {
    const how = yield* attempt(() => execOptions(options))
    const started = yield* startIn(box, words, how)
    yield* onStart(started)
    if (takeBytes !== undefined) written.stdout.keepBytes()
    const handed =
      output !== undefined
        ? Stream.runForEach(started.stdout, (bytes) => output.put([bytes]))
        : lines !== undefined
          ? hand(started, options, lines)
          : undefined
    const result = yield* buffered(started, how, written, handed)
    takeBytes?.(written.stdout.bytes())
    return result
  }).pipe(Effect.scoped)

const outputsFor = ({ maxOutputBytes, verbose }: InsideOptions): Outputs =>
  captureBoth(maxOutputBytes, verbose === true ? showing : undefined)

/** Runs a command and gives its output. */
export const exec = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  options: InsideOptions
): Effect.Effect<Container.Result, BerthError> =>
  execute(
    box,
    words,
    { options, lines: undefined, output: undefined, takeBytes: undefined, onStart: () => Effect.void },
    outputsFor(options)
  )

const lastLines = (texts: ReadonlyArray<string>): ReadonlyArray<string> =>
  texts.flatMap((all) => (all === "" ? [] : lastLinesOf(all, LAST_LINES)))

/** Runs a command of a template within its time, and fails for its exit code unless told not to. */
const judge = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  settings: Settings
): Effect.Effect<Container.Result, BerthError> => {
  const { timeout } = settings
  const written = outputsFor(settings.options)
  const whole = execute(box, words, settings, written)
  const bounded =
    timeout === undefined
      ? whole
      : Effect.timeoutFail(whole, {
          duration: timeout,
          onTimeout: () => {
            const stdout = written.stdout.soFar()
            const stderr = written.stderr.soFar()
            return new WaitFailed({
              reason: "TimedOut",
              condition: `end of ${printWords(words)}`,
              container: box.id,
              state: "is running",
              millis: Duration.toMillis(timeout),
              log: lastLines([stdout, stderr]),
              stdout,
              stderr
            })
          }
        })
  return Effect.flatMap(bounded, (result) => {
    const { exitCode, signal, stdout, stderr } = result
    if (exitCode === 0 || settings.nothrow) return Effect.succeed(result)
    const command = printWords(words)
    return Effect.fail(new NonZeroExit({ container: box.id, command, exitCode, signal, stdout, stderr }))
  })
}

/** Sends a signal to a command and its children in its process group. */
const send = (to: Process, signal: string | number): Effect.Effect<void, InvalidOption> => {
  const number = signalNumber(signal)
  return number === undefined
    ? Effect.fail(
        new InvalidOption({
          option: "signal",
          value: JSON.stringify(signal),
          expected: "a signal of signal(7), by name or number"
        })
      )
    : Effect.asVoid(signalGroup(to, number))
}

/** The command of a template. It begins after its statement, which may still set options. */
export const makeCommand = (
  shared: Shared,
  box: Container.Container,
  words: () => ReadonlyArray<string>,
  options: InsideOptions
): Command => {
  const site = siteOf(makeCommand)
  const stop = new AbortController()
  let begun = false
  let started: Process | undefined
  let wanted: string | number | undefined

  const settings: Settings = {
    options: { ...options, input: inputOf(options.input) },
    nothrow: false,
    timeout: undefined,
    lines: undefined,
    takeBytes: undefined,
    output: undefined,
    onStart: (it) => {
      started = it
      return wanted === undefined ? Effect.void : send(it, wanted)
    }
  }

  const begin = async (): Promise<Container.Result> => {
    // The rest of the statement comes first.
    await undefined
    begun = true
    const effect = Effect.flatMap(attempt(words), (all) => judge(box, all, settings))
    try {
      return await shared.runFrom(site, effect, settings.options, stop.signal)
    } finally {
      settings.lines?.end()
      settings.output?.end()
      await closeInput(settings.options.input)
    }
  }

  const configure = (name: string, change: Partial<Settings>): Command => {
    if (begun) {
      const expected = "a call in the statement of the command itself, which has begun by now"
      const error = new InvalidOption({ option: `$.${name}`, value: "a later call", expected })
      throw rejectionOf(error, siteOf(configure))
    }
    Object.assign(settings, change)
    return command
  }

  /** The lines of the command, and then its failure. Leaving early ends it. */
  const takenFrom = <A>(handoff: Handoff<A>): AsyncIterator<A, undefined> => {
    // The iterator throws it at the end.
    command.catch(() => {})
    return {
      next: async () => {
        const next = await handoff.next()
        if (next.done === true) await command
        return next
      },
      return: async () => {
        stop.abort()
        await command.catch(() => {})
        return { done: true, value: undefined }
      }
    }
  }

  const command: Command = Object.assign(begin(), {
    nothrow: () => configure("nothrow", { nothrow: true }),
    quiet: () => configure("quiet", { options: { ...settings.options, verbose: false } }),
    stdin: (input: Input) => configure("stdin", { options: { ...settings.options, input: inputOf(input) } }),
    pipe: (reader: Command) => reader.stdin(command),
    timeout: (time: Duration.DurationInput) => configure("timeout", { timeout: duration("$.timeout", time) }),
    bytes: async () => {
      let all: Uint8Array = new Uint8Array(0)
      configure("bytes", {
        takeBytes: (bytes) => {
          all = bytes
        }
      })
      await command
      return all
    },
    text: async () => (await command).stdout,
    lines: async () => {
      const { stdout } = await command
      return stdout === "" ? [] : stdout.replace(/\r?\n$/, "").split(/\r?\n/)
    },
    json: async () => JSON.parse((await command).stdout),
    kill: async (signal: string | number = "SIGTERM") => {
      if (started === undefined) wanted = signal
      else await shared.run(send(started, signal))
    },
    [Symbol.asyncIterator]: (): AsyncIterator<string, undefined> => {
      const lines = new Handoff<string>()
      configure("[Symbol.asyncIterator]", { lines })
      return takenFrom(lines)
    }
  })
  outputs.set(command, () => {
    const output = new Handoff<Uint8Array>()
    configure("pipe", { output })
    return new Output(takenFrom(output))
  })
  return command
}
