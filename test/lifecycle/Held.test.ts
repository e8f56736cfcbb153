/** What the supervisor is sent where the use of a layer has to be recorded before. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Plan } from "../../lib/index.ts"
import { makeState } from "../../lib/internal/berth/layer.ts"
import * as Ids from "../../lib/internal/ids/idMaps.ts"
import { start } from "../../lib/internal/supervisor/start.ts"
import * as Loop from "../../lib/internal/system/eventLoop.ts"
import { makeTemporaryFolder, remove, suite } from "../support/effect.ts"

const echo = Plan.make([
  { op: "process", namespaces: 0 },
  { op: "stdio", stdin: null, stdout: "out", stderr: null },
  { op: "exec", program: null, paths: ["/bin/echo"], arguments: ["echo", "said"], environment: [] }
])

suite("plans that wait for the record of a layer's use", (effect) => {
  effect.asRoot("a descriptor that is closed meanwhile still leads to its own file", function* () {
    const folder = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (made) =>
      Effect.sync(() => remove(made))
    )
    yield* Effect.acquireRelease(Effect.sync(Loop.retain), () => Effect.sync(Loop.release))
    const waits = yield* Deferred.make<void>()
    const goesOn = yield* Deferred.make<void>()
    let missing = ["a layer"]
    const { lock, state } = yield* makeState(folder)
    const supervisor = yield* Effect.acquireRelease(
      start(state, lock, {
        mode: "root",
        ids: Ids.all,
        guard: {
          missing: () => missing,
          hold: () => Effect.zipRight(Deferred.succeed(waits, undefined), Deferred.await(goesOn))
        }
      }),
      ({ stop }) => stop
    )
    const file = fs.openSync(`${folder}/file`, "w")
    const started = yield* Effect.fork(
      Effect.uninterruptibleMask((restore) => supervisor.start(1, echo, { out: file }, restore))
    )
    yield* Deferred.await(waits)
    fs.closeSync(file)
    const other = fs.openSync(`${folder}/other`, "w")
    assert.equal(other, file)
    missing = []
    yield* Deferred.succeed(goesOn, undefined)
    const unit = yield* Fiber.join(started)
    yield* Deferred.await(unit.ended)
    yield* unit.release
    fs.closeSync(other)
    assert.equal(fs.readFileSync(`${folder}/file`, "utf8"), "said\n")
    assert.equal(fs.readFileSync(`${folder}/other`, "utf8"), "")
  })
})
