import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as zlib from "node:zlib"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container, Image, Store } from "../../lib/index.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import {
  assertFails,
  assertRuns,
  configOf,
  documents,
  elsewhere,
  names,
  scratch,
  whyNoZstd
} from "../support/imageArchive.ts"
import {
  blobFile,
  makeImage,
  makeRootfs,
  makeTar,
  sh,
  sha256,
  whyNoImages,
  writeImage,
  writeIndex,
  zstd
} from "../support/images.ts"
import * as tar from "../support/tar.ts"
import { waitUntil } from "../support/until.ts"

suite("Image.load", (effect) => {
  const options = { skip: whyNoImages }

  effect(
    "a docker-archive made by skopeo loads under its name and runs",
    function* () {
      const folder = yield* scratch
      makeImage(`${folder}/layout`, "one")
      const archive = `${folder}/one.tar`
      sh("skopeo", "copy", `oci:${folder}/layout:one`, `docker-archive:${archive}:example/one:1`)
      const [image, ...others] = yield* Image.load(archive)
      assert.deepEqual(others, [])
      assert.equal(image.reference, "docker.io/example/one:1")
      assert.equal((yield* Store.resolve("docker.io/example/one:1")).digest, image.digest)
      yield* assertRuns(image, "one")
      const [again] = yield* Image.load(archive, { tag: "example/one:1" })
      assert.deepEqual(again.layers, image.layers)
      // The image's id is the digest of its config, which has not changed.
      const { config } = JSON.parse(new TextDecoder().decode(yield* Store.read(image.digest as never)))
      assert.equal(config.digest, `sha256:${sh("tar", "-tf", archive).match(/[0-9a-f]{64}(?=\.json)/)?.[0]}`)
    },
    options
  )

  effect(
    "an image built by buildah runs, from a docker-archive and from an OCI layout",
    function* () {
      const folder = yield* scratch
      const stores = ["--storage-driver", "vfs", "--root", `${folder}/store`, "--runroot", `${folder}/run`]
      const buildah = (...args: ReadonlyArray<string>) => sh("buildah", ...stores, ...args).trim()
      makeRootfs(`${folder}/root`)
      const working = buildah("from", "scratch")
      buildah("copy", "--quiet", working, `${folder}/root`, "/")
      buildah("config", "--env", "BY=buildah", "--cmd", JSON.stringify(["sh", "-c", "echo $BY"]), working)
      const archive = `${folder}/it.tar`
      buildah("commit", "--quiet", "--format", "docker", working, `docker-archive:${archive}:example/it:1`)
      buildah("commit", "--quiet", working, `oci:${folder}/layout:it`)
      for (const image of [
        (yield* Image.load(archive))[0],
        yield* Image.fromLayout(`${folder}/layout`, { tag: "it" })
      ]) {
        const { exitCode, stderr, stdout } = yield* Container.run(image)
        assert.deepEqual([exitCode, stdout, stderr], [0, "buildah\n", ""])
      }
    },
    { skip: whyNoImages || (fs.existsSync("/usr/bin/buildah") ? false : "no buildah on this machine") }
  )

  effect(
    "an oci-archive made by skopeo loads and runs",
    function* () {
      const folder = yield* scratch
      makeImage(`${folder}/layout`, "two")
      sh("skopeo", "copy", `oci:${folder}/layout:two`, `oci-archive:${folder}/two.tar:registry.test/two:2`)
      const [image] = yield* Image.load(`${folder}/two.tar`)
      assert.equal(image.reference, "registry.test/two:2")
      yield* assertRuns(image, "two")
    },
    options
  )

  effect(
    "an archive loads from gzip, and from a stream with chunks of any size",
    function* () {
      const folder = yield* scratch
      makeImage(`${folder}/layout`, "packed")
      sh("skopeo", "copy", `oci:${folder}/layout:packed`, `docker-archive:${folder}/a.tar:packed:1`)
      const plain = fs.readFileSync(`${folder}/a.tar`)
      const packed = zlib.gzipSync(plain, { level: 1 })
      fs.writeFileSync(`${folder}/a.tar.gz`, packed)
      const [expected] = yield* Image.load(`${folder}/a.tar`)
      const parts = (bytes: Uint8Array) =>
        Stream.fromIterable(
          (function* () {
            for (let at = 0; at < bytes.length; at += 99_991) yield bytes.subarray(at, at + 99_991)
          })()
        )
      for (const source of [`${folder}/a.tar.gz`, parts(packed), parts(plain)]) {
        const [image] = yield* elsewhere(folder, Image.load(source))
        assert.equal(image.digest, expected.digest)
      }
      assert.deepEqual(fs.readdirSync(`${yield* Store.folder}/.partial`), [])
    },
    options
  )

  effect(
    "an archive in zstd loads, or is refused with a message that says what to do",
    function* () {
      const folder = yield* scratch
      const layer = makeTar({ a: "zstd" })
      const config = configOf([layer])
      fs.writeFileSync(
        `${folder}/a.tar.zst`,
        zstd(tar.tar(tar.file("l.tar", layer), ...documents(config, ["l.tar"])))
      )
      const load = elsewhere(folder, Image.load(`${folder}/a.tar.zst`))
      if (whyNoZstd === false) yield* load
      else assert.match((yield* failure("ImageError", load)).message, /zstd -d/)
    },
    options
  )

  effect("an archive with several images loads all of them, or the one selected by a tag", function* () {
    const folder = yield* scratch
    const layers = ["a", "b"].map((name) => makeTar({ [name]: name }))
    const layout = `${folder}/layout`
    const entries = layers.map((layer, i) => ({
      ...writeImage(layout, [{ tar: layer }]),
      annotations: { "org.opencontainers.image.ref.name": ["first", "registry.test/second:2"][i] }
    }))
    writeIndex(layout, entries)
    sh("tar", "-C", layout, "-cf", `${folder}/oci.tar`, ".")
    const both = yield* elsewhere(
      folder,
      Effect.gen(function* () {
        const images = yield* Image.load(`${folder}/oci.tar`)
        assert.deepEqual(yield* names, ["first", "registry.test/second:2"])
        return images
      })
    )
    assert.deepEqual(
      both.map(({ digest }) => digest),
      entries.map(({ digest }) => digest)
    )
    yield* elsewhere(
      folder,
      Effect.gen(function* () {
        const [image, ...others] = yield* Image.load(`${folder}/oci.tar`, { tag: "registry.test/second:2" })
        assert.deepEqual([image.digest, others.length], [entries[1]?.digest, 0])
        assert.deepEqual(yield* names, ["registry.test/second:2"])
      })
    )
    yield* assertFails(
      "NotFound",
      Image.load(`${folder}/oci.tar`, { tag: "third" }),
      "first, registry.test/second:2"
    )

    const [one, two] = layers.map((layer, i) => documents(configOf([layer]), [`${i}/layer.tar`], null))
    const manifests = JSON.stringify(
      [one, two].flatMap((written, i) => {
        const parsed = JSON.parse(new TextDecoder().decode(written![1]!.subarray(512)).replace(/\0+$/, ""))
        return [{ ...parsed[0], RepoTags: i === 0 ? ["one:1", "one:latest"] : null }]
      })
    )
    fs.writeFileSync(
      `${folder}/docker.tar`,
      tar.tar(
        tar.folder("0"),
        tar.file("0/layer.tar", layers[0]),
        tar.file("1/layer.tar", layers[1]),
        one![0]!,
        two![0]!,
        tar.file("manifest.json", manifests),
        tar.file("repositories", "{}"),
        tar.file("0/VERSION", "1.0")
      )
    )
    yield* elsewhere(
      folder,
      Effect.gen(function* () {
        const images = yield* Image.load(`${folder}/docker.tar`)
        assert.equal(images.length, 2)
        assert.equal(images[1]?.reference, images[1]?.digest)
        const expected = ["docker.io/library/one:1", "docker.io/library/one:latest", images[1]?.digest]
        assert.deepEqual(yield* names, expected)
      })
    )
  })

  effect("the names of an archive appear in the store all at once, or not at all", function* () {
    const folder = yield* scratch
    const layout = `${folder}/layout`
    const names = ["a", "b", "c"]
    writeIndex(
      layout,
      names.map((name) => ({
        ...writeImage(layout, [{ tar: makeTar({ name }) }]),
        annotations: { "org.opencontainers.image.ref.name": name }
      }))
    )
    sh("tar", "-C", layout, "-cf", `${folder}/oci.tar`, ".")
    yield* elsewhere(
      folder,
      Effect.gen(function* () {
        yield* Image.load(`${folder}/oci.tar`, { tag: "a" })
        const index = `${yield* Store.folder}/index.json`
        const before = JSON.parse(fs.readFileSync(index, "utf8"))
        // The index has room for one more name, and not for two: its limit is 4 MiB.
        const padding = "x".repeat(4 * 1024 * 1024 - JSON.stringify(before).length - 400)
        fs.writeFileSync(index, JSON.stringify({ ...before, annotations: { padding } }))
        const full = fs.readFileSync(index)
        const error = yield* failure("ImageError", Image.load(`${folder}/oci.tar`))
        assert.equal(error.reason, "TooLarge")
        assert.ok(full.equals(fs.readFileSync(index)))
        yield* Image.load(`${folder}/oci.tar`, { tag: "b" })
        assert.deepEqual((yield* Store.list).map(({ name }) => name).sort(), ["a", "b"])
      })
    )
  })

  effect("an archive with layers as links, as docker writes them, or in gzip loads", function* () {
    const folder = yield* scratch
    const [a, b] = [makeTar({ a: "a" }), makeTar({ b: "b" })]
    const config = configOf([a, a, b, b])
    const paths = ["x/layer.tar", "y/layer.tar", "z.tar", "b.tar.gz"]
    fs.writeFileSync(
      `${folder}/a.tar`,
      tar.tar(
        tar.file("./x/layer.tar", a),
        tar.symlink("y/layer.tar", "../x/layer.tar"),
        tar.hardlink("z.tar", "b.tar.gz"),
        tar.file("b.tar.gz", zlib.gzipSync(b)),
        ...documents(config, paths)
      )
    )
    const [image] = yield* elsewhere(folder, Image.load(`${folder}/a.tar`))
    assert.deepEqual(
      image.layers.map((layer) => fs.readdirSync(layer)),
      [["a"], ["b"]]
    )
  })

  effect("an archive of docker 25 and later is read as an OCI layout", function* () {
    const folder = yield* scratch
    const layer = makeTar({ new: "new" })
    const layout = `${folder}/layout`
    const entry = writeImage(layout, [{ tar: layer }])
    const annotations = {
      "io.containerd.image.name": "docker.io/library/new:3",
      "org.opencontainers.image.ref.name": "3"
    }
    writeIndex(layout, [{ ...entry, annotations }])
    fs.writeFileSync(`${layout}/manifest.json`, '[{"Config":"../../etc/passwd","Layers":[]}]')
    sh("tar", "-C", layout, "-cf", `${folder}/new.tar`, "blobs", "index.json", "manifest.json", "oci-layout")
    const [image] = yield* Image.load(`${folder}/new.tar`, { tag: "new:3" })
    assert.deepEqual([image.reference, image.digest], ["docker.io/library/new:3", entry.digest])
  })

  effect("a corrupt blob in the store is repaired by loading the archive again", function* () {
    const folder = yield* scratch
    const layer = makeTar({ rotten: "x" })
    fs.writeFileSync(`${folder}/a.tar`, tar.tar(tar.file("l", layer), ...documents(configOf([layer]), ["l"])))
    const berth = `${folder}/berth`
    const load = Effect.provide(Effect.zip(Image.load(`${folder}/a.tar`), Store.folder), berthIn(berth))
    const [[image], store] = yield* load
    fs.writeFileSync(blobFile(store, sha256(layer)), new Uint8Array(layer.length))
    fs.rmSync(`${berth}/layers`, { recursive: true })
    const [[again]] = yield* load
    assert.deepEqual([again.layers, fs.readdirSync(image.layers[0]!)], [image.layers, ["rotten"]])
  })

  effect("an interrupted load leaves no partial blob", function* () {
    const partial = `${yield* Store.folder}/.partial`
    const endless = Stream.concat(Stream.make(new Uint8Array(1000).fill(1)), Stream.never)
    const fiber = yield* Effect.fork(Image.load(endless))
    yield* waitUntil("a partial blob", () => fs.existsSync(partial) && fs.readdirSync(partial).length > 0)
    yield* Fiber.interrupt(fiber)
    assert.deepEqual(fs.readdirSync(partial), [])
  })
})
