import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { bytesOf, readInBackground, sleepsIn, start, textOf } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"

const residentBytes = (): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(fs.readFileSync("/proc/self/status", "utf8"))![1]) * 1024

const GIGABYTE = 2 ** 30

/** Whether a text continues the output of `seq`, of which `state` keeps the next number and the rest of a line. */
const isCounting = (state: { next: number; rest: string }, text: string): boolean => {
  const lines = (state.rest + text).split("\n")
  state.rest = lines.pop()!
  return lines.every((line) => line === String(state.next++))
}

suite("Container: output", (effect) => {
  effect("a gigabyte of output that nobody reads waits in the container and is then complete", function* () {
    const before = residentBytes()
    const container = yield* start(`exec head -c ${GIGABYTE} /dev/zero`)
    yield* sleepsIn(container.pid, "head")
    // Nothing tells that nothing is read: only time does.
    yield* Effect.sleep("1 second")
    yield* sleepsIn(container.pid, "head")
    const grown = residentBytes() - before
    assert.ok(grown < 20 * 2 ** 20, `grew by ${grown} bytes`)
    const { bytes, other } = yield* Stream.runFold(container.stdout, { bytes: 0, other: 0 }, (sum, chunk) => {
      // The first and the last byte stand for a whole chunk.
      const odd = chunk[0] === 0 && chunk[chunk.length - 1] === 0 ? 0 : 1
      return { bytes: sum.bytes + chunk.length, other: sum.other + odd }
    })
    assert.deepEqual({ bytes, other }, { bytes: GIGABYTE, other: 0 })
    assert.equal((yield* container.exit).exitCode, 0)
  })

  effect("both streams of a container keep their bytes in order when they are read at once", function* () {
    const container = yield* start("seq 1 300000 & seq 1 300000 >&2; wait")
    const check = (stream: Container.Container["stdout"]) => {
      const state = { next: 1, rest: "" }
      return stream.pipe(
        Stream.decodeText(),
        Stream.runForEach((text) => Effect.sync(() => assert.ok(isCounting(state, text)))),
        Effect.map(() => assert.deepEqual(state, { next: 300001, rest: "" }))
      )
    }
    yield* Effect.all([check(container.stdout), check(container.stderr)], { concurrency: 2 })
  })

  effect("many small reads of a stream give the same bytes as one", function* () {
    const container = yield* start("seq 1 2000; sleep 0.05; seq 2001 4000")
    const parts: Array<string> = []
    // Each read runs the stream anew and gets what the one before has left.
    for (let chunk = yield* Stream.runHead(container.stdout); chunk._tag === "Some"; ) {
      parts.push(new TextDecoder().decode(chunk.value))
      assert.ok(parts.length < 10_000, "the stream should end")
      chunk = yield* Stream.runHead(container.stdout)
    }
    const expected = Array.from({ length: 4000 }, (_, k) => `${k + 1}\n`).join("")
    assert.equal(parts.join(""), expected)
  })

  effect("a slow reader slows the container down and loses nothing", function* () {
    const container = yield* start("seq 1 60000")
    const state = { next: 1, rest: "" }
    yield* container.stdout.pipe(
      Stream.decodeText(),
      Stream.runForEach((text) =>
        // The reader is slow on purpose.
        Effect.sync(() => assert.ok(isCounting(state, text))).pipe(Effect.zipRight(Effect.sleep("15 millis")))
      )
    )
    assert.equal(state.next, 60001)
  })

  effect("the output of a container that has ended can still be read", function* () {
    const container = yield* start("printf gone; printf away >&2")
    yield* container.exit
    assert.deepEqual([yield* textOf(container.stdout), yield* textOf(container.stderr)], ["gone", "away"])
    assert.equal(yield* textOf(container.stdout), "")
  })

  effect("a second reader of a stream fails with AlreadyRead", function* () {
    const container = yield* start("echo up; exec sleep 1000")
    const { begun } = yield* readInBackground(container.stdout)
    yield* begun
    const error = yield* failure("ContainerError", Stream.runDrain(container.stdout))
    assert.equal(error.reason, "AlreadyRead")
  })

  effect("a reader that is interrupted leaves the rest of the stream to the next one", function* () {
    const container = yield* start("read line; echo late", { stdin: "pipe" })
    const first = yield* Effect.timeoutOption(Stream.runDrain(container.stdout), "50 millis")
    assert.equal(first._tag, "None")
    yield* Stream.run(Stream.make(new Uint8Array([10])), container.stdin)
    assert.equal(yield* textOf(container.stdout), "late\n")
  })

  effect("output above maxOutputBytes ends the command with OutputTooLong", function* () {
    const image = yield* Image.host
    const endless = { command: ["cat", "/dev/zero"], maxOutputBytes: 100_000 }
    const [took, error] = yield* Effect.timed(failure("ContainerError", Container.run(image, endless)))
    assert.equal(error.reason, "OutputTooLong")
    assert.match(error.message, /100000 bytes on stdout/)
    assert.ok(Duration.toMillis(took) < 5000)
    const exact = yield* Container.run(image, {
      command: ["head", "-c", "100000", "/dev/zero"],
      maxOutputBytes: 100_000
    })
    assert.equal(exact.stdout.length, 100_000)
  })

  effect("bytes that are not UTF-8 are replaced in text and unchanged in the stream", function* () {
    const image = yield* Image.host
    const command = ["printf", "a\\377b\\360\\237\\220\\263"]
    assert.equal((yield* Container.run(image, { command })).stdout, "a\ufffdb🐳")
    const container = yield* Container.start(image, { command })
    assert.deepEqual([...(yield* bytesOf(container.stdout))], [97, 255, 98, 240, 159, 144, 179])
  })
})
