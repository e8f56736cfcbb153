import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Image from "../../lib/Image.ts"
import * as Store from "../../lib/Store.ts"
import { allowTime } from "../support/effect.ts"
import {
  assertImageError,
  blobFile,
  makeTar,
  makeTemporaryFolder,
  otherArchitecture,
  remove,
  run,
  runError,
  writeImage,
  writeIndex
} from "../support/images.ts"
import {
  type Front,
  type RunningRegistry,
  startFront,
  startRegistry,
  whyNoRegistry
} from "../support/registry.ts"
import { assertRegistryError, push } from "../support/registryClient.ts"

allowTime()

describe("Image.get", { skip: whyNoRegistry }, () => {
  let root = ""
  let folder = ""
  let registry: RunningRegistry
  let front: Front
  let name = ""
  const publish = (text: string) => {
    const layout = `${root}/${text}`
    writeIndex(layout, [writeImage(layout, [{ tar: makeTar({ motd: text }) }])])
    push(`oci:${layout}`, `${registry.host}/app:1`)
  }
  /** What an image holds, and how many requests it took to get it. */
  const motd = async (effect: ReturnType<typeof Image.get>): Promise<readonly [string, number]> => {
    const before = front.requests.length
    const image = await run(folder, effect)
    return [fs.readFileSync(`${image.layers[0]}/motd`, "utf8"), front.requests.length - before]
  }
  const requestsOf = async (effect: ReturnType<typeof Image.get>): Promise<number> => (await motd(effect))[1]
  before(async () => {
    root = makeTemporaryFolder()
    folder = `${root}/berth`
    registry = await startRegistry()
    front = await startFront(registry.host, (_request, _response, pass) => pass())
    name = `${front.host}/app:1`
    publish("one")
  })
  after(async () => {
    await front?.stop()
    await registry?.stop()
    remove(root)
  })

  test("an image is pulled if the store lacks it, and later comes from the store without a request", async () => {
    assertImageError(
      await runError(folder, Image.get(name, { pull: "never" })),
      "NotFound",
      'pull: "missing"'
    )
    assert.equal(front.requests.length, 0)
    assert.ok((await requestsOf(Image.get(name))) > 0)
    assert.deepEqual(await motd(Image.get(name)), ["one", 0])
    assert.deepEqual(await motd(Image.get(name, { pull: "never" })), ["one", 0])
  })

  test('a tag that has moved is noticed by pull: "always" alone', async () => {
    publish("two")
    assert.deepEqual(await motd(Image.get(name)), ["one", 0])
    const [text, requests] = await motd(Image.get(name, { pull: "always" }))
    assert.equal(text, "two")
    assert.ok(requests > 0)
    assert.deepEqual(await motd(Image.get(name)), ["two", 0])
  })

  test("a tagged or imported name needs no registry", async () => {
    await run(folder, Image.tag(name, "mine:1"))
    assert.equal((await run(folder, Image.get("mine:1"))).reference, "docker.io/library/mine:1")
    fs.mkdirSync(`${root}/rootfs`)
    const imported = await run(folder, Image.import(`${root}/rootfs`))
    assert.equal((await run(folder, Image.get(imported.reference))).digest, imported.digest)
  })

  test("an image that is damaged in the store is pulled again, or fails with the failure of the store", async () => {
    const { digest } = await run(folder, Image.inspect(name))
    const damage = () => fs.writeFileSync(blobFile(`${folder}/store`, digest), "damaged")
    damage()
    assert.ok((await requestsOf(Image.get(name))) > 0)
    assert.deepEqual(await motd(Image.get(name)), ["two", 0])
    await run(folder, Image.tag(name, `${front.host}/local:1`))
    damage()
    assertImageError(await runError(folder, Image.get(`${front.host}/local:1`)), "DigestMismatch", digest)
    await run(folder, Image.get(name))
  })

  test("an image of another platform is looked for in the registry", async () => {
    const before = front.requests.length
    const error = await runError(folder, Image.get(name, { platform: `linux/${otherArchitecture}` }))
    assertImageError(error, "Platform", otherArchitecture)
    assert.ok(front.requests.length > before)
  })

  test("a name that neither the store nor the registry has fails with the answer of the registry", async () => {
    assertRegistryError(await runError(folder, Image.get(`${front.host}/absent:1`)), "NotFound")
  })

  test("a name that is not in the store fails with advice and the most similar name", async () => {
    const absent = [
      Image.fromStore("mime:1"),
      Image.inspect("mime:1"),
      Image.get("mime:1", { pull: "never" })
    ]
    for (const effect of absent)
      assertImageError(
        await runError(folder, effect),
        "NotFound",
        "docker.io/library/mime:1",
        'pull: "missing"',
        "docker.io/library/mine:1"
      )
    assertImageError(await runError(folder, Store.resolve("mine:1")), "NotFound", "Store.list", "pull")
  })

  test("another value of pull is refused", async () => {
    const error = await runError(folder, Image.get(name, { pull: "sometimes" as never }))
    assert.equal(error._tag, "InvalidOption")
  })
})
