import assert from "node:assert/strict"
import { inspect } from "node:util"
import type { PlatformError } from "@effect/platform/Error"
import * as Effect from "effect/Effect"
import type * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { Container, Image, Namespace, Process, RootFs, WaitFor } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"

/** Never called: it is compiled, and an expected error that is missing fails the type check. */
const onlyForContainers = (process: Process.Process, stdin: Sink.Sink<void, Uint8Array>) => [
  // @ts-expect-error a process starts no other
  Container.exec(process, ["true"]),
  // @ts-expect-error
  Container.execStream(process, ["true"]),
  // @ts-expect-error
  Container.commandExecutor(process),
  // @ts-expect-error a process has no files of its own
  Container.fileSystem(process),
  // @ts-expect-error
  Container.copyIn(process, "/from", "/to"),
  // @ts-expect-error
  Container.copyOut(process, "/from", "/to"),
  // @ts-expect-error
  Container.tarIn(process, "/to"),
  // @ts-expect-error
  Container.tarOut(process, "/from"),
  // @ts-expect-error
  Container.commit(process),
  // @ts-expect-error a process has no cgroup of its own
  Container.cgroup(process),
  // @ts-expect-error
  Container.stats(process),
  // @ts-expect-error
  Container.pause(process),
  // @ts-expect-error
  Container.resume(process),
  // @ts-expect-error
  Container.top(process),
  // @ts-expect-error
  WaitFor.port(process, 80),
  // @ts-expect-error
  WaitFor.healthCheck(process),
  Process.attach(process),
  Stream.run(Stream.empty, stdin)
]
void onlyForContainers

suite("Process", (effect) => {
  const start = (options: Container.StartOptions = {}) =>
    Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["sleep", "1000"], ...options }))

  effect("is what execStream gives, and a container is one too", function* () {
    const box = yield* start()
    const process = yield* Container.execStream(box, ["sleep", "1000"])
    assert.ok(Process.isProcess(process))
    assert.ok(!Container.isContainer(process))
    assert.ok(Process.isProcess(box))
    assert.ok(Container.isContainer(box))
    assert.equal(process.id, box.id)
    assert.notEqual(process.pid, box.pid)
    assert.ok(!Process.isProcess({}))
  })

  effect("is signalled, stopped and waited for, as a container is", function* () {
    const box = yield* start({ init: true })
    const signalled = yield* Container.execStream(box, ["sleep", "1000"])
    yield* signalled.pipe(Process.signal("SIGUSR1"))
    assert.equal((yield* Process.wait(signalled)).signal, "SIGUSR1")
    const stopped = yield* Container.execStream(box, ["sleep", "1000"])
    assert.equal((yield* stopped.pipe(Process.stop())).signal, "SIGTERM")
    const deaf = yield* Container.execStream(box, ["sh", "-c", "trap '' TERM; echo ready; sleep 1000"])
    yield* WaitFor.log(deaf, "ready")
    assert.equal((yield* Process.stop(deaf, { grace: "50 millis" })).signal, "SIGKILL")
    assert.equal((yield* Process.stop(box)).exitCode, 143)
  })

  effect("has a log and a terminal of its own", function* () {
    const box = yield* start()
    const process = yield* Container.execStream(box, ["sh", "-c", "stty size; read line; stty size"], {
      terminal: { rows: 5, columns: 6 },
      stdin: "pipe"
    })
    yield* WaitFor.log(process, "5 6")
    yield* Process.resize(process, { rows: 7, columns: 8 })
    yield* Stream.run(Stream.encodeText(Stream.make("\n")), process.stdin)
    const lines = yield* Stream.runCollect(Process.logs(process, { follow: true }))
    assert.deepEqual(
      [...lines].map(({ line }) => line.trim()).filter((line) => line !== ""),
      ["5 6", "7 8"]
    )
  })

  effect("prints as one line, and without its environment", function* () {
    const env = { TOKEN: "a secret" }
    const box = yield* start({ env })
    const process = yield* Container.execStream(box, ["sh", "-c", "exit 3"], { env })
    yield* process.exit
    const killed = yield* Container.execStream(box, ["sleep", "1000"], { env })
    yield* Process.signal(killed, "SIGKILL")
    yield* killed.exit
    const expected: ReadonlyArray<readonly [Process.Process, kind: string, status: string]> = [
      [box, "Container", "running"],
      [process, "Process", "ended with exit code 3"],
      [killed, "Process", "ended by SIGKILL"]
    ]
    for (const [value, kind, status] of expected) {
      const { id, pid } = value
      const line = `${kind}(${id}, pid ${pid}, ${status})`
      assert.equal(String(value), line)
      assert.equal(inspect(value), line)
      assert.equal(inspect({ value }), `{ value: ${line} }`)
      assert.deepEqual(JSON.parse(JSON.stringify(value)), { _id: `berth/${kind}`, id, pid, status })
    }
  })

  effect.asRoot("a container in a mount namespace that had a root has no files, and says so", function* () {
    const rootfs = yield* RootFs.overlay(yield* Image.host, { upper: "memory" })
    const namespaces = yield* Namespace.make(["pid", "mount"])
    const spawn = Container.spawn({ rootfs, namespaces, command: ["sleep", "1000"] })
    const first = yield* spawn
    const second = yield* spawn
    yield* Container.fileSystem(first).stat("/")
    const fs = Container.fileSystem(second)
    const operations: ReadonlyArray<Effect.Effect<unknown, PlatformError>> = [
      fs.stat("/"),
      fs.readDirectory("/"),
      fs.makeTempDirectory()
    ]
    for (const operation of operations)
      assert.match(String(yield* Effect.flip(operation)), /BadResource.*mount namespace that had a root/s)
    const error = yield* failure("ContainerError", Container.copyIn(second, "/etc/hostname", "/x"))
    assert.match(error.message, /mount namespace that had a root/)
    yield* failure("ContainerError", Stream.runDrain(Container.tarOut(second, "/")))
    yield* failure("ContainerError", Container.commit(second))
  })
})
