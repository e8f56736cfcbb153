import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { start, waitUntil } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"

const descriptors = (): number => fs.readdirSync("/proc/self/fd").length

suite("Container: lifetime", (effect, folder) => {
  effect("a container executes a thousand commands in turn and fifty at once", function* () {
    const box = yield* start("exec sleep 1000", { init: true })
    yield* Container.exec(box, ["true"])
    const before = descriptors()
    for (let k = 0; k < 1000; k++)
      assert.equal((yield* Container.exec(box, ["echo", String(k)])).stdout, `${k}\n`)
    const many = yield* Effect.forEach(
      Array.from({ length: 50 }, (_, k) => k),
      (k) => Container.exec(box, ["sh", "-c", `echo ${k}; exit ${k}`]),
      { concurrency: "unbounded" }
    )
    for (const [k, { exitCode, stdout }] of many.entries())
      assert.deepEqual([exitCode, stdout], [k, `${k}\n`])
    yield* waitUntil(`no more than ${before + 1} descriptors`, () => descriptors() <= before + 1)
    const left = yield* Container.exec(box, ["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
    assert.ok(Number(left.stdout) <= 6, `${left.stdout.trim()} processes are left`)
  })

  effect("a kill by the OOM killer is reported with the limit and the peak", function* () {
    const image = yield* Image.host
    const limits = { memory: "32MiB" }
    const killed = yield* Container.run(image, { command: ["tail", "/dev/zero"], limits })
    assert.equal(killed.signal, "SIGKILL")
    assert.equal(killed.outOfMemory?.limit, 32 * 1024 * 1024)
    assert.ok((killed.outOfMemory?.peak ?? 0) > 16 * 1024 * 1024)
    const box = yield* start("exec sleep 1000", { limits })
    const executed = yield* Container.exec(box, ["tail", "/dev/zero"])
    assert.equal(executed.outOfMemory?.limit, 32 * 1024 * 1024)
    const other = yield* Container.execStream(box, ["sleep", "1000"])
    yield* Container.signal(other, "KILL")
    assert.equal((yield* other.exit).outOfMemory, undefined, "a SIGKILL is not a kill by the OOM killer")
  })

  effect(
    "Container.supervised restarts a container as its schedule says and gives the last exit status",
    function* () {
      const image = yield* Image.host
      const ids: Array<string> = []
      const command = ["sh", "-c", "exit 3"]
      const onStart = (box: Container.Container) => Effect.sync(() => ids.push(box.id))
      const last = yield* Container.supervised(image, { command, onStart }, Schedule.recurs(2))
      assert.equal(last.exitCode, 3)
      assert.equal(new Set(ids).size, 3)
      const unlessWell = Schedule.whileInput(
        Schedule.recurs(5),
        ({ exitCode }: Container.ExitStatus) => exitCode !== 0
      )
      ids.length = 0
      yield* Container.supervised(image, { command: ["true"], onStart }, unlessWell)
      assert.equal(ids.length, 1)
    }
  )

  effect("a container keeps its log from the beginning, in memory or in files", function* () {
    const lines = (box: Container.Container, options?: Container.LogsOptions) =>
      Effect.map(Stream.runCollect(Container.logs(box, options)), (entries) =>
        Chunk.toReadonlyArray(entries).map(({ line, stream }) => `${stream} ${line}`)
      )
    const box = yield* start("echo one; sleep 0.05; echo two >&2; sleep 0.05; printf three")
    assert.deepEqual(yield* lines(box, { follow: true }), ["stdout one", "stderr two", "stdout three"])
    assert.deepEqual(yield* lines(box, { tail: 1 }), ["stdout three"])
    assert.deepEqual(yield* lines(box, { since: Date.now() + 1000 }), [])
    const kept = `${folder()}/logs`
    const counting = yield* start("seq 20000", { logs: { folder: kept, maxBytes: 200_000, maxFiles: 3 } })
    yield* Stream.runDrain(Container.logs(counting, { follow: true }))
    const all = yield* lines(counting)
    assert.equal(all.at(-1), "stdout 20000")
    assert.ok(all.length < 20000, "the oldest files are gone")
    assert.deepEqual(fs.readdirSync(kept).sort(), ["log", "log.1", "log.2"])
    for (const name of fs.readdirSync(kept)) assert.ok(fs.statSync(`${kept}/${name}`).size <= 200_000)
  })

  effect("a log folder that cannot be made fails the start", function* () {
    const file = `${folder()}/a-file`
    fs.writeFileSync(file, "")
    const logs = { folder: `${file}/logs` }
    const error = yield* failure("OperationFailed", Effect.scoped(start("exec sleep 1000", { logs })))
    assert.deepEqual([error.operation, error.code], ["log file", "ENOTDIR"])
  })

  effect("a container takes late stdin, binary output, a reader that stops and a bad command", function* () {
    const gone = yield* start("exit 0", { stdin: "pipe" })
    yield* gone.exit
    yield* Stream.run(Stream.make(new Uint8Array(1 << 20)), gone.stdin)
    const binary = yield* start("exec head -c 100000 /dev/urandom")
    const bytes = yield* Stream.runFold(binary.stdout, 0, (sum, part) => sum + part.length)
    assert.equal(bytes, 100000)
    const endless = yield* start("exec yes")
    const some = yield* Stream.runCollect(
      Stream.take(Stream.splitLines(Stream.decodeText(endless.stdout)), 3)
    )
    assert.deepEqual(Chunk.toReadonlyArray(some), ["y", "y", "y"])
    const error = yield* failure("InvalidOption", Container.exec(endless, ["a\0b"]))
    assert.match(error.message, /NUL/)
    yield* failure("CommandFailed", Container.exec(endless, ["a\nb"]))
  })
})
