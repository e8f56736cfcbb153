import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Build, Container, Image, Mount, Store, Volume } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { ended, program } from "../support/program.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const busybox = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  const root = `${folder}/busybox`
  if (!fs.existsSync(root)) makeRoot(root)
  return yield* Image.import(root, { tag: "bench/busybox:1" })
})

const built = (build: Build.Build) =>
  Effect.gen(function* () {
    const events: Array<Build.BuildEvent> = []
    const image = yield* Build.image(build, { onEvent: (event) => events.push(event) })
    return { image, ran: events.flatMap((event) => (event._tag === "Done" ? [event.text] : [])) }
  })

suite("the cache of a Build", (effect, folder) => {
  effect(
    "a step that gives what it gave before ends the change, also when it is built again",
    function* () {
      const base = Build.from(yield* busybox)
      const app = (variable: string) =>
        base.pipe(
          Build.run("echo same > /same", { env: { UNUSED: variable } }),
          Build.run("cat /same > /after"),
          Build.run("cat /after > /last")
        )
      assert.equal((yield* built(app("1"))).ran.length, 3)
      const again = yield* built(app("2"))
      assert.deepEqual(again.ran, ["RUN echo same > /same"])
      assert.deepEqual((yield* built(app("2"))).ran, [])
      assert.deepEqual((yield* built(app("1"))).ran, [])
      assert.equal((yield* Container.run(again.image, { command: ["cat", "/last"] })).stdout, "same\n")
    },
    skip
  )

  effect(
    "a copy out of another build runs again only if the copied files have changed",
    function* () {
      const base = Build.from(yield* busybox)
      const app = (comment: string, content: string) =>
        base.pipe(
          Build.copy({
            from: base.pipe(
              Build.run(`: ${comment}; mkdir /out; echo ${content} > /out/file; echo $RANDOM > /other`)
            ),
            paths: ["/out/file"],
            to: "/"
          }),
          Build.run("cat /file > /copied")
        )
      assert.equal((yield* built(app("one", "a"))).ran.length, 3)
      const commented = yield* built(app("two", "a"))
      assert.equal(commented.ran.length, 1)
      assert.match(commented.ran[0]!, /^RUN : two/)
      assert.deepEqual((yield* built(app("two", "a"))).ran, [])
      assert.ok((yield* Build.explain(app("two", "a"))).every(({ isMade }) => isMade))
      const changed = yield* built(app("two", "b"))
      assert.equal(changed.ran.length, 3)
      assert.equal((yield* Container.run(changed.image, { command: ["cat", "/copied"] })).stdout, "b\n")
    },
    skip
  )

  effect(
    "a key whose layer is gone leads to nothing, and its step runs again",
    function* () {
      const base = Build.from(yield* busybox)
      const app = (variable: string) =>
        base.pipe(Build.run("echo gone > /gone", { env: { UNUSED: variable } }))
      const first = yield* built(app("1"))
      yield* built(app("2"))
      const layer = first.image.layers.at(-1)!
      fs.rmSync(layer.replace(/\/upper$/, ""), { recursive: true })
      const again = yield* built(app("2"))
      assert.equal(again.ran.length, 1)
      assert.equal((yield* Container.run(again.image, { command: ["cat", "/gone"] })).stdout, "gone\n")
      assert.deepEqual((yield* built(app("2"))).ran, [])
    },
    skip
  )

  effect(
    "a collection with a size to keep removes the layers that were unused for longest, and then caches",
    function* () {
      const base = Build.from(yield* busybox)
      const big = (name: string) => base.pipe(Build.run(`head -c 3000000 /dev/urandom > /${name}`))
      const cached = base.pipe(
        Build.run("head -c 1000000 /dev/urandom > /pruned/x", { cache: { "/pruned": "pruned" } })
      )
      for (const build of [big("old"), cached, big("new")]) yield* built(build)
      const folderOf = (image: Image.Image) => image.layers.at(-1)!.replace(/\/upper$/, "")
      fs.utimesSync(folderOf((yield* built(big("old"))).image), 1, Date.now() / 1000 - 3600)
      const caches = Effect.map(Volume.list, (all) => all.map(({ name }) => name))
      // A Berth keeps what it has used itself since its last collection.
      yield* Store.gc()
      const dry = yield* Store.gc({ keep: 0, dryRun: true })
      assert.ok(dry.bytes > 7_000_000, `${dry.bytes}`)
      yield* Store.gc({ keep: "5MB" })
      const ran = (build: Build.Build) => Effect.map(Build.explain(build), (steps) => !steps[0]!.isMade)
      assert.deepEqual([yield* ran(big("old")), yield* ran(big("new"))], [true, false])
      assert.deepEqual(yield* caches, ["build-cache.pruned"])
      yield* Store.gc({ keep: 0 })
      assert.deepEqual([yield* ran(big("new")), yield* ran(cached)], [true, true])
      assert.deepEqual(yield* caches, [])
      assert.equal((yield* failure("InvalidOption", Store.gc({ keep: "much" }))).option, "keep")
    },
    skip
  )

  effect(
    "two programs that build the same step at once run it once",
    function* () {
      yield* busybox
      const command = "until [ -e /meeting/go ]; do sleep 0.01; done; cat /proc/sys/kernel/random/uuid > /id"
      const children = [1, 2].map(() => program("builder.ts", [folder(), "bench/busybox:1", command]))
      const begun = children.map(
        (child) => new Promise<void>((resolve) => child.stdout!.once("data", () => resolve()))
      )
      const ends = children.map(ended)
      yield* Effect.promise(() => Promise.all(begun))
      const base = yield* Image.fromStore("bench/busybox:1")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const mounts = [Mount.volume(yield* Volume.make({ name: "build-cache.meeting" }), "/meeting")]
          yield* Container.run(base, { command: ["touch", "/meeting/go"], mounts })
        })
      )
      const results = (yield* Effect.promise(() => Promise.all(ends))).map(({ code, stderr, stdout }) => {
        assert.equal(code, 0, stderr)
        return JSON.parse(stdout.trim().split("\n").at(-1)!)
      })
      assert.deepEqual(results[0].layers, results[1].layers)
      const events = results.map((result) => result.events.join(" ")).sort()
      assert.deepEqual(events, ["Cached", "Started Done"])
      yield* Volume.remove("build-cache.meeting")
    },
    skip
  )
})
