import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Fleet from "../../lib/fleet.ts"
import { Berth, type BerthError, Container, Image, WaitFor } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"

const sleeping: Container.StartOptions = { command: ["sleep", "1000"] }
const folderOf = Effect.map(Berth.Berth, ({ folder }) => folder)
const bytes = (text: string) => new TextEncoder().encode(text)

suite("containers of a fleet", (effect) => {
  effect("start, exec, streams, logs and the end are those of the runner", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      const box = yield* Container.start(image, {
        ...sleeping,
        command: ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"],
        limits: { memory: "64MiB" }
      })
      const result = yield* Container.exec(box, ["sh", "-c", "cat; echo err >&2; exit 3"], { input: "in" })
      assert.deepEqual([result.exitCode, result.stdout, result.stderr], [3, "in", "err\n"])
      const streamed = yield* Container.exec(box, ["cat"], { input: Stream.make(bytes("a"), bytes("b")) })
      assert.equal(streamed.stdout, "ab")

      const cat = yield* Container.execStream(box, ["cat"], { stdin: "pipe" })
      yield* Stream.run(Stream.make(bytes("x".repeat(3_000_000))), cat.stdin).pipe(Effect.forkScoped)
      const text = yield* Stream.mkString(Stream.decodeText(cat.stdout))
      assert.equal(text.length, 3_000_000)
      assert.equal((yield* cat.exit).exitCode, 0)

      const lines = yield* Stream.runCollect(Stream.take(Container.logs(box, { follow: true }), 2))
      assert.deepEqual([...lines].map(({ line, stream }) => `${stream} ${line}`).sort(), [
        "stderr err",
        "stdout out"
      ])
      assert.equal((yield* Container.stats(box)).memory?.limit, 64 * 1024 * 1024)
      assert.ok((yield* Container.top(box)).some(({ command }) => command[0] === "sleep"))
      yield* Container.pause(box)
      yield* failure("ContainerError", Container.exec(box, ["true"]))
      yield* Container.resume(box)
      const status = yield* Container.stop(box, { signal: "SIGKILL" })
      assert.equal(status.signal, "SIGKILL")
      assert.equal((yield* box.exit).exitCode, 137)
      assert.match(String(box), /ended by SIGKILL/)
    }).pipe(onFleet([yield* runner()]))
  })

  effect("files and archives cross the network", function* () {
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), sleeping)
      const files = Container.fileSystem(box)
      yield* files.makeDirectory("/tmp/a/b", { recursive: true })
      yield* files.writeFileString("/tmp/a/b/c", "text")
      assert.equal(yield* files.readFileString("/tmp/a/b/c"), "text")
      const info = yield* files.stat("/tmp/a/b/c")
      assert.deepEqual(
        [info.type, info.size, Option.isSome(info.mtime), info.uid],
        ["File", 4n, true, Option.some(0)]
      )
      const large = new Uint8Array(20_000_000).fill(7)
      yield* files.writeFile("/tmp/large", large)
      assert.deepEqual(Buffer.compare(yield* files.readFile("/tmp/large"), large), 0)
      assert.equal(
        (yield* Container.exec(box, ["head", "--bytes", "16000000", "/dev/zero"])).stdout.length,
        16_000_000
      )
      assert.deepEqual(yield* files.readDirectory("/tmp/a"), ["b"])
      const missing = yield* Effect.flip(files.readFile("/tmp/none"))
      assert.equal(missing._tag === "SystemError" && missing.reason, "NotFound")
      yield* files.makeDirectory("/tmp/copy")
      yield* Stream.run(Container.tarOut(box, "/tmp/a"), Container.tarIn(box, "/tmp/copy"))
      assert.equal(yield* files.readFileString("/tmp/copy/a/b/c"), "text")
      const broken = yield* failure(
        "InvalidData",
        Stream.run(Stream.make(bytes("no archive".repeat(100))), Container.tarIn(box, "/tmp/copy"))
      )
      assert.match(broken.message, /tar/)
    }).pipe(onFleet([yield* runner()]))
  })

  effect("a server in a container is reached from the client's machine", function* () {
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), {
        command: ["node", "-e", 'require("http").createServer((_, a) => a.end("hello")).listen(80)']
      })
      yield* WaitFor.port(box, 80)
      const { sink, stream } = yield* Container.connect(box, 80)
      const answer = yield* Stream.runFold(Stream.decodeText(stream), "", (a, b) => a + b).pipe(Effect.fork)
      yield* Stream.run(Stream.make(bytes("GET / HTTP/1.0\r\n\r\n")), sink)
      assert.match(yield* answer, /hello$/)
      const response = yield* Container.fetch(box, "http://localhost/")
      assert.equal(yield* Effect.promise(() => response.text()), "hello")
      const { port } = yield* Container.publish(box, 80)
      const published = yield* Effect.promise(() => fetch(`http://127.0.0.1:${port}/`).then((r) => r.text()))
      assert.equal(published, "hello")
      const refused = yield* failure("NetworkError", Container.connect(box, 81))
      assert.equal(refused.reason, "Refused")
    }).pipe(onFleet([yield* runner()]))
  })

  effect("errors arrive as they are on the runner", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      const unknown = yield* failure("CommandFailed", Container.start(image, { command: ["/nothing"] }))
      assert.equal(unknown.reason, "NotFound")
      yield* failure(
        "InvalidOption",
        Container.start(image, { ...sleeping, limits: { memory: "12 parsecs" } })
      )
      yield* failure("InvalidData", Image.pull("NOT A REFERENCE"))
      const box = yield* Container.start(image, sleeping)
      const long = yield* failure(
        "ContainerError",
        Container.exec(box, ["echo", "12345"], { maxOutputBytes: 3 })
      )
      assert.deepEqual([long.reason, long.stdout], ["OutputTooLong", "123"])
      yield* Container.stop(box, { signal: "SIGKILL" })
      const ended = yield* failure("ContainerError", Container.exec(box, ["true"]))
      assert.equal(ended.reason, "NotRunning")
    }).pipe(onFleet([yield* runner()]))
  })

  effect("what needs this machine is refused by name", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      yield* failure("Unsupported", Container.start(image, { ...sleeping, ports: [80] }))
      const box = yield* Container.start(image, sleeping)
      for (const refused of [
        Container.fork(box),
        Container.snapshot(box),
        Container.cgroup(box),
        Container.listen(box, 1, () => Effect.void)
      ] as ReadonlyArray<Effect.Effect<unknown, BerthError.BerthError, Scope.Scope>>)
        assert.match((yield* failure("Unsupported", refused)).message, /another machine/)
    }).pipe(onFleet([yield* runner()]))
  })

  effect("the end of a scope ends the container, before the scope's end is over", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      const pid = yield* Effect.scoped(Effect.map(Container.start(image, sleeping), ({ pid }) => pid))
      assert.throws(() => process.kill(pid, 0), { code: "ESRCH" })
    }).pipe(onFleet([yield* runner()]))
  })

  effect("an interrupted exec is killed on the runner", function* () {
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), sleeping)
      yield* Effect.timeoutOption(Container.exec(box, ["sleep", "999"]), "200 millis")
      const gone = Effect.flatMap(Container.top(box), (all) =>
        all.length === 1 ? Effect.void : Effect.fail("there")
      )
      yield* Effect.eventually(gone).pipe(Effect.timeout("15 seconds"))
    }).pipe(onFleet([yield* runner()]))
  })

  effect("a runner in the program itself needs no address", function* () {
    const result = yield* Effect.flatMap(Image.pull("host"), (image) =>
      Container.run(image, { command: ["echo", "here"] })
    ).pipe(Effect.provide(Fleet.layer({ berth: { folder: `${yield* folderOf}/embedded` } })))
    assert.equal(result.stdout, "here\n")
  })
})
