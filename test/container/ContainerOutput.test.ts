import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container, Image, WaitFor } from "../../lib/index.ts"
import { bytesOf, readInBackground, sleepsIn, start, textOf, waitUntil } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"

const residentBytes = (): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(fs.readFileSync("/proc/self/status", "utf8"))![1]) * 1024

const MEBIBYTE = 2 ** 20
const GIGABYTE = 2 ** 30

/** Whether a text continues the output of `seq`, of which `state` keeps the next number and the rest of a line. */
const isCounting = (state: { next: number; rest: string }, text: string): boolean => {
  const lines = (state.rest + text).split("\n")
  state.rest = lines.pop()!
  return lines.every((line) => line === String(state.next++))
}

suite("Container: output", (effect) => {
  effect(
    'with "pipe", a gigabyte that nobody reads waits in the container and is then complete',
    function* () {
      const before = residentBytes()
      const container = yield* start(`exec head -c ${GIGABYTE} /dev/zero`, { stdout: "pipe" })
      yield* sleepsIn(container.pid, "head")
      // Nothing tells that nothing is read: only time does.
      yield* Effect.sleep("1 second")
      yield* sleepsIn(container.pid, "head")
      const grown = residentBytes() - before
      assert.ok(grown < 20 * 2 ** 20, `grew by ${grown} bytes`)
      const { bytes, other } = yield* Stream.runFold(
        container.stdout,
        { bytes: 0, other: 0 },
        (sum, chunk) => {
          // The first and the last byte stand for a whole chunk.
          const odd = chunk[0] === 0 && chunk[chunk.length - 1] === 0 ? 0 : 1
          return { bytes: sum.bytes + chunk.length, other: sum.other + odd }
        }
      )
      assert.deepEqual({ bytes, other }, { bytes: GIGABYTE, other: 0 })
      assert.equal((yield* container.exit).exitCode, 0)
    }
  )

  effect("a container whose output nobody reads goes on, and Berth keeps the newest of it", function* () {
    const before = residentBytes()
    const container = yield* start("seq 1 20000000; echo end >&2; exit 3")
    assert.equal((yield* container.exit).exitCode, 3)
    const entries = [...(yield* Stream.runCollect(Container.logs(container, { follow: true })))]
    // Which of two streams comes first is not kept.
    const last = (name: string) => entries.findLast(({ stream }) => stream === name)?.line
    assert.deepEqual([last("stdout"), last("stderr")], ["20000000", "end"])
    const grown = residentBytes() - before
    assert.ok(grown < 200 * MEBIBYTE, `grew by ${grown} bytes`)
    // It says that a part is missing, and then gives what it has.
    const error = yield* failure("ContainerError", Stream.runDrain(container.stdout))
    assert.equal(error.reason, "OutputDropped")
    assert.match(error.message, /\d+ bytes of output were dropped before they were read.*"pipe"/)
    const rest = yield* textOf(container.stdout)
    assert.ok(rest.endsWith("\n19999999\n20000000\n"))
    assert.ok(rest.length >= MEBIBYTE && rest.length < 1.5 * MEBIBYTE, `${rest.length} bytes are kept`)
    assert.equal(yield* textOf(container.stderr), "end\n")
  })

  effect("an exec whose output nobody reads goes on as well", function* () {
    const box = yield* start("exec sleep 1000")
    const process = yield* Container.execStream(box, ["head", "-c", String(64 * MEBIBYTE), "/dev/zero"])
    assert.equal((yield* process.exit).exitCode, 0)
  })

  effect("a reader that comes late, within 1 MiB, gets all bytes from the first one on", function* () {
    const container = yield* start("seq 1 150000; read line; seq 150001 600000", { stdin: "pipe" })
    yield* WaitFor.log(container, "150000")
    const reader = yield* Effect.fork(textOf(container.stdout))
    yield* Stream.run(Stream.make(new Uint8Array([10])), container.stdin)
    const state = { next: 1, rest: "" }
    assert.ok(isCounting(state, yield* Fiber.join(reader)))
    assert.deepEqual(state, { next: 600001, rest: "" })
  })

  effect(
    "while there is a reader the container waits for it, and when it has left the output flows",
    function* () {
      const container = yield* start("exec yes")
      const written = () =>
        Number(/^wchar: (\d+)/m.exec(fs.readFileSync(`/proc/${container.pid}/io`, "utf8"))![1])
      const begun = yield* Deferred.make<void>()
      const stop = Effect.zipRight(Deferred.succeed(begun, undefined), Effect.never)
      const reader = yield* Effect.fork(Stream.runForEach(container.stdout, () => stop))
      yield* Deferred.await(begun)
      yield* sleepsIn(container.pid, "yes")
      const before = written()
      yield* Effect.sleep("200 millis")
      assert.equal(written(), before)
      yield* Fiber.interrupt(reader)
      yield* waitUntil("more output", () => written() > before + 4 * MEBIBYTE)
    }
  )

  effect("a log and a reader of the same output both get all of it", function* () {
    const container = yield* start("seq 1 1000; sleep 0.1; seq 1001 2000")
    const [text, entries] = yield* Effect.all(
      [textOf(container.stdout), Stream.runCollect(Container.logs(container, { follow: true }))],
      { concurrency: 2 }
    )
    const lines = Array.from({ length: 2000 }, (_, k) => String(k + 1))
    assert.equal(text, `${lines.join("\n")}\n`)
    assert.deepEqual(
      [...entries].map(({ line }) => line),
      lines
    )
  })

  effect(
    "the log of a container keeps the order and the times of lines that came before it was asked for",
    function* () {
      const container = yield* start("echo a; sleep 0.2; echo b >&2; sleep 0.2; echo c; exec sleep 1000")
      yield* Effect.sleep("1 second")
      const entries = [...(yield* Stream.runCollect(Container.logs(container)))]
      assert.deepEqual(
        entries.map(({ line }) => line),
        ["a", "b", "c"]
      )
      assert.ok(entries[2]!.time - entries[0]!.time >= 300)
    }
  )

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
    assert.equal(error.stdout, "\0".repeat(100_000))
    assert.ok(Duration.toMillis(took) < 5000)
    const exact = yield* Container.run(image, {
      command: ["head", "-c", "100000", "/dev/zero"],
      maxOutputBytes: 100_000
    })
    assert.equal(exact.stdout.length, 100_000)
  })

  effect("an error about too much output has both outputs so far", function* () {
    const box = yield* start("exec sleep 1000")
    const command = ["sh", "-c", "echo said >&2; sleep 0.2; exec yes"]
    const error = yield* failure("ContainerError", Container.exec(box, command, { maxOutputBytes: 11 }))
    assert.deepEqual([error.stdout, error.stderr], ["y\ny\ny\ny\ny\ny", "said\n"])
  })

  effect('with onOverflow "truncate" a command goes on, and the rest of its output is dropped', function* () {
    const image = yield* Image.host
    const options = { maxOutputBytes: 10, onOverflow: "truncate" } as const
    const command = ["sh", "-c", "seq 1 1000000; echo all >&2; exit 4"]
    const cut = yield* Container.run(image, { command, ...options })
    assert.deepEqual(
      [cut.exitCode, cut.stdout, cut.stderr, cut.truncated],
      [4, "1\n2\n3\n4\n5\n", "all\n", true]
    )
    const box = yield* start("exec sleep 1000")
    const whole = yield* Container.exec(box, ["printf", "0123456789"], options)
    assert.deepEqual([whole.stdout, whole.truncated], ["0123456789", false])
  })

  effect("run and exec give a command its input: text, bytes or a stream", function* () {
    const image = yield* Image.host
    const box = yield* start("exec sleep 1000")
    const bytes = new Uint8Array(MEBIBYTE).fill(97)
    const stream = Stream.range(1, 1000).pipe(Stream.map((k) => new TextEncoder().encode(`${k}\n`)))
    const command = ["sh", "-c", "wc -c | tr -d ' '"]
    for (const [input, length] of [
      ["", 0],
      ["späß", 6],
      [bytes, MEBIBYTE],
      [stream, 3893]
    ] as const) {
      assert.equal((yield* Container.exec(box, command, { input })).stdout, `${length}\n`)
      assert.equal((yield* Container.run(image, { command, input })).stdout, `${length}\n`)
    }
    // Who does not read its input, or not all of it, ends as it does without any.
    assert.equal((yield* Container.exec(box, ["head", "-c", "3"], { input: bytes })).stdout, "aaa")
    assert.equal((yield* Container.exec(box, ["true"], { input: Stream.never })).exitCode, 0)
  })

  effect("an input for a process without a pipe is refused", function* () {
    const box = yield* start("exec sleep 1000")
    const error = yield* failure("InvalidOption", Stream.run(Stream.make(new Uint8Array([10])), box.stdin))
    assert.equal(error.option, "stdin")
    yield* failure("InvalidOption", Container.exec(box, ["cat"], { stdin: "pipe" }))
    yield* failure("InvalidOption", Container.exec(box, ["cat"], { terminal: true, stdin: "null" }))
  })

  effect("bytes that are not UTF-8 are replaced in text and unchanged in the stream", function* () {
    const image = yield* Image.host
    const command = ["printf", "a\\377b\\360\\237\\220\\263"]
    assert.equal((yield* Container.run(image, { command })).stdout, "a\ufffdb🐳")
    const container = yield* Container.start(image, { command })
    assert.deepEqual([...(yield* bytesOf(container.stdout))], [97, 255, 98, 240, 159, 144, 179])
  })

  effect("the log of a process that has just ended has all its lines", function* () {
    const image = yield* Image.host
    for (let k = 0; k < 20; k++) {
      const box = yield* Container.start(image, { command: ["seq", "1", "3000"] })
      yield* box.exit
      assert.equal((yield* Stream.runCollect(Container.logs(box))).length, 3000)
    }
  })
})
