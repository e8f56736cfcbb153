import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe } from "node:test"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Berth from "../../lib/Berth.ts"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { failure, suite } from "../support/effect.ts"
import { type Blob, blobFile, makeImage, makeTemporaryFolder, remove, sh } from "../support/images.ts"
import { type RunningRegistry, startRegistry, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"
import { front, nobody, runningRegistry } from "../support/scoped.ts"

suite("registry mirrors", (effect) => {
  describe("mirrors of a registry", () => {
    const skip = { skip: whyNoRegistry }
    let layout = ""
    let origin: RunningRegistry
    before(async () => {
      if (whyNoRegistry !== false) return
      layout = makeTemporaryFolder()
      origin = await startRegistry()
      for (const tag of ["one", "two", "three", "four", "five"]) {
        makeImage(`${layout}/${tag}`, tag)
        pushTag(tag, origin.host, "team/app")
      }
    })
    after(async () => {
      if (whyNoRegistry !== false) return
      await origin.stop()
      remove(layout)
    })

    const pushTag = (tag: string, host: string, repository: string) =>
      push(`oci:${layout}/${tag}:${tag}`, `${host}/${repository}:${tag}`)

    /** The first layer of an image that the registry has. */
    const layerOf = (tag: string): Blob =>
      JSON.parse(
        sh("skopeo", "inspect", "--raw", "--tls-verify=false", `docker://${origin.host}/team/app:${tag}`)
      ).layers[0]

    const motd = (image: Image.Image) => fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8")
    const pass = (target: string) => front(target, (_request, _response, through) => through())

    effect(
      "a pull asks a pull-through cache, and not the registry",
      function* () {
        yield* nobody
        const cache = yield* runningRegistry({ proxyOf: `http://${origin.host}` })
        const watched = yield* pass(origin.host)
        const image = yield* Image.pull(`${watched.host}/team/app:one`, { mirrors: [cache.host] })
        assert.equal(motd(image), "this is one\n")
        assert.equal(image.reference, `${watched.host}/team/app:one`)
        assert.deepEqual(watched.requests, [])
      },
      skip
    )

    effect(
      "a pull asks mirrors in their order, past one without the image and one that is unreachable",
      function* () {
        yield* nobody
        const absent = yield* Effect.scoped(pass(origin.host))
        const empty = yield* front(undefined, (_request, response) => response.writeHead(404).end())
        const holder = yield* runningRegistry()
        pushTag("two", holder.host, "cache/of/origin/team/app")
        const mirror = yield* pass(holder.host)
        const watched = yield* pass(origin.host)
        const image = yield* Image.pull(`${watched.host}/team/app:two`, {
          mirrors: [absent.host, { location: empty.host }, `${mirror.host}/cache/of/origin`]
        })
        assert.equal(motd(image), "this is two\n")
        assert.deepEqual(watched.requests, [])
        assert.ok(empty.requests.length > 0)
        assert.ok(mirror.requests.every((line) => line.includes(" /v2/cache/of/origin/team/app/")))
      },
      skip
    )

    effect(
      "a pull asks the registry when no mirror has the image, and fails with the registry's error",
      function* () {
        yield* nobody
        const empty = yield* front(undefined, (_request, response) => response.writeHead(404).end())
        const busy = yield* front(undefined, (_request, response) =>
          response.writeHead(429, { "retry-after": "30" }).end()
        )
        const mirrors = [empty.host, busy.host]
        const began = Date.now()
        assert.equal(motd(yield* Image.pull(`${origin.host}/team/app:three`, { mirrors })), "this is three\n")
        assert.ok(Date.now() - began < 20_000)
        const error = yield* failure(
          "RegistryError",
          Image.pull(`${origin.host}/team/app:absent`, { mirrors })
        )
        assert.equal(error.registry, origin.host)
        assert.equal(error.reason, "NotFound")
      },
      skip
    )

    effect(
      "a blob that breaks off at one mirror is continued from the next at that byte",
      function* () {
        yield* nobody
        const mirror = yield* front(origin.host, (request, response, through) =>
          request.headers.range === undefined ? through(50_000) : response.socket?.destroy()
        )
        const ranges: Array<string> = []
        const watched = yield* front(origin.host, (request, _response, through) => {
          ranges.push(request.headers.range ?? "")
          through()
        })
        const connected = yield* Registry.connect(watched.host, { mirrors: [mirror.host] })
        const first = layerOf("four")
        const length = yield* Stream.runFold(
          Registry.blob(connected, "team/app", first),
          0,
          (total, chunk) => total + chunk.length
        )
        assert.equal(length, first.size)
        assert.equal(ranges.length, 1)
        assert.ok(Number(/^bytes=(\d+)-$/.exec(ranges[0]!)?.[1]) >= 50_000, ranges[0])
      },
      skip
    )

    effect(
      "a mirror with other bytes is detected, and the pull succeeds from the registry",
      function* () {
        yield* nobody
        const liar = yield* front(origin.host, (request, response, through) => {
          if (request.url!.includes("/blobs/")) {
            response.end(Buffer.alloc(100_000))
          } else {
            through()
          }
        })
        const image = yield* Image.pull(`${origin.host}/team/app:five`, { mirrors: [liar.host] })
        assert.equal(motd(image), "this is five\n")
        assert.ok(liar.requests.some((line) => line.includes("/blobs/")))
      },
      skip
    )

    effect(
      "a blob contains no bytes of a mirror that sends other bytes or breaks off",
      function* () {
        yield* nobody
        const blob = layerOf("four")
        const right = fs.readFileSync(blobFile(`${layout}/four`, blob.digest))
        const other = Buffer.from(right)
        other[other.length - 1]! ^= 1
        const liar = yield* front(undefined, (_request, response) => response.end(other))
        const breaker = yield* front(undefined, (request, response) => {
          if (request.headers.range !== undefined) {
            response.writeHead(404).end()
            return
          }
          response.writeHead(200, { "content-length": blob.size })
          response.write(other.subarray(-100_000), () => response.socket?.destroy())
        })
        const watched = yield* pass(origin.host)
        const third = yield* pass(origin.host)
        const berth = yield* Berth.Berth
        const bytesBy = (host: string, mirrors: ReadonlyArray<string>) =>
          Effect.gen(function* () {
            const connected = yield* Registry.connect(host, { mirrors })
            const chunks: Array<Uint8Array> = []
            const end = yield* Effect.either(
              Stream.runForEach(Registry.blob(connected, "team/app", blob), (chunk) =>
                Effect.sync(() => void chunks.push(chunk))
              )
            )
            const files = fs.readdirSync(berth.supervisor.folder)
            assert.ok(!files.some((name) => name.startsWith("blob-")))
            return { bytes: Buffer.concat(chunks), end }
          })
        const byOrigin = yield* bytesBy(watched.host, [liar.host, breaker.host])
        assert.equal(byOrigin.end._tag, "Right", String(byOrigin.end))
        assert.ok(right.equals(byOrigin.bytes))
        assert.ok(liar.requests.length > 0 && breaker.requests.length > 0)
        const before = watched.requests.length
        const byMirror = yield* bytesBy(watched.host, [liar.host, third.host])
        assert.ok(right.equals(byMirror.bytes))
        assert.equal(watched.requests.length, before)
        // The registry is the last source: its bytes are passed on unverified, but never all of them.
        const wrong = yield* bytesBy(liar.host, [breaker.host])
        assert.ok(wrong.end._tag === "Left" && wrong.end.left._tag === "ImageError", String(wrong.end))
        assert.equal(wrong.end.left.reason, "DigestMismatch")
        assert.ok(wrong.bytes.length < blob.size)
      },
      skip
    )

    effect(
      "a mirror gets its own credentials, and never those given for the registry",
      function* () {
        const home = yield* nobody
        const mirror = yield* front(undefined, (_request, response) =>
          response.writeHead(401, { "www-authenticate": 'Basic realm="mirror"' }).end()
        )
        const registry = yield* front(undefined, (request, response) =>
          request.headers.authorization === undefined
            ? response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end()
            : response.writeHead(404).end()
        )
        const credentials = { username: "jane", password: "secret" }
        const resolve = (mirrors: NonNullable<Registry.ConnectOptions["mirrors"]>) =>
          Effect.flatMap(Registry.connect(registry.host, { credentials, mirrors }), (connected) =>
            failure("RegistryError", Registry.resolve(connected, "team/app", "1"))
          )
        assert.equal((yield* resolve([mirror.host])).reason, "NotFound")
        assert.deepEqual(mirror.authorizations, [""])
        const basic = (text: string) => `Basic ${Buffer.from(text).toString("base64")}`
        assert.equal(registry.authorizations.at(-1), basic("jane:secret"))
        const own = { username: "mirror", password: "own" }
        yield* resolve([{ location: mirror.host, credentials: own }])
        assert.deepEqual(mirror.authorizations.slice(1), ["", basic("mirror:own")])
        fs.mkdirSync(`${home}/docker`)
        const auths = { [mirror.host]: { auth: Buffer.from("kept:1").toString("base64") } }
        fs.writeFileSync(`${home}/docker/config.json`, JSON.stringify({ auths }))
        yield* resolve([mirror.host])
        assert.equal(mirror.authorizations.at(-1), basic("kept:1"))
      },
      skip
    )

    effect("an unreachable mirror is not asked for each blob", function* () {
      yield* nobody
      let connections = 0
      const mirror = yield* front(undefined, (_request, response) => {
        connections++
        response.socket?.destroy()
      })
      const registry = yield* front(undefined, (_request, response) => response.writeHead(404).end())
      const connected = yield* Registry.connect(registry.host, { mirrors: [mirror.host] })
      yield* failure("RegistryError", Registry.resolve(connected, "a", "1"))
      const tries = connections
      assert.ok(tries > 0)
      yield* failure("RegistryError", Registry.resolve(connected, "a", "2"))
      assert.equal(connections, tries)
    })

    effect("an invalid location of a mirror fails with InvalidOption", function* () {
      for (const mirror of [
        "",
        "http://a.example",
        "a.example/",
        "a.example/A",
        "name",
        "a.example?x",
        "u@a.example"
      ]) {
        const error = yield* failure("InvalidOption", Registry.connect("b.example", { mirrors: [mirror] }))
        assert.equal(error.option, "mirrors", mirror)
      }
      for (const mirror of ["docker.io", "mirror.gcr.io", "localhost:5000/a/b", "[::1]:5000"]) {
        yield* Registry.connect("b.example", { mirrors: [mirror] })
      }
    })
  })
})
