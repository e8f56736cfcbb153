import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as FileSystem from "@effect/platform/FileSystem"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { make, read as readIndex } from "../../lib/internal/store/index.ts"
import { type Digest, parseDigest } from "../../lib/Reference.ts"
import * as Store from "../../lib/Store.ts"
import {
  child,
  ended,
  makeTemporaryFolder,
  remove,
  run,
  runError,
  sh,
  sha256,
  types,
  whyNoImages,
  writeImage
} from "../support/images.ts"
import { firstLine } from "../support/program.ts"
import { waitUntil } from "../support/until.ts"

const bytes = (text: string) => new TextEncoder().encode(text)
const digest = (text: string): Digest => Either.getOrThrow(parseDigest(sha256(bytes(text))))

const partials = (folder: string) => fs.readdirSync(`${folder}/store/.partial`)

describe("Store", () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("a blob that was put is read back, and has() is true", async () => {
    const key = digest("hello")
    const [before, read, after, path] = await run(
      folder,
      Effect.gen(function* () {
        const before = yield* Store.has(key)
        yield* Store.put(key, Stream.make(bytes("hel"), bytes("lo")), { size: 5 })
        return [before, yield* Store.read(key), yield* Store.has(key), yield* Store.blobPath(key)] as const
      })
    )
    assert.deepEqual([before, after], [false, true])
    assert.equal(new TextDecoder().decode(read), "hello")
    assert.equal(fs.readFileSync(path, "utf8"), "hello")
    assert.equal(fs.statSync(path).mode & 0o777, 0o644)
  })

  test("a store that another process makes while its index is read is no corrupt one", async () => {
    const root = `${folder}/made-meanwhile`
    fs.mkdirSync(root)
    const read = Effect.gen(function* () {
      const disk = yield* FileSystem.FileSystem
      // The first look at the index finds none; the next question comes when it is there.
      const late = {
        ...disk,
        exists: (path: string) => Effect.zipRight(Effect.orDie(make(disk, root)), disk.exists(path))
      }
      return yield* readIndex(late, root)
    })
    const found = await Effect.runPromise(Effect.provide(Effect.orDie(read), NodeFileSystem.layer))
    assert.ok(Option.isSome(found))
    fs.rmSync(`${root}/oci-layout`)
    const lost = Effect.flatMap(FileSystem.FileSystem, (disk) => Effect.flip(readIndex(disk, root)))
    const error = await Effect.runPromise(Effect.provide(lost, NodeFileSystem.layer))
    assert.match(error.message, /oci-layout is missing/)
  })

  test("put does not run the stream for a blob that is in the store", async () => {
    const key = digest("twice")
    await run(folder, Store.put(key, Stream.make(bytes("twice"))))
    await run(folder, Store.put(key, Stream.die("run")))
  })

  test("a blob that many fibers put is written once", async () => {
    const key = digest("many")
    let begun = 0
    let runs = 0
    const content = Stream.suspend(() => {
      runs++
      return Stream.fromEffect(
        Effect.as(
          waitUntil("the other fibers", () => begun === 20),
          bytes("many")
        )
      )
    })
    const put = Effect.suspend(() => {
      begun++
      return Store.put(key, content)
    })
    await run(folder, Effect.replicateEffect(put, 20, { concurrency: "unbounded" }))
    assert.equal(runs, 1)
  })

  test("another fiber writes a blob whose first writer is interrupted", async () => {
    const key = digest("next")
    await run(
      folder,
      Effect.gen(function* () {
        const writing = yield* Deferred.make<void>()
        const begin = Stream.make(bytes("ne")).pipe(
          Stream.tap(() => Deferred.succeed(writing, undefined)),
          Stream.concat(Stream.never)
        )
        const first = yield* Effect.fork(Store.put(key, begin))
        yield* Deferred.await(writing)
        const second = yield* Effect.fork(Store.put(key, Stream.make(bytes("next"))))
        // Nothing shows that the second fiber waits for the first.
        yield* Effect.sleep(10)
        yield* Fiber.interrupt(first)
        yield* Fiber.join(second)
      })
    )
    assert.deepEqual(partials(folder), [])
  })

  test("put keeps nothing of a blob with another digest", async () => {
    const key = digest("right")
    const error = await runError(folder, Store.put(key, Stream.make(bytes("wrong"))))
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch")
    assert.ok(error.message.includes(key) && error.message.includes(digest("wrong")), error.message)
    assert.equal(await run(folder, Store.has(key)), false)
    assert.deepEqual(partials(folder), [])
  })

  test("put stops reading a stream that is longer than its size", async () => {
    const key = digest("short")
    const endless = Stream.forever(Stream.make(bytes("x".repeat(1000))))
    const error = await runError(folder, Store.put(key, endless, { size: 5 }))
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch")
    assert.deepEqual(partials(folder), [])
  })

  test("put fails with the stream's error, and keeps nothing", async () => {
    const content = Stream.concat(Stream.make(bytes("a")), Stream.fail("broken" as const))
    const error = await run(folder, Effect.flip(Store.put(digest("failing"), content)))
    assert.equal(error, "broken")
    assert.deepEqual(partials(folder), [])
  })

  test("reading a missing blob fails with NotFound", async () => {
    const error = await runError(folder, Store.read(digest("absent")))
    assert.ok(error._tag === "ImageError" && error.reason === "NotFound")
  })

  test("reading a blob that was changed on disk fails with DigestMismatch", async () => {
    const key = digest("intact")
    await run(folder, Store.put(key, Stream.make(bytes("intact"))))
    fs.writeFileSync(await run(folder, Store.blobPath(key)), "broken")
    const error = await runError(folder, Store.read(key))
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch")
  })

  test("reading a blob larger than maxBytes fails with TooLarge", async () => {
    const key = digest("long text")
    await run(folder, Store.put(key, Stream.make(bytes("long text"))))
    const error = await runError(folder, Store.read(key, { maxBytes: 8 }))
    assert.ok(error._tag === "ImageError" && error.reason === "TooLarge")
  })

  test("a blob with a sha512 digest is stored", async () => {
    const key = Either.getOrThrow(
      parseDigest(
        "sha512:9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043"
      )
    )
    await run(folder, Store.put(key, Stream.make(bytes("hello"))))
    assert.ok(fs.existsSync(`${folder}/store/blobs/sha512/${key.slice(7)}`))
  })

  test("a store that cannot be written fails with its folder", async () => {
    fs.mkdirSync(`${folder}/blocked`)
    fs.writeFileSync(`${folder}/blocked/store`, "")
    const error = await runError(`${folder}/blocked`, Store.put(digest("x"), Stream.make(bytes("x"))))
    assert.ok(error._tag === "ImageError" && error.reason === "Storage", error.message)
    assert.ok(error.message.includes(`${folder}/blocked`), error.message)
  })
})

describe("names in the store", () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  const descriptor = (text: string) => ({
    mediaType: types.manifest,
    digest: digest(text),
    size: text.length
  })

  test("a store that does not exist has no names, and reading does not make it", async () => {
    assert.deepEqual(await run(`${folder}/absent`, Store.list), [])
    const error = await runError(`${folder}/absent`, Store.resolve("a"))
    assert.ok(error._tag === "ImageError" && error.reason === "NotFound")
    assert.equal(fs.existsSync(`${folder}/absent/store`), false)
  })

  test("Store.tag replaces a name, and keeps other names and entries of other tools", async () => {
    await run(folder, Store.tag("a", descriptor("1")))
    const file = `${folder}/store/index.json`
    const index = JSON.parse(fs.readFileSync(file, "utf8"))
    index.annotations = { "org.example": "kept" }
    index.manifests.push({ ...descriptor("2"), artifactType: "application/x-kept" })
    fs.writeFileSync(file, JSON.stringify(index))
    await run(folder, Store.tag("b", descriptor("3")))
    await run(folder, Store.tag("a", descriptor("4")))
    const after = JSON.parse(fs.readFileSync(file, "utf8"))
    assert.deepEqual(after.annotations, { "org.example": "kept" })
    assert.ok(
      after.manifests.some((entry: { artifactType?: string }) => entry.artifactType === "application/x-kept")
    )
    assert.equal((await run(folder, Store.resolve("a"))).digest, digest("4"))
    assert.deepEqual((await run(folder, Store.list)).map(({ name }) => name).sort(), ["a", "b"])
  })

  test("50 names that are given at once are all kept", async () => {
    const names = Array.from({ length: 50 }, (_, i) => `many-${i}`)
    await run(
      folder,
      Effect.forEach(names, (name) => Store.tag(name, descriptor(name)), { concurrency: "unbounded" })
    )
    const list = await run(folder, Store.list)
    assert.ok(names.every((name) => list.some((entry) => entry.name === name)))
  })

  test("an index that is not JSON, or is larger than 4 MiB, is refused", async () => {
    const broken = makeTemporaryFolder()
    try {
      await run(broken, Store.tag("a", descriptor("1")))
      fs.writeFileSync(`${broken}/store/index.json`, "{")
      const corrupt = await runError(broken, Store.tag("b", descriptor("1")))
      assert.ok(corrupt._tag === "ImageError" && corrupt.reason === "Corrupt")
      fs.truncateSync(`${broken}/store/index.json`, 100 * 1024 * 1024)
      const large = await runError(broken, Store.list)
      assert.ok(large._tag === "ImageError" && large.reason === "TooLarge")
    } finally {
      remove(broken)
    }
  })

  test("skopeo finds an image by a name that Store.tag gave", { skip: whyNoImages }, async () => {
    const image = writeImage(`${folder}/store`, [])
    await run(folder, Store.tag("127.0.0.1:5000/team/app:1", image))
    const inspected = JSON.parse(sh("skopeo", "inspect", `oci:${folder}/store:127.0.0.1:5000/team/app:1`))
    assert.equal(inspected.Digest, image.digest)
  })
})

describe("a store shared by processes", () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("a process waits for a blob that another is writing, then finds it", { timeout: 60_000 }, async () => {
    const other = child("put", folder, "shared", "300")
    const exit = ended(other)
    assert.equal(await firstLine(other), "writing")
    await run(folder, Store.put(digest("shared"), Stream.die("written twice")))
    assert.equal(await exit, 0)
    assert.deepEqual(partials(folder), [])
  })

  test("a process that is killed while it writes a blob leaves a partial file, which the next put removes", {
    timeout: 60_000
  }, async () => {
    const other = child("put", folder, "killed", "60000")
    const exit = ended(other)
    assert.equal(await firstLine(other), "writing")
    other.kill("SIGKILL")
    await exit
    assert.equal(await run(folder, Store.has(digest("killed"))), false)
    assert.equal(partials(folder).length, 1)
    await run(folder, Store.put(digest("another"), Stream.make(bytes("another"))))
    assert.deepEqual(partials(folder), [])
    await run(folder, Store.put(digest("killed"), Stream.make(bytes("killed"))))
  })

  test("names that several processes give at once are all kept", { timeout: 60_000 }, async () => {
    const others = ["x", "y", "z"].map((prefix) => child("tag", folder, prefix, "10"))
    assert.deepEqual(await Promise.all(others.map(ended)), [0, 0, 0])
    assert.equal((await run(folder, Store.list)).length, 30)
  })
})
