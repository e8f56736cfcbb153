/** Commands inside a container as promises: run at once, waited for as a whole, or read line by line. */
import * as process from "node:process"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError, InvalidOption, NonZeroExit, WaitFailed } from "../BerthError.ts"
import * as Container from "../Container.ts"
import type { Command, Input, InsideOptions } from "../promise.ts"
import { signalGroup } from "./commandExecutor.ts"
import type { Shared } from "./promiseRuntime.ts"
import { signalNumber } from "./signals.ts"
import { printWords } from "./words.ts"

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024
const LAST_LINES = 20

const encoder = new TextEncoder()
const decoder = new TextDecoder()

const bytesOf = (part: string | Uint8Array): Uint8Array =>
  typeof part === "string" ? encoder.encode(part) : part

const BUSY_MS = 10

/**
 * What a program has at hand is taken without ever going through the event loop, where others wait: every few
 * milliseconds, it does.
 */
const letOthersRun = (): Effect.Effect<void> => {
  let since = performance.now()
  return Effect.suspend(() =>
    performance.now() - since < BUSY_MS
      ? Effect.void
      : Effect.async<void>((resume) => {
          const immediate = setImmediate(() => {
            since = performance.now()
            resume(Effect.void)
          })
          return Effect.sync(() => clearImmediate(immediate))
        })
  )
}

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
      (iterator) => {
        const pause = letOthersRun()
        return Stream.repeatEffectOption(
          Effect.flatMap(
            Effect.zipRight(
              pause,
              Effect.promise(async () => iterator.next())
            ),
            (next) => (next.done === true ? Effect.fail(Option.none()) : Effect.succeed(bytesOf(next.value)))
          )
        )
      }
    )
  )
}

/** Gives a process its input. Whoever has ended needs no more of it. */
export const feed = (to: Container.Container, input: Input): Effect.Effect<void, BerthError> =>
  Effect.raceFirst(Stream.run(streamOf(input), to.stdin), Effect.asVoid(to.exit))

/** A command in a scope: at its end nothing is left of it, its children in its process group included. */
const startIn = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  options: InsideOptions,
  input: Input | undefined
): Effect.Effect<Container.Container, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    Container.execStream(box, words, { ...options, stdin: input === undefined ? "null" : "pipe" }),
    (started, exit) => (Exit.isFailure(exit) ? signalGroup(started, 9) : Effect.void)
  )

/** What a command has written so far. */
interface Written {
  readonly stdout: Array<Uint8Array>
  readonly stderr: Array<Uint8Array>
}

const nothingWritten = (): Written => ({ stdout: [], stderr: [] })

const text = (parts: ReadonlyArray<Uint8Array>): string => decoder.decode(Buffer.concat(parts))

/** Kept until its end, and shown on the way where that is asked for. */
const keep = (
  from: Container.Container,
  name: "stdout" | "stderr",
  options: InsideOptions,
  written: Written
): Effect.Effect<string, BerthError> => {
  const max = options.maxOutputBytes ?? OUTPUT_BYTES_MAX
  const parts = written[name]
  const shown = options.verbose !== true ? undefined : name === "stdout" ? process.stdout : process.stderr
  let total = 0
  return Stream.runForEach(from[name], (bytes) => {
    shown?.write(bytes)
    parts.push(bytes)
    total += bytes.length
    return total <= max
      ? Effect.void
      : Effect.fail(
          new ContainerError({
            reason: "OutputTooLong",
            container: from.id,
            detail: `more than ${max} bytes on ${name}: raise maxOutputBytes, or read it line by line`
          })
        )
  }).pipe(Effect.map(() => text(parts)))
}

/** Runs while `input` is read; a failure of the input is the command's, its end is not. */
const fed = <A>(
  started: Container.Container,
  input: Input | undefined,
  effect: Effect.Effect<A, BerthError>
): Effect.Effect<A, BerthError> =>
  input === undefined
    ? effect
    : Effect.raceFirst(effect, Effect.zipRight(feed(started, input), Effect.never as Effect.Effect<A>))

/** How a command of a template is to be run. */
interface Settings {
  options: InsideOptions
  input: Input | undefined
  nothrow: boolean
  timeout: Duration.Duration | undefined
  lines: Handoff<string> | undefined
  readonly written: Written
  readonly onStart: (started: Container.Container) => Effect.Effect<void, BerthError>
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

/** Runs a command and gives all that it wrote; where somebody reads stdout line by line, it goes there. */
const execute = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  { options, input, lines, written, onStart }: Settings
): Effect.Effect<Container.Result, BerthError> =>
  Effect.gen(function* () {
    const started = yield* startIn(box, words, options, input)
    yield* onStart(started)
    const out =
      lines === undefined
        ? keep(started, "stdout", options, written)
        : started.stdout.pipe(
            Stream.decodeText(),
            Stream.splitLines,
            Stream.runForEachChunk((chunk) => lines.put([...chunk])),
            Effect.as("")
          )
    const [stdout, stderr, status] = yield* fed(
      started,
      input,
      Effect.all([out, keep(started, "stderr", options, written), started.exit], { concurrency: "unbounded" })
    )
    return { ...status, stdout, stderr }
  }).pipe(Effect.scoped)

/** Runs a command and gives all that it wrote. */
export const exec = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  options: InsideOptions
): Effect.Effect<Container.Result, BerthError> =>
  execute(box, words, {
    options,
    input: undefined,
    nothrow: true,
    timeout: undefined,
    lines: undefined,
    written: nothingWritten(),
    onStart: () => Effect.void
  })

const lastLines = ({ stdout, stderr }: Written): ReadonlyArray<string> =>
  [text(stdout), text(stderr)].flatMap((all) =>
    all === "" ? [] : all.trimEnd().split("\n").slice(-LAST_LINES)
  )

/** Runs a command of a template: in the time that it is given, and for a failure where it gives one. */
const judge = (
  box: Container.Container,
  words: ReadonlyArray<string>,
  settings: Settings
): Effect.Effect<Container.Result, BerthError> => {
  const { timeout } = settings
  const whole = execute(box, words, settings)
  const bounded =
    timeout === undefined
      ? whole
      : Effect.timeoutFail(whole, {
          duration: timeout,
          onTimeout: () =>
            new WaitFailed({
              reason: "TimedOut",
              condition: `end of ${printWords(words)}`,
              container: box.id,
              state: "is running",
              millis: Duration.toMillis(timeout),
              log: lastLines(settings.written)
            })
        })
  return Effect.flatMap(bounded, (result) => {
    const { exitCode, signal, stdout, stderr } = result
    if (exitCode === 0 || settings.nothrow) return Effect.succeed(result)
    const command = printWords(words)
    return Effect.fail(new NonZeroExit({ container: box.id, command, exitCode, signal, stdout, stderr }))
  })
}

/** Sends a signal to a command and its children in its process group. */
const send = (to: Container.Container, signal: string | number): Effect.Effect<void, InvalidOption> => {
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
  const stop = new AbortController()
  let begun = false
  let started: Container.Container | undefined
  let wanted: string | number | undefined

  const settings: Settings = {
    options,
    input: undefined,
    nothrow: false,
    timeout: undefined,
    lines: undefined,
    written: nothingWritten(),
    onStart: (it) => {
      started = it
      return wanted === undefined ? Effect.void : send(it, wanted)
    }
  }

  const begin = async (): Promise<Container.Result> => {
    // The rest of the statement comes first.
    await undefined
    begun = true
    try {
      return await shared.run(judge(box, words(), settings), settings.options.signal, stop.signal)
    } finally {
      settings.lines?.end()
    }
  }

  const configure = (name: string, change: Partial<Settings>): Command => {
    if (begun) {
      const expected = "a call in the statement of the command itself, which has begun by now"
      throw new InvalidOption({ option: `$.${name}`, value: "a later call", expected })
    }
    Object.assign(settings, change)
    return command
  }

  const command: Command = Object.assign(begin(), {
    nothrow: () => configure("nothrow", { nothrow: true }),
    quiet: () => configure("quiet", { options: { ...settings.options, verbose: false } }),
    stdin: (input: Input) => configure("stdin", { input }),
    timeout: (duration: Duration.DurationInput) =>
      configure("timeout", { timeout: Duration.decode(duration) }),
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
      // Whoever reads gets it in the end.
      command.catch(() => {})
      return {
        next: async () => {
          const next = await lines.next()
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
  })
  return command
}
