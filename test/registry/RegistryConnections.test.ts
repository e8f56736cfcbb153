import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as os from "node:os"
import { after, before, describe, test } from "node:test"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
import { parseChallenges } from "../../lib/internal/registry/auth.ts"
import { isLoopback } from "../../lib/internal/registry/proxy.ts"
import * as Registry from "../../lib/Registry.ts"
import {
  makeImage,
  makeTemporaryFolder,
  remove,
  run,
  runError,
  types,
  whyNoImages,
  writeBlob
} from "../support/images.ts"
import {
  htpasswd,
  makeCertificate,
  signToken,
  startFront,
  startRegistry,
  whyNoRegistry,
  withoutDockerConfig
} from "../support/registry.ts"
import { assertRegistryError, push, resolve } from "../support/registryClient.ts"
import { unchanged } from "../support/unchanged.ts"

describe("registry authentication", { skip: whyNoRegistry }, () => {
  withoutDockerConfig()
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    makeImage(`${folder}/layout`, "one")
  })
  after(() => remove(folder))

  test("basic authentication works with given and configured credentials, and fails with wrong, missing and unreadable ones", async () => {
    const registry = await startRegistry({ htpasswd })
    const docker = makeTemporaryFolder()
    const earlier = process.env.DOCKER_CONFIG
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
      process.env.DOCKER_CONFIG = earlier
      remove(docker)
      await registry.stop()
    }
  })

  test("bearer authentication asks once for a token for the repository, and fails with wrong credentials", async () => {
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
      // The registry accepts the token, and has no image.
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

  test("a 401 without a challenge fails with a message that says so", async () => {
    const front = await startFront(undefined, (_request, response) => response.writeHead(401).end())
    try {
      const error = await runError(folder, unchanged(Image.pull(`${front.host}/team/app:1`)))
      assertRegistryError(error, "Unauthorized", front.host, "WWW-Authenticate")
      assert.equal(front.requests.length, 1)
    } finally {
      await front.stop()
    }
  })

  test("unknown challenges and token services without TLS on another host are refused", async () => {
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

  test("challenges are parsed in every form that registries send", () => {
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

describe("registry connections", { skip: whyNoImages }, () => {
  withoutDockerConfig()
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  test("a closed port fails with Unreachable, with host and port", async () => {
    const front = await startFront(undefined, () => {})
    await front.stop()
    const error = await runError(folder, unchanged(Image.pull(`${front.host}/team/app:1`)))
    assertRegistryError(error, "Unreachable", front.host)
  })

  test("an unknown host fails with Unreachable", async () => {
    assertRegistryError(
      await runError(folder, unchanged(Image.pull("nowhere.invalid/app:1"))),
      "Unreachable",
      "nowhere.invalid:443"
    )
  })

  test("a manifest of 100 MB is refused by its length, unread", async () => {
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
      const error = await runError(folder, unchanged(Image.pull(`${front.host}/team/app:1`)))
      assert.ok(error._tag === "ImageError" && error.reason === "TooLarge", error.message)
      assert.ok(sent <= 1024 * 1024)
    } finally {
      await front.stop()
    }
  })

  test("an endless manifest without a length is refused", async () => {
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
      const error = await runError(folder, unchanged(Image.pull(`${front.host}/team/app:1`)))
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
      const error = await runError(folder, unchanged(Image.pull(`${front.host}/team/app:1`)))
      assert.equal(error._tag, "ImageError", error.message)
    } finally {
      await front.stop()
    }
  })

  test("endless redirects fail", async () => {
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

  test("HTTP without TLS is used for this machine, and elsewhere only on request", {
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

  test("isLoopback is true for loopback addresses only", () => {
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

  test("an invalid host fails with InvalidOption, an invalid repository with InvalidData, and nothing is sent", async () => {
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
      const { _tag } = await runError(folder, resolve("localhost:1", repository, "1"))
      assert.equal(_tag, "InvalidData", repository)
    }
    assert.equal((await runError(folder, resolve("localhost:1", "a", "../x")))._tag, "InvalidData")
  })
})
