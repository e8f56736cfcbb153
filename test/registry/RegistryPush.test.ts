import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import * as Store from "../../lib/Store.ts"
import { allowTime } from "../support/effect.ts"
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
  sha256,
  types,
  writeBlob,
  writeImage,
  writeIndex
} from "../support/images.ts"
import {
  type Front,
  type RunningRegistry,
  type startFront,
  startRegistry,
  whyNoRegistry,
  withoutDockerConfig
} from "../support/registry.ts"
import { assertRegistryError, ofBytes, push, withFrontOf, withRegistry } from "../support/registryClient.ts"

allowTime()

/** The output of `skopeo inspect` for an image in a registry. */
const inspect = (name: string, ...options: ReadonlyArray<string>): Record<string, unknown> =>
  JSON.parse(sh("skopeo", "inspect", "--tls-verify=false", ...options, `docker://${name}`))

describe("registry push", { skip: whyNoRegistry }, () => {
  withoutDockerConfig()
  let folder = ""
  let registry: RunningRegistry
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/layout`, "one")
  })
  after(async () => {
    await registry.stop()
    remove(folder)
  })

  const withFront = (
    handle: Parameters<typeof startFront>[1],
    use: (front: Front) => Promise<void>
  ): Promise<void> => withFrontOf(registry.host, handle, use)

  const digestInLayout = (): string =>
    JSON.parse(fs.readFileSync(`${folder}/layout/index.json`, "utf8")).manifests[0].digest

  test("an image from a layout is pushed, and skopeo reads it", async () => {
    const pushed = await run(
      `${folder}/push`,
      Effect.flatMap(Image.fromLayout(`${folder}/layout`), Image.push(`${registry.host}/push/app:1`))
    )
    assert.equal(pushed.digest, digestInLayout())
    assert.equal(inspect(`${registry.host}/push/app:1`).Digest, pushed.digest)
    sh(
      "skopeo",
      "copy",
      "--src-tls-verify=false",
      `docker://${registry.host}/push/app:1`,
      `oci:${folder}/out:x`
    )
    const [copied] = JSON.parse(fs.readFileSync(`${folder}/out/index.json`, "utf8")).manifests
    assert.equal(copied.digest, pushed.digest)
    const image = await run(`${folder}/back`, Image.pull(`${registry.host}/push/app:1`))
    assert.equal(image.digest, pushed.digest)
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
  })

  test("a pulled image is pushed, by its handle and by its name in the store", async () => {
    push(`oci:${folder}/layout:one`, `${registry.host}/pulled:1`)
    const digest = await run(
      `${folder}/pulled`,
      Effect.gen(function* () {
        const image = yield* Image.pull(`${registry.host}/pulled:1`)
        yield* Image.push(image, `${registry.host}/pulled/again:2`)
        yield* Image.push(`${registry.host}/pulled:1`, `${registry.host}/pulled/again:3`)
        yield* Image.push(image, `${registry.host}/pulled/pinned@${image.digest}`)
        return image.digest
      })
    )
    assert.equal(inspect(`${registry.host}/pulled/again:2`).Digest, digest)
    assert.equal(inspect(`${registry.host}/pulled/again:3`).Digest, digest)
    const pinned = sh(
      "skopeo",
      "inspect",
      "--raw",
      "--tls-verify=false",
      `docker://${registry.host}/pulled/pinned@${digest}`
    )
    assert.equal(sha256(new TextEncoder().encode(pinned)), digest)
  })

  test("a second push sends only the manifest", async () => {
    const lengths: Array<string> = []
    await withFront(
      (request, _response, pass) => {
        if (request.method === "PUT") {
          lengths.push(request.headers["content-length"] ?? "none")
        }
        pass()
      },
      async (front) => {
        const push = Effect.flatMap(Image.fromLayout(`${folder}/layout`), Image.push(`${front.host}/twice:1`))
        await run(`${folder}/twice`, push)
        const of = (method: string) => front.requests.filter((line) => line.startsWith(`${method} `))
        // A config and two layers.
        assert.deepEqual([of("HEAD").length, of("POST").length, of("PUT").length], [3, 3, 4])
        assert.equal(front.requests.at(-1), "PUT /v2/twice/manifests/1")
        const sizes = fs.readdirSync(`${folder}/layout/blobs/sha256`).map((name) => {
          return String(fs.statSync(`${folder}/layout/blobs/sha256/${name}`).size)
        })
        assert.deepEqual([...lengths].sort(), sizes.sort())
        const before = front.requests.length
        await run(`${folder}/twice`, push)
        const after = front.requests.slice(before)
        assert.equal(after.filter((line) => line.startsWith("HEAD /v2/twice/blobs/")).length, 3)
        assert.deepEqual(after.slice(3), ["PUT /v2/twice/manifests/1"])
      }
    )
  })

  test("an index is pushed with all of its images", async () => {
    const layout = `${folder}/index`
    const entry = (architecture: string) => ({
      ...writeImage(layout, [{ tar: makeTar({ [architecture]: "" }) }], { config: { architecture } }),
      platform: { os: "linux", architecture }
    })
    const manifests = [entry("s390x"), entry(goArchitecture)]
    const document = JSON.stringify({ schemaVersion: 2, mediaType: types.index, manifests })
    const index = writeBlob(layout, types.index, document)
    writeIndex(layout, [{ ...index, annotations: { "org.opencontainers.image.ref.name": "all" } }])
    const berth = `${folder}/index-store`
    await run(berth, Store.tag("empty", index))
    sh("skopeo", "copy", "--all", `oci:${layout}:all`, `oci:${berth}/store:all`)
    const pushed = await run(berth, Image.push("all", `${registry.host}/push/index:all`))
    assert.deepEqual(pushed, index)
    assert.deepEqual(inspect(`${registry.host}/push/index:all`, "--raw"), JSON.parse(document))
    const other = ["--override-arch", "s390x", "--override-os", "linux"]
    const raw = JSON.parse(
      sh("skopeo", ...other, "inspect", "--tls-verify=false", `docker://${registry.host}/push/index:all`)
    )
    assert.equal(raw.Architecture, "s390x")
  })

  test("an image without a manifest, or one that is not in the store, is refused", async () => {
    const target = `${registry.host}/refused:1`
    for (const image of [Image.host, Image.fromRootfs(folder), Effect.succeed(Image.scratch)]) {
      const error = await runError(folder, Effect.flatMap(image, Image.push(target)))
      assert.equal(error._tag, "InvalidOption", error.message)
      assert.match(error.message, /manifest/)
    }
    const absent = await runError(folder, Image.push("absent:1", target))
    assert.ok(absent._tag === "ImageError" && absent.reason === "NotFound", absent.message)
    const other = await runError(
      `${folder}/pulled`,
      Image.push(`${registry.host}/pulled:1`, `${registry.host}/refused@sha256:${"d".repeat(64)}`)
    )
    assert.equal(other._tag, "InvalidOption", other.message)
  })

  test("a push of a corrupt blob fails with DigestMismatch, and sends no manifest", async () => {
    const layout = `${folder}/damaged`
    fs.cpSync(`${folder}/layout`, layout, { recursive: true })
    const manifest = JSON.parse(fs.readFileSync(blobFile(layout, digestInLayout()), "utf8"))
    const image = await run(`${folder}/damaged-store`, Image.fromLayout(layout))
    const file = blobFile(layout, manifest.layers[0].digest)
    const bytes = fs.readFileSync(file)
    bytes[bytes.length - 1]! ^= 1
    fs.writeFileSync(file, bytes)
    const error = await runError(`${folder}/damaged-store`, Image.push(image, `${registry.host}/damaged:1`))
    assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch", error.message)
    assertRegistryError(
      await runError(
        folder,
        withRegistry(registry.host, (to) => Registry.resolve(to, "damaged", "1"))
      ),
      "NotFound"
    )
  })

  test("putBlob runs the stream only if the blob is missing, and fails with its error", async () => {
    const { blob, content } = ofBytes(randomBytes(300_000))
    const { blob: other } = ofBytes(randomBytes(300_000))
    const [first, second, broken, short, wrong] = await run(
      folder,
      withRegistry(registry.host, (to) =>
        Effect.all([
          Registry.putBlob(to, "blobs", blob, content),
          Registry.putBlob(to, "blobs", blob, Stream.die("run")),
          Effect.flip(
            Registry.putBlob(
              to,
              "blobs",
              other,
              Stream.concat(Stream.take(content, 1), Stream.fail("broken" as const))
            )
          ),
          Effect.flip(Registry.putBlob(to, "blobs", other, Stream.take(content, 1))),
          Effect.flip(Registry.putBlob(to, "blobs", other, content))
        ])
      )
    )
    assert.deepEqual([first, second, broken], ["uploaded", "present", "broken"])
    for (const error of [short, wrong]) {
      assert.ok(error._tag === "ImageError" && error.reason === "DigestMismatch", error.message)
    }
  })

  test("an empty blob is uploaded", async () => {
    const { blob, content } = ofBytes(new Uint8Array())
    const placed = await run(
      folder,
      withRegistry(registry.host, (to) => Registry.putBlob(to, "blobs", blob, content))
    )
    assert.equal(placed, "uploaded")
  })

  test("a blob is mounted from another repository, or else copied through this machine", async () => {
    await withFront(
      (request, _response, pass) => {
        if (request.url!.includes("/declined/")) {
          request.url = request.url!.replace(/\?mount=.*/, "")
        }
        pass()
      },
      async (front) => {
        const { blob, content } = ofBytes(randomBytes(100_000))
        const put = (to: Registry.Registry) => Registry.putBlob(to, "mount/from", blob, content)
        const mount = (repository: string) => (to: Registry.Registry) =>
          Registry.mount(to, repository, blob, "mount/from")
        await run(folder, withRegistry(front.host, put))
        const before = front.requests.length
        assert.equal(await run(folder, withRegistry(front.host, mount("mount/to"))), "mounted")
        assert.equal(front.requests.length, before + 2, front.requests.slice(before).join("\n"))
        assert.equal(await run(folder, withRegistry(front.host, mount("mount/to"))), "present")
        assert.equal(await run(folder, withRegistry(front.host, mount("mount/declined/to"))), "uploaded")
        const absent = (to: Registry.Registry) => Registry.mount(to, "mount/third", blob, "mount/nothing")
        assertRegistryError(await runError(folder, withRegistry(front.host, absent)), "NotFound")
      }
    )
  })

  test("a push mounts layers from another repository that has them", async () => {
    await withFront(
      (_request, _response, pass) => pass(),
      async (front) => {
        const image = await run(`${folder}/mounting`, Image.fromLayout(`${folder}/layout`))
        await run(`${folder}/mounting`, Image.push(image, `${front.host}/base:1`))
        const before = front.requests.length
        await run(`${folder}/mounting`, Image.push(image, `${front.host}/derived:1`, { mountFrom: "base" }))
        const puts = front.requests.slice(before).filter((line) => line.startsWith("PUT "))
        assert.deepEqual(puts, ["PUT /v2/derived/manifests/1"])
        assert.equal(inspect(`${registry.host}/derived:1`).Digest, image.digest)
      }
    )
  })

  test("tags are listed page by page, from the same host only and up to a limit", async () => {
    const layout = `${folder}/layout`
    const tags = ["a", "b", "c", "d", "e"]
    await run(
      `${folder}/tags`,
      Effect.flatMap(Image.fromLayout(layout), (image) =>
        Effect.forEach(tags, (tag) => Image.push(image, `${registry.host}/tagged:${tag}`))
      )
    )
    // This registry ignores the parameters of pages.
    const whole = await run(
      folder,
      withRegistry(registry.host, (from) => Registry.tags(from, "tagged"))
    )
    assert.deepEqual([...whole].sort(), tags)
    let link: string | undefined
    await withFront(
      (request, response) => {
        const last = /last=(.)/.exec(request.url!)?.[1] ?? ""
        const page = tags.filter((tag) => tag > last).slice(0, 2)
        const next =
          page.at(-1) === "e" ? undefined : `</v2/tagged/tags/list?last=${page[1]}&n=2>; rel="next"`
        const header = link ?? next
        if (header !== undefined) {
          response.setHeader("link", header)
        }
        response.end(JSON.stringify({ name: "tagged", tags: page }))
      },
      async (front) => {
        const list = withRegistry(front.host, (from) => Registry.tags(from, "tagged"))
        assert.deepEqual(await run(folder, list), tags)
        assert.deepEqual(front.requests, [
          "GET /v2/tagged/tags/list?n=1000",
          "GET /v2/tagged/tags/list?last=b&n=2",
          "GET /v2/tagged/tags/list?last=d&n=2"
        ])
        for (const elsewhere of ["http://127.0.0.1:1/v2/", "//example.org/v2/", "https://example.org/"]) {
          link = `<${elsewhere}>; rel="next"`
          assertRegistryError(await runError(folder, list), "Protocol", elsewhere)
        }
        link = `</v2/tagged/tags/list?last=x&n=2>; rel="next"`
        const error = await runError(folder, list)
        assert.ok(error._tag === "ImageError" && error.reason === "TooLarge", error.message)
      }
    )
    assertRegistryError(
      await runError(
        folder,
        withRegistry(registry.host, (from) => Registry.tags(from, "nothing"))
      ),
      "NotFound"
    )
  })

  test("an answer that is not a list of tags is refused", async () => {
    for (const answer of ["<html>", '{"tags":["../x"]}', '{"tags":"a"}', "[]"]) {
      await withFront(
        (_request, response) => response.end(answer),
        async (front) => {
          const error = await runError(
            folder,
            withRegistry(front.host, (from) => Registry.tags(from, "a"))
          )
          assertRegistryError(error, "Protocol", "list")
        }
      )
    }
    await withFront(
      (_request, response) => response.end('{"name":"a","tags":null}'),
      async (front) => {
        assert.deepEqual(
          await run(
            folder,
            withRegistry(front.host, (from) => Registry.tags(from, "a"))
          ),
          []
        )
      }
    )
  })

  test("a manifest is deleted by its digest, if the registry allows it", async () => {
    const push = (host: string) =>
      run(
        `${folder}/deleting`,
        Effect.flatMap(Image.fromLayout(`${folder}/layout`), Image.push(`${host}/deleted:1`))
      )
    const { digest } = await push(registry.host)
    const remove = (host: string, name: string) =>
      withRegistry(host, (at) => Registry.deleteManifest(at, "deleted", name))
    await run(folder, remove(registry.host, digest))
    assertRegistryError(
      await runError(
        folder,
        withRegistry(registry.host, (at) => Registry.resolve(at, "deleted", "1"))
      ),
      "NotFound"
    )
    assertRegistryError(await runError(folder, remove(registry.host, digest)), "NotFound", digest)
    const keeping = await startRegistry({ deletes: false })
    try {
      await push(keeping.host)
      for (const name of [digest, "1"]) {
        assertRegistryError(
          await runError(folder, remove(keeping.host, name)),
          "Unsupported",
          "DELETE",
          "405"
        )
      }
    } finally {
      await keeping.stop()
    }
  })

  /** A manifest that refers to another one by `subject`. */
  const aboutIt = (subject: Blob, artifactType: string, text: string) => {
    const empty = ofBytes(new TextEncoder().encode("{}"))
    const content = ofBytes(new TextEncoder().encode(text))
    const manifest = {
      schemaVersion: 2,
      mediaType: types.manifest,
      artifactType,
      config: { ...empty.blob, mediaType: "application/vnd.oci.empty.v1+json" },
      layers: [content.blob],
      subject,
      annotations: { "org.example.text": text }
    }
    return { empty, content, bytes: new TextEncoder().encode(JSON.stringify(manifest)) }
  }

  test("referrers are kept under a tag if the registry has no referrers API", async () => {
    const listed = await run(
      `${folder}/referrers`,
      Effect.gen(function* () {
        const image = yield* Image.fromLayout(`${folder}/layout`)
        const { annotations: _, ...subject } = yield* Image.push(image, `${registry.host}/subject:1`)
        const to = yield* Registry.connect(registry.host)
        const none = yield* Registry.referrers(to, "subject", subject.digest)
        const put = (type: string, text: string) =>
          Effect.gen(function* () {
            const { bytes, content, empty } = aboutIt(subject, type, text)
            yield* Registry.putBlob(to, "subject", empty.blob, empty.content)
            yield* Registry.putBlob(to, "subject", content.blob, content.content)
            return (yield* Registry.putManifest(to, "subject", sha256(bytes), bytes)).digest
          })
        const a = yield* put("application/x-a", "first")
        const b = yield* put("application/x-b", "second")
        yield* put("application/x-b", "second")
        const all = yield* Registry.referrers(to, "subject", subject.digest)
        const some = yield* Registry.referrers(to, "subject", subject.digest, {
          artifactType: "application/x-b"
        })
        const tags = yield* Registry.tags(to, "subject")
        return { none, all, some, a, b, tags, subject }
      })
    )
    assert.deepEqual(listed.none, [])
    assert.deepEqual(
      listed.all.map(({ artifactType, digest }) => [artifactType, digest]),
      [
        ["application/x-a", listed.a],
        ["application/x-b", listed.b]
      ]
    )
    assert.deepEqual(listed.all[0]!.annotations, { "org.example.text": "first" })
    assert.deepEqual(
      listed.some.map(({ digest }) => digest),
      [listed.b]
    )
    assert.deepEqual([...listed.tags].sort(), ["1", listed.subject.digest.replace(":", "-")])
  })

  test("referrers are read from the registry's list, and filtered here if the registry does not", async () => {
    const entry = (artifactType: string) => ({ ...ofBytes(randomBytes(10)).blob, artifactType, data: "e30=" })
    const [a, b] = [entry("application/x-a"), entry("application/x-b")]
    const digest = `sha256:${"c".repeat(64)}`
    await withFront(
      (request, response) => {
        const manifests = request.url!.includes("last=") ? [b] : [a]
        if (manifests[0] === a) {
          response.setHeader("link", `<${request.url}&last=1>; rel="next"`)
        }
        response.setHeader("content-type", types.index)
        response.end(JSON.stringify({ schemaVersion: 2, mediaType: types.index, manifests }))
      },
      async (front) => {
        const listed = await run(
          folder,
          withRegistry(front.host, (from) =>
            Registry.referrers(from, "subject", digest, { artifactType: "application/x-b" })
          )
        )
        assert.deepEqual(
          listed.map((one) => one.digest),
          [b.digest]
        )
        assert.equal(front.requests[0], `GET /v2/subject/referrers/${digest}?artifactType=application%2Fx-b`)
      }
    )
  })

  test("putManifest refuses a manifest that is not JSON, has another digest or no media type", async () => {
    const put = (name: string, text: string, mediaType?: string) =>
      withRegistry(registry.host, (to) =>
        Registry.putManifest(to, "manifests", name, new TextEncoder().encode(text), { mediaType })
      )
    for (const [name, text, mediaType] of [
      ["1", "no"],
      ["1", '{"mediaType":"a\\r\\nb: c"}'],
      ["1", "{}", "nothing"],
      [`sha256:${"a".repeat(64)}`, "{}"],
      ["1", " ".repeat(5 * 1024 * 1024)]
    ] as const) {
      const error = await runError(folder, put(name, text, mediaType))
      assert.equal(error._tag, "ImageError", error.message)
    }
  })
})
