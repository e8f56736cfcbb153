import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { gzipSync } from "node:zlib"
import * as Image from "../../lib/Image.ts"
import {
  assertImageError,
  blobFile,
  goArchitecture,
  makeTar,
  makeTemporaryFolder,
  otherArchitecture,
  remove,
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

describe("Image.fromLayout with invalid layers", { skip: whyNoImages }, () => {
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

  test("a missing blob of a layer fails with the layer's digest", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ missing: "1" }) }])
    fs.rmSync(blobFile(layout, layer))
    assertImageError(await fails(layout), "NotFound", layer)
  })

  test("a layer of another size fails with both sizes", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ size: "1" }) }])
    fs.appendFileSync(blobFile(layout, layer), "x")
    assertImageError(await fails(layout), "DigestMismatch", layer, "bytes")
  })

  test("a layer with another digest fails with both digests", async () => {
    const { layer, layout } = layoutWith([{ tar: makeTar({ digest: "1" }), as: "tar" }])
    const bytes = fs.readFileSync(blobFile(layout, layer))
    bytes[bytes.indexOf("digest")] = "D".charCodeAt(0)
    // The checksum of the tar header changes with the name.
    const sum = bytes
      .subarray(0, 512)
      .reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0)
    bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
    fs.writeFileSync(blobFile(layout, layer), bytes)
    assertImageError(await fails(layout), "DigestMismatch", layer, sha256(bytes))
  })

  test("a layer with another diff id than the config's fails with both", async () => {
    const tar = makeTar({ diffId: "1" })
    const wrong = `sha256:${"1".repeat(64)}`
    const { layout } = layoutWith([{ tar }], { diffIds: [wrong] })
    assertImageError(await fails(layout), "DigestMismatch", wrong, sha256(tar))
  })

  test("a layer in truncated gzip is refused", async () => {
    const gzip = gzipSync(makeTar({ truncated: "1".repeat(1000) }))
    const { layout } = layoutWith([{ tar: gzip.subarray(0, gzip.length - 20), as: "tar", type: types.gzip }])
    assertImageError(await fails(layout), "Corrupt")
  })

  test("a gzip layer that is not gzip is refused", async () => {
    const { layout } = layoutWith([{ tar: makeTar({ a: "not gzip" }), as: "tar", type: types.gzip }])
    assertImageError(await fails(layout), "Corrupt")
  })

  test("a layer with a member outside its folder is refused", async () => {
    const tar = Buffer.from(makeTar({ "aa-escape": "1" }))
    const at = tar.indexOf("aa-escape")
    tar.write("../escape", at)
    const sum = tar.subarray(0, 512).reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0)
    tar.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148)
    const { layout } = layoutWith([{ tar }])
    assertImageError(await fails(layout), "Escape", "../escape")
    assert.equal(fs.existsSync(`${folder}/layers/sha256/escape`), false)
  })

  test("a layer with more bytes or members than allowed is refused", async () => {
    const { layout } = layoutWith([{ tar: makeTar({ a: "1".repeat(100_000), b: "", c: "" }) }])
    assertImageError(await fails(layout, { maxBytes: 50_000 }), "TooLarge")
    assertImageError(await fails(layout, { maxEntries: 2 }), "TooLarge")
  })

  test("nondistributable layers and unknown types of layers are refused", async () => {
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

describe("Image.fromLayout with invalid documents", { skip: whyNoImages }, () => {
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

  test("a missing folder and a folder without a layout fail with different messages", async () => {
    assertImageError(await runError(folder, Image.fromLayout(`${folder}/absent`)), "NotFound")
    assertImageError(await fails(() => undefined), "NotFound", "oci-layout")
  })

  test("a layout of another version is refused", async () => {
    const error = await fails((layout) => {
      writeIndex(layout, [])
      fs.writeFileSync(`${layout}/oci-layout`, '{"imageLayoutVersion":"2.0.0"}')
    })
    assertImageError(error, "Corrupt", "imageLayoutVersion")
  })

  test("a manifest that is not JSON is refused", async () => {
    assertImageError(
      await fails((layout) => writeBlob(layout, types.manifest, "<html>")),
      "Corrupt",
      "not JSON"
    )
  })

  test("a JSON document that is not a manifest is refused", async () => {
    for (const text of ["null", "[]", "3", "{}", '{"schemaVersion":2,"config":3,"layers":[]}']) {
      assertImageError(await fails((layout) => writeBlob(layout, types.manifest, text)), "Corrupt")
    }
  })

  test("a deeply nested JSON manifest is refused", async () => {
    const text = "[".repeat(1_000_000)
    assertImageError(await fails((layout) => writeBlob(layout, types.manifest, text)), "Corrupt")
  })

  test("a manifest of 100 MB is refused by its size, unread", async () => {
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

  test("CVE-2024-3727: a digest with an unknown algorithm, or one that is a path, is refused", async () => {
    const md5 = { mediaType: types.manifest, digest: "md5:d41d8cd98f00b204e9800998ecf8427e", size: 3 }
    assertImageError(await fails(() => md5), "Unsupported", "md5")
    for (const digest of ["sha256:../../x", `sha256:${"../".repeat(21)}a`, "sha256:", "x"]) {
      assertImageError(await fails(() => ({ mediaType: types.manifest, digest, size: 3 })), "Corrupt")
    }
  })

  test("a manifest with another digest fails with both digests", async () => {
    const digest = `sha256:${"b".repeat(64)}`
    const error = await fails((layout) => {
      const blob = writeImage(layout, [])
      fs.renameSync(blobFile(layout, blob.digest), blobFile(layout, digest))
      return { ...blob, digest }
    })
    assertImageError(error, "DigestMismatch", digest)
  })

  test("a missing manifest or config fails with its digest", async () => {
    const digest = `sha256:${"c".repeat(64)}`
    assertImageError(await fails(() => ({ mediaType: types.manifest, digest, size: 3 })), "NotFound", digest)
    const config = { mediaType: types.config, digest, size: 3 }
    assertImageError(
      await fails((layout) => writeImage(layout, [], { manifest: { config } })),
      "NotFound",
      digest
    )
  })

  test("CVE-2021-41190: a document that is both an index and a manifest is refused", async () => {
    const error = await fails((layout) => writeImage(layout, [], { manifest: { manifests: [] } }))
    assertImageError(error, "Corrupt", "an index and of a manifest")
  })

  test("a document whose media type differs from its descriptor's is refused", async () => {
    const error = await fails((layout) => writeImage(layout, [], { manifest: { mediaType: types.index } }))
    assertImageError(error, "Corrupt", types.index, types.manifest)
  })

  test("an artifact that is not a container image is refused", async () => {
    const chart = "application/vnd.cncf.helm.config.v1+json"
    const error = await fails((layout) =>
      writeImage(layout, [], { manifest: { config: writeBlob(layout, chart, "{}") } })
    )
    assertImageError(error, "Unsupported", chart)
  })

  test("a manifest of Docker's schema 1 is refused", async () => {
    const type = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    const error = await fails((layout) => writeBlob(layout, type, '{"schemaVersion":1,"fsLayers":[]}'))
    assertImageError(error, "Unsupported", "schema 1")
  })

  test("an image for another platform only fails with both platforms", async () => {
    const error = await fails((layout) =>
      writeImage(layout, [], { config: { architecture: otherArchitecture } })
    )
    assertImageError(error, "Platform", `linux/${otherArchitecture}`, `linux/${goArchitecture}`)
  })

  test("a malformed platform is refused", async () => {
    for (const platform of ["linux", "Linux/amd64", "linux/amd64/v8/x", "linux/../x"]) {
      assert.equal((await fails((layout) => writeImage(layout, []), { platform }))._tag, "InvalidOption")
    }
  })

  test("a config with another number of diff ids than layers is refused", async () => {
    const error = await fails((layout) => writeImage(layout, [], { diffIds: [`sha256:${"0".repeat(64)}`] }))
    assertImageError(error, "Corrupt", "diff ids")
  })

  test("a config with NUL in a command is refused", async () => {
    const error = await fails((layout) => writeImage(layout, [], { config: { config: { Cmd: ["a\0b"] } } }))
    assertImageError(error, "Corrupt", "config.Cmd")
  })

  test("an endless chain of indexes is refused", async () => {
    const error = await fails((layout) => {
      let descriptor: object = writeImage(layout, [])
      for (let depth = 0; depth < 10; depth++) {
        const manifests = [{ ...descriptor, platform: { os: "linux", architecture: goArchitecture } }]
        descriptor = writeBlob(layout, types.index, JSON.stringify({ schemaVersion: 2, manifests }))
      }
      return descriptor
    })
    assertImageError(error, "TooLarge", "nested")
  })

  test("an image with more layers than the kernel can stack is refused", async () => {
    const layer = { mediaType: types.gzip, digest: `sha256:${"0".repeat(64)}`, size: 1 }
    const error = await fails((layout) =>
      writeImage(layout, [], { manifest: { layers: Array.from({ length: 501 }, () => layer) } })
    )
    assertImageError(error, "TooLarge", "501")
  })

  test("a FIFO in place of a blob is not opened", async () => {
    const error = await fails((layout) => {
      const blob = writeImage(layout, [])
      fs.rmSync(blobFile(layout, blob.digest))
      sh("mkfifo", blobFile(layout, blob.digest))
      return blob
    })
    assertImageError(error, "Corrupt", "not a regular file")
  })
})
