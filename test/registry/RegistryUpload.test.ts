import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import type { ServerResponse } from "node:http"
import { after, before, describe, test } from "node:test"
import { gzipSync } from "node:zlib"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Registry from "../../lib/Registry.ts"
import { allowTime } from "../support/effect.ts"
import { makeTemporaryFolder, remove, run, runError } from "../support/images.ts"
import {
  type Front,
  makeCertificate,
  type RunningRegistry,
  signToken,
  startFront,
  startRegistry,
  whyNoRegistry,
  withoutDockerConfig
} from "../support/registry.ts"
import { assertRegistryError, ofBytes, withFrontOf, withRegistry } from "../support/registryClient.ts"
import { until } from "../support/until.ts"

allowTime()

/** Changes the Location of the answer. */
const relocate = (response: ServerResponse, change: (location: string) => string): void => {
  const writeHead = response.writeHead.bind(response)
  response.writeHead = ((status: number, headers: Record<string, string>) =>
    writeHead(
      status,
      headers.location === undefined ? headers : { ...headers, location: change(headers.location) }
    )) as never
}

describe("registry upload", { skip: whyNoRegistry }, () => {
  withoutDockerConfig()
  let folder = ""
  let registry: RunningRegistry
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
  })
  after(async () => {
    await registry.stop()
    remove(folder)
  })

  const withFront = (
    handle: Parameters<typeof startFront>[1],
    use: (front: Front) => Promise<void>
  ): Promise<void> => withFrontOf(registry.host, handle, use)

  const big = ofBytes(gzipSync(randomBytes(8 * 1024 * 1024)))

  /** Uploads the big blob into a repository of its own through `handle`; gives the methods of the requests. */
  const upload = async (repository: string, handle: Parameters<typeof startFront>[1]) => {
    let requests: ReadonlyArray<string> = []
    await withFront(handle, async (front) => {
      const put = (to: Registry.Registry) => Registry.putBlob(to, repository, big.blob, big.content)
      assert.equal(await run(folder, withRegistry(front.host, put)), "uploaded")
      requests = front.requests
    })
    const path = ["docker/registry/v2/repositories", repository, "_layers/sha256", big.blob.digest.slice(7)]
    assert.ok(fs.existsSync(`${registry.data}/${path.join("/")}/link`))
    return requests.map((line) => line.split(" ")[0])
  }

  test("an upload that fails once with a server error is sent again from its start", async () => {
    for (const method of ["HEAD", "POST", "PUT"]) {
      let troubles = 0
      const methods = await upload(`trouble/${method.toLowerCase()}`, (request, response, pass) => {
        if (request.method === method && troubles++ === 0) {
          request.resume().on("end", () => response.writeHead(500).end())
        } else {
          pass()
        }
      })
      const expected = {
        HEAD: ["HEAD", "HEAD", "POST", "PUT"],
        POST: ["HEAD", "POST", "POST", "PUT"],
        PUT: ["HEAD", "POST", "PUT", "POST", "PUT"]
      }
      assert.deepEqual(methods, expected[method as "PUT"])
    }
  })

  test("an answer before the end of the upload is accepted", async () => {
    let troubles = 0
    const methods = await upload("early", (request, response, pass) => {
      if (request.method === "PUT" && troubles++ === 0) {
        request.once("data", () => response.writeHead(503, { connection: "close" }).end())
      } else {
        pass()
      }
    })
    assert.deepEqual(methods, ["HEAD", "POST", "PUT", "POST", "PUT"])
  })

  test("an upload whose connection breaks is sent again from its start", async () => {
    let cuts = 0
    const methods = await upload("cut", (request, response, pass) => {
      if (request.method === "PUT" && cuts++ < 2) {
        let length = 0
        request.on("data", (chunk) => {
          length += chunk.length
          if (length > 1_000_000) {
            response.socket?.destroy()
          }
        })
      } else {
        pass()
      }
    })
    assert.deepEqual(methods, ["HEAD", "POST", "PUT", "POST", "PUT", "POST", "PUT"])
  })

  test("an upload whose connection breaks at each try fails with Unreachable", async () => {
    await withFront(
      (request, response, pass) => (request.method === "PUT" ? response.socket?.destroy() : pass()),
      async (front) => {
        const put = (to: Registry.Registry) => Registry.putBlob(to, "cut-always", big.blob, big.content)
        assertRegistryError(await runError(folder, withRegistry(front.host, put)), "Unreachable", front.host)
        assert.equal(front.requests.filter((line) => line.startsWith("PUT ")).length, 5)
      }
    )
  })

  test("an upload that a registry confirms with another digest fails", async () => {
    await withFront(
      (request, response, pass) => {
        if (request.method === "PUT") {
          request.resume().on("end", () => {
            response.writeHead(201, { "docker-content-digest": `sha256:${"0".repeat(64)}` }).end()
          })
        } else {
          pass()
        }
      },
      async (front) => {
        const put = (to: Registry.Registry) => Registry.putBlob(to, "else", big.blob, big.content)
        assertRegistryError(await runError(folder, withRegistry(front.host, put)), "Protocol", "stored")
      }
    )
  })

  const credentials = { username: "jane", password: "secret" }

  /** A server that passes authorized requests on, and redirects uploads to another host. */
  const guarded =
    (location: (location: string) => string): Parameters<typeof startFront>[1] =>
    (request, response, pass) => {
      if (request.headers.authorization === undefined) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end()
      } else {
        relocate(response, location)
        pass()
      }
    }

  test("an upload to another host gets no credentials", async () => {
    const other = await startFront(registry.host, (_request, _response, pass) => pass())
    try {
      await withFront(
        guarded((location) => location.replace(/^http:\/\/[^/]+/, `http://${other.host}`)),
        async (front) => {
          const put = (to: Registry.Registry) => Registry.putBlob(to, "elsewhere", big.blob, big.content)
          assert.equal(await run(folder, withRegistry(front.host, put, { credentials })), "uploaded")
          assert.deepEqual(
            front.authorizations.map((header) => header.split(" ")[0]),
            ["", "Basic", "Basic"]
          )
          assert.deepEqual(other.authorizations, [""])
          assert.match(other.requests[0]!, /^PUT .*[?&]digest=/)
        }
      )
    } finally {
      await other.stop()
    }
  })

  test("an upload to another host that asks for credentials sends none", async () => {
    const other = await startFront(undefined, (request, response) => {
      request.resume().on("end", () => {
        const challenge = `Basic realm="x", Bearer realm="http://${other.host}/token",service="x"`
        response.writeHead(401, { "www-authenticate": challenge }).end()
      })
    })
    try {
      await withFront(
        guarded(() => `http://${other.host}/upload`),
        async (front) => {
          const put = (to: Registry.Registry) => Registry.putBlob(to, "asked", big.blob, big.content)
          const error = await runError(folder, withRegistry(front.host, put, { credentials }))
          assertRegistryError(error, "Unauthorized")
          assert.deepEqual(other.authorizations, [""])
        }
      )
    } finally {
      await other.stop()
    }
  })

  test("an upload with an invalid Location is refused", async () => {
    for (const location of [
      "ftp://example.org/x",
      "http://jane:secret@127.0.0.1/x",
      "http://[",
      "file:///etc/x"
    ]) {
      await withFront(
        (_request, response, pass) => {
          relocate(response, () => location)
          pass()
        },
        async (front) => {
          const put = (to: Registry.Registry) => Registry.putBlob(to, "nowhere", big.blob, big.content)
          assertRegistryError(await runError(folder, withRegistry(front.host, put)), "Protocol")
          assert.equal(front.requests.length, 2)
        }
      )
    }
  })

  test("a push gets a token with the right to push, and another when it expires during an upload", async () => {
    const { certificate, key } = makeCertificate()
    const claims = { issuer: "test issuer", service: "test service", repository: "" }
    const scopes: Array<ReadonlyArray<string>> = []
    const tokens = await startFront(undefined, (request, response) => {
      const asked = new URL(request.url!, "http://localhost").searchParams.getAll("scope")
      scopes.push(asked)
      response.end(JSON.stringify({ token: signToken(key, certificate, { ...claims, scopes: asked }) }))
    })
    const guardedRegistry = await startRegistry({
      token: {
        realm: `http://${tokens.host}/token`,
        service: claims.service,
        issuer: claims.issuer,
        certificate
      }
    })
    let refusals = 0
    const front = await startFront(guardedRegistry.host, (request, response, pass) => {
      if (request.method === "PUT" && request.url!.includes("/blobs/") && refusals++ === 0) {
        const challenge = `Bearer realm="http://${tokens.host}/token",service="${claims.service}"`
        request.resume().on("end", () => response.writeHead(401, { "www-authenticate": challenge }).end())
      } else {
        pass()
      }
    })
    try {
      await run(
        `${folder}/tokens`,
        Effect.gen(function* () {
          const to = yield* Registry.connect(front.host)
          yield* Registry.putBlob(to, "team/app", big.blob, big.content)
          assert.equal(yield* Registry.mount(to, "team/other", big.blob, "team/app"), "mounted")
        })
      )
      const push = "repository:team/app:pull,push"
      const other = "repository:team/other:pull,push"
      assert.deepEqual(scopes, [[push], [push], [other], [other, "repository:team/app:pull"]])
    } finally {
      await front.stop()
      await guardedRegistry.stop()
      await tokens.stop()
    }
  })

  test("an interrupted upload closes the connection and its file", async () => {
    let closed: Promise<void> | undefined
    let arrived: () => void = () => {}
    const arrival = new Promise<void>((resolve) => {
      arrived = resolve
    })
    await withFront(
      (request, response, pass) => {
        if (request.method === "PUT") {
          closed = new Promise((resolve) => response.on("close", () => resolve()))
          request.once("data", arrived)
        } else {
          pass()
        }
      },
      async (front) => {
        let finalized = 0
        const content = Stream.concat(Stream.take(big.content, 1), Stream.never).pipe(
          Stream.ensuring(Effect.sync(() => finalized++))
        )
        const put = (to: Registry.Registry) => Registry.putBlob(to, "interrupted", big.blob, content)
        await run(
          folder,
          Effect.raceFirst(
            withRegistry(front.host, put),
            Effect.promise(() => arrival)
          )
        )
        await closed
        await until("the end of the blob's stream", () => finalized > 0)
        assert.equal(finalized, 1)
      }
    )
  })
})
