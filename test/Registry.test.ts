import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as os from "node:os"
import { after, before, describe, test } from "node:test"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import type { BerthError } from "../lib/BerthError.ts"
import * as Image from "../lib/Image.ts"
import { parseChallenges } from "../lib/internal/registryAuth.ts"
import { isLoopback } from "../lib/internal/registryProxy.ts"
import { parseDigest } from "../lib/Reference.ts"
import * as Registry from "../lib/Registry.ts"
import * as Store from "../lib/Store.ts"
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
} from "./support/images.ts"
import {
  makeCertificate,
  type RunningRegistry,
  signToken,
  startFront,
  startRegistry,
  whyNoRegistry
} from "./support/registry.ts"
import { assertRegistryError } from "./support/registryClient.ts"

const push = (source: string, target: string, ...options: ReadonlyArray<string>) =>
  sh("skopeo", "copy", "--dest-tls-verify=false", ...options, source, `docker://${target}`)

/** Everything of a blob, through the public functions. */
const download = (host: string, repository: string, blob: Blob) =>
  Effect.gen(function* () {
    const registry = yield* Registry.connect(host)
    const chunks = yield* Stream.runCollect(Registry.blob(registry, repository, blob))
    return Buffer.concat(Chunk.toReadonlyArray(chunks))
  })

const resolve = (host: string, repository: string, name: string, options?: Registry.ConnectOptions) =>
  Effect.flatMap(Registry.connect(host, options), (registry) => Registry.resolve(registry, repository, name))

/** No credentials of whoever runs the tests. */
const noDocker = makeTemporaryFolder()
process.env.DOCKER_CONFIG = noDocker

describe("Registry", { skip: whyNoRegistry }, () => {
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
    remove(noDocker)
  })

  /** A pull with its own store. */
  const pullInto = (name: string, host = registry.host, tag = "1", options?: Image.PullOptions) =>
    run(`${folder}/${name}`, Image.pull(`${host}/team/app:${tag}`, options))

  test("pull gets, unpacks and names an image", { skip: whyNoImages }, async () => {
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

  test("pull takes docker's formats", { skip: whyNoImages }, async () => {
    const image = await pullInto("docker", registry.host, "2")
    assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
  })

  test("pull resolves the tag each time, and fetches what it has no second time", {
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

  test("two pulls at once fetch each blob once", { skip: whyNoImages }, async () => {
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

  test("pull selects the platform in an index, and names what there is", {
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

  test("a blob whose connection breaks is resumed where it broke", async () => {
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

  test("a registry that knows no ranges starts over, and the bytes come once", async () => {
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

  test("a connection that breaks each time is Unreachable in the end", async () => {
    const front = await startFront(registry.host, (_request, response) => response.socket?.destroy())
    try {
      const error = await runError(folder, download(front.host, "team/app", blob))
      assertRegistryError(error, "Unreachable", front.host)
      assert.equal(front.requests.length, 5)
    } finally {
      await front.stop()
    }
  })

  test("an overloaded registry is asked again, when it says", async () => {
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

  test("a registry that stays overloaded is TooManyRequests", async () => {
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

  test("a blob with other bytes is DigestMismatch, and not kept", async () => {
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

  test("a blob that is longer than its descriptor says is refused", async () => {
    const error = await runError(folder, download(registry.host, "team/app", { ...blob, size: 1000 }))
    assertImage(error, "DigestMismatch")
  })

  test("what is not there is NotFound", async () => {
    assertRegistryError(
      await runError(folder, resolve(registry.host, "team/app", "absent")),
      "NotFound",
      "absent"
    )
    const digest = `sha256:${"d".repeat(64)}`
    const error = await runError(folder, download(registry.host, "team/app", { ...blob, digest }))
    assertRegistryError(error, "NotFound", digest)
  })

  test("a digest that no registry should send is refused", async () => {
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

describe("Registry authentication", { skip: whyNoRegistry }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    makeImage(`${folder}/layout`, "one")
  })
  after(() => remove(folder))

  const htpasswd = "jane:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"

  test("basic: given, from docker's configuration, wrong, and none", async () => {
    const registry = await startRegistry({ htpasswd })
    const docker = makeTemporaryFolder()
    try {
      push(`oci:${folder}/layout:one`, `${registry.host}/team/app:1`, "--dest-creds", "jane:secret")
      const given = (password: string | Redacted.Redacted<string>) =>
        resolve(registry.host, "team/app", "1", { credentials: { username: "jane", password } })
      await run(folder, given("secret"))
      await run(folder, given(Redacted.make("secret")))
      assertRegistryError(await runError(folder, given("wrong")), "Unauthorized", "jane")
      const none = await runError(folder, resolve(registry.host, "team/app", "1"))
      assertRegistryError(none, "Unauthorized", "docker login")
      const auth = Buffer.from("jane:secret").toString("base64")
      fs.writeFileSync(`${docker}/config.json`, JSON.stringify({ auths: { [registry.host]: { auth } } }))
      process.env.DOCKER_CONFIG = docker
      await run(folder, resolve(registry.host, "team/app", "1"))
      fs.writeFileSync(`${docker}/config.json`, "{ not JSON")
      assertRegistryError(await runError(folder, resolve(registry.host, "team/app", "1")), "Unauthorized")
    } finally {
      process.env.DOCKER_CONFIG = noDocker
      remove(docker)
      await registry.stop()
    }
  })

  test("bearer: a token for the repository, asked for once, and only by who may", async () => {
    const { certificate, key } = makeCertificate()
    const claims = { issuer: "test issuer", service: "test service", repository: "team/app" }
    const tokens = await startFront(undefined, (request, response) => {
      const url = new URL(request.url!, "http://localhost")
      const basic = `Basic ${Buffer.from("jane:secret").toString("base64")}`
      const fits =
        url.searchParams.get("service") === claims.service &&
        url.searchParams.get("scope") === "repository:team/app:pull"
      if (!fits || (request.headers.authorization ?? basic) !== basic) {
        response.writeHead(401).end()
      } else {
        response.end(JSON.stringify({ token: signToken(key, certificate, claims) }))
      }
    })
    const registry = await startRegistry({
      token: {
        realm: `http://${tokens.host}/token`,
        service: claims.service,
        issuer: claims.issuer,
        certificate
      }
    })
    try {
      const error = await runError(folder, resolve(registry.host, "team/app", "1"))
      // The token is good, but nothing has been pushed.
      assertRegistryError(error, "NotFound")
      assert.equal(tokens.requests.length, 1)
      assert.equal(tokens.authorizations[0], "")
      const several = Effect.flatMap(Registry.connect(registry.host), (connected) =>
        Effect.all(
          ["1", "2", "3"].map((tag) => Effect.flip(Registry.resolve(connected, "team/app", tag))),
          { concurrency: "unbounded" }
        )
      )
      await run(folder, several)
      assert.equal(tokens.requests.length, 2)
      const wrong = { credentials: { username: "jane", password: "wrong" } }
      const refused = await runError(folder, resolve(registry.host, "team/app", "1", wrong))
      assertRegistryError(refused, "Unauthorized", tokens.host, "jane")
    } finally {
      await registry.stop()
      await tokens.stop()
    }
  })

  test("401 without a challenge says so", async () => {
    const front = await startFront(undefined, (_request, response) => response.writeHead(401).end())
    try {
      const error = await runError(folder, resolve(front.host, "team/app", "1"))
      assertRegistryError(error, "Unauthorized", "WWW-Authenticate")
      assert.equal(front.requests.length, 1)
    } finally {
      await front.stop()
    }
  })

  test("a challenge of another kind, and a token service without TLS elsewhere, are refused", async () => {
    let challenge = "Negotiate"
    const front = await startFront(undefined, (_request, response) =>
      response.writeHead(401, { "www-authenticate": challenge }).end()
    )
    try {
      assertRegistryError(await runError(folder, resolve(front.host, "a", "1")), "Unauthorized", "negotiate")
      for (const realm of ["ftp://example.org/token", "nothing"]) {
        challenge = `Bearer realm="${realm}"`
        assertRegistryError(await runError(folder, resolve(front.host, "a", "1")), "Unauthorized", realm)
      }
    } finally {
      await front.stop()
    }
  })

  test("credentials do not follow a redirect to another host", async () => {
    const other = await startFront(undefined, (_request, response) => response.end("hello"))
    const front = await startFront(undefined, (request, response) => {
      if (request.headers.authorization === undefined) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end()
      } else {
        response.writeHead(307, { location: `http://${other.host}/elsewhere` }).end()
      }
    })
    try {
      const blob = writeBlob(`${folder}/hello`, types.gzip, "hello")
      const bytes = await run(
        folder,
        Effect.flatMap(
          Registry.connect(front.host, { credentials: { username: "jane", password: "secret" } }),
          (registry) => Stream.runCollect(Registry.blob(registry, "team/app", blob))
        )
      )
      assert.equal(Buffer.concat(Chunk.toReadonlyArray(bytes)).toString(), "hello")
      assert.match(front.authorizations[1]!, /^Basic /)
      assert.deepEqual(other.authorizations, [""])
    } finally {
      await front.stop()
      await other.stop()
    }
  })

  test("challenges are parsed as they come", () => {
    const parsed = (header: string) =>
      parseChallenges(header).map(({ parameters, scheme }) => [scheme, Object.fromEntries(parameters)])
    assert.deepEqual(
      parsed('Bearer realm="https://a/b?c=d,e",service="x y",scope="repository:a:pull,push"'),
      [["bearer", { realm: "https://a/b?c=d,e", service: "x y", scope: "repository:a:pull,push" }]]
    )
    assert.deepEqual(parsed('Basic realm="a\\"b", Bearer realm=plain , service = "s"'), [
      ["basic", { realm: 'a"b' }],
      ["bearer", { realm: "plain", service: "s" }]
    ])
    assert.deepEqual(parsed("Negotiate"), [["negotiate", {}]])
    assert.deepEqual(parsed(""), [])
    assert.deepEqual(parsed('="'), [])
    assert.deepEqual(parsed(`Bearer ${'a="b",'.repeat(100_000)}`), [])
  })
})

describe("Registry connections", { skip: whyNoImages }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("a registry that is not there is Unreachable, with host and port", async () => {
    const front = await startFront(undefined, () => {})
    await front.stop()
    const error = await runError(folder, Image.pull(`${front.host}/team/app:1`))
    assertRegistryError(error, "Unreachable", front.host)
  })

  test("a host that is not there is Unreachable", async () => {
    assertRegistryError(
      await runError(folder, Image.pull("nowhere.invalid/app:1")),
      "Unreachable",
      "nowhere.invalid:443"
    )
  })

  test("a manifest of 100 MB is refused by its length, without reading it", async () => {
    let sent = 0
    const front = await startFront(undefined, (request, response) => {
      const size = 100 * 1024 * 1024
      response.writeHead(200, { "content-length": String(size), "content-type": types.manifest })
      if (request.method === "HEAD") {
        response.end()
      } else {
        sent += 1024 * 1024
        response.write(Buffer.alloc(1024 * 1024))
      }
    })
    try {
      const error = await runError(folder, Image.pull(`${front.host}/team/app:1`))
      assert.ok(error._tag === "ImageError" && error.reason === "TooLarge", error.message)
      assert.ok(sent <= 1024 * 1024)
    } finally {
      await front.stop()
    }
  })

  test("a manifest without end and without length is refused", async () => {
    const front = await startFront(undefined, (request, response) => {
      response.writeHead(200, { "content-type": types.manifest })
      if (request.method === "HEAD") {
        response.end()
        return
      }
      const more = () => {
        if (!response.destroyed) {
          response.write(Buffer.alloc(1024 * 1024), () => setImmediate(more))
        }
      }
      more()
    })
    try {
      const error = await runError(folder, Image.pull(`${front.host}/team/app:1`))
      assert.ok(error._tag === "ImageError" && error.reason === "TooLarge", error.message)
    } finally {
      await front.stop()
    }
  })

  test("a manifest that is a web page is refused", async () => {
    const front = await startFront(undefined, (_request, response) =>
      response.writeHead(200, { "content-type": "text/html" }).end("<html>")
    )
    try {
      const error = await runError(folder, Image.pull(`${front.host}/team/app:1`))
      assert.equal(error._tag, "ImageError", error.message)
    } finally {
      await front.stop()
    }
  })

  test("redirects without end are given up", async () => {
    const front = await startFront(undefined, (_request, response) =>
      response.writeHead(302, { location: "/again" }).end()
    )
    try {
      assertRegistryError(await runError(folder, resolve(front.host, "a", "1")), "Protocol", "redirects")
    } finally {
      await front.stop()
    }
  })

  const address = Object.values(os.networkInterfaces())
    .flat()
    .find((found) => found !== undefined && !found.internal && found.family === "IPv4")?.address

  test("HTTP without TLS is for this machine, or where it is asked for", {
    skip: address === undefined ? "no other address than loopback" : false
  }, async () => {
    const front = await startFront(undefined, (_request, response) => response.writeHead(404).end(), address)
    try {
      const error = await runError(folder, resolve(front.host, "a", "1"))
      assertRegistryError(error, "Unreachable", front.host)
      assert.deepEqual(front.requests, [])
      assertRegistryError(
        await runError(folder, resolve(front.host, "a", "1", { plainHttp: true })),
        "NotFound"
      )
    } finally {
      await front.stop()
    }
  })

  test("only loopback addresses are loopback", () => {
    for (const host of ["localhost", "127.0.0.1", "127.255.255.255", "[::1]"]) {
      assert.ok(isLoopback(host), host)
    }
    for (const host of [
      "127.0.0.1.example.org",
      "127.0.0.256",
      "128.0.0.1",
      "localhost.example.org",
      "[::2]",
      ""
    ]) {
      assert.ok(!isLoopback(host), host)
    }
  })

  test("hosts and repositories that are not are InvalidOption, and nothing is sent", async () => {
    for (const host of [
      "",
      "a/b.c",
      "user@host.example",
      "example.org:0",
      "example.org/x",
      "example.org?x"
    ]) {
      assert.equal((await runError(folder, Registry.connect(host)))._tag, "InvalidOption", host)
    }
    for (const repository of ["", "../x", "A", "a:b", "a//b", "a?b", "x.y:80/a"]) {
      assert.equal(
        (await runError(folder, resolve("localhost:1", repository, "1")))._tag,
        "InvalidOption",
        repository
      )
    }
    assert.equal((await runError(folder, resolve("localhost:1", "a", "../x")))._tag, "InvalidOption")
  })
})
