import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Chunk from "effect/Chunk"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
import type * as Progress from "../../lib/Progress.ts"
import { makeImage, makeTemporaryFolder, remove, run, runError, sh } from "../support/images.ts"
import { commandOf, ended, program } from "../support/program.ts"
import { type RunningRegistry, startRegistry, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"

describe("Progress", { skip: whyNoRegistry }, () => {
  let folder = ""
  let reference = ""
  let registry: RunningRegistry
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/image`)
    reference = `${registry.host}/shown:1`
    push(`oci:${folder}/image:latest`, reference)
  })
  after(async () => {
    await registry?.stop()
    remove(folder)
  })

  const events = (berth: string) =>
    run(berth, Stream.runCollect(Image.pullEvents(reference))).then(Chunk.toReadonlyArray)

  test("pullEvents reports each layer as waiting, downloading, unpacking and done, then the image", async () => {
    const first = await events(`${folder}/steps`)
    const last = first.at(-1)
    assert.equal(last?._tag, "Image")
    const layers = first.filter((event) => event._tag === "Layer")
    const digests = new Set(layers.map(({ digest }) => digest))
    assert.ok(digests.size > 1)
    for (const digest of digests) {
      const steps = layers.filter((step) => step.digest === digest)
      const phases = steps.map(({ phase }) => phase).filter((phase, i, all) => phase !== all[i - 1])
      assert.deepEqual(phases, [
        "waiting",
        "downloading",
        "unpacking",
        "done"
      ] satisfies Array<Progress.Phase>)
      const bytes = steps.map((step) => step.bytes)
      assert.deepEqual(
        bytes,
        bytes.toSorted((a, b) => a - b)
      )
      assert.equal(bytes.at(-1), steps[0]!.size)
    }
    const again = await events(`${folder}/steps`)
    assert.ok(again.some((event) => event._tag === "Layer" && event.phase === "present"))
    assert.ok(again.every((event) => event._tag === "Image" || event.bytes === 0))
  })

  test('a progress listener gets the events of a pull, and "none" prints nothing', async () => {
    const told: Array<Progress.Progress> = []
    await run(
      `${folder}/told`,
      Image.pull(reference, {
        progress: (step) => {
          told.push(step)
        }
      })
    )
    assert.equal(told.at(-1)?.phase, "done")
    const error = await runError(`${folder}/told`, Image.pull(reference, { progress: "loud" as never }))
    assert.equal(error._tag, "InvalidOption")
  })

  test("ending the stream of pullEvents stops the pull, and a failed pull fails the stream", async () => {
    const berth = `${folder}/stopped`
    const some = await run(berth, Stream.runCollect(Stream.take(Image.pullEvents(reference), 1)))
    assert.equal(some.length, 1)
    assert.deepEqual(
      fs.existsSync(`${berth}/layers/sha256`) ? fs.readdirSync(`${berth}/layers/sha256`) : [],
      []
    )
    const error = await runError(berth, Stream.runDrain(Image.pullEvents(`${registry.host}/not/there:1`)))
    assert.equal(error._tag, "RegistryError")
  })

  test("a push reports its progress and the blobs that the registry already had", async () => {
    const berth = `${folder}/push`
    await run(berth, Image.pull(reference))
    const push = (to: string) =>
      run(berth, Stream.runCollect(Image.pushEvents(reference, `${registry.host}/${to}`))).then(
        Chunk.toReadonlyArray
      )
    const other = await startRegistry()
    try {
      const image = Image.pushEvents(reference, `${other.host}/pushed:1`)
      const first = Chunk.toReadonlyArray(await run(berth, Stream.runCollect(image)))
      const last = first.at(-1)
      assert.equal(last?._tag, "Pushed")
      const layers = first.filter((event) => event._tag === "Layer")
      const digests = new Set(layers.map(({ digest }) => digest))
      assert.equal(digests.size, 2)
      for (const digest of digests) {
        const steps = layers.filter((step) => step.digest === digest)
        const phases = steps.map(({ phase }) => phase).filter((phase, i, all) => phase !== all[i - 1])
        assert.deepEqual(phases, ["waiting", "uploading", "done"] satisfies Array<Progress.Phase>)
        assert.equal(steps.at(-1)!.bytes, steps[0]!.size)
      }
    } finally {
      await other.stop()
    }
    const again = (await push("shown:2")).filter((event) => event._tag === "Layer")
    assert.deepEqual([...new Set(again.map(({ phase }) => phase))], ["waiting", "present"])
    assert.ok(again.every(({ bytes }) => bytes === 0))
  })

  test("a pull draws a progress bar per layer on a terminal, and none elsewhere", {
    skip: fs.existsSync("/usr/bin/script") ? false : "script(1) is not installed"
  }, async () => {
    const { args, command } = commandOf("puller.ts", [`${folder}/bars`, reference])
    const words = [command, ...args].map((word) => `'${word}'`).join(" ")
    const shown = sh("script", "-qfec", `stty cols 100; exec ${words}`, "/dev/null")
    assert.match(shown, /█+.* MB done/)
    assert.match(shown, /pulled/)
    const child = program("puller.ts", [`${folder}/plain`, reference], { stdio: ["ignore", "pipe", "pipe"] })
    const plain = await ended(child)
    assert.deepEqual({ ...plain }, { code: 0, signal: null, stdout: "pulled\n", stderr: "" })
  })
})
