/** Commands inside a container as promises: run at once, waited for as a whole, or read line by line. */
import * as process from "node:process"
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

/** What a program gives to read; what its iterator throws is the stream's defect. It is never waited for at the end. */
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
            // What a program has at hand is taken without ever going through the event loop, where others wait.
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

/** The stdout of a command, for the one that reads it in place of a program. */
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

/** How the stdout of a command that has not begun is had. */
const outputs = new WeakMap<object, () => Output>()

/** An input, or the stdout of the command that it is. It has to be called in the statement of that command. */
const inputOf = <I extends Input | undefined>(input: I): I | Output =>
  (typeof input === "object" ? outputs.get(input)?.() : undefined) ?? input

/** Ends the command whose stdout this input is, if it is one. */
const closeInput = async (input: Input | undefined): Promise<void> => {
  if (input instanceof Output) await input.close()
}

/** Calls `use` with an input, or with the stdout of the command that it is, which ends at last. */
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

/** A command in a scope: at its end nothing is left of it, its children in its process group included. */
const startIn = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  options: Container.ExecOptions
): Effect.Effect<Process, BerthError, Scope.Scope> =>
  // Not acquireRelease, in which a start that a container holds up could not be aborted.
  Effect.tap(Container.execStream(box, words, options), (started) =>
    Effect.addFinalizer((exit) => (Exit.isFailure(exit) ? signalGroup(started, 9) : Effect.void))
  )

const LINES_BYTES = 8 * 1024

/** Line by line, as fast as they are taken; one that does not end is too long at last. */
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
  // A part that is all ends of lines gives as many lines as it has bytes.
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

/** How a command of a template is to be run. */
interface Settings {
  options: InsideOptions
  nothrow: boolean
  timeout: Duration.Duration | undefined
  lines: Handoff<string> | undefined
  /** Gets the bytes of stdout as they are, at the end. */
  takeBytes: ((bytes: Uint8Array) => void) | undefined
  /** Where another command reads its stdout. */
  output: Handoff<Uint8Array> | undefined
  readonly onStart: (started: Process) => Effect.Effect<void, BerthError>
}

/** Hands items from one who makes them to one who asks for them, and lets neither get ahead of the other. */
class Handoff<A> {
  private items: Array<A> = []
  private asked: (() => void) | undefined
  private taken: (() => void) | undefined
  private ended = false

  /** Waits until all of them have been taken. */
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

/** A command's options and its input as those of an exec; throws. */
const execOptions = ({ input, ...options }: InsideOptions): Container.ExecOptions =>
  bufferedOptions({ ...options, input: input === undefined ? undefined : streamOf(input) })

/** Runs a command and gives all that it wrote; where somebody reads stdout line by line, it goes there. */
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

/** Runs a command and gives all that it wrote. */
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

/** Runs a command of a template: in the time that it is given, and for a failure where it gives one. */
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

/** The command of a template, which begins once the statement that it is in has said how. */
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

  /** What the command writes, and then its failure; whoever leaves early ends it. */
  const takenFrom = <A>(handoff: Handoff<A>): AsyncIterator<A, undefined> => {
    // Whoever reads gets it in the end.
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
