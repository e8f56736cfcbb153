import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container, Image, WaitFor } from "../../lib/index.ts"
import { BerthError, open } from "../../lib/promise.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"

const MEBIBYTE = 2 ** 20

const residentBytes = (): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(fs.readFileSync("/proc/self/status", "utf8"))![1]) * 1024

/** Measures the delay of a 10 ms timer (95th percentile) and the growth of the program's memory while `body` runs. */
const watched = <A, E, R>(body: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const before = residentBytes()
      const late: Array<number> = []
      let grown = 0
      const first = performance.now()
      let last = first
      const tick = (): void => {
        const now = performance.now()
        late.push(now - last - 10)
        grown = Math.max(grown, residentBytes() - before)
        last = now
      }
      const result = () => ({
        late: late.sort((a, b) => a - b)[Math.floor(late.length * 0.95)]!,
        grown,
        ticks: late.length,
        elapsed: last - first
      })
      return { result, tick, timer: setInterval(tick, 10) }
    }),
    ({ result, tick }) =>
      Effect.map(body, (value) => {
        tick()
        return { ...result(), value }
      }),
    ({ timer }) => Effect.sync(() => clearInterval(timer))
  )

// Far above the usual values, and far below those of unbounded code.
const LATE_MAX = 2000
const GROWN_MAX = 1024 * MEBIBYTE
/** For so many seconds a test lets the container write. */
const seconds = Number(process.env.BERTH_FLOOD_SECONDS ?? 1.5)
const FLOOD = `${seconds} seconds` as const

interface Watched {
  readonly late: number
  readonly grown: number
  readonly ticks: number
  readonly elapsed: number
}

const isCalm = ({ elapsed, grown, late, ticks }: Watched): void => {
  assert.ok(late < LATE_MAX, `a timer of 10 ms came ${late.toFixed(0)} ms late`)
  assert.ok(grown < GROWN_MAX, `the program has grown by ${(grown / MEBIBYTE).toFixed(0)} MiB`)
  // A fast machine is done before the timer's second turn.
  assert.ok(ticks > Math.min(5, elapsed / 200), `the timer had ${ticks} turns in ${elapsed.toFixed(0)} ms`)
}

const floods = {
  "endless empty lines": "exec yes ''",
  "endless short lines": "exec yes x",
  "one endless line": "exec tr '\\\\0' x < /dev/zero",
  "endless random bytes": "exec cat /dev/urandom"
}

suite("logs of a container that writes endlessly", (effect) => {
  const start = (script: string, options: Container.StartOptions = {}) =>
    Effect.flatMap(Image.host, (image) =>
      Container.start(image, { command: ["sh", "-c", script], ...options })
    )

  for (const [name, script] of Object.entries(floods)) {
    effect(`a log of ${name} takes bounded memory and starves no timer`, function* () {
      const box = yield* start(script)
      const waiting = failure("WaitFailed", WaitFor.log(box, "never said", { timeout: FLOOD }))
      const following = Stream.runDrain(Container.logs(box, { follow: true })).pipe(
        Effect.timeoutOption(FLOOD)
      )
      isCalm(yield* watched(Effect.all([waiting, following], { concurrency: 2 })))
      const kept = yield* Stream.runFold(Container.logs(box), 0, (sum, { line }) => sum + line.length + 100)
      assert.ok(kept > 0 && kept <= 4 * MEBIBYTE, `${kept} characters are kept`)
    })
  }

  effect("WaitFor.log finds a line in the middle of a flood, and lines are at most 16 KiB", function* () {
    const box = yield* start(
      "yes '' | head -n 3000000; head -c 1000000 /dev/zero | tr '\\0' y; echo; echo ready; exec yes ''"
    )
    const found = yield* watched(WaitFor.log(box, "ready"))
    assert.equal(found.value.line, "ready")
    isCalm(found)
    const entries = yield* Stream.runCollect(Container.logs(box))
    for (const { line } of entries) assert.ok(line.length <= 16 * 1024)
  })

  effect("a long line is cut into pieces of 16 KiB", function* () {
    const box = yield* start("head -c 100000 /dev/zero | tr '\\0' y; echo; echo after")
    const lines = [...(yield* Stream.runCollect(Container.logs(box, { follow: true })))].map(
      ({ line }) => line
    )
    assert.equal(lines.join(""), `${"y".repeat(100_000)}after`)
    assert.ok(lines.every((line) => line.length <= 16 * 1024))
    assert.equal(lines.at(-1), "after")
  })

  effect("a slow follower of a log takes no memory", function* () {
    const box = yield* start("i=0; while :; do i=$((i + 1)); echo $i; done & exec yes ''")
    const slow = Container.logs(box, { follow: true }).pipe(
      Stream.runForEachChunk(() => Effect.sleep("50 millis")),
      Effect.timeoutOption(FLOOD)
    )
    isCalm(yield* watched(slow))
  })

  effect("log files stay within their limits, and reading them starves no timer", function* () {
    const folder = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (made) =>
      Effect.sync(() => remove(made))
    )
    const maxBytes = 4 * MEBIBYTE
    const box = yield* start("exec yes ''", { logs: { folder, maxBytes, maxFiles: 2 } })
    isCalm(yield* watched(Effect.sleep("3 seconds")))
    const sizes = fs.readdirSync(folder).map((name) => fs.statSync(`${folder}/${name}`).size)
    assert.equal(sizes.length, 2)
    assert.ok(Math.max(...sizes) <= maxBytes, String(sizes))
    const read = yield* watched(Stream.runCount(Container.logs(box)))
    assert.ok(read.value > 50_000, String(read.value))
    assert.ok(read.late < LATE_MAX, `late by ${read.late}`)
    const last = yield* Stream.runCollect(Container.logs(box, { tail: 3 }))
    assert.equal(last.length, 3)
  })

  effect("a truncated last line of a log file is left out", function* () {
    const folder = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (made) =>
      Effect.sync(() => remove(made))
    )
    fs.writeFileSync(`${folder}/log`, `{"time":1,"stream":"stdout","line":"first"}\n{"time":2,"str`)
    const box = yield* start("true", { logs: { folder } })
    yield* box.exit
    const lines = [...(yield* Stream.runCollect(Container.logs(box)))].map(({ line }) => line)
    assert.deepEqual(lines, ["first"])
  })

  effect("a run whose output is buffered fails at the limit, and starves no timer", function* () {
    const image = yield* Image.host
    for (const script of [...Object.values(floods), "exec yes '' >&2"]) {
      const command = ["sh", "-c", script]
      const ran = yield* watched(failure("ContainerError", Container.run(image, { command })))
      assert.equal(ran.value.reason, "OutputTooLong")
      assert.ok(ran.late < LATE_MAX, `${script}: a timer of 10 ms came ${ran.late.toFixed(0)} ms late`)
    }
  })

  effect("the buffered output of many small writes takes about as much memory as its bytes", function* () {
    const image = yield* Image.host
    // Each byte is written alone, and each write wakes the reader.
    const command = ["dd", "if=/dev/zero", "bs=1", "count=400000", "status=none"]
    const ran = yield* watched(Container.run(image, { command }))
    assert.equal(ran.value.stdout.length, 400_000)
    isCalm(ran)
  })

  effect("reading a flood from a terminal or a pipe starves no timer", function* () {
    for (const options of [{ terminal: true }, {}]) {
      for (const script of Object.values(floods)) {
        const box = yield* start(script, options)
        const reading = yield* Effect.fork(Stream.runDrain(box.stdout))
        isCalm(yield* watched(Effect.sleep(`${seconds / 3} seconds`)))
        yield* Fiber.interrupt(reading)
      }
    }
  })
})

suite("lines of a command that writes endlessly", (effect) => {
  effect(
    "lines of a command are iterated one by one and starve no timer, and an endless line is an error",
    function* () {
      yield* Effect.promise(async () => {
        const folder = makeTemporaryFolder()
        try {
          await using berth = await open({ folder })
          await using box = await berth.start("host", { command: ["sleep", "1000"] })
          const read = async (): Promise<number> => {
            let count = 0
            for await (const line of box.$`yes ${""}`) {
              assert.equal(line, "")
              if (++count === 200_000) break
            }
            return count
          }
          const lines = await Effect.runPromise(watched(Effect.promise(read)))
          assert.equal(lines.value, 200_000)
          isCalm(lines)
          const command = ["sh", "-c", floods["one endless line"]]
          const ended = await Effect.runPromise(
            watched(
              Effect.promise(async () => {
                try {
                  for await (const line of box.$`${command}`) assert.fail(`a line of ${line.length}`)
                } catch (error) {
                  return error
                }
              })
            )
          )
          assert.ok(ended.value instanceof BerthError, String(ended.value))
          assert.equal(ended.value._tag === "ContainerError" && ended.value.reason, "OutputTooLong")
          assert.ok(ended.late < LATE_MAX, `late by ${ended.late}`)
        } finally {
          remove(folder)
        }
      })
    }
  )
})
