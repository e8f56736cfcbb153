/** A container's log: both outputs, line by line with the time of their coming, kept in memory and, if asked, on disk. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type BerthError, OperationFailed } from "../BerthError.ts"
import type { LogEntry, LogFiles, LogsOptions } from "../Container.ts"
import * as Loop from "./loop.ts"
import type { Output } from "./pipe.ts"

/** What is kept in memory: the newest lines, up to so many bytes of text. */
const MEMORY_BYTES_MAX = 1024 * 1024

/** A longer line is cut into several entries. */
const LINE_MAX = 16 * 1024

/** Lines of JSON in a file that is rotated: `log`, `log.1`, and so on, the highest number the oldest. */
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

  read(): ReadonlyArray<LogEntry> {
    const names = Array.from({ length: this.options.maxFiles ?? 3 }, (_, k) =>
      k === 0 ? this.path : `${this.path}.${k}`
    )
    return names
      .toReversed()
      .filter((name) => existsSync(name))
      .flatMap((name) => readFileSync(name, "utf8").split("\n"))
      .flatMap((line) => (line === "" ? [] : [JSON.parse(line) as LogEntry]))
  }
}

/** From bytes to lines of one output; a character may come in two parts, a line in many. */
class Lines {
  private readonly decoder = new TextDecoder()
  private rest = ""

  take(bytes: Uint8Array): ReadonlyArray<string> {
    return this.split(this.decoder.decode(bytes, { stream: true }))
  }

  end(): ReadonlyArray<string> {
    const lines = this.split(this.decoder.decode())
    const rest = this.rest
    this.rest = ""
    return rest === "" ? lines : [...lines, rest]
  }

  private split(text: string): ReadonlyArray<string> {
    const lines = (this.rest + text).split("\n")
    this.rest = lines.pop()!
    while (this.rest.length > LINE_MAX) {
      lines.push(this.rest.slice(0, LINE_MAX))
      this.rest = this.rest.slice(LINE_MAX)
    }
    return lines
  }
}

const failed = (cause: unknown): OperationFailed => {
  const { errno = 0, syscall = "write" } = cause as { errno?: number; syscall?: string }
  return new OperationFailed({ operation: "log file", index: -1, syscall, errno: Math.abs(errno), hint: "" })
}

export class Log {
  private entries: Array<LogEntry> = []
  /** How many entries have been dropped before the first of `entries`. */
  private dropped = 0
  private bytes = 0
  private open = 0
  private failure: BerthError | undefined
  private readonly files: Files | undefined
  private waiting: Array<() => void> = []

  /** Reads the outputs from here on, for as long as they last: nobody else can. Throws where there can be no files. */
  constructor(
    outputs: Readonly<Record<"stdout" | "stderr", Output | undefined>>,
    files: LogFiles | undefined
  ) {
    try {
      this.files = files === undefined ? undefined : new Files(files)
    } catch (cause) {
      throw failed(cause)
    }
    for (const stream of ["stdout", "stderr"] as const) {
      const output = outputs[stream]
      if (output === undefined) continue
      const lines = new Lines()
      this.open++
      output.pump(
        (bytes) => this.add(stream, lines.take(bytes)),
        (error) => {
          this.add(stream, lines.end())
          this.failure ??= error
          this.open--
          this.wake()
        }
      )
    }
  }

  private add(stream: LogEntry["stream"], lines: ReadonlyArray<string>): void {
    if (lines.length === 0) return
    const time = Date.now()
    const added = lines.map((line): LogEntry => ({ time, stream, line }))
    for (const entry of added) {
      this.bytes += entry.line.length
      this.entries.push(entry)
    }
    let drop = 0
    while (this.bytes > MEMORY_BYTES_MAX && drop < this.entries.length - 1)
      this.bytes -= this.entries[drop++]!.line.length
    if (drop > 0) {
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

  /** The last lines, for an error's message. */
  tail(count: number): ReadonlyArray<string> {
    return this.entries.slice(-count).map((entry) => entry.line)
  }

  stream(options: LogsOptions): Stream.Stream<LogEntry, BerthError> {
    const since = options.since === undefined ? 0 : Number(options.since)
    return Stream.suspend(() => {
      const past = this.files === undefined ? this.entries : this.files.read()
      let next = this.dropped + this.entries.length
      const selected = past.filter((entry) => entry.time >= since)
      const shown =
        options.tail === undefined ? selected : options.tail <= 0 ? [] : selected.slice(-options.tail)
      const more: Effect.Effect<Chunk.Chunk<LogEntry>, Option.Option<BerthError>> = Effect.suspend(() => {
        const from = Math.max(next - this.dropped, 0)
        const fresh = this.entries.slice(from).filter((entry) => entry.time >= since)
        next = this.dropped + this.entries.length
        if (fresh.length > 0) return Effect.succeed(Chunk.unsafeFromArray(fresh))
        if (this.failure !== undefined) return Effect.fail(Option.some(this.failure))
        if (this.open === 0) return Effect.fail(Option.none())
        return Effect.zipRight(this.changed, more)
      })
      const history = Stream.fromIterable(shown)
      return options.follow === true ? Stream.concat(history, Stream.repeatEffectChunkOption(more)) : history
    })
  }
}
