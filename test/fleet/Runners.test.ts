import assert from "node:assert/strict"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Fleet from "../../lib/fleet.ts"
import { Container, Image } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"

const room = { memory: "1GiB", cpus: 3 }

suite("the runners that a program sees", (effect) => {
  effect("a program sees its runners with their machines, rooms and containers", function* () {
    const address = yield* runner({ ...room, labels: { gpu: "a100" } })
    yield* Effect.gen(function* () {
      const [one, ...others] = yield* Fleet.runners
      assert.deepEqual(others, [])
      assert.deepEqual([one!.name, one!.labels, one!.kernel], ["one", { gpu: "a100" }, os.release()])
      assert.ok(one!.features.includes("supervisor"))
      assert.equal(one!.rootless, process.getuid!() !== 0)
      assert.deepEqual([one!.room.memoryBytes, one!.room.cpus, one!.room.containers], [1024 ** 3, 3, 0])
      assert.deepEqual(yield* Fleet.containers, [])

      const image = yield* Image.pull("host")
      const box = yield* Container.start(image, {
        command: ["sleep", "1000"],
        limits: { memory: "64MiB", cpus: 0.5 }
      })
      const running = { id: box.id, image: "host", memoryBytes: 64 * 1024 * 1024, cpus: 0.5, runner: "one" }
      assert.deepEqual(yield* Fleet.containers, [running])
      // Also for another program, which has no part in the container.
      assert.deepEqual(yield* onFleet([address])(Fleet.containers), [running])
    }).pipe(onFleet([address]))
  })

  effect("the changes of a room are told: a container that starts, and one that ends", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      const awaited = (count: number) =>
        Stream.runHead(Stream.filter(Fleet.runnerChanges, ([one]) => one?.room.containers === count)).pipe(
          Effect.timeout("15 seconds")
        )
      yield* awaited(0)
      yield* Effect.scoped(
        Effect.zipRight(
          Container.start(image, { command: ["sleep", "1000"], limits: { memory: "64MiB" } }),
          awaited(1)
        )
      )
      const [one] = yield* Effect.flatten(awaited(0))
      assert.deepEqual([one!.room.usedMemoryBytes, one!.room.usedCpus], [0, 0])
    }).pipe(onFleet([yield* runner(room)]))
  })

  effect("a runner that ends is none of them any more", function* () {
    const scope = yield* Scope.make()
    const ending = yield* Scope.extend(runner({ name: "ending" }), scope)
    yield* Effect.gen(function* () {
      const names = Stream.map(Fleet.runnerChanges, (all) => all.map(({ name }) => name).sort())
      const awaited = (wanted: ReadonlyArray<string>) =>
        Stream.runHead(Stream.filter(names, (all) => all.join() === wanted.join())).pipe(
          Effect.timeout("15 seconds")
        )
      yield* awaited(["ending", "kept"])
      yield* Scope.close(scope, Exit.void)
      yield* awaited(["kept"])
    }).pipe(onFleet([ending, yield* runner({ name: "kept" })]))
  })

  effect("a Berth that is no fleet has no runners", function* () {
    for (const asked of [Fleet.runners, Fleet.containers, Stream.runDrain(Fleet.runnerChanges)])
      assert.match((yield* failure("Unsupported", asked)).message, /Fleet\.layer/)
  })

  for (const [option, given] of [
    ["memory", { memory: "much" }],
    ["cpus", { cpus: 0 }],
    ["lease", { lease: "soon" }],
    ["allow.images", { allow: { images: ["a.example/b:1"] } }],
    ["allow.limits.memory", { allow: { limits: { memory: 0 } } }],
    ["allow.limits.cpus", { allow: { limits: { cpus: -1 } } }]
  ] as const)
    effect(`a runner with another value of ${option} is refused`, function* () {
      const refused = yield* failure("InvalidOption", runner(given as never))
      assert.equal(refused.option, option)
    })
})
