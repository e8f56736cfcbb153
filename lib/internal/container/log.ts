/** A container's log: both outputs, line by line with their times, in memory and, if requested, on disk. */
import {
  appendFileSync,
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync
} from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { LogEntry, LogFiles, LogsOptions } from "../../Container.ts"
import * as Loop from "../system/eventLoop.ts"
import type { Output } from "../system/pipe.ts"
import { Lines } from "../util/text.ts"
import * as Turn from "../util/turn.ts"

/**
 * The limits of memory, in characters: above MEMORY_MAX, the oldest lines are dropped down to MEMORY_LEFT, so that
 * drops are rare. Each line counts as ENTRY more than its length, which is the size of an empty entry.
 */
const MEMORY_MAX = 4 * 1024 * 1024
const MEMORY_LEFT = 3 * 1024 * 1024
const ENTRY = 100

/** A longer line is split into several entries. */
const LINE_MAX = 16 * 1024

/** The number of entries, or of bytes of a file, in one chunk of a stream. */
const STEP_ENTRIES = 4096
const STEP_BYTES = 64 * 1024

const WHOLE_TIMEOUT = "1 second"

const entriesOf = (lines: ReadonlyArray<string>): ReadonlyArray<LogEntry> =>
  lines.flatMap((line) => {
    try {
      return [JSON.parse(line) as LogEntry]
    } catch {
      // After a full disk, or a kill of the program, the rest of the line is missing.
      return []
    }
  })

/** The entries at a certain time, even if they are read later. */
interface Past {
  readonly entries: Stream.Stream<LogEntry, BerthError>
  readonly close: () => void
}

/** Lines of JSON in rotated files: `log`, `log.1`, and so on, the highest number the oldest. */
class Files {
  private readonly path: string
  private readonly options: LogFiles
  private size: number

  constructor(options: LogFiles) {
    this.options = options
    this.path = `${options.folder}/log`
    mkdirSync(options.folder, { recursive: true, mode: 0o700 })
    this.size = existsSync(this.path) ? statSync(this.path).size : 0
  }

  append(entries: ReadonlyArray<LogEntry>): void {
    const max = this.options.maxBytes ?? 10 * 1024 * 1024
    let text = ""
    const write = (): void => {
      appendFileSync(this.path, text, { mode: 0o600 })
      text = ""
    }
    for (const entry of entries) {
      const line = `${JSON.stringify(entry)}\n`
      const bytes = Buffer.byteLength(line)
      if (this.size > 0 && this.size + bytes > max) {
        write()
        this.rotate()
      }
      text += line
      this.size += bytes
    }
    write()
  }

  private rotate(): void {
    const last = (this.options.maxFiles ?? 3) - 1
    const name = (index: number): string => (index === 0 ? this.path : `${this.path}.${index}`)
    rmSync(name(last), { force: true })
    for (let index = last - 1; index >= 0; index--)
      if (existsSync(name(index))) renameSync(name(index), name(index + 1))
    this.size = 0
  }

  /** The entries of all files, the oldest first; the files are opened now and read on demand. */
  past(): Past {
    const names = Array.from({ length: this.options.maxFiles ?? 3 }, (_, k) =>
      k === 0 ? this.path : `${this.path}.${k}`
    )
    const files: Array<{ readonly fd: number; left: number }> = []
    const close = (): void => {
      for (const { fd } of files.splice(0)) closeSync(fd)
    }
    try {
      for (const name of names.reverse()) {
        if (!existsSync(name)) continue
        const fd = openSync(name, "r")
        files.push({ fd, left: fstatSync(fd).size })
      }
    } catch (cause) {
      close()
      return { entries: Stream.fail(failed(cause)), close }
    }
    const buffer = new Uint8Array(STEP_BYTES)
    let lines = new Lines(Number.POSITIVE_INFINITY)
    const step = Effect.suspend((): Effect.Effect<Chunk.Chunk<LogEntry>, Option.Option<BerthError>> => {
      const file = files[0]
      if (file === undefined) return Effect.fail(Option.none())
      try {
        const n = readSync(file.fd, buffer, 0, Math.min(buffer.length, file.left), null)
        file.left -= n
        if (n > 0) return Effect.succeed(Chunk.unsafeFromArray(entriesOf(lines.take(buffer.subarray(0, n)))))
        const rest = lines.end()
        lines = new Lines(Number.POSITIVE_INFINITY)
        closeSync(files.shift()!.fd)
        return Effect.succeed(Chunk.unsafeFromArray(entriesOf(rest)))
      } catch (cause) {
        return Effect.fail(Option.some(failed(cause)))
      }
    })
    return { entries: Stream.repeatEffectChunkOption(step), close }
  }
}

const failed = (cause: unknown): OperationFailed => {
  const { errno = 0, syscall = "write" } = cause as { errno?: number; syscall?: string }
  return new OperationFailed({
    operation: "log file",
    index: -1,
    syscall,
    errno: Math.abs(errno),
    hint: "",
    cause
  })
}

export class Log {
  private entries: Array<LogEntry> = []
  /** The number of entries that were dropped before the first of `entries`. */
  private dropped = 0
  private size = 0
  private open = 0
  private failure: BerthError | undefined
  private readonly files: Files | undefined
  private waiting: Array<() => void> = []
  private readonly lookers = new Set<(entry: LogEntry) => void>()

  /** Has the lines that the outputs have kept and those that arrive, and makes the outputs flow. Throws if the files cannot be made. */
  constructor(
    outputs: Readonly<Record<"stdout" | "stderr", Output | undefined>>,
    files: LogFiles | undefined
  ) {
    try {
      this.files = files === undefined ? undefined : new Files(files)
    } catch (cause) {
      throw failed(cause)
    }
    const open = (["stdout", "stderr"] as const).flatMap((stream) => {
      const output = outputs[stream]
      return output === undefined ? [] : [{ stream, output, lines: new Lines(LINE_MAX) }]
    })
    this.open = open.length
    const earlier = open.flatMap((of) => of.output.kept.map((part) => ({ ...of, part })))
    for (const { lines, part, stream } of earlier.sort((a, b) => a.part.order - b.part.order))
      this.add(stream, lines.take(part.bytes), part.time)
    for (const { lines, output, stream } of open)
      output.listen({
        take: (bytes) => {
          // A waiting reader runs before the next read, so that it sees entries before they are dropped.
          const alone = this.waiting.length === 0
          this.add(stream, lines.take(bytes))
          return alone
        },
        end: (error) => {
          this.add(stream, lines.end())
          this.failure ??= error
          this.open--
          this.wake()
        }
      })
  }

  private add(stream: LogEntry["stream"], lines: ReadonlyArray<string>, time = Date.now()): void {
    if (lines.length === 0) return
    const added = lines.map((line): LogEntry => ({ time, stream, line }))
    for (const entry of added) {
      this.size += ENTRY + entry.line.length
      this.entries.push(entry)
      for (const look of this.lookers) look(entry)
    }
    if (this.size > MEMORY_MAX) {
      let drop = 0
      while (this.size > MEMORY_LEFT) this.size -= ENTRY + this.entries[drop++]!.line.length
      this.entries = this.entries.slice(drop)
      this.dropped += drop
    }
    try {
      this.files?.append(added)
    } catch (cause) {
      this.failure ??= failed(cause)
    }
    this.wake()
  }

  private wake(): void {
    for (const resume of this.waiting.splice(0)) resume()
  }

  private readonly changed: Effect.Effect<void> = Effect.async((resume) => {
    const done = (): void => {
      Loop.release()
      resume(Effect.void)
    }
    Loop.retain()
    this.waiting.push(done)
    return Effect.sync(() => {
      const index = this.waiting.indexOf(done)
      if (index < 0) return
      this.waiting.splice(index, 1)
      Loop.release()
    })
  })

  /** Waits for the last lines of a process that has ended, which may still be in its pipes; another process can keep these open. */
  readonly whole: Effect.Effect<void> = Effect.suspend(() =>
    this.open === 0 || this.failure !== undefined ? Effect.void : Effect.zipRight(this.changed, this.whole)
  ).pipe(Effect.timeoutOption(WHOLE_TIMEOUT), Effect.asVoid)

  /** The last lines, for the message of an error. */
  tail(count: number): ReadonlyArray<string> {
    return this.entries.slice(-count).map((entry) => entry.line)
  }

  /** There may be many entries, so other work runs between them. */
  private past(): Past {
    const entries = this.entries.slice()
    const { close, entries: all } = this.files?.past() ?? {
      entries: Stream.fromIterable(entries),
      close: () => {}
    }
    return { entries: Stream.mapChunksEffect(all, (chunk) => Effect.as(Turn.letOthersRun, chunk)), close }
  }

  /** Of new entries, a reader that is slower than the container misses those that are dropped before it reads them. */
  stream(options: LogsOptions): Stream.Stream<LogEntry, BerthError> {
    const since = options.since === undefined ? 0 : Number(options.since)
    const begin = Effect.sync(() => ({ past: this.past(), count: this.dropped + this.entries.length }))
    const begun = Effect.acquireRelease(begin, ({ past }) => Effect.sync(past.close))
    const from = ({
      count,
      past
    }: Effect.Effect.Success<typeof begin>): Stream.Stream<LogEntry, BerthError> => {
      let next = count
      const selected = Stream.filter(past.entries, (entry) => entry.time >= since)
      const shown =
        options.tail === undefined ? selected : Stream.takeRight(selected, Math.max(options.tail, 0))
      const more: Effect.Effect<Chunk.Chunk<LogEntry>, Option.Option<BerthError>> = Effect.suspend(() => {
        const at = Math.max(next - this.dropped, 0)
        const fresh = this.entries.slice(at, at + STEP_ENTRIES)
        next = this.dropped + at + fresh.length
        if (fresh.length > 0)
          return Effect.as(
            Turn.letOthersRun,
            Chunk.unsafeFromArray(fresh.filter((entry) => entry.time >= since))
          )
        if (this.failure !== undefined) return Effect.fail(Option.some(this.failure))
        if (this.open === 0) return Effect.fail(Option.none())
        return Effect.zipRight(this.changed, more)
      })
      return options.follow === true ? Stream.concat(shown, Stream.repeatEffectChunkOption(more)) : shown
    }
    return Stream.unwrapScoped(Effect.map(begun, from))
  }

  /**
   * The entry that is the last of so many matches, among past and new entries; none if the log ends before. It misses
   * no entry: new ones are checked on arrival.
   */
  find(
    matches: (entry: LogEntry) => boolean,
    times: number
  ): Effect.Effect<Option.Option<LogEntry>, BerthError> {
    const begin = Effect.sync(() => {
      let before = 0
      const came: Array<LogEntry> = []
      const look = (entry: LogEntry): void => {
        if (came.length < times && matches(entry)) came.push(entry)
      }
      const more: Effect.Effect<Option.Option<LogEntry>, BerthError> = Effect.suspend(() => {
        const entry = came[times - before - 1]
        if (entry !== undefined) return Effect.succeed(Option.some(entry))
        if (this.failure !== undefined) return Effect.fail(this.failure)
        return this.open === 0 ? Effect.succeed(Option.none()) : Effect.zipRight(this.changed, more)
      })
      const { close, entries } = this.past()
      const there = Stream.runHead(Stream.filter(entries, (entry) => matches(entry) && ++before >= times))
      this.lookers.add(look)
      const end = (): void => {
        this.lookers.delete(look)
        close()
      }
      return { there, more, end }
    })
    return Effect.acquireUseRelease(
      begin,
      ({ more, there }) =>
        Effect.flatMap(there, (entry) => (Option.isSome(entry) ? Effect.succeed(entry) : more)),
      ({ end }) => Effect.sync(end)
    )
  }
}
