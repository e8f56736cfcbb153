import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { inspect } from "node:util"
import { gzipSync } from "node:zlib"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { BerthError, ImageError } from "../lib/BerthError.ts"
import * as Image from "../lib/Image.ts"
import { whyNotRoot } from "./support/effect.ts"
import {
  blobFile,
  child,
  ended,
  goArchitecture,
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
} from "./support/images.ts"

const assertImageError = (
  error: BerthError,
  reason: ImageError["reason"],
  ...mentions: ReadonlyArray<string>
): void => {
  assert.equal(error._tag, "ImageError", error.message)
  assert.equal((error as ImageError).reason, reason, error.message)
  for (const mention of mentions) {
    assert.ok(error.message.includes(mention), `${error.message} does not mention ${mention}`)
  }
}

const otherArchitecture = goArchitecture === "arm64" ? "amd64" : "arm64"

/** Folders of layers that are not whole, and locks that somebody holds. */
const unfinished = (berth: string): ReadonlyArray<string> =>
  fs.existsSync(`${berth}/layers/sha256`)
    ? fs.readdirSync(`${berth}/layers/sha256`).filter((name) => !/^[0-9a-f]{64}(\.implicit)?$/.test(name))
    : []

describe("Image", () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("host is this machine's root, read-only under memory", {
    skip: process.platform === "linux" ? false : "this is not Linux"
  }, async () => {
    const image = await Effect.runPromise(Image.host)
    assert.deepEqual(image.layers, ["/"])
    assert.equal(image.upper, "memory")
    assert.match(image.config.environment.PATH ?? "", /\/usr\/bin/)
  })

  test("fromRootfs takes a folder, through links", async () => {
    fs.mkdirSync(`${folder}/rootfs`)
    fs.symlinkSync("rootfs", `${folder}/link`)
    const image = await Effect.runPromise(Image.fromRootfs(`${folder}/link`))
    assert.deepEqual(image.layers, [fs.realpathSync(`${folder}/rootfs`)])
    assert.equal(image.upper, "disk")
    assert.equal((await Effect.runPromise(Image.fromRootfs("/"))).upper, "memory")
  })

  test("fromRootfs refuses what is no folder", async () => {
    fs.writeFileSync(`${folder}/file`, "")
    assertImageError(await Effect.runPromise(Effect.flip(Image.fromRootfs(`${folder}/absent`))), "NotFound")
    for (const path of [`${folder}/file`, "a\0b"]) {
      assert.equal((await Effect.runPromise(Effect.flip(Image.fromRootfs(path))))._tag, "InvalidOption")
    }
  })

  test("scratch is empty, and images print and are told from other things", () => {
    assert.deepEqual(Image.scratch.layers, [])
    assert.ok(Image.isImage(Image.scratch))
    assert.equal(Image.isImage({ ...Image.scratch.config }), false)
    assert.match(inspect(Image.scratch), /berth\/Image/)
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

  test("unpacks what umoci has made, and reads its configuration", async () => {
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

  test("wants a tag where there are several, and lists them", async () => {
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

  test("reads what skopeo has copied", async () => {
    sh("skopeo", "copy", `oci:${layout}:one`, `oci:${folder}/copied:a`)
    const image = await run(folder, Image.fromLayout(`${folder}/copied`))
    assert.equal(image.layers.length, 2)
  })

  test("unpacks gzip, zstd and uncompressed layers", async () => {
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

  test("takes docker's media types", async () => {
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

  test("selects this machine's platform in an index of indexes", async () => {
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

  test("unpacks a layer once, for many fibers and images", async () => {
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

  test("gives a folder that occurs twice once, at its highest place", async () => {
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

  test("keeps what a lower layer says of a folder that a higher one has no entry for", {
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

  test("leaves nothing when it is interrupted, and what the dead have left is removed", {
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
        while (!unfinished(berth).some((name) => name.startsWith("."))) {
          yield* Effect.sleep(1)
        }
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

  test("leaves nothing when its process is killed, and a second process shares what a first unpacks", {
    timeout: 60_000
  }, async () => {
    const berth = `${folder}/killed`
    const large = makeLarge()
    const first = child("unpack", berth, large)
    const end = ended(first)
    const until = async (condition: () => boolean) => {
      while (!condition()) {
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
    }
    await until(() => unfinished(berth).some((name) => name.startsWith(".")))
    first.kill("SIGKILL")
    await end
    // The supervisor outlives it by the time that this takes.
    await until(() => !unfinished(berth).some((name) => name.startsWith(".")))
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

describe("Image.fromLayout with bad layers", { skip: whyNoImages }, () => {
  let folder = ""
  let count = 0
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  const layoutWith = (...image: Parameters<typeof writeImage> extends [string, ...infer R] ? R : never) => {
    const layout = `${folder}/layout-${count++}`
    const descriptor = writeImage(layout, ...image)
    writeIndex(layout, [descriptor])
    const manifest = JSON.parse(fs.readFileSync(blobFile(layout, descriptor.digest), "utf8"))
    return { layout, layer: manifest.layers[0]?.digest as string }
  }

  const fails = async (layout: string, options?: Image.FromLayoutOptions) => {
    const error = await runError(folder, Image.fromLayout(layout, options))
    assert.deepEqual(unfinished(folder), [])
    return error
  }

  test("names the layer whose blob is missing", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ missing: "1" }) }])
    fs.rmSync(blobFile(layout, layer))
    assertImageError(await fails(layout), "NotFound", layer)
  })

  test("says what size a layer should have, and has", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ size: "1" }) }])
    fs.appendFileSync(blobFile(layout, layer), "x")
    assertImageError(await fails(layout), "DigestMismatch", layer, "bytes")
  })

  test("names both digests where a layer has another", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ digest: "1" }), as: "tar" }])
    const bytes = fs.readFileSync(blobFile(layout, layer))
    bytes[bytes.indexOf("digest")] = "D".charCodeAt(0)
    // The checksum of that tar header, too.
    const sum = bytes
      .subarray(0, 512)
      .reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0)
    bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
    fs.writeFileSync(blobFile(layout, layer), bytes)
    assertImageError(await fails(layout), "DigestMismatch", layer, sha256(bytes))
  })

  test("names both diff ids where the config has another", async () => {
    const tar = makeTar({ diffId: "1" })
    const wrong = `sha256:${"1".repeat(64)}`
    const { layout } = layoutWith([{ tar }], { diffIds: [wrong] })
    assertImageError(await fails(layout), "DigestMismatch", wrong, sha256(tar))
  })

  test("refuses truncated gzip", async () => {
    const gzip = gzipSync(makeTar({ truncated: "1".repeat(1000) }))
    const { layout } = layoutWith([{ tar: gzip.subarray(0, gzip.length - 20), as: "tar", type: types.gzip }])
    assertImageError(await fails(layout), "Corrupt")
  })

  test("refuses what is not gzip", async () => {
    const { layout } = layoutWith([{ tar: makeTar({ a: "not gzip" }), as: "tar", type: types.gzip }])
    assertImageError(await fails(layout), "Corrupt")
  })

  test("refuses a member that leaves its folder", async () => {
    const tar = Buffer.from(makeTar({ "aa-escape": "1" }))
    const at = tar.indexOf("aa-escape")
    tar.write("../escape", at)
    const sum = tar.subarray(0, 512).reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0)
    tar.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
    const { layout } = layoutWith([{ tar }])
    assertImageError(await fails(layout), "Escape", "../escape")
    assert.equal(fs.existsSync(`${folder}/layers/sha256/escape`), false)
  })

  test("refuses more bytes and more members than allowed", async () => {
    const { layout } = layoutWith([{ tar: makeTar({ a: "1".repeat(100_000), b: "", c: "" }) }])
    assertImageError(await fails(layout, { maxBytes: 50_000 }), "TooLarge")
    assertImageError(await fails(layout, { maxEntries: 2 }), "TooLarge")
  })

  test("refuses layers that are not distributable, and types that it does not know", async () => {
    const tar = makeTar({ foreign: "" })
    for (const type of [
      "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
      "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
      "application/vnd.oci.image.layer.v1.tar+lzma"
    ]) {
      const { layout } = layoutWith([{ tar, type }])
      assertImageError(await fails(layout), "Unsupported", type)
    }
  })
})

describe("Image.fromLayout with bad documents", { skip: whyNoImages }, () => {
  let folder = ""
  let count = 0
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  const fails = async (write: (layout: string) => unknown, options?: Image.FromLayoutOptions) => {
    const layout = `${folder}/layout-${count++}`
    fs.mkdirSync(layout)
    const descriptor = write(layout)
    if (descriptor !== undefined) {
      writeIndex(layout, [descriptor])
    }
    return runError(folder, Image.fromLayout(layout, options))
  }

  test("says that there is no such folder, or no layout in it", async () => {
    assertImageError(await runError(folder, Image.fromLayout(`${folder}/absent`)), "NotFound")
    assertImageError(await fails(() => undefined), "NotFound", "oci-layout")
  })

  test("refuses a layout of another version", async () => {
    const error = await fails((layout) => {
      writeIndex(layout, [])
      fs.writeFileSync(`${layout}/oci-layout`, '{"imageLayoutVersion":"2.0.0"}')
    })
    assertImageError(error, "Corrupt", "imageLayoutVersion")
  })

  test("refuses a manifest that is not JSON", async () => {
    assertImageError(
      await fails((layout) => writeBlob(layout, types.manifest, "<html>")),
      "Corrupt",
      "not JSON"
    )
  })

  test("refuses a manifest that is JSON, but no manifest", async () => {
    for (const text of ["null", "[]", "3", "{}", '{"schemaVersion":2,"config":3,"layers":[]}']) {
      assertImageError(await fails((layout) => writeBlob(layout, types.manifest, text)), "Corrupt")
    }
  })

  test("refuses deeply nested JSON", async () => {
    const text = "[".repeat(1_000_000)
    assertImageError(await fails((layout) => writeBlob(layout, types.manifest, text)), "Corrupt")
  })

  test("refuses a manifest of 100 MB by its size, without reading it", async () => {
    const digest = `sha256:${"a".repeat(64)}`
    const size = 100 * 1024 * 1024
    const sparse = (layout: string) => {
      fs.mkdirSync(`${layout}/blobs/sha256`, { recursive: true })
      fs.writeFileSync(blobFile(layout, digest), "")
      fs.truncateSync(blobFile(layout, digest), size)
    }
    const honest = await fails((layout) => {
      sparse(layout)
      return { mediaType: types.manifest, digest, size }
    })
    assertImageError(honest, "TooLarge", digest)
    const lying = await fails((layout) => {
      sparse(layout)
      return { mediaType: types.manifest, digest, size: 1000 }
    })
    assertImageError(lying, "TooLarge", digest)
  })

  test("CVE-2024-3727: refuses an unknown digest algorithm, and digests that are paths", async () => {
    const md5 = { mediaType: types.manifest, digest: "md5:d41d8cd98f00b204e9800998ecf8427e", size: 3 }
    assertImageError(await fails(() => md5), "Unsupported", "md5")
    for (const digest of ["sha256:../../x", `sha256:${"../".repeat(21)}a`, "sha256:", "x"]) {
      assertImageError(await fails(() => ({ mediaType: types.manifest, digest, size: 3 })), "Corrupt")
    }
  })

  test("names both digests where a manifest has another", async () => {
    const digest = `sha256:${"b".repeat(64)}`
    const error = await fails((layout) => {
      const blob = writeImage(layout, [])
      fs.renameSync(blobFile(layout, blob.digest), blobFile(layout, digest))
      return { ...blob, digest }
    })
    assertImageError(error, "DigestMismatch", digest)
  })

  test("names the manifest and the config that are missing", async () => {
    const digest = `sha256:${"c".repeat(64)}`
    assertImageError(await fails(() => ({ mediaType: types.manifest, digest, size: 3 })), "NotFound", digest)
    const config = { mediaType: types.config, digest, size: 3 }
    assertImageError(
      await fails((layout) => writeImage(layout, [], { manifest: { config } })),
      "NotFound",
      digest
    )
  })

  test("CVE-2021-41190: refuses a document that is an index and a manifest", async () => {
    const error = await fails((layout) => writeImage(layout, [], { manifest: { manifests: [] } }))
    assertImageError(error, "Corrupt", "an index and of a manifest")
  })

  test("refuses a media type that is not its descriptor's", async () => {
    const error = await fails((layout) => writeImage(layout, [], { manifest: { mediaType: types.index } }))
    assertImageError(error, "Corrupt", types.index, types.manifest)
  })

  test("refuses what is not a container image", async () => {
    const chart = "application/vnd.cncf.helm.config.v1+json"
    const error = await fails((layout) =>
      writeImage(layout, [], { manifest: { config: writeBlob(layout, chart, "{}") } })
    )
    assertImageError(error, "Unsupported", chart)
  })

  test("refuses docker's schema 1", async () => {
    const type = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    const error = await fails((layout) => writeBlob(layout, type, '{"schemaVersion":1,"fsLayers":[]}'))
    assertImageError(error, "Unsupported", "schema 1")
  })

  test("names both platforms where the only image is for another", async () => {
    const error = await fails((layout) =>
      writeImage(layout, [], { config: { architecture: otherArchitecture } })
    )
    assertImageError(error, "Platform", `linux/${otherArchitecture}`, `linux/${goArchitecture}`)
  })

  test("refuses a malformed platform", async () => {
    for (const platform of ["linux", "Linux/amd64", "linux/amd64/v8/x", "linux/../x"]) {
      assert.equal((await fails((layout) => writeImage(layout, []), { platform }))._tag, "InvalidOption")
    }
  })

  test("refuses a config with another number of diff ids than layers", async () => {
    const error = await fails((layout) => writeImage(layout, [], { diffIds: [`sha256:${"0".repeat(64)}`] }))
    assertImageError(error, "Corrupt", "diff ids")
  })

  test("refuses a config with NUL in a command", async () => {
    const error = await fails((layout) => writeImage(layout, [], { config: { config: { Cmd: ["a\0b"] } } }))
    assertImageError(error, "Corrupt", "config.Cmd")
  })

  test("refuses indexes without end", async () => {
    const error = await fails((layout) => {
      let descriptor: object = writeImage(layout, [])
      for (let depth = 0; depth < 10; depth++) {
        const manifests = [{ ...descriptor, platform: { os: "linux", architecture: goArchitecture } }]
        descriptor = writeBlob(layout, types.index, JSON.stringify({ schemaVersion: 2, manifests }))
      }
      return descriptor
    })
    assertImageError(error, "TooLarge", "deep")
  })

  test("refuses more layers than the kernel stacks", async () => {
    const layer = { mediaType: types.gzip, digest: `sha256:${"0".repeat(64)}`, size: 1 }
    const error = await fails((layout) =>
      writeImage(layout, [], { manifest: { layers: Array.from({ length: 501 }, () => layer) } })
    )
    assertImageError(error, "TooLarge", "501")
  })

  test("does not open a FIFO in place of a blob", async () => {
    const error = await fails((layout) => {
      const blob = writeImage(layout, [])
      fs.rmSync(blobFile(layout, blob.digest))
      sh("mkfifo", blobFile(layout, blob.digest))
      return blob
    })
    assertImageError(error, "Corrupt", "not a regular file")
  })
})
