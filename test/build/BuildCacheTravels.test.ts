import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import { type Berth, Build, Container, Image } from "../../lib/index.ts"
import { allowTime, remove, whyNoContainers } from "../support/effect.ts"
import { makeTemporaryFolder, run, runError } from "../support/images.ts"
import { startRegistry, whyNoServer } from "../support/registry.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

allowTime()

describe("the cache of a Build in another place", { skip: whyNoContainers || whyNoBusybox }, () => {
  let folder = ""
  before(() => {
    if (whyNoContainers !== false || whyNoBusybox !== false) return
    folder = makeTemporaryFolder()
    makeRoot(`${folder}/root`)
    fs.mkdirSync(`${folder}/context`)
    fs.writeFileSync(`${folder}/context/file`, "copied\n")
  })
  after(() => remove(folder))

  /** What two stages and the steps after them give, and the texts of the steps that ran. */
  const built = (options: Build.ImageOptions, comment = "one") =>
    Effect.gen(function* () {
      const base = Build.from(yield* Image.import(`${folder}/root`))
      const stage = base.pipe(
        Build.run(`: ${comment}; mkdir /out; echo made > /out/made; ln /out/made /out/other; rm /bin/sleep`)
      )
      const app = base.pipe(
        Build.workdir("/app"),
        Build.copy({ from: Build.local(`${folder}/context`), paths: ["file"] }),
        Build.copy({ from: stage, paths: ["/out/made"], to: "/app/made" }),
        Build.run("rm -r /etc; mkdir /etc; chown 5:6 file; cat file made > all")
      )
      const ran: Array<string> = []
      const from = new Set<string | undefined>()
      const image = yield* Build.image(app, {
        ...options,
        onEvent: (event) => {
          if (event._tag === "Done") ran.push(event.text)
          if (event._tag === "Cached") from.add(event.from)
        }
      })
      const command = "cat /app/all; stat -c %u:%g /app/file; ls /etc; ls /bin/sleep"
      const { stdout } = yield* Container.run(image, { command: ["sh", "-c", command] })
      return { digest: image.digest, ran, from: [...from], stdout }
    })

  const expected = "copied\nmade\n5:6\n"

  let stores = 0
  /** Runs an effect in a Berth with an empty store. */
  const elsewhere = <A, E>(effect: Effect.Effect<A, E, Berth.Berth>): Promise<A> =>
    run(`${folder}/store-${stores++}`, effect)

  /** What every place has to do. */
  const travels = async (place: Build.CachePlace, name: string) => {
    const created = new Date(1_700_000_000_000)
    const first = await elsewhere(built({ cacheFrom: place, cacheTo: place, tag: "team/app:1", created }))
    assert.deepEqual([first.ran.length, first.from], [5, []])
    assert.ok(first.stdout.startsWith(expected), first.stdout)

    const second = await elsewhere(built({ cacheFrom: place, tag: "team/app:1", created }))
    assert.deepEqual(second, { ...first, ran: [], from: [name] })

    // The stage is another one, and its file the same.
    const third = await elsewhere(built({ cacheFrom: [place] }, "two"))
    assert.deepEqual(
      third.ran.map((text) => text.slice(0, 10)),
      ["RUN : two;"]
    )
    assert.equal(third.stdout, first.stdout)
  }

  test("a folder has the layers for other stores", () =>
    travels({ folder: `${folder}/cache` }, `${folder}/cache`))

  test("a cache that is written from a store that has all steps is whole", async () => {
    const store = `${folder}/store-whole`
    const place = { folder: `${folder}/whole` }
    await run(store, built({}))
    assert.deepEqual((await run(store, built({ cacheTo: place }))).ran, [])
    assert.deepEqual((await elsewhere(built({ cacheFrom: place }))).ran, [])
  })

  test("what is not needed any more leaves the folder", async () => {
    const place = { folder: `${folder}/shrinking` }
    const blobs = () => fs.readdirSync(`${place.folder}/blobs/sha256`)
    await elsewhere(built({ cacheTo: place }))
    const before = blobs()
    await elsewhere(
      Effect.gen(function* () {
        const base = Build.from(yield* Image.import(`${folder}/root`))
        yield* Build.image(Build.run(base, "echo > /other"), { cacheTo: place })
      })
    )
    assert.equal(blobs().length, 3)
    assert.deepEqual(
      blobs().filter((blob) => before.includes(blob)),
      []
    )
  })

  test("a registry has the layers for other stores", { skip: whyNoServer }, async () => {
    const registry = await startRegistry()
    try {
      const reference = `${registry.host}/team/cache:main`
      await travels(reference, reference)
    } finally {
      await registry.stop()
    }
  })

  test("a cache that was changed is not used, and the steps run", async () => {
    const place = { folder: `${folder}/changed` }
    const first = await elsewhere(built({ cacheTo: place }))
    const blobs = `${place.folder}/blobs/sha256`
    for (const name of fs.readdirSync(blobs)) {
      const bytes = fs.readFileSync(`${blobs}/${name}`)
      // The documents stay; the layers get other bytes of the same length.
      if (bytes[0] === 0x1f) fs.writeFileSync(`${blobs}/${name}`, bytes.fill(0x41, 20, bytes.length - 8))
    }
    const second = await elsewhere(built({ cacheFrom: place }))
    assert.deepEqual([second.ran.length, second.stdout], [5, first.stdout])
    fs.writeFileSync(`${place.folder}/index.json`, "{")
    const third = await elsewhere(built({ cacheFrom: place }))
    assert.equal(third.ran.length, 5)
  })

  test("a cache of another image below is not used", async () => {
    const place = { folder: `${folder}/below` }
    await elsewhere(built({ cacheTo: place }))
    fs.writeFileSync(`${folder}/root/etc/changed`, "")
    const { ran } = await elsewhere(built({ cacheFrom: place }))
    assert.equal(ran.length, 5)
  })

  test("a place that cannot be one is an error before the build", async () => {
    const failed = async (options: Build.ImageOptions) => {
      const onEvent = (event: Build.BuildEvent) => assert.fail(`there is an event: ${event._tag}`)
      const build = Effect.flatMap(Image.import(`${folder}/root`), (base) =>
        Build.image(Build.run(Build.from(base), "true"), { ...options, onEvent })
      )
      const error = await runError(`${folder}/store-errors`, build)
      return `${error._tag}: ${error.message}`
    }
    assert.match(await failed({ cacheFrom: "Not A Name" }), /^InvalidData: .*Not A Name/)
    assert.match(await failed({ cacheTo: { folder: "" } }), /^InvalidOption: .*cacheTo/)
    const [layout, files] = [`${folder}/layout`, `${folder}/files`]
    fs.mkdirSync(`${layout}/blobs/sha256`, { recursive: true })
    fs.writeFileSync(`${layout}/oci-layout`, `{"imageLayoutVersion":"1.0.0"}`)
    const entry = { mediaType: "application/x", digest: `sha256:${"0".repeat(64)}`, size: 1 }
    fs.writeFileSync(`${layout}/index.json`, JSON.stringify({ schemaVersion: 2, manifests: [entry] }))
    fs.mkdirSync(files)
    fs.writeFileSync(`${files}/mine`, "mine")
    for (const folder of [layout, files]) {
      assert.match(
        await failed({ cacheTo: { folder } }),
        /^InvalidOption: .*cacheTo.*a folder that is empty/s
      )
    }
    assert.deepEqual(fs.readdirSync(layout).sort(), ["blobs", "index.json", "oci-layout"])
    assert.deepEqual(fs.readdirSync(files), ["mine"])
  })
})
