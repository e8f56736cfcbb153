/** A store with missing, truncated or replaced files, as a full disk, a faulty tool or an attacker leaves them. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import type { Berth } from "../../lib/Berth.ts"
import type { BerthError } from "../../lib/BerthError.ts"
import * as Container from "../../lib/Container.ts"
import * as Image from "../../lib/Image.ts"
import * as Store from "../../lib/Store.ts"
import { allowTime, suite } from "../support/effect.ts"
import {
  assertImageError,
  type Blob,
  blobFile,
  makeRootfs,
  makeTar,
  makeTemporaryFolder,
  remove,
  run,
  runError,
  sh,
  sha256,
  whyNoImages,
  writeImage,
  writeIndex
} from "../support/images.ts"
import { front, nobody, temporaryFolder } from "../support/scoped.ts"

allowTime()

const NAME = "127.0.0.1/team/kept:1"
const named = (descriptor: Blob, name: string) => ({
  ...descriptor,
  annotations: { "org.opencontainers.image.ref.name": name }
})

/** Every blob and every unpacked layer of a Berth. */
const content = (folder: string): ReadonlyArray<string> =>
  ["store/blobs/sha256", "layers/sha256", "layers/folders"].flatMap((parent) =>
    fs.existsSync(`${folder}/${parent}`)
      ? fs
          .readdirSync(`${folder}/${parent}`)
          .filter((name) => !name.startsWith("."))
          .map((name) => `${parent}/${name}`)
          .sort()
      : []
  )

const index = (folder: string) => `${folder}/store/index.json`
const version = (folder: string) => `${folder}/store/oci-layout`

describe("a damaged store", { skip: whyNoImages }, () => {
  let root: string
  let count = 0
  let layer: Uint8Array
  before(() => {
    root = makeTemporaryFolder()
    layer = makeTar({ file: "kept" })
  })
  after(() => remove(root))

  /** Makes a Berth with a named image whose layer is unpacked. */
  const filled = async (): Promise<{ folder: string; manifest: Blob }> => {
    const folder = `${root}/${count++}`
    const manifest = writeImage(`${folder}/store`, [{ tar: layer }])
    writeIndex(`${folder}/store`, [named(manifest, NAME)])
    await run(folder, Image.fromStore(NAME))
    return { folder, manifest }
  }

  const breakages: ReadonlyArray<readonly [what: string, damage: (folder: string) => void]> = [
    ["a missing index", (folder) => fs.unlinkSync(index(folder))],
    ["a missing oci-layout", (folder) => fs.unlinkSync(version(folder))],
    [
      "both files missing",
      (folder) => {
        fs.unlinkSync(index(folder))
        fs.unlinkSync(version(folder))
      }
    ],
    ["an empty index", (folder) => fs.truncateSync(index(folder))],
    ["a truncated index", (folder) => fs.truncateSync(index(folder), 40)],
    ["an index that is an array", (folder) => fs.writeFileSync(index(folder), "[]")],
    ["an index without manifests", (folder) => fs.writeFileSync(index(folder), '{"schemaVersion":2}')],
    [
      "null as a manifest",
      (folder) => fs.writeFileSync(index(folder), '{"schemaVersion":2,"manifests":[null]}')
    ],
    ["an oci-layout of garbage", (folder) => fs.writeFileSync(version(folder), "\0\0\0")],
    [
      "a folder in place of the index",
      (folder) => {
        fs.unlinkSync(index(folder))
        fs.mkdirSync(index(folder))
      }
    ],
    [
      "an index that is a link to itself",
      (folder) => {
        fs.unlinkSync(index(folder))
        fs.symlinkSync("index.json", index(folder))
      }
    ],
    ["a missing manifest", (folder) => damageNamed(folder, (blob) => fs.unlinkSync(blob))],
    ["a truncated manifest", (folder) => damageNamed(folder, (blob) => fs.truncateSync(blob, 10))],
    [
      "a folder in place of a manifest",
      (folder) =>
        damageNamed(folder, (blob) => {
          fs.unlinkSync(blob)
          fs.mkdirSync(blob)
        })
    ],
    [
      "a missing config",
      (folder) =>
        damageNamed(folder, (blob) =>
          fs.unlinkSync(blobFile(`${folder}/store`, JSON.parse(fs.readFileSync(blob, "utf8")).config.digest))
        )
    ]
  ]
  const damageNamed = (folder: string, damage: (blob: string) => void): void => {
    const [entry] = JSON.parse(fs.readFileSync(index(folder), "utf8")).manifests
    damage(blobFile(`${folder}/store`, entry.digest))
  }

  for (const [what, damage] of breakages) {
    test(`gc removes nothing from a store with ${what}`, async () => {
      const { folder } = await filled()
      damage(folder)
      const before = content(folder)
      for (const collect of [Store.gc(), Store.gc({ dryRun: true }), Store.usage]) {
        const error = await runError(folder, collect)
        assert.ok(error._tag === "ImageError", `${error._tag}: ${error.message}`)
        assert.ok(error.message.includes(`${folder}/store`) || /sha256:/.test(error.message), error.message)
      }
      assert.deepEqual(content(folder), before)
      const started = await runError(folder, Image.fromStore(NAME))
      assert.equal(started._tag, "ImageError")
    })
  }

  test("Store.tag writes no new index over blobs whose index is missing", async () => {
    const { folder, manifest } = await filled()
    fs.unlinkSync(index(folder))
    const write = Store.tag("other", { ...manifest, digest: manifest.digest })
    assertImageError(await runError(folder, write), "Corrupt", `${folder}/store`, "backup")
    assert.equal(fs.existsSync(index(folder)), false)
    // The fix of the message works.
    fs.writeFileSync(index(folder), JSON.stringify({ schemaVersion: 2, manifests: [named(manifest, NAME)] }))
    assert.deepEqual(await run(folder, Store.gc()), { blobs: 0, layers: 0, bytes: 0 })
    await run(folder, Image.fromStore(NAME))
  })

  test("a store whose creation was interrupted is completed", async () => {
    const folder = `${root}/${count++}`
    fs.mkdirSync(`${folder}/store/blobs/sha256`, { recursive: true })
    fs.writeFileSync(version(folder), '{"imageLayoutVersion":"1.0.0"}')
    assert.deepEqual(await run(folder, Store.gc()), { blobs: 0, layers: 0, bytes: 0 })
    const tar = new TextEncoder().encode("text")
    await run(folder, Store.tag("a", { mediaType: "text/plain", digest: sha256(tar), size: tar.length }))
    assert.equal((await run(folder, Store.list)).length, 1)
  })

  test("gc removes nothing while another Berth's record of what it uses cannot be read", async () => {
    const { folder } = await filled()
    await run(
      folder,
      Effect.gen(function* () {
        yield* Image.fromStore(NAME)
        // Another living Berth, whose record is a folder instead of a file.
        const [own] = fs.readdirSync(`${folder}/run`).filter((name) => !name.startsWith("."))
        fs.mkdirSync(`${folder}/run/other/holds`, { recursive: true })
        fs.linkSync(`${folder}/run/${own}/lock`, `${folder}/run/other/lock`)
        yield* Image.remove(NAME)
        const before = content(folder)
        const error = yield* Effect.flip(Store.gc())
        assert.equal(error._tag, "ImageError")
        assert.deepEqual(content(folder), before)
        fs.rmSync(`${folder}/run/other`, { recursive: true })
      })
    )
  })
})

suite("images of a damaged store", (effect, folder) => {
  const skip = { skip: whyNoImages }

  /** A registry with one image that contains a shell. */
  const registry = Effect.gen(function* () {
    yield* nobody
    const layout = yield* temporaryFolder
    makeRootfs(`${layout}/root`)
    sh("tar", "-C", `${layout}/root`, "-cf", `${layout}/layer.tar`, ".")
    const tar = new Uint8Array(fs.readFileSync(`${layout}/layer.tar`))
    const manifest = writeImage(layout, [{ tar }])
    const { host } = yield* front(undefined, (request, response) => {
      const digest = /\/(sha256:[0-9a-f]{64})$/.exec(request.url!)?.[1] ?? manifest.digest
      const bytes = fs.readFileSync(blobFile(layout, digest))
      const headers = { "content-length": bytes.length, "content-type": manifest.mediaType }
      response.writeHead(200, { ...headers, "docker-content-digest": digest })
      response.end(request.method === "HEAD" ? undefined : bytes)
    })
    const layer = `${folder()}/layers/sha256/${sha256(tar).slice(7)}`
    return { name: `${host}/team/app:1`, manifest, layer }
  })

  const says = (image: Image.Image) =>
    Effect.map(
      Container.run(image, { command: ["/bin/busybox", "echo", "well"] }),
      ({ stdout }) => stdout.trim() === "well"
    )

  /** Empties the store for the next test. */
  const emptied = (name: string) =>
    Effect.gen(function* () {
      for (const file of fs.readdirSync(`${folder()}/store`))
        if (file.includes(".broken-")) fs.rmSync(`${folder()}/store/${file}`, { recursive: true })
      yield* Image.remove(name)
      yield* Store.gc()
    })

  effect(
    "a pull moves a corrupt index aside, and gc fails until that file is removed",
    function* () {
      const { name } = yield* registry
      for (const garbage of ["", "{", "null", "\0\xff", '{"schemaVersion":2,"manifests":{}}']) {
        yield* Image.pull(name)
        fs.writeFileSync(index(folder()), garbage, "latin1")
        fs.writeFileSync(version(folder()), garbage, "latin1")
        const operations: ReadonlyArray<Effect.Effect<unknown, BerthError, Berth>> = [
          Image.fromStore(name),
          Image.list,
          Image.tag(name, "other:1")
        ]
        for (const operation of operations) {
          const error = yield* Effect.flip(operation)
          assertImageError(error, "Corrupt", `${folder()}/store/`, "pull an image")
        }
        const before = content(folder())
        assert.ok(yield* says(yield* Image.pull(name)))
        assert.ok(yield* says(yield* Image.fromStore(name)))
        const aside = fs
          .readdirSync(`${folder()}/store`)
          .find((file) => file.startsWith("index.json.broken-"))
        assert.equal(fs.readFileSync(`${folder()}/store/${aside}`, "latin1"), garbage)
        assertImageError(yield* Effect.flip(Store.gc()), "Corrupt", aside!, "remove this file")
        assert.deepEqual(content(folder()), before)
        fs.unlinkSync(`${folder()}/store/${aside}`)
      }
      yield* emptied(name)
    },
    skip
  )

  effect(
    "a file, a link or a pipe in place of a layer is replaced by a pull and by Image.fromStore",
    function* () {
      const { layer, name } = yield* registry
      const image = yield* Image.pull(name)
      assert.ok(yield* says(image))
      for (const put of [
        () => fs.writeFileSync(layer, "not a folder"),
        () => fs.symlinkSync("/nowhere", layer),
        () => sh("mkfifo", layer)
      ]) {
        for (const get of [Image.pull(name), Image.fromStore(name)]) {
          fs.renameSync(layer, `${layer}.kept`)
          put()
          const error = yield* Effect.flip(says(image))
          assert.match(error._tag, /^(ImageError|OperationFailed)$/)
          assert.ok(error.message.includes(layer) && /again|remove/.test(error.message), error.message)
          assert.ok(yield* says(yield* get))
          fs.renameSync(`${layer}.kept`, `${layer}.old`)
          remove(`${layer}.old`)
        }
      }
      yield* emptied(name)
      for (const file of fs.readdirSync(`${folder()}/layers/sha256`))
        if (file.includes(".broken-")) fs.rmSync(`${folder()}/layers/sha256/${file}`)
    },
    skip
  )

  effect(
    "a folder in place of a blob is moved aside by a pull, and Image.fromStore fails with the fix",
    function* () {
      const { manifest, name } = yield* registry
      yield* Image.pull(name)
      const text = fs.readFileSync(blobFile(`${folder()}/store`, manifest.digest), "utf8")
      const { config, layers } = JSON.parse(text)
      for (const { digest } of [manifest, config, layers[0]]) {
        const file = blobFile(`${folder()}/store`, digest)
        fs.unlinkSync(file)
        fs.mkdirSync(`${file}/inner`, { recursive: true })
        assertImageError(yield* Effect.flip(Image.fromStore(name)), "Corrupt", file, "move it away")
        assert.ok(yield* says(yield* Image.pull(name)))
        assert.ok(yield* says(yield* Image.fromStore(name)))
        assert.ok(fs.statSync(file).isFile())
      }
      yield* emptied(name)
      const aside = fs
        .readdirSync(`${folder()}/store/blobs/sha256`)
        .filter((file) => file.includes(".broken-"))
      assert.equal(aside.length, 3)
      for (const file of aside) fs.rmSync(`${folder()}/store/blobs/sha256/${file}`, { recursive: true })
    },
    skip
  )
})
