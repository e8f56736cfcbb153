/** A container tries to see Berth's own locks and folders, or to hold the locks. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as TestClock from "effect/TestClock"
import * as TestContext from "effect/TestContext"
import { Berth, type BerthError, Container, Image, Store } from "../../lib/index.ts"
import { plantImage } from "../support/attack.ts"
import { failure, suite } from "../support/effect.ts"
import { eventually } from "../support/leftovers.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

/** Runs the effect on a clock of its own that jumps ahead, so that time limits end at once. Fails if none ends it. */
const inNoTime = <A, R>(effect: Effect.Effect<A, BerthError.BerthError, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(effect)
    for (const end = performance.now() + 60_000; performance.now() < end; ) {
      if (Option.isSome(yield* Fiber.poll(fiber))) return yield* Fiber.join(fiber)
      yield* TestClock.adjust("1 minute")
      yield* Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 1)))
    }
    yield* Fiber.interrupt(fiber)
    return yield* Effect.dieMessage("the effect waits without a time limit")
  }).pipe(Effect.provide(TestContext.TestContext))

suite("locks taken by a container", (effect, folder) => {
  for (const mode of modes) {
    effect(`${mode.name}: a container of the host's root does not see Berth's folder`, function* () {
      const image = yield* Image.host
      fs.writeFileSync(`${folder()}/seen`, "")
      const box = yield* Container.start(image, { command: ["sleep", "1000"], ...mode.options })
      const listed = yield* Container.exec(box, ["sh", "-c", `ls -A '${folder()}' 2>/dev/null; true`])
      assert.equal(listed.stdout, "")
      const locked = yield* Container.exec(box, ["flock", "-n", `${folder()}/run`, "true"])
      assert.notEqual(locked.exitCode, 0)
      // The program sees the same files in the container.
      assert.ok(
        (yield* Effect.either(Container.fileSystem(box).readDirectory(`${folder()}/run`)))._tag === "Left"
      )
      // The same for a container whose root contains Berth's folder.
      const name = folder().slice(folder().lastIndexOf("/"))
      const above = yield* makeImage(folder().slice(0, -name.length))
      const within = yield* Container.start(above, { command: ["sleep", "1000"], ...mode.options })
      assert.equal((yield* Container.exec(within, ["ls", "-A", name])).stdout, "")
    })

    effect(
      `${mode.name}: waiting for a lock that a container keeps ends with an error that names the process`,
      function* () {
        const image = yield* plantImage
        const berth = yield* Berth.Berth
        // The import makes the files that the container locks.
        yield* Image.import(image.layers[0]!, { tag: "some:1" })
        const paths = ["run", "store/.lock"]
        const box = yield* Container.start(image, {
          command: ["sleep", "1000"],
          mounts: [{ type: "bind", source: berth.folder, target: "/mnt", readOnly: true }],
          ...mode.options
        })
        const locking = paths.map((path) => `plant lock /mnt/${path} >>/tmp/locked &`)
        yield* Effect.forkScoped(Container.exec(box, ["sh", "-c", `${locking.join(" ")} wait`]))
        const shell = (script: string) => Effect.runPromise(Container.exec(box, ["sh", "-c", script]))
        const areLocked = async () => (await shell("wc -l </tmp/locked")).stdout.trim() === `${paths.length}`
        if (mode.name === "userns") {
          // The folder belongs to another user, so the container cannot enter it.
          assert.notEqual((yield* Container.exec(box, ["ls", "/mnt"])).exitCode, 0)
          yield* Store.gc()
          return
        }
        assert.ok(yield* Effect.promise(() => eventually(areLocked)))
        const collected = yield* failure("ImageError", inNoTime(Store.gc()))
        assert.match(collected.message, /\/run.*locked by process \d+ \("plant"\)/)
        const tagged = yield* failure("ImageError", inNoTime(Image.tag("some:1", "other:1")))
        assert.match(tagged.message, /store\/\.lock.*locked by process \d+ \("plant"\)/)
      },
      { skip }
    )
  }
})
