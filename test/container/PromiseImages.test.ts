import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import type * as Progress from "../../lib/Progress.ts"
import { BerthError, open, type Session } from "../../lib/promise.ts"
import { allowTime, rejection } from "../support/effect.ts"
import { makeImage, makeTemporaryFolder, remove, sh } from "../support/images.ts"
import { type RunningRegistry, startRegistry, whyNoRegistry } from "../support/registry.ts"

allowTime()

describe("berth/promise: images", { skip: whyNoRegistry }, () => {
  let folder = ""
  let reference = ""
  let registry: RunningRegistry
  let berth: Session
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/image`)
    reference = `${registry.host}/promised:1`
    sh("skopeo", "copy", "--dest-tls-verify=false", `oci:${folder}/image:latest`, `docker://${reference}`)
    berth = await open({ folder: `${folder}/berth` })
  })
  after(async () => {
    await berth?.[Symbol.asyncDispose]()
    await registry?.stop()
    remove(folder)
  })

  test("a pull gives the steps of each layer while it runs, and then the image", async () => {
    const pulling = berth.images.pull(reference)
    const phases = new Map<string, Array<Progress.Phase>>()
    for await (const { digest, phase } of pulling) {
      const seen = phases.get(digest) ?? []
      phases.set(digest, seen.at(-1) === phase ? seen : [...seen, phase])
    }
    const image = await pulling
    assert.equal(image.reference, reference)
    assert.equal(phases.size, 2)
    for (const seen of phases.values())
      assert.deepEqual(seen, ["waiting", "downloading", "unpacking", "done"])
    assert.deepEqual(
      (await berth.images.list()).map(({ name }) => name),
      [reference]
    )
  })

  test("leaving the loop stops a pull, and an abort rejects with the signal's reason", async () => {
    await using other = await open({ folder: `${folder}/stopped` })
    for await (const step of other.images.pull(reference)) {
      assert.equal(step.phase, "waiting")
      break
    }
    assert.deepEqual(await other.images.list(), [])
    const reason = new Error("enough")
    const error = await rejection(other.images.pull(reference, { signal: AbortSignal.abort(reason) }))
    assert.equal(error, reason)
  })

  test("a failed pull rejects its promise and throws in its loop", async () => {
    const missing = `${registry.host}/missing:1`
    assert.ok((await rejection(berth.images.pull(missing))) instanceof BerthError)
    const loop = async () => {
      for await (const _ of berth.images.pull(missing)) assert.fail("nothing is told")
    }
    assert.equal(((await rejection(loop())) as BerthError)._tag, "RegistryError")
  })

  test("a container is committed, pushed, saved, loaded again and collected", async () => {
    const { images } = berth
    const image = await images.pull(reference)
    {
      await using box = await berth.start(image, { entrypoint: ["sleep", "60"], command: [], user: "root" })
      await box.$`sh -c "echo committed >/etc/motd"`
      await box.commit({ tag: "mine:1" })
    }
    const told: Array<Progress.Progress> = []
    const pushing = images.push("mine:1", `${registry.host}/promised:mine`, {
      progress: (step) => void told.push(step)
    })
    const { digest } = await pushing
    assert.equal(told.filter(({ phase }) => phase === "done").length, 1, "the layers below are there")
    await images.save("mine:1", `${folder}/mine.tar`, { format: "oci-archive" })
    await images.tag("mine:1", "mine:2")
    await images.remove("mine:1")
    await images.remove("mine:2")
    assert.ok((await images.gc()).layers > 0)
    const [loaded] = await images.load(fs.createReadStream(`${folder}/mine.tar`))
    assert.equal(loaded.digest, digest)
    const { stdout } = await berth.run(loaded, { entrypoint: ["cat"], command: ["/etc/motd"] })
    assert.equal(stdout, "committed\n")
  })

  test("a root filesystem is imported", async () => {
    fs.mkdirSync(`${folder}/root/etc`, { recursive: true })
    const image = await berth.images.import(`${folder}/root`, { tag: "root:1" })
    assert.equal(image.reference, "docker.io/library/root:1")
    const error = await rejection(berth.images.import(`${folder}/nowhere`))
    assert.equal((error as BerthError)._tag, "ImageError")
  })
})
