import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { test } from "node:test"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth, Cgroup, Container, Image, Store } from "../../lib/index.ts"
import { ranges } from "../../lib/internal/ids/idMaps.ts"
import { without } from "../support/controllers.ts"
import { allowTime, berthIn, failure, suite } from "../support/effect.ts"
import { scratch } from "../support/imageArchive.ts"
import { sh } from "../support/images.ts"
import { isAlive } from "../support/leftovers.ts"
import { makeImage, makeRoot, whyNoBusybox } from "../support/rootfs.ts"

allowTime()

const asRoot = process.getuid?.() === 0 ? "root has all ids" : false
const ids = ranges()

/** A Berth of the test's own in this folder, and how to run something on it and to close it. */
const open = (folder: string, options: Omit<Berth.Options, "folder"> = {}) =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (made) => Scope.close(made, Exit.void))
    const context = yield* Layer.buildWithScope(Layer.fresh(berthIn(folder, options)), scope)
    return {
      berth: yield* Effect.provide(Berth.Berth, context),
      on: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, context),
      close: Scope.close(scope, Exit.void)
    }
  })

/** A container of the machine's own root that sleeps. */
const sleeping = (options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["sleep", "1000"], ...options }))

/** A container, a command in it, an image that is imported and run, and a collection. */
const work = (root: string, tag: string) =>
  Effect.gen(function* () {
    const box = yield* sleeping({ limits: { pids: 20, memory: "64MiB" } })
    const image = yield* Image.import(root, { tag, config: { command: ["/bin/cat", "/etc/name"] } })
    const [said, ran, stats] = yield* Effect.all(
      [Container.exec(box, ["echo", tag]), Container.run(image), Container.stats(box)],
      { concurrency: "unbounded" }
    )
    assert.deepEqual([said.stdout, ran.stdout], [`${tag}\n`, "imported\n"])
    if (without("memory") === false) assert.equal(stats.memory.limit, 64 * 2 ** 20)
    yield* Image.remove(tag)
    const collected = yield* Store.gc()
    assert.equal(collected.layers, 1)
  }).pipe(Effect.scoped)

const rootIn = (folder: string): string => {
  const root = makeRoot(`${folder}/root`)
  fs.writeFileSync(`${root}/etc/name`, "imported\n")
  return root
}

// On its own, as the suite has a Berth with ranges from the start.
test(
  "a file gets an owner of a Berth's ranges of ids, beside a Berth that has only one id",
  {
    skip: asRoot || whyNoBusybox || (typeof ids === "string" ? ids : false)
  },
  () =>
    Effect.gen(function* () {
      const at = yield* scratch
      const one = yield* open(`${at}/single`, { ids: "single" })
      const two = yield* open(`${at}/ranges`, { ids: "ranges" })
      assert.equal(one.berth.ids.uids.length, 1)
      const image = yield* two.on(makeImage(`${at}/root`))
      const box = yield* two.on(Container.start(image, { command: ["sleep", "1000"] }))
      const files = Container.fileSystem(box)
      const owner = Effect.map(Container.exec(box, ["stat", "-c", "%u:%g", "/tmp/file"]), ({ stdout }) =>
        stdout.trim()
      )
      yield* files.writeFileString("/tmp/file", "text")
      yield* files.chown("/tmp/file", 1000, 1001)
      assert.equal(yield* owner, "1000:1001")
      yield* files.chown("/tmp/file", 0, -1)
      assert.equal(yield* owner, "0:1001")
    }).pipe(Effect.scoped, Effect.runPromise)
)

suite("Two Berths in one process", (effect) => {
  effect(
    "each does its own work while the other does the same",
    function* () {
      const at = yield* scratch
      const root = rootIn(at)
      const [one, two] = yield* Effect.all([open(`${at}/one`), open(`${at}/two`)], { concurrency: 2 })
      assert.notEqual(one.berth.supervisor.pid, two.berth.supervisor.pid)
      // The same name in both.
      const all = Effect.repeatN(work(root, "docker.io/library/mine:1"), 1)
      yield* Effect.all([one.on(all), two.on(all)], { concurrency: 2 })
      yield* one.on(Image.import(root, { tag: "mine:1" }))
      assert.deepEqual(
        (yield* one.on(Image.list)).map(({ name }) => name),
        ["docker.io/library/mine:1"]
      )
      assert.deepEqual(yield* two.on(Image.list), [])
    },
    { skip: whyNoBusybox }
  )

  for (const [what, end] of [
    ["is closed", (one: { readonly close: Effect.Effect<void> }) => one.close],
    [
      "loses its supervisor",
      (one: { readonly berth: Berth.Berth }) =>
        Effect.sync(() => process.kill(one.berth.supervisor.pid, "SIGKILL"))
    ]
  ] as const)
    effect(
      `where one ${what}, its containers end, and those of the other do not`,
      function* () {
        const at = yield* scratch
        const root = rootIn(at)
        const [one, two] = yield* Effect.all([open(`${at}/one`), open(`${at}/two`)])
        const mine = yield* one.on(sleeping())
        const other = yield* two.on(sleeping({ limits: {} }))
        // It is read while the other Berth ends.
        const lines = yield* two.on(
          Container.execStream(other, ["sh", "-c", "for k in 1 2 3; do echo $k; read line; done"], {
            stdin: "pipe"
          })
        )
        const read = yield* Effect.fork(Stream.mkString(Stream.decodeText(lines.stdout)))
        yield* end(one)
        yield* Effect.exit(mine.exit)
        yield* failure("SupervisorError", one.on(sleeping()))
        yield* Stream.run(Stream.make(new TextEncoder().encode("\n\n\n")), lines.stdin)
        assert.equal(yield* Fiber.join(read), "1\n2\n3\n")
        assert.ok(isAlive(other.pid))
        assert.equal((yield* Container.exec(other, ["echo", "on"])).stdout, "on\n")
        yield* two.on(work(root, "docker.io/library/mine:1"))
      },
      { skip: whyNoBusybox }
    )

  effect.asRoot(
    "where the disk of one is full, the other has room",
    function* () {
      const at = yield* scratch
      const root = rootIn(at)
      fs.writeFileSync(`${root}/data`, randomBytes(12_000_000))
      fs.mkdirSync(`${at}/small`)
      yield* Effect.acquireRelease(
        Effect.sync(() => sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", `${at}/small`)),
        () => Effect.sync(() => sh("umount", `${at}/small`))
      )
      // Inner, as the Berth ends before its disk is unmounted.
      yield* Effect.gen(function* () {
        const [one, two] = yield* Effect.all([open(`${at}/small/one`), open(`${at}/two`)])
        const [error] = yield* Effect.all(
          [failure("ImageError", one.on(Image.import(root))), two.on(work(root, "docker.io/library/mine:1"))],
          { concurrency: 2 }
        )
        assert.equal(error.reason, "Storage")
        assert.equal(
          (yield* one.on(Container.run(yield* one.on(Image.host), { command: ["true"] }))).exitCode,
          0
        )
      }).pipe(Effect.scoped)
    },
    { skip: whyNoBusybox }
  )

  effect.asRoot(
    "where the supervisor of one stands still, the other pauses containers",
    function* () {
      const at = yield* scratch
      const [one, two] = yield* Effect.all([open(`${at}/one`), open(`${at}/two`)])
      // Their cgroups have no folder of the freezer yet where it is a hierarchy of its own.
      const [mine, other] = [yield* one.on(sleeping({ limits: {} })), yield* two.on(sleeping({ limits: {} }))]
      const still = yield* two.on(Cgroup.make())
      yield* Cgroup.move(still, one.berth.supervisor.pid)
      yield* Cgroup.freeze(still)
      const waiting = yield* Effect.fork(Container.pause(mine))
      yield* Effect.yieldNow()
      yield* Effect.timeout(Container.pause(other), "5 seconds")
      yield* Container.resume(other)
      assert.ok((yield* Fiber.poll(waiting))._tag === "None")
      yield* Cgroup.thaw(still)
      yield* Fiber.join(waiting)
      // The supervisor is not killed with the cgroup that it is in.
      yield* one.close
    },
    { skip: without("freezer") }
  )

  effect("a Berth prints as one line", function* () {
    const berth = yield* Berth.Berth
    const user = berth.rootless ? ", without root" : ""
    assert.equal(inspect(berth), `Berth(${berth.folder}, supervisor ${berth.supervisor.pid}${user})`)
    assert.deepEqual(JSON.parse(JSON.stringify(berth)), {
      _id: "berth/Berth",
      folder: berth.folder,
      rootless: berth.rootless,
      supervisor: berth.supervisor.pid
    })
  })
})
