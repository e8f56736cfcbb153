import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import * as Image from "../../lib/Image.ts"
import { allowTime } from "../support/effect.ts"
import {
  type Blob,
  blobFile,
  goArchitecture,
  makeImage,
  makeTar,
  makeTemporaryFolder,
  remove,
  run,
  runError,
  sh,
  sha256,
  whyNoImages,
  writeImage
} from "../support/images.ts"
import { type RunningRegistry, startRegistry, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"

allowTime()

describe("images in the store", { skip: whyNoImages }, () => {
  let folder = ""
  const name = "docker.io/library/app:1"
  before(() => {
    folder = makeTemporaryFolder()
    makeImage(`${folder}/store`, name)
  })
  after(() => remove(folder))

  test("Image.list lists the images, and short names find them", async () => {
    const [entry] = await run(folder, Image.list)
    assert.equal(entry!.name, name)
    const image = await run(folder, Image.fromStore("app:1"))
    assert.deepEqual([image.reference, image.digest], [name, entry!.digest])
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), `this is ${name}\n`)
  })

  test("Image.inspect and Image.history tell an image's layers, config and steps", async () => {
    const [inspected, history] = await run(folder, Effect.zip(Image.inspect("app:1"), Image.history("app:1")))
    assert.equal(inspected.platform, `linux/${goArchitecture}`)
    assert.ok(inspected.created instanceof Date)
    assert.deepEqual(inspected.config.labels, { "org.example.purpose": "test" })
    assert.equal(inspected.layers.length, 2)
    for (const { digest, size, unpacked } of inspected.layers) {
      assert.equal(fs.statSync(blobFile(`${folder}/store`, digest)).size, size)
      assert.equal(unpacked, true)
    }
    assert.deepEqual(
      history.flatMap(({ layer }) => layer?.digest ?? []),
      inspected.layers.map(({ digest }) => digest)
    )
    assert.ok(history.some(({ createdBy, layer }) => layer === undefined && createdBy !== undefined))
  })

  test("Image.tag adds a name that skopeo and umoci see, and Image.remove removes it", async () => {
    await run(folder, Image.tag("app:1", "127.0.0.1:5000/team/copy"))
    const copy = "127.0.0.1:5000/team/copy:latest"
    const { Digest } = JSON.parse(sh("skopeo", "inspect", `oci:${folder}/store:${copy}`))
    assert.equal(Digest, (await run(folder, Image.inspect(copy))).digest)
    assert.ok(sh("umoci", "list", "--layout", `${folder}/store`).includes(copy))
    await run(folder, Image.remove(copy))
    assert.deepEqual(
      (await run(folder, Image.list)).map((entry) => entry.name),
      [name]
    )
  })

  test("an image is found by the names that other tools write", async () => {
    sh("skopeo", "copy", `oci:${folder}/store:${name}`, `oci:${folder}/store:NotAReference`)
    const image = await run(folder, Image.fromStore("NotAReference"))
    assert.equal(image.layers.length, 2)
    await run(folder, Image.remove("NotAReference"))
  })

  test("a missing name fails with NotFound, and an invalid name with InvalidData", async () => {
    for (const effect of [
      Image.fromStore("no"),
      Image.inspect("no"),
      Image.tag("no", "a"),
      Image.remove("no")
    ]) {
      const error = await runError(folder, effect)
      assert.ok(error._tag === "ImageError" && error.reason === "NotFound", error.message)
      assert.ok(error.message.includes("docker.io/library/no:latest"), error.message)
    }
    const pinned = `a@${sha256(new Uint8Array())}`
    for (const effect of [Image.inspect("NO"), Image.tag("app:1", "NO")]) {
      assert.equal((await runError(folder, effect))._tag, "InvalidData")
    }
    assert.equal((await runError(folder, Image.tag("app:1", pinned)))._tag, "InvalidOption")
  })
})

describe("a corrupt blob on the disk", { skip: whyNoRegistry }, () => {
  let root = ""
  let registry: RunningRegistry
  let manifest: { readonly config: Blob; readonly layers: ReadonlyArray<Blob> }
  let digest = ""
  before(async () => {
    root = makeTemporaryFolder()
    registry = await startRegistry()
    const image = writeImage(`${root}/layout`, [
      { tar: makeTar({ one: "1".repeat(5000) }) },
      { tar: makeTar({ two: "2".repeat(5000) }) }
    ])
    digest = image.digest
    manifest = JSON.parse(fs.readFileSync(blobFile(`${root}/layout`, digest), "utf8"))
    fs.writeFileSync(`${root}/layout/oci-layout`, '{"imageLayoutVersion":"1.0.0"}')
    fs.writeFileSync(`${root}/layout/index.json`, JSON.stringify({ schemaVersion: 2, manifests: [image] }))
    push(`oci:${root}/layout`, `${registry.host}/app:1`)
  })
  after(async () => {
    await registry.stop()
    remove(root)
  })

  const rot = (path: string): void => {
    const bytes = fs.readFileSync(path)
    bytes[bytes.length >> 1]! ^= 0x55
    fs.writeFileSync(path, bytes)
  }

  test("a corrupt blob is found when it is used, and a pull repairs it", async () => {
    const reference = `${registry.host}/app:1`
    const folder = `${root}/mended`
    await run(folder, Image.pull(reference))
    const blobs = [digest, manifest.config.digest, ...manifest.layers.map((layer) => layer.digest)]
    for (const blob of blobs) {
      const path = blobFile(`${folder}/store`, blob)
      rot(path)
      // The blob of an unpacked layer is not read again.
      remove(`${folder}/layers`)
      const error = await runError(folder, Image.fromStore(reference))
      assert.equal(error._tag, "ImageError", error.message)
      const image = await run(
        folder,
        Image.pull(blob === digest ? `${registry.host}/app@${digest}` : reference)
      )
      assert.equal(sha256(fs.readFileSync(path)), blob)
      assert.ok(fs.existsSync(`${image.layers[0]}/one`) && fs.existsSync(`${image.layers[1]}/two`))
    }
  })

  test("corrupt blobs of another size, several at once, are repaired for several fibers", async () => {
    const reference = `${registry.host}/app:1`
    const folder = `${root}/several`
    await run(folder, Image.pull(reference))
    for (const { digest } of manifest.layers) fs.truncateSync(blobFile(`${folder}/store`, digest), 10)
    remove(`${folder}/layers`)
    const pulls = Array.from({ length: 5 }, () => Image.pull(reference))
    await run(folder, Effect.all(pulls, { concurrency: "unbounded" }))
    for (const blob of manifest.layers) {
      assert.equal(sha256(fs.readFileSync(blobFile(`${folder}/store`, blob.digest))), blob.digest)
    }
  })
})
