import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { BerthError } from "../../lib/BerthError.ts"
import * as Image from "../../lib/Image.ts"
import { parseDigest } from "../../lib/Reference.ts"
import * as Store from "../../lib/Store.ts"
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
  types,
  whyNoImages,
  writeBlob,
  writeImage,
  writeIndex
} from "../support/images.ts"
import {
  type RunningRegistry,
  startFront,
  startRegistry,
  whyNoRegistry,
  withoutDockerConfig
} from "../support/registry.ts"
import { assertRegistryError, download, push, resolve } from "../support/registryClient.ts"

describe("Registry", { skip: whyNoRegistry }, () => {
  withoutDockerConfig()
  let folder = ""
  let registry: RunningRegistry
  let blob: Blob
  let content: Buffer
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/layout`, "one")
    push(`oci:${folder}/layout:one`, `${registry.host}/team/app:1`)
    push(`oci:${folder}/layout:one`, `${registry.host}/team/app:2`, "--format", "v2s2")
    const index = JSON.parse(fs.readFileSync(`${folder}/layout/index.json`, "utf8"))
    const manifest = JSON.parse(
      fs.readFileSync(blobFile(`${folder}/layout`, index.manifests[0].digest), "utf8")
    )
    blob = manifest.layers[0]
    content = fs.readFileSync(blobFile(`${folder}/layout`, blob.digest))
  })
  after(async () => {
    await registry.stop()
    remove(folder)
  })

  /** A pull with its own store. */
  const pullInto = (name: string, host = registry.host, tag = "1", options?: Image.PullOptions) =>
    run(`${folder}/${name}`, Image.pull(`${host}/team/app:${tag}`, options))

  test("a pull fetches, unpacks and names an image", { skip: whyNoImages }, async () => {
    const image = await pullInto("pull")
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
    assert.equal(image.reference, `${registry.host}/team/app:1`)
    assert.deepEqual(image.config.entrypoint, ["/bin/sh", "-c"])
    const list = await run(`${folder}/pull`, Store.list)
    assert.deepEqual(
      list.map(({ descriptor, name }) => [name, descriptor.digest]),
      [[image.reference, image.digest]]
    )
    const inspected = JSON.parse(sh("skopeo", "inspect", `oci:${folder}/pull/store:${image.reference}`))
    assert.equal(inspected.Digest, image.digest)
    assert.match(sh("umoci", "stat", "--image", `${folder}/pull/store:${image.reference}`), /LAYER/)
  })

  test("a pull accepts Docker's formats", { skip: whyNoImages }, async () => {
    const image = await pullInto("docker", registry.host, "2")
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
  })

  test("a second pull resolves the tag again, and fetches no blob again", {
    skip: whyNoImages
  }, async () => {
    const front = await startFront(registry.host, (_request, _response, pass) => pass())
    try {
      const first = await pullInto("again", front.host)
      assert.equal(front.requests.length, 5, front.requests.join("\n"))
      const again = await pullInto("again", front.host)
      assert.deepEqual(front.requests.slice(5), ["HEAD /v2/team/app/manifests/1"])
      assert.deepEqual(again.layers, first.layers)
      const pinned = await run(`${folder}/again`, Image.pull(`${front.host}/team/app@${first.digest}`))
      assert.equal(front.requests.length, 6)
      assert.equal(pinned.digest, first.digest)
    } finally {
      await front.stop()
    }
  })

  test("two concurrent pulls fetch each blob once", { skip: whyNoImages }, async () => {
    const front = await startFront(registry.host, (_request, _response, pass) => pass())
    try {
      const pull = Image.pull(`${front.host}/team/app:1`)
      await run(`${folder}/at-once`, Effect.all([pull, pull, pull], { concurrency: "unbounded" }))
      const blobs = front.requests.filter((request) => request.includes("/blobs/"))
      assert.equal(blobs.length, new Set(blobs).size, blobs.join("\n"))
    } finally {
      await front.stop()
    }
  })

  test("a pull selects the platform in an index, and an unavailable one fails with those available", {
    skip: whyNoImages
  }, async () => {
    const layout = `${folder}/index`
    const entry = (architecture: string) => ({
      ...writeImage(layout, [{ tar: makeTar({ [architecture]: "" }) }], { config: { architecture } }),
      platform: { os: "linux", architecture }
    })
    const manifests = [entry("s390x"), entry(goArchitecture)]
    const index = writeBlob(
      layout,
      types.index,
      JSON.stringify({ schemaVersion: 2, mediaType: types.index, manifests })
    )
    writeIndex(layout, [{ ...index, annotations: { "org.opencontainers.image.ref.name": "all" } }])
    push(`oci:${layout}:all`, `${registry.host}/team/app:all`, "--all")
    const image = await pullInto("platforms", registry.host, "all")
    assert.deepEqual(fs.readdirSync(image.layers[0]!), [goArchitecture])
    const other = await pullInto("platforms", registry.host, "all", { platform: "linux/s390x" })
    assert.deepEqual(fs.readdirSync(other.layers[0]!), ["s390x"])
    const error = await runError(
      `${folder}/platforms`,
      Image.pull(`${registry.host}/team/app:all`, { platform: "linux/riscv64" })
    )
    assert.ok(error._tag === "ImageError" && error.reason === "Platform")
    assert.ok(error.message.includes("linux/s390x") && error.message.includes("linux/riscv64"), error.message)
  })

  test("a blob whose connection breaks is resumed at that byte", async () => {
    let breaks = 0
    const ranges: Array<string> = []
    const front = await startFront(registry.host, (request, _response, pass) => {
      ranges.push(request.headers.range ?? "")
      pass(breaks++ < 3 ? 200_000 : undefined)
    })
    try {
      const bytes = await run(folder, download(front.host, "team/app", blob))
      assert.ok(content.equals(bytes))
      assert.deepEqual([ranges[0], ranges.length], ["", 4])
      const starts = ranges.slice(1).map((range) => Number(/^bytes=(\d+)-$/.exec(range)?.[1]))
      assert.ok(
        starts.every((start, i) => start > (starts[i - 1] ?? 0)),
        ranges.join(" ")
      )
    } finally {
      await front.stop()
    }
  })

  test("a blob from a registry without range support is fetched again, and each byte arrives once", async () => {
    let breaks = 0
    const front = await startFront(registry.host, (request, _response, pass) => {
      delete request.headers.range
      pass(breaks++ < 2 ? 200_000 : undefined)
    })
    try {
      assert.ok(content.equals(await run(folder, download(front.host, "team/app", blob))))
    } finally {
      await front.stop()
    }
  })

  test("a connection that breaks at each try fails with Unreachable", async () => {
    const front = await startFront(registry.host, (_request, response) => response.socket?.destroy())
    try {
      const error = await runError(folder, download(front.host, "team/app", blob))
      assertRegistryError(error, "Unreachable", front.host)
      assert.equal(front.requests.length, 5)
    } finally {
      await front.stop()
    }
  })

  test("a request to an overloaded registry is repeated at the time of its Retry-After", async () => {
    const times: Array<number> = []
    const front = await startFront(registry.host, (_request, response, pass) => {
      times.push(Date.now())
      if (times.length > 2) {
        pass()
      } else {
        response.writeHead(times.length === 1 ? 429 : 503, { "retry-after": "1" }).end()
      }
    })
    try {
      await run(folder, resolve(front.host, "team/app", "1"))
      assert.equal(times.length, 3)
      assert.ok(times[1]! - times[0]! >= 990 && times[2]! - times[1]! >= 990, times.join(" "))
    } finally {
      await front.stop()
    }
  })

  test("a registry that stays overloaded fails the request with TooManyRequests", async () => {
    const front = await startFront(registry.host, (_request, response) => {
      response.writeHead(429, { "retry-after": "0" }).end()
    })
    try {
      assertRegistryError(
        await runError(folder, resolve(front.host, "team/app", "1")),
        "TooManyRequests",
        "429"
      )
      assert.equal(front.requests.length, 5)
    } finally {
      await front.stop()
    }
  })

  test("a blob with other bytes fails with DigestMismatch, and is not kept", async () => {
    const layout = `${folder}/tampered`
    const manifest = writeImage(layout, [{ tar: makeTar({ tampered: "" }), as: "tar" }])
    writeIndex(layout, [manifest])
    push(`oci:${layout}`, `${registry.host}/team/tampered:1`, "--dest-compress-format", "gzip")
    const berth = `${folder}/tampered-store`
    const pushed = JSON.parse(
      sh("skopeo", "inspect", "--raw", "--tls-verify=false", `docker://${registry.host}/team/tampered:1`)
    )
    const [layer] = pushed.layers as ReadonlyArray<Blob>
    const hex = layer!.digest.slice(7)
    const file = `${registry.data}/docker/registry/v2/blobs/sha256/${hex.slice(0, 2)}/${hex}/data`
    const bytes = fs.readFileSync(file)
    bytes[bytes.length - 1]! ^= 1
    fs.writeFileSync(file, bytes)
    const error = await runError(berth, Image.pull(`${registry.host}/team/tampered:1`))
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch", error.message)
    assert.ok(error.message.includes(layer!.digest))
    assert.equal(await run(berth, Store.has(Either.getOrThrow(parseDigest(layer!.digest)))), false)
    assert.deepEqual(await run(berth, Store.list), [])
    assertImage(await runError(berth, download(registry.host, "team/tampered", layer!)), "DigestMismatch")
  })

  const assertImage = (error: BerthError, reason: string) => {
    assert.ok(error._tag === "ImageError" && error.reason === reason, error.message)
  }

  test("a blob longer than its descriptor's size is refused", async () => {
    const error = await runError(folder, download(registry.host, "team/app", { ...blob, size: 1000 }))
    assertImage(error, "DigestMismatch")
  })

  test("a missing tag or blob fails with NotFound", async () => {
    assertRegistryError(
      await runError(folder, resolve(registry.host, "team/app", "absent")),
      "NotFound",
      "absent"
    )
    const digest = `sha256:${"d".repeat(64)}`
    const error = await runError(folder, download(registry.host, "team/app", { ...blob, digest }))
    assertRegistryError(error, "NotFound", digest)
  })

  test("an invalid digest from a registry is refused", async () => {
    for (const digest of ["md5:0", "sha256:../../x"]) {
      const front = await startFront(registry.host, (_request, response) => {
        const headers = {
          "docker-content-digest": digest,
          "content-length": "3",
          "content-type": types.manifest
        }
        response.writeHead(200, headers).end()
      })
      try {
        const error = await runError(folder, resolve(front.host, "team/app", "1"))
        assert.equal(error._tag, "ImageError")
      } finally {
        await front.stop()
      }
    }
  })
})
