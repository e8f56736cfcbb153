import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import fc from "fast-check"
import * as Container from "../../lib/Container.ts"
import * as Image from "../../lib/Image.ts"
import { type Digest, parseDigest } from "../../lib/Reference.ts"
import * as Store from "../../lib/Store.ts"
import { allowTime, failure, suite } from "../support/effect.ts"
import {
  type Blob,
  blobFile,
  child,
  ended,
  makeImage,
  makeTar,
  makeTemporaryFolder,
  remove,
  run,
  runError,
  sh,
  sha256,
  types,
  whyNoImages,
  writeBlob,
  writeImage,
  writeIndex
} from "../support/images.ts"
import { firstLine } from "../support/program.ts"
import { type RunningRegistry, startFront, startRegistry, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"
import { waitUntil } from "../support/until.ts"

allowTime()

const bytes = (text: string) => new TextEncoder().encode(text)
const digest = (text: string): Digest => Either.getOrThrow(parseDigest(sha256(bytes(text))))

const blobs = (folder: string): ReadonlyArray<string> =>
  fs.readdirSync(`${folder}/store/blobs/sha256`).map((hex) => `sha256:${hex}`)

/** Every folder and file below `layers/`, whole or partial. */
const layers = (folder: string): ReadonlyArray<string> =>
  ["sha256", "folders"].flatMap((parent) =>
    fs.existsSync(`${folder}/layers/${parent}`)
      ? fs.readdirSync(`${folder}/layers/${parent}`).map((name) => `${parent}/${name}`)
      : []
  )

const tars = new Map<string, Uint8Array>()

/** A tar of one file. It is made once for each name, as it contains the time. */
const tar = (name: string): Uint8Array => {
  const made = tars.get(name) ?? makeTar({ [name]: name.repeat(3000) })
  tars.set(name, made)
  return made
}

/** Adds an image to a store, with one layer for each file. Images share the layers of equal files. */
const addImage = (folder: string, name: string, ...files: ReadonlyArray<string>): Blob => {
  const descriptor = writeImage(
    `${folder}/store`,
    files.map((file) => ({ tar: tar(file) })),
    { manifest: { annotations: { name } } }
  )
  addEntry(folder, { ...descriptor, annotations: { "org.opencontainers.image.ref.name": name } })
  return descriptor
}

const addEntry = (folder: string, entry: object): void => {
  const file = `${folder}/store/index.json`
  const manifests = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, "utf8")).manifests : []
  writeIndex(`${folder}/store`, [...manifests, entry])
}

/** The diff ids of the only image of a layout. */
const diffIdsOf = (layout: string): ReadonlyArray<string> => {
  const read = (digest: string) => JSON.parse(fs.readFileSync(blobFile(layout, digest), "utf8"))
  const [entry] = JSON.parse(fs.readFileSync(`${layout}/index.json`, "utf8")).manifests
  return read(read(entry.digest).config.digest).rootfs.diff_ids
}

describe("Store.gc", { skip: whyNoImages }, () => {
  let root = ""
  let count = 0
  const fresh = (): string => `${root}/${count++}`
  before(() => {
    root = makeTemporaryFolder()
  })
  after(() => remove(root))

  test("gc of a store that does not exist removes nothing and makes nothing", async () => {
    const folder = fresh()
    assert.deepEqual(await run(folder, Store.gc()), { blobs: 0, layers: 0, bytes: 0 })
    assert.equal(fs.existsSync(`${folder}/store`), false)
  })

  test("gc removes exactly the blobs and layers that no name reaches", async () => {
    const folder = fresh()
    addImage(folder, "127.0.0.1/one:1", "base", "one")
    addImage(folder, "127.0.0.1/two:1", "base", "two")
    const [dry, wet, again, left] = await run(
      folder,
      Effect.gen(function* () {
        yield* Image.fromStore("127.0.0.1/one:1")
        yield* Image.fromStore("127.0.0.1/two:1")
        assert.deepEqual(yield* Store.gc(), { blobs: 0, layers: 0, bytes: 0 })
        yield* Image.remove("127.0.0.1/one:1")
        const dry = yield* Store.gc({ dryRun: true })
        assert.equal(layers(folder).length, 3)
        return [dry, yield* Store.gc(), yield* Store.gc(), yield* Image.fromStore("127.0.0.1/two:1")] as const
      })
    )
    // Manifest, config and a layer.
    assert.deepEqual([dry.blobs, dry.layers], [3, 1])
    assert.ok(dry.bytes > 9000, `${dry.bytes}`)
    assert.deepEqual(wet, dry)
    assert.deepEqual(again, { blobs: 0, layers: 0, bytes: 0 })
    assert.deepEqual(
      [...layers(folder)].sort(),
      [`sha256/${sha256(tar("base")).slice(7)}`, `sha256/${sha256(tar("two")).slice(7)}`].sort()
    )
    assert.ok(fs.existsSync(`${left.layers[1]}/two`))
    assert.match(sh("skopeo", "inspect", `oci:${folder}/store:127.0.0.1/two:1`), /"Digest"/)
  })

  test("gc keeps whatever entries of other tools reach: nested indexes, artifacts, subjects and foreign files", async () => {
    const folder = fresh()
    const store = `${folder}/store`
    const json = (type: string, value: object) =>
      writeBlob(store, type, JSON.stringify({ schemaVersion: 2, ...value }))
    const image = writeImage(store, [{ tar: tar("deep") }])
    const inner = json(types.index, { manifests: [image, { ...image, digest: sha256(bytes("absent")) }] })
    const outer = json(types.index, { manifests: [inner, { mediaType: "x", digest: "nonsense", size: 1 }] })
    const signature = json(types.manifest, {
      config: writeBlob(store, "application/vnd.oci.empty.v1+json", "{}"),
      layers: [writeBlob(store, "application/x-signature", "a signature")],
      subject: writeImage(store, [{ tar: tar("subject") }])
    })
    const plain = writeBlob(store, "text/plain", "an entry that is no document")
    for (const entry of [outer, signature, plain]) addEntry(folder, entry)
    fs.writeFileSync(`${store}/blobs/sha256/notes.txt`, "mine")
    const before = blobs(folder)
    writeBlob(store, "text/plain", "garbage")
    assert.equal((await run(folder, Store.gc())).blobs, 1)
    assert.deepEqual([...blobs(folder)].sort(), [...before].sort())
  })

  test("gc removes exactly the blobs that only unnamed images use, whatever the images share", async () => {
    const names = ["a", "b", "c", "d"]
    const image = fc.record({
      files: fc.uniqueArray(fc.constantFrom(...names), { minLength: 1 }),
      kept: fc.boolean()
    })
    await fc.assert(
      fc.asyncProperty(fc.array(image, { minLength: 1, maxLength: 5 }), async (images) => {
        const folder = fresh()
        const entries = images.map(({ files }, i) => addImage(folder, `127.0.0.1/x:${i}`, ...files))
        const wanted = images.flatMap(({ files, kept }, i) => {
          if (!kept) return []
          const manifest = JSON.parse(
            fs.readFileSync(blobFile(`${folder}/store`, entries[i]!.digest), "utf8")
          )
          const digests = [manifest.config, ...manifest.layers].map((blob: Blob) => blob.digest)
          const unpacked = files.map((file) => `sha256/${sha256(tar(file)).slice(7)}`)
          return [entries[i]!.digest, ...digests, ...unpacked]
        })
        await run(
          folder,
          Effect.gen(function* () {
            yield* Effect.forEach(images, (_, i) => Image.fromStore(`127.0.0.1/x:${i}`))
            for (const [i, { kept }] of images.entries()) if (!kept) yield* Image.remove(`127.0.0.1/x:${i}`)
            yield* Store.gc()
          })
        )
        assert.deepEqual([...blobs(folder), ...layers(folder)].sort(), [...new Set(wanted)].sort())
      }),
      { numRuns: 8 }
    )
  })

  test("gc keeps the generated layer of missing folders with its image, and removes it with the image", async () => {
    const folder = fresh()
    const [lower, upper] = [`${root}/lower`, `${root}/upper`]
    for (const side of [lower, upper]) fs.mkdirSync(`${side}/tmp`, { recursive: true })
    fs.chmodSync(`${lower}/tmp`, 0o1777)
    fs.writeFileSync(`${upper}/tmp/file`, "")
    const tars = [sh("tar", "-C", lower, "-c", "tmp"), sh("tar", "-C", upper, "-c", "tmp/file")]
    const image = writeImage(
      `${folder}/store`,
      tars.map((text) => ({ tar: bytes(text) }))
    )
    addEntry(folder, { ...image, annotations: { "org.opencontainers.image.ref.name": "127.0.0.1/tmp:1" } })
    await run(
      folder,
      Effect.gen(function* () {
        assert.equal((yield* Image.fromStore("127.0.0.1/tmp:1")).layers.length, 3)
        assert.equal((yield* Store.gc()).layers, 0)
        yield* Image.remove("127.0.0.1/tmp:1")
        assert.equal((yield* Store.gc()).layers, 3)
      })
    )
    assert.deepEqual(layers(folder), [])
  })

  test("gc removes partial blobs and layers of dead processes", async () => {
    const folder = fresh()
    const hex = "0".repeat(64)
    for (const parent of ["sha256", "folders"])
      fs.mkdirSync(`${folder}/layers/${parent}/.${hex}.dead/d`, { recursive: true })
    fs.mkdirSync(`${folder}/store/.partial`, { recursive: true })
    fs.writeFileSync(`${folder}/store/.partial/sha256-${hex}`, "half")
    await run(folder, Store.gc())
    assert.deepEqual(layers(folder), [])
    assert.deepEqual(fs.readdirSync(`${folder}/store/.partial`), [])
  })

  test("gc with an unreadable manifest removes nothing, and fails with its digest", async () => {
    const folder = fresh()
    const image = addImage(folder, "127.0.0.1/broken:1", "broken")
    fs.writeFileSync(blobFile(`${folder}/store`, image.digest), "{}")
    const before = blobs(folder)
    const error = await runError(folder, Store.gc())
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch", error.message)
    assert.ok(error.message.includes(image.digest), error.message)
    assert.deepEqual(blobs(folder), before)
    await run(folder, Effect.zipRight(Image.remove("127.0.0.1/broken:1"), Store.gc()))
    assert.deepEqual(blobs(folder), [])
  })

  test("gc of this and of another Berth keeps blobs that are put within Store.keeping, until it ends", async () => {
    const folder = fresh()
    const put = (text: string) => Store.put(digest(text), Stream.make(bytes(text)))
    await run(
      folder,
      Effect.gen(function* () {
        const [going, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const work = put("first").pipe(
          Effect.zipRight(Deferred.succeed(going, undefined)),
          Effect.zipRight(Deferred.await(go)),
          Effect.zipRight(put("second")),
          Store.keeping
        )
        const fiber = yield* Effect.fork(work)
        yield* Deferred.await(going)
        yield* put("garbage")
        assert.equal((yield* Store.gc()).blobs, 1)
        yield* put("more garbage")
        const elsewhere = yield* Effect.promise(() => run(folder, Store.gc()))
        assert.equal(elsewhere.blobs, 1)
        assert.equal(yield* Store.has(digest("first")), true)
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(fiber)
        const last = yield* Effect.promise(() => run(folder, Store.gc()))
        assert.equal(last.blobs, 2)
      })
    )
  })

  test("gc does not wait for a running unpack, and removes none of its layers", async () => {
    const folder = fresh()
    const files = Array.from({ length: 6 }, (_, i) => `file${i}`)
    const layout = `${root}/layout`
    writeIndex(layout, [
      writeImage(
        layout,
        files.map((file) => ({ tar: tar(file) }))
      )
    ])
    await run(
      folder,
      Effect.gen(function* () {
        let collections = 0
        const unpacked = Image.fromLayout(layout).pipe(
          Effect.tap(() => {
            const before = collections
            return waitUntil("a collection after the unpack", () => collections > before + 1)
          })
        )
        const fiber = yield* Effect.fork(Store.keeping(unpacked))
        const collect = Effect.forever(
          Effect.zipRight(
            Store.gc(),
            Effect.sync(() => collections++)
          )
        )
        const image = yield* Effect.raceFirst(Fiber.join(fiber), collect)
        assert.ok(image.layers.every((layer, i) => fs.existsSync(`${layer}/${files[i]}`)))
        assert.equal((yield* Store.gc()).layers, 6)
      })
    )
  })

  test("gc ignores the records of a dead supervisor", async () => {
    const folder = fresh()
    await run(
      folder,
      Effect.gen(function* () {
        yield* Store.put(digest("false"), Stream.make(bytes("false")))
        // Made after Berth's start, which would have removed it.
        fs.mkdirSync(`${folder}/run/1-dead`)
        fs.writeFileSync(`${folder}/run/1-dead/lock`, "")
        fs.writeFileSync(`${folder}/run/1-dead/holds`, `${digest("false")}\n`)
        assert.equal((yield* Store.gc()).blobs, 1)
      })
    )
  })
})

describe("Store.usage", { skip: whyNoImages }, () => {
  test("Store.usage gives each image's own and shared bytes", async () => {
    const folder = makeTemporaryFolder()
    try {
      addImage(folder, "127.0.0.1/one:1", "base", "one")
      addImage(folder, "127.0.0.1/two:1", "base", "two")
      const [none, usage, later] = await run(
        folder,
        Effect.gen(function* () {
          const none = yield* Store.usage
          yield* Image.fromStore("127.0.0.1/one:1")
          yield* Image.tag("127.0.0.1/one:1", "127.0.0.1/one:2")
          const usage = yield* Store.usage
          yield* Image.remove("127.0.0.1/two:1")
          return [none, usage, yield* Store.usage] as const
        })
      )
      assert.equal(none.layers, 0)
      assert.equal(
        none.blobs,
        blobs(folder).reduce((sum, blob) => sum + fs.statSync(blobFile(`${folder}/store`, blob)).size, 0)
      )
      const kilobytes = Number(sh("du", "-sk", `${folder}/layers/sha256`).split("\t")[0])
      assert.ok(usage.layers > 18_000 && usage.layers <= kilobytes * 1024, `${usage.layers}`)
      assert.deepEqual(usage.reclaimable, { blobs: 0, layers: 0, bytes: 0 })
      assert.deepEqual(
        usage.images.map(({ names }) => names),
        [["127.0.0.1/one:1", "127.0.0.1/one:2"], ["127.0.0.1/two:1"]]
      )
      const [one, two] = usage.images
      assert.equal(one!.shared, two!.shared)
      assert.equal(one!.own + one!.shared + two!.own, usage.blobs + usage.layers)
      assert.equal(later.reclaimable.bytes, two!.own)
    } finally {
      remove(folder)
    }
  })
})

suite("Store.gc and containers", (effect, folder) => {
  const skip = whyNoImages
  const make = Effect.sync(() => {
    if (!fs.existsSync(`${folder()}/store/index.json`)) makeImage(`${folder()}/store`, "127.0.0.1/app:1")
    if (!sh("umoci", "list", "--layout", `${folder()}/store`).includes("app:1"))
      makeImage(`${folder()}/store`, "127.0.0.1/app:1")
  })
  const sleeping = { command: ["exec sleep 60"], user: "root" }

  effect(
    "gc keeps the layers of a running container, and removes them after its end",
    function* () {
      yield* make
      const image = yield* Image.fromStore("127.0.0.1/app:1")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const container = yield* Container.start(image, sleeping)
          yield* Image.remove("127.0.0.1/app:1")
          const during = yield* Store.gc()
          assert.ok(during.blobs > 0)
          assert.equal(during.layers, 0)
          yield* Effect.scoped(Container.start(image, sleeping))
          const text = yield* Container.exec(container, ["/bin/cat", "/etc/motd"])
          assert.equal(text.stdout, "this is 127.0.0.1/app:1\n")
        })
      )
      assert.equal((yield* Store.gc()).layers, 2)
      const error = yield* failure("ImageError", Container.run(image, sleeping))
      assert.equal(error.reason, "NotFound")
      assert.ok(
        image.layers.some((layer) => error.message.includes(layer)),
        error.message
      )
    },
    { skip }
  )

  effect(
    "gc keeps the layers of another process's container, until that process is killed",
    function* () {
      yield* make
      const other = child("sleep", folder(), "127.0.0.1/app:1")
      assert.equal(yield* Effect.promise(() => firstLine(other)), "running")
      yield* Image.remove("127.0.0.1/app:1")
      assert.equal((yield* Store.gc()).layers, 0)
      const exit = ended(other)
      other.kill("SIGKILL")
      yield* Effect.promise(() => exit)
      yield* waitUntil("the end of its supervisor", () => fs.readdirSync(`${folder()}/run`).length === 1)
      assert.equal((yield* Store.gc()).layers, 2)
    },
    { skip }
  )
})

describe("a store shared by processes", { skip: whyNoRegistry }, () => {
  let root = ""
  let registry: RunningRegistry
  before(async () => {
    root = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${root}/layout`, "one")
    push(`oci:${root}/layout:one`, `${registry.host}/team/app:1`)
  })
  after(async () => {
    await registry.stop()
    remove(root)
  })

  test("two processes with ten pulls each fetch each blob once", { timeout: 60_000 }, async () => {
    const front = await startFront(registry.host, (_request, _response, pass) => pass())
    try {
      const name = `${front.host}/team/app:1`
      const others = [1, 2].map(() => ended(child("pull", `${root}/twenty`, name, "10")))
      assert.deepEqual(await Promise.all(others), [0, 0])
      const got = front.requests.filter((request) => request.startsWith("GET") && request.includes("sha256:"))
      assert.equal(got.length, 4, got.join("\n"))
      assert.equal(new Set(got).size, 4)
    } finally {
      await front.stop()
    }
  })

  test("a store is whole after a kill at any moment of pull, put, tag, remove and gc", {
    timeout: 120_000
  }, async () => {
    const folder = `${root}/killed`
    const name = `${registry.host}/team/app:1`
    let seen = 0
    // On a busy machine some kills come before the first name.
    for (let round = 0; round < 5 || (seen === 0 && round < 50); round++) {
      const other = child("churn", folder, name)
      const exit = ended(other)
      assert.equal(await firstLine(other), "churning")
      // The time until the kill is random, as any moment is tested.
      const early = await Promise.race([
        exit,
        new Promise((resolve) => setTimeout(() => resolve("running"), randomBytes(2).readUInt16LE() / 100))
      ])
      assert.equal(early, "running")
      other.kill("SIGKILL")
      await exit
      if (!fs.existsSync(`${folder}/store/index.json`)) continue
      const listed = sh("umoci", "list", "--layout", `${folder}/store`)
        .split("\n")
        .filter((line) => line !== "")
      for (const tag of listed) {
        seen++
        sh("skopeo", "inspect", `oci:${folder}/store:${tag}`)
        const index = JSON.parse(fs.readFileSync(`${folder}/store/index.json`, "utf8"))
        const { digest } = index.manifests.find((entry: { annotations: Record<string, string> }) =>
          Object.values(entry.annotations).includes(tag)
        )
        const manifest = JSON.parse(fs.readFileSync(blobFile(`${folder}/store`, digest), "utf8"))
        for (const blob of [manifest.config, ...manifest.layers]) {
          assert.equal(sha256(fs.readFileSync(blobFile(`${folder}/store`, blob.digest))), blob.digest)
        }
      }
    }
    assert.ok(seen > 0, "no kill has left a name")
    await run(folder, Effect.zipRight(Image.pull(name), Store.gc()))
    assert.equal(blobs(folder).length, 4)
    // The upper layer lacks an entry for a folder, which the file `.implicit` beside it records.
    const unpacked = diffIdsOf(`${root}/layout`).map((diffId) => `sha256/${diffId.slice(7)}`)
    assert.deepEqual([...layers(folder)].sort(), [...unpacked, `${unpacked[1]}.implicit`].sort())
    assert.deepEqual(fs.readdirSync(`${folder}/run`), [])
  })
})
