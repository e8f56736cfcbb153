/** Connects this program's terminal with that of a process. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../BerthError.ts"
import type { ExitStatus, Process } from "../../Process.ts"
import { ownTerminal } from "../util/validate.ts"

/** Puts the terminal into raw mode, in which every key is read at once, until the scope closes. */
const raw: Effect.Effect<void, never, Scope.Scope> = Effect.asVoid(
  Effect.acquireRelease(
    Effect.sync(() => {
      const before = process.stdin.isRaw
      if (process.stdin.isTTY) process.stdin.setRawMode(true)
      return before
    }),
    (before) =>
      Effect.sync(() => {
        if (process.stdin.isTTY) process.stdin.setRawMode(before)
      })
  )
)

const typed: Stream.Stream<Uint8Array> = Stream.async<Uint8Array>((emit) => {
  let reading = true
  // No more is read from a file or a pipe than the process takes.
  const data = (bytes: Uint8Array): void => {
    process.stdin.pause()
    void emit.single(bytes).then(() => {
      if (reading) process.stdin.resume()
    })
  }
  const end = (): void => {
    emit.end()
  }
  process.stdin.on("data", data)
  process.stdin.on("end", end)
  process.stdin.resume()
  return Effect.sync(() => {
    reading = false
    process.stdin.off("data", data)
    process.stdin.off("end", end)
    // Without a terminal, too: this program would not end while its input is open.
    process.stdin.pause()
  })
})

/** Writes, and waits while the reader of this program's output is slow. */
const write = (to: NodeJS.WriteStream, bytes: Uint8Array): Effect.Effect<void> =>
  Effect.async((resume) => {
    to.write(bytes, () => resume(Effect.void))
  })

const sizes = (to: Process): Effect.Effect<void, never, Scope.Scope> => {
  const pass = (): void => {
    const { rows, columns } = ownTerminal()
    to.state.terminal?.resize(rows, columns)
  }
  return Effect.asVoid(
    Effect.acquireRelease(
      Effect.sync(() => {
        if (!process.stdout.isTTY) return
        process.stdout.on("resize", pass)
        pass()
      }),
      () => Effect.sync(() => process.stdout.off("resize", pass))
    )
  )
}

export const attach = (to: Process): Effect.Effect<ExitStatus, BerthError> =>
  Effect.gen(function* () {
    if (to.state.terminal !== undefined) yield* raw
    yield* sizes(to)
    if (to.state.stdin !== undefined) yield* Effect.forkScoped(Stream.run(typed, to.stdin))
    yield* Effect.all(
      [
        Stream.runForEach(to.stdout, (bytes) => write(process.stdout, bytes)),
        Stream.runForEach(to.stderr, (bytes) => write(process.stderr, bytes))
      ],
      { concurrency: "unbounded", discard: true }
    )
    return yield* to.exit
  }).pipe(Effect.scoped, Effect.withSpan("berth.Container.attach", { attributes: { "container.id": to.id } }))
