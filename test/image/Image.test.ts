import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { inspect } from "node:util"
import { gzipSync } from "node:zlib"
import * as FileSystem from "@effect/platform/FileSystem"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Layer from "effect/Layer"
import * as Berth from "../../lib/Berth.ts"
import * as Image from "../../lib/Image.ts"
import { whyNotRoot } from "../support/effect.ts"
import {
  assertImageError,
  child,
  ended,
  goArchitecture,
  makeImage,
  makeTar,
  makeTemporaryFolder,
  otherArchitecture,
  remove,
  run,
  runError,
  sh,
  sha256,
  types,
  unfinished,
  whyNoImages,
  writeBlob,
  writeImage,
  writeIndex
} from "../support/images.ts"
import { until, waitUntil } from "../support/until.ts"

/** Whether a Berth has a layer that is not completely unpacked. */
const isUnpacking = (berth: string): boolean => unfinished(berth).some((name) => name.startsWith("."))

describe("Image", () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("Image.host is this machine's root, read-only below a writable layer in memory", {
    skip: process.platform === "linux" ? false : "this is not Linux"
  }, async () => {
    const image = await Effect.runPromise(Image.host)
    assert.deepEqual(image.layers, ["/"])
    assert.equal(image.upper, "memory")
    assert.match(image.config.environment.PATH ?? "", /\/usr\/bin/)
  })

  test("Image.fromRootfs accepts a folder and a symbolic link to one", async () => {
    fs.mkdirSync(`${folder}/rootfs`)
    fs.symlinkSync("rootfs", `${folder}/link`)
    const image = await Effect.runPromise(Image.fromRootfs(`${folder}/link`))
    assert.deepEqual(image.layers, [fs.realpathSync(`${folder}/rootfs`)])
    assert.equal(image.upper, "disk")
    assert.equal((await Effect.runPromise(Image.fromRootfs("/"))).upper, "memory")
  })

  test("Image.fromRootfs refuses a path that is not a folder", async () => {
    fs.writeFileSync(`${folder}/file`, "")
    assertImageError(await Effect.runPromise(Effect.flip(Image.fromRootfs(`${folder}/absent`))), "NotFound")
    for (const path of [`${folder}/file`, "a\0b"]) {
      assert.equal((await Effect.runPromise(Effect.flip(Image.fromRootfs(path))))._tag, "InvalidOption")
    }
  })

  test("Image.scratch has no layers, an image prints itself, and isImage tells it from other values", () => {
    assert.deepEqual(Image.scratch.layers, [])
    assert.ok(Image.isImage(Image.scratch))
    assert.equal(Image.isImage({ ...Image.scratch.config }), false)
    assert.equal(inspect(Image.scratch), "Image(scratch, 0 layers)")
    assert.equal(JSON.parse(JSON.stringify(Image.scratch)).reference, "scratch")
    assert.equal(
      Image.scratch.pipe((image) => image.reference),
      "scratch"
    )
  })
})

describe("Image.fromLayout with good layouts", { skip: whyNoImages }, () => {
  let folder = ""
  let layout = ""
  before(() => {
    folder = makeTemporaryFolder()
    layout = `${folder}/layout`
    makeImage(layout, "one")
  })
  after(() => remove(folder))

  test("a layout made by umoci is unpacked, and its configuration is read", async () => {
    const image = await run(folder, Image.fromLayout(layout))
    assert.equal(image.layers.length, 2)
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
    assert.equal(fs.readlinkSync(`${image.layers[0]}/bin/sh`), "busybox")
    assert.equal(fs.statSync(`${image.layers[0]}/tmp`).mode & 0o7777, 0o1777)
    assert.deepEqual(image.config, {
      entrypoint: ["/bin/sh", "-c"],
      command: ["echo hello"],
      environment: { PATH: "/bin", GREETING: "hello=world" },
      workingDirectory: "/tmp",
      user: "app",
      stopSignal: "SIGINT",
      exposedPorts: ["8080/tcp"],
      volumes: ["/data"],
      labels: { "org.example.purpose": "test" },
      healthcheck: undefined,
      architecture: goArchitecture,
      os: "linux"
    })
    assert.equal(image.upper, "disk")
    assert.match(image.digest ?? "", /^sha256:/)
    assert.equal(image.reference, `${layout}:one`)
    assert.deepEqual(unfinished(folder), [])
  })

  test("a layout with several tags needs a tag, and the error lists them", async () => {
    const several = `${folder}/several`
    makeImage(several, "one")
    makeImage(several, "two")
    const error = await runError(folder, Image.fromLayout(several))
    assert.equal(error._tag, "InvalidOption")
    assert.ok(error.message.includes("one, two"), error.message)
    const image = await run(folder, Image.fromLayout(several, { tag: "two" }))
    assert.equal(fs.readFileSync(`${image.layers.at(-1)}/etc/motd`, "utf8"), "this is two\n")
    assertImageError(
      await runError(folder, Image.fromLayout(several, { tag: "three" })),
      "NotFound",
      "one, two"
    )
  })

  test("a digest chooses an image of a layout, with no tag beside it", async () => {
    const { digest } = await run(folder, Image.fromLayout(layout))
    const chosen = await run(folder, Image.fromLayout(layout, { digest }))
    assert.equal(chosen.reference, `${layout}@${digest}`)
    assert.equal(chosen.digest, digest)
    const both = await runError(folder, Image.fromLayout(layout, { digest, tag: "one" }))
    assert.equal(both._tag, "InvalidOption")
    const absent = `sha256:${"0".repeat(64)}`
    const error = await runError(folder, Image.fromLayout(layout, { digest: absent }))
    assertImageError(error, "NotFound", absent, "get the image again")
  })

  test("a layout copied by skopeo is unpacked", async () => {
    sh("skopeo", "copy", `oci:${layout}:one`, `oci:${folder}/copied:a`)
    const image = await run(folder, Image.fromLayout(`${folder}/copied`))
    assert.equal(image.layers.length, 2)
  })

  test("layers in gzip, zstd and without compression are unpacked", async () => {
    const mixed = `${folder}/mixed`
    const tars = ["a", "b", "c"].map((name) => makeTar({ [name]: `${name}\n` }))
    writeIndex(mixed, [
      writeImage(mixed, [
        { tar: tars[0]!, as: "tar" },
        { tar: tars[1]!, as: "gzip" },
        { tar: tars[2]!, as: "zstd" }
      ])
    ])
    const image = await run(folder, Image.fromLayout(mixed))
    assert.deepEqual(
      image.layers.map((layer) => fs.readdirSync(layer)),
      [["a"], ["b"], ["c"]]
    )
  })

  test("an image with Docker's media types is unpacked", async () => {
    const docker = `${folder}/docker`
    const tar = makeTar({ docker: "x" })
    const type = "application/vnd.docker.distribution.manifest.v2+json"
    const config = writeBlob(
      docker,
      "application/vnd.docker.container.image.v1+json",
      JSON.stringify({
        architecture: goArchitecture,
        os: "linux",
        config: { Cmd: null, Env: ["A=b"], Healthcheck: { Test: ["CMD", "true"], Interval: 3e10 } },
        rootfs: { type: "layers", diff_ids: [sha256(tar)] }
      })
    )
    const layer = writeBlob(docker, "application/vnd.docker.image.rootfs.diff.tar.gzip", gzipSync(tar))
    const manifest = { schemaVersion: 2, mediaType: type, config, layers: [layer] }
    writeIndex(docker, [writeBlob(docker, type, JSON.stringify(manifest))])
    const image = await run(folder, Image.fromLayout(docker))
    assert.deepEqual(image.config.environment, { A: "b" })
    assert.equal(String(image.config.healthcheck?.interval), "Duration(30s)")
    assert.deepEqual(fs.readdirSync(image.layers[0]!), ["docker"])
  })

  test("this machine's platform is selected in an index of indexes", async () => {
    const nested = `${folder}/nested`
    const here = writeImage(nested, [{ tar: makeTar({ here: "" }) }])
    const other = writeImage(nested, [{ tar: makeTar({ other: "" }) }], {
      config: { architecture: otherArchitecture }
    })
    const inner = writeBlob(
      nested,
      types.index,
      JSON.stringify({
        schemaVersion: 2,
        manifests: [
          { ...other, platform: { os: "linux", architecture: otherArchitecture } },
          { ...here, platform: { os: "linux", architecture: goArchitecture } },
          { ...here, platform: { os: "unknown", architecture: "unknown" } }
        ]
      })
    )
    writeIndex(nested, [inner])
    const image = await run(folder, Image.fromLayout(nested))
    assert.deepEqual(fs.readdirSync(image.layers[0]!), ["here"])
    assert.equal(image.digest, here.digest)
    const asked = await run(folder, Image.fromLayout(nested, { platform: `linux/${otherArchitecture}` }))
    assert.deepEqual(fs.readdirSync(asked.layers[0]!), ["other"])
    const error = await runError(folder, Image.fromLayout(nested, { platform: "linux/s390x" }))
    assertImageError(
      error,
      "Platform",
      "linux/s390x",
      `linux/${goArchitecture}`,
      `linux/${otherArchitecture}`
    )
    assert.ok(!error.message.includes("unknown"), error.message)
  })

  test("a layer is unpacked once for many fibers and images", async () => {
    const shared = `${folder}/shared`
    const berth = `${folder}/berth`
    const tar = makeTar({ shared: "x".repeat(1000) })
    writeIndex(shared, [writeImage(shared, [{ tar }])])
    const images = await run(
      berth,
      Effect.all(
        Array.from({ length: 10 }, () => Image.fromLayout(shared)),
        { concurrency: "unbounded" }
      )
    )
    assert.equal(new Set(images.map((image) => image.layers[0])).size, 1)
    const { ino } = fs.statSync(images[0]!.layers[0]!)
    const again = await run(berth, Image.fromLayout(shared))
    assert.equal(fs.statSync(again.layers[0]!).ino, ino)
  })

  test("a layer that occurs twice is stacked once, at its highest place", async () => {
    const twice = `${folder}/twice`
    const [a, b] = [makeTar({ a: "" }), makeTar({ b: "" })]
    writeIndex(twice, [writeImage(twice, [{ tar: a! }, { tar: b! }, { tar: a! }])])
    const image = await run(folder, Image.fromLayout(twice))
    assert.deepEqual(
      image.layers.map((layer) => fs.readdirSync(layer)),
      [["b"], ["a"]]
    )
  })

  /** A layout with a layer whose unpacking takes a while. */
  const makeLarge = (): string => {
    const large = `${folder}/large`
    if (!fs.existsSync(large)) {
      const files = Array.from({ length: 2000 }, (_, i) => [`d/${i}`, `${i}`.repeat(500)])
      writeIndex(large, [writeImage(large, [{ tar: makeTar(Object.fromEntries(files)), as: "tar" }])])
    }
    return large
  }

  test("a folder without an entry in a higher layer keeps the metadata from the lower one", {
    skip: whyNotRoot
  }, async () => {
    const implicit = `${folder}/implicit`
    const [lower, upper] = [`${folder}/lower`, `${folder}/upper`]
    fs.mkdirSync(`${lower}/tmp/deep/private`, { recursive: true })
    fs.mkdirSync(`${lower}/plain`)
    fs.chmodSync(`${lower}/tmp`, 0o1777)
    fs.chmodSync(`${lower}/tmp/deep/private`, 0o700)
    fs.mkdirSync(`${upper}/tmp/deep/private`, { recursive: true })
    fs.mkdirSync(`${upper}/plain`)
    for (const name of ["tmp/file", "tmp/deep/private/file", "plain/file"]) {
      fs.writeFileSync(`${upper}/${name}`, "")
    }
    const tars = [
      execFileSync("tar", ["-C", lower, "-c", "tmp", "plain"]),
      execFileSync("tar", ["-C", upper, "-c", "tmp/file", "tmp/deep/private/file", "plain/file"])
    ]
    writeIndex(implicit, [writeImage(implicit, [{ tar: tars[0]! }, { tar: tars[1]! }])])
    const image = await run(folder, Image.fromLayout(implicit))
    assert.equal(image.layers.length, 3)
    const mode = (path: string) => fs.statSync(`${image.layers[2]}/${path}`).mode & 0o7777
    assert.deepEqual([mode("tmp"), mode("tmp/deep"), mode("tmp/deep/private")], [0o1777, 0o755, 0o700])
    assert.equal(fs.existsSync(`${image.layers[2]}/plain`), false)
    assert.deepEqual((await run(folder, Image.fromLayout(implicit))).layers, image.layers)
    assert.deepEqual(
      fs.readdirSync(`${folder}/layers/folders`).filter((name) => name.startsWith(".")),
      []
    )
    const alone = `${folder}/implicit-alone`
    writeIndex(alone, [writeImage(alone, [{ tar: tars[1]! }])])
    assert.equal((await run(folder, Image.fromLayout(alone))).layers.length, 1)
  })

  test("an interrupted unpack leaves nothing, and a later unpack removes folders of dead processes", {
    timeout: 60_000
  }, async () => {
    const berth = `${folder}/interrupted`
    const large = `${folder}/large`
    const files = Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`d/${i}`, `${i}`.repeat(500)]))
    writeIndex(large, [writeImage(large, [{ tar: makeTar(files), as: "tar" }])])
    await run(
      berth,
      Effect.gen(function* () {
        const fiber = yield* Effect.fork(Image.fromLayout(large))
        yield* waitUntil("the begin of the unpack", () => isUnpacking(berth))
        yield* Fiber.interrupt(fiber)
      })
    )
    assert.deepEqual(fs.readdirSync(`${berth}/layers/sha256`), [])
    const dead = `${berth}/layers/sha256/.${"0".repeat(64)}.dead`
    fs.mkdirSync(`${dead}/d`, { recursive: true })
    fs.chmodSync(dead, 0o555)
    const image = await run(berth, Image.fromLayout(large))
    assert.equal(fs.readdirSync(`${image.layers[0]}/d`).length, 2000)
    assert.deepEqual(fs.readdirSync(`${berth}/layers/sha256`).length, 1)
  })

  test("an unpack that is interrupted while it takes a layer's lock leaves nothing", async () => {
    const berth = `${folder}/locking`
    const opened = Effect.runSync(Deferred.make<void>())
    const interrupting = Effect.runSync(Deferred.make<void>())
    const slow = Layer.map(NodeFileSystem.layer, (context) => {
      const real = Context.get(context, FileSystem.FileSystem)
      const open: typeof real.open = (path, options) =>
        Effect.tap(real.open(path, options), () =>
          path.endsWith(".lock")
            ? Effect.zipRight(Deferred.succeed(opened, undefined), Deferred.await(interrupting))
            : Effect.void
        )
      return Context.make(FileSystem.FileSystem, { ...real, open })
    })
    const small = `${folder}/small`
    writeIndex(small, [writeImage(small, [{ tar: makeTar({ a: "a" }), as: "tar" }])])
    const interrupted = Effect.gen(function* () {
      const fiber = yield* Effect.fork(Image.fromLayout(small))
      yield* Deferred.await(opened)
      yield* Fiber.interruptAsFork(fiber, FiberId.none)
      yield* Deferred.succeed(interrupting, undefined)
      yield* Fiber.await(fiber)
    })
    const layer = Layer.provide(Berth.layerWith({ folder: berth }), slow)
    await Effect.runPromise(Effect.provide(interrupted, layer))
    assert.deepEqual(fs.readdirSync(`${berth}/layers/sha256`), [])
  })

  test("an unpack whose process is killed leaves nothing, and two processes share one unpack", {
    timeout: 60_000
  }, async () => {
    const berth = `${folder}/killed`
    const large = makeLarge()
    const first = child("unpack", berth, large)
    const end = ended(first)
    await until("the begin of the unpack", () => isUnpacking(berth))
    first.kill("SIGKILL")
    await end
    await until("the supervisor's removal of the layer", () => !isUnpacking(berth))
    assert.deepEqual(
      fs.readdirSync(`${berth}/layers/sha256`).filter((name) => !name.endsWith(".lock")),
      []
    )
    const second = child("unpack", berth, large)
    const secondEnd = ended(second)
    const image = await run(berth, Image.fromLayout(large))
    assert.equal(fs.readdirSync(`${image.layers[0]}/d`).length, 2000)
    assert.equal(await secondEnd, 0)
    assert.deepEqual(unfinished(berth), [])
  })
})
