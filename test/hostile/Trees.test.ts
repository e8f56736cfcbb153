/** Files and trees of a container that attack a program which copies, archives, commits, lists or removes them. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { type BerthError, Container, Image, ImageLayer, Store } from "../../lib/index.ts"
import { xattrsOf } from "../../lib/internal/files/metadata.ts"
import * as inRoot from "../../lib/internal/files/rooted.ts"
import { plantImage } from "../support/attack.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

/** A folder on the host, which is removed after the test, however deep it is. */
const hostFolder = Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (path) =>
  Effect.sync(() => {
    // node:fs refuses paths longer than PATH_MAX; rm(1) accepts them.
    execFileSync("chmod", ["-R", "u+rwx", path])
    execFileSync("rm", ["-rf", "--", path])
    remove(path)
  })
)

const attributesOf = (path: string): ReadonlyArray<string> =>
  inRoot
    .using(inRoot.openHost(path, inRoot.O_RDONLY), (fd) => xattrsOf(fd, path, () => true))
    .map(([name]) => name)

/** An image with a manifest, so that containers of it can be committed. */
const committable = Effect.flatMap(plantImage, (image) => Image.import(image.layers[0]!, { tag: "plant:1" }))

const GiB = 2 ** 30

/** The longest time, in milliseconds, that the event loop did not run a timer while the effect ran. */
const longestBlock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<number, E, R> =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const seen = { longest: 0, last: performance.now() }
      const tick = (): void => {
        const now = performance.now()
        seen.longest = Math.max(seen.longest, now - seen.last)
        seen.last = now
      }
      return { seen, tick, timer: setInterval(tick, 5) }
    }),
    ({ seen, tick }) =>
      Effect.map(effect, () => {
        tick()
        return seen.longest
      }),
    ({ timer }) => Effect.sync(() => clearInterval(timer))
  )

/** Asserts that the effect fails with the file's name, as its holes are larger than maxHoleBytes. */
const refused = <A, R>(name: string, effect: Effect.Effect<A, BerthError.BerthError, R>) =>
  Effect.map(failure("OperationFailed", effect), (error) => {
    assert.equal(error.code, "EFBIG")
    assert.match(error.message, new RegExp(`${name}.*maxHoleBytes`))
  })

/** Limits this process to 256 descriptors, so that one for each level is too many. */
const fewDescriptors = Effect.acquireRelease(
  Effect.sync(() => {
    const [, soft = ""] = /^Max open files +(\S+)/m.exec(fs.readFileSync("/proc/self/limits", "utf8")) ?? []
    execFileSync("prlimit", ["--pid", String(process.pid), "--nofile=256:"])
    return soft
  }),
  (soft) => Effect.sync(() => execFileSync("prlimit", ["--pid", String(process.pid), `--nofile=${soft}:`]))
)

const countOf = (folder: string): number =>
  Number(execFileSync("sh", ["-c", 'find "$1" | wc -l', "sh", folder], { encoding: "utf8" }))

suite("hostile files and trees of a container", (effect) => {
  for (const mode of modes) {
    const start = (script: string, options: Container.StartOptions = {}, image?: Image.Image) =>
      Effect.gen(function* () {
        const box = yield* Container.start(image ?? (yield* plantImage), {
          command: ["/bin/sleep", "1000"],
          ...mode.options,
          ...options
        })
        const { exitCode, stderr } = yield* Container.exec(box, ["/bin/sh", "-euc", script])
        assert.equal(exitCode, 0, stderr)
        return box
      })

    effect(
      `${mode.name}: reading a sparse file fails at the limit of zeros`,
      function* () {
        const box = yield* start(`plant hole /hole ${64 * GiB}`)
        yield* refused("/hole", Stream.runDrain(Container.tarOut(box, "/hole")))
        // 4 EiB, which take no memory in a tmpfs.
        const memory = yield* start(`plant hole /hole ${2n ** 62n}`, { upper: "memory" })
        const files = Container.fileSystem(memory)
        yield* refused("/hole", Stream.runDrain(Container.tarOut(memory, "/hole")))
        const here = yield* hostFolder
        const copied = yield* failure("OperationFailed", Container.copyOut(memory, "/hole", `${here}/hole`))
        assert.equal(copied.code, "EFBIG")
        for (const attempt of [files.copyFile("/hole", "/copy"), files.copy("/hole", "/tree")])
          assert.match(String(yield* Effect.flip(attempt)), /EFBIG/)
        assert.match(String(yield* Effect.flip(files.readFile("/hole"))), /EFBIG/)
        assert.match(String(yield* Effect.flip(files.readFile("/dev/zero"))), /EFBIG|EACCES/)
      },
      { skip }
    )

    effect(
      `${mode.name}: committing a huge sparse file is refused`,
      function* () {
        for (const upper of ["disk", "memory"] as const) {
          const box = yield* start(`plant hole /hole ${64 * GiB}`, { upper }, yield* committable)
          yield* refused("hole", Container.commit(box))
        }
        const here = yield* hostFolder
        fs.writeFileSync(`${here}/hole`, "")
        fs.truncateSync(`${here}/hole`, 64 * GiB)
        yield* refused("hole", Stream.runDrain(ImageLayer.diff({ upper: here })))
      },
      { skip }
    )

    effect(
      `${mode.name}: writing the zeros of a sparse file starves no timer, and can be interrupted`,
      function* () {
        const box = yield* start(`plant hole /hole ${64 * GiB}; plant hole /small ${GiB}`)
        const files = Container.fileSystem(box)
        const longest = yield* longestBlock(
          Effect.all([
            Stream.runDrain(Container.tarOut(box, "/small")),
            files.copyFile("/small", "/copy"),
            files.copy("/small", "/tree")
          ])
        )
        assert.ok(longest < 1000, `the event loop stood still for ${longest} ms`)
        const blocks = yield* Container.exec(box, ["stat", "-c", "%b", "/copy", "/tree"])
        assert.ok(
          blocks.stdout
            .trim()
            .split("\n")
            .map(Number)
            .every((count) => count < 64),
          blocks.stdout
        )
        const begun = yield* Deferred.make<void>()
        const archive = Container.tarOut(box, "/hole", { maxHoleBytes: "64GiB" }).pipe(
          Stream.runForEachChunk(() => Deferred.succeed(begun, undefined))
        )
        const fiber = yield* Effect.fork(archive)
        yield* Deferred.await(begun)
        assert.ok(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
      },
      { skip }
    )

    effect(
      `${mode.name}: copying a tree of thousands of levels takes few descriptors`,
      function* () {
        yield* fewDescriptors
        const here = yield* hostFolder
        const box = yield* start("plant deep /deep 2100; plant deep /half 700")
        const files = Container.fileSystem(box)
        yield* Container.copyOut(box, "/deep", here)
        assert.equal(countOf(`${here}/deep`), 4201)
        yield* Container.copyIn(box, `${here}/deep`, "/back")
        assert.equal((yield* files.readDirectory("/back", { recursive: true })).length, 4200)
        yield* files.copy("/back", "/again")
        yield* files.remove("/back", { recursive: true })
        assert.equal((yield* files.readDirectory("/again", { recursive: true })).length, 4200)
        assert.ok(!(yield* files.exists("/back")))
        // An archive with a path longer than PATH_MAX could not be unpacked.
        const long = yield* failure("OperationFailed", Stream.runDrain(Container.tarOut(box, "/deep")))
        assert.equal(long.code, "ENAMETOOLONG")
        assert.match(long.message, /deep\/d\/d\/d.*4095/)
        assert.ok(long.message.length < 1000, long.message)
        const parts = yield* Stream.runCollect(Container.tarOut(box, "/half"))
        fs.writeFileSync(`${here}/half.tar`, Buffer.concat([...parts]))
        const listed = execFileSync("tar", ["-tf", `${here}/half.tar`], { maxBuffer: 2 ** 30 })
        assert.equal(listed.toString().trim().split("\n").length, 1401)
      },
      { skip }
    )

    effect(
      `${mode.name}: committing and importing a tree of thousands of levels takes few descriptors`,
      function* () {
        yield* fewDescriptors
        const image = yield* committable
        for (const upper of ["disk", "memory"] as const) {
          const box = yield* start("plant deep /deep 700", { upper }, image)
          const made = yield* Container.commit(box)
          const counted = yield* Container.run(made, {
            command: ["/bin/sh", "-c", "find /deep | wc -l"],
            ...mode.options
          })
          assert.equal(counted.stdout.trim(), "1401", counted.stderr)
          const deeper = yield* start("plant deep /deep 2100", { upper }, image)
          const long = yield* failure("OperationFailed", Container.commit(deeper))
          assert.equal(long.code, "ENAMETOOLONG")
        }
        const here = yield* hostFolder
        const box = yield* start("plant deep /half 700")
        yield* Container.copyOut(box, "/half", here)
        const imported = yield* Image.import(here)
        assert.equal(countOf(imported.layers[0]!), 1402)
        yield* Image.remove(imported.digest!)
        yield* Store.gc()
        assert.ok(!fs.existsSync(imported.layers[0]!))
      },
      { skip }
    )

    effect(
      `${mode.name}: reading a folder of 50,000 files starves no timer`,
      function* () {
        const box = yield* start("plant many /many 50000")
        const files = Container.fileSystem(box)
        for (const options of [{}, { recursive: true }]) {
          let turns = 0
          const take = (): void => {
            turns++
            next = setImmediate(take)
          }
          let next = setImmediate(take)
          const names = yield* files.readDirectory("/many", options)
          clearImmediate(next)
          assert.equal(names.length, 50_000)
          assert.ok(turns > 1, `${turns} turns`)
        }
      },
      { skip }
    )

    effect(
      `${mode.name}: a file copied to the host loses set-id bits and capabilities`,
      function* () {
        const here = yield* hostFolder
        const box = yield* start(`
            mkdir /t && cp /bin/busybox /t/rootshell && chmod 6755 /t/rootshell
            plant capability /t/admin
            mkdir /t/folder && chmod 3777 /t/folder && chmod 6755 /t`)
        for (const [from, to] of [
          ["/t", "whole"],
          ["/t/.", "contents"]
        ] as const) {
          yield* Container.copyOut(box, from, `${here}/${to}`)
          for (const name of ["", "/rootshell", "/admin", "/folder"])
            assert.equal(fs.statSync(`${here}/${to}${name}`).mode & 0o6000, 0, `${to}${name}`)
          assert.equal(fs.statSync(`${here}/${to}/folder`).mode & 0o7777, 0o1777)
          assert.deepEqual(attributesOf(`${here}/${to}/admin`), [])
        }
        yield* Container.copyOut(box, "/t/rootshell", `${here}/alone`)
        assert.equal(fs.statSync(`${here}/alone`).mode & 0o7777, 0o755)
        // keepPrivileges keeps them.
        yield* Container.copyOut(box, "/t/rootshell", `${here}/asked`, { keepPrivileges: true })
        assert.equal(fs.statSync(`${here}/asked`).mode & 0o7777, 0o6755)
      },
      { skip }
    )
  }
})
