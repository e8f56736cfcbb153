import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as path from "node:path"
import { after, before, describe, test } from "node:test"
import type * as Progress from "../../lib/Progress.ts"
import { BerthError, open, type Session } from "../../lib/promise.ts"
import { allowTime, rejection } from "../support/effect.ts"
import { makeImage, makeTemporaryFolder, remove, sh } from "../support/images.ts"
import { type RunningRegistry, startFront, startRegistry, whyNoRegistry } from "../support/registry.ts"

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

  test("a name starts from the store without a request, and is pulled if the store lacks it", async () => {
    const front = await startFront(registry.host, (_request, _response, pass) => pass())
    try {
      const name = `${front.host}/promised:1`
      const cat = { entrypoint: ["cat"], command: ["/etc/motd"] }
      const absent = await rejection(berth.run(name, { ...cat, pull: "never" }))
      assert.equal((absent as BerthError)._tag, "ImageError")
      assert.match(String(absent), /pull: "missing"/)
      assert.equal(front.requests.length, 0)
      assert.equal((await berth.run(name, cat)).stdout, "this is latest\n")
      const requests = front.requests.length
      assert.ok(requests > 0)
      assert.equal((await berth.run(name, cat)).stdout, "this is latest\n")
      await berth.images.tag(name, "local:1")
      {
        await using box = await berth.start("local:1", {
          entrypoint: ["sleep", "60"],
          command: [],
          user: "root"
        })
        assert.equal(await box.$`cat /etc/motd`.text(), "this is latest\n")
        await box.commit({ tag: "committed:1" })
      }
      await berth.run("committed:1", { ...cat, pull: "never" })
      const image = await berth.images.get(name)
      assert.equal((await berth.images.fromStore("local:1")).digest, image.digest)
      assert.equal((await berth.images.inspect(name)).digest, image.digest)
      assert.ok((await berth.images.history(name)).length > 0)
      assert.equal(front.requests.length, requests)
      await berth.run(name, { ...cat, pull: "always" })
      assert.ok(front.requests.length > requests)
    } finally {
      await front.stop()
    }
  })

  test('pull: "always" is refused for an image that has no name', async () => {
    for (const image of ["host", folder, `oci:${folder}/image`, await berth.images.get(reference)]) {
      const error = await rejection(berth.run(image, { command: ["true"], pull: "always" }))
      assert.ok(error instanceof BerthError && error._tag === "InvalidOption" && error.option === "pull")
    }
  })

  test("oci: takes paths and tags with colons, and a digest", async () => {
    const cat = { entrypoint: ["cat"], command: ["/etc/motd"] }
    const motd = async (image: string): Promise<string> => (await berth.run(image, cat)).stdout
    const odd = `${folder}/odd:1.0@home`
    makeImage(`${folder}/even`, "one")
    fs.renameSync(`${folder}/even`, odd)
    const named = "127.0.0.1:5000/team/app:1"
    sh("skopeo", "copy", `oci:${folder}/image:latest`, `oci:${folder}/two:${named}`)
    sh("skopeo", "copy", `oci:${folder}/image:latest`, `oci:${folder}/two:other`)
    const { digest } = await berth.images.get(reference)
    assert.equal(await motd(`oci:${odd}`), "this is one\n")
    assert.equal(await motd(`oci:${odd}:one`), "this is one\n")
    for (const which of [`image`, `image@${digest}`, `two:${named}`, `two:other`, `two@${digest}`])
      assert.equal(await motd(`oci:${folder}/${which}`), "this is latest\n", which)
    assert.equal(await motd(`oci:${path.relative(process.cwd(), folder)}/image:latest`), "this is latest\n")
    for (const which of ["nowhere", "nowhere:1", "two:absent", `two@sha256:${"0".repeat(64)}`]) {
      const error = await rejection(berth.run(`oci:${folder}/${which}`))
      assert.ok(
        error instanceof BerthError && error._tag === "ImageError" && error.reason === "NotFound",
        which
      )
    }
  })

  test("a root filesystem is imported", async () => {
    fs.mkdirSync(`${folder}/root/etc`, { recursive: true })
    const image = await berth.images.import(`${folder}/root`, { tag: "root:1" })
    assert.equal(image.reference, "docker.io/library/root:1")
    const error = await rejection(berth.images.import(`${folder}/nowhere`))
    assert.equal((error as BerthError)._tag, "ImageError")
  })
})
