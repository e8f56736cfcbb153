import assert from "node:assert/strict"
import * as fs from "node:fs"
import type * as http from "node:http"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { ImageError } from "../../lib/BerthError.ts"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { failure, suite } from "../support/effect.ts"
import {
  type Blob,
  blobFile,
  makeTar,
  sha256,
  types,
  whyNoImages,
  writeBlob,
  writeImage
} from "../support/images.ts"
import { front, nobody, temporaryFolder } from "../support/scoped.ts"
import { unchanged } from "../support/unchanged.ts"
import { until } from "../support/until.ts"

/** A registry that serves this manifest under every tag, and the blobs of the layout. */
const serving = (
  layout: string,
  manifest: Blob,
  lets: (request: http.IncomingMessage, response: http.ServerResponse) => boolean = () => true
) =>
  front(undefined, (request, response) => {
    if (!lets(request, response)) return
    const digest = /\/(sha256:[0-9a-f]{64})$/.exec(request.url!)?.[1] ?? manifest.digest
    const file = blobFile(layout, digest)
    if (!fs.existsSync(file)) {
      response.writeHead(404).end()
      return
    }
    const bytes = fs.readFileSync(file)
    const headers = { "content-length": bytes.length, "content-type": manifest.mediaType }
    response.writeHead(200, { ...headers, "docker-content-digest": digest })
    response.end(request.method === "HEAD" ? undefined : bytes)
  })

/** Pulls an image that `write` puts into a layout; gives the message of the error. */
const pulling = (
  write: (layout: string) => Blob,
  reason: ImageError["reason"],
  options?: Image.PullOptions
) =>
  Effect.gen(function* () {
    yield* nobody
    const layout = yield* temporaryFolder
    const registry = yield* serving(layout, write(layout))
    const error = yield* failure("ImageError", unchanged(Image.pull(`${registry.host}/team/app:1`, options)))
    assert.equal(error.reason, reason, error.message)
    return error.message
  }).pipe(Effect.scoped)

/** Downloads a blob from a registry that answers by `answer`; gives its text or error, and the requests. */
const downloading = (
  content: string,
  answer: (start: number, response: http.ServerResponse, times: number) => void,
  options?: Registry.ConnectOptions
) =>
  Effect.gen(function* () {
    yield* nobody
    const layout = yield* temporaryFolder
    const blob = writeBlob(layout, types.tar, content)
    let times = 0
    const registry = yield* front(undefined, (request, response) => {
      answer(Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0), response, ++times)
    })
    const connected = yield* Registry.connect(registry.host, options)
    const text = yield* Effect.either(
      Stream.mkString(Stream.decodeText(Registry.blob(connected, "team/app", blob)))
    )
    return { host: registry.host, text, requests: registry.requests }
  })

const partial = (response: http.ServerResponse, content: string, start: number): void => {
  response.writeHead(start === 0 ? 200 : 206, {
    "content-length": content.length - start,
    "content-range": `bytes ${start}-${content.length - 1}/${content.length}`
  })
}

suite("registry faults", (effect, folder) => {
  const skip = { skip: whyNoImages }
  const tar = () => makeTar({ hello: "world" })

  effect("a manifest that is not JSON, or not a manifest, is refused", function* () {
    for (const text of ["<html>", "[]", '{"schemaVersion":2}', '{"schemaVersion":2,"layers":"all"}']) {
      yield* pulling((layout) => writeBlob(layout, types.manifest, text), "Corrupt")
    }
  })

  effect(
    "a layer or config with an unknown digest algorithm is refused by name",
    function* () {
      const layer = { mediaType: types.gzip, digest: `md5:${"0".repeat(32)}`, size: 1 }
      const message = yield* pulling(
        (layout) => writeImage(layout, [{ tar: tar() }], { manifest: { layers: [layer] } }),
        "Unsupported"
      )
      assert.match(message, /md5/)
      const config = { mediaType: types.config, digest: `blake3:${"0".repeat(64)}`, size: 1 }
      const other = yield* pulling(
        (layout) => writeImage(layout, [{ tar: tar() }], { manifest: { config } }),
        "Unsupported"
      )
      assert.match(other, /blake3/)
    },
    skip
  )

  effect(
    "a layer with another diff id than the config's is refused with both",
    function* () {
      const wrong = `sha256:${"1".repeat(64)}`
      const layer = tar()
      const message = yield* pulling(
        (layout) => writeImage(layout, [{ tar: layer }], { diffIds: [wrong] }),
        "DigestMismatch"
      )
      assert.ok(message.includes(wrong) && message.includes(sha256(layer)), message)
      const other = makeTar({ other: "layer" })
      const second = yield* pulling(
        (layout) => writeImage(layout, [{ tar: other }, { tar: layer }], { diffIds: [sha256(other), wrong] }),
        "DigestMismatch"
      )
      assert.ok(second.includes(wrong), second)
      const fewer = yield* pulling(
        (layout) => writeImage(layout, [{ tar: other }, { tar: layer }], { diffIds: [sha256(other)] }),
        "Corrupt"
      )
      assert.match(fewer, /has 2 layers, but its config 1 diff ids/)
    },
    skip
  )

  effect(
    "foreign layers are refused before anything is fetched from the registry or their URLs",
    function* () {
      yield* nobody
      const elsewhere = yield* front(undefined, (_request, response) => response.end())
      for (const type of [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
      ]) {
        const message = yield* pulling((layout) => {
          const [layer] = JSON.parse(
            fs.readFileSync(blobFile(layout, writeImage(layout, [{ tar: tar(), type }]).digest), "utf8")
          ).layers
          const layers = [{ ...layer, urls: [`http://${elsewhere.host}/layer`] }]
          return writeImage(layout, [{ tar: tar(), type }], { manifest: { layers } })
        }, "Unsupported")
        assert.match(message, /may not be distributed/)
      }
      assert.deepEqual(elsewhere.requests, [])
    },
    skip
  )

  effect(
    "a decompression bomb ends at the limit",
    function* () {
      const bomb = makeTar({ zeros: "\0".repeat(20_000_000) })
      for (const as of ["gzip", "zstd"] as const) {
        const write = (layout: string) => writeImage(layout, [{ tar: bomb, as }])
        yield* pulling(write, "TooLarge", { maxBytes: 1_000_000 })
      }
    },
    skip
  )

  effect("a reference in upper case or with two tags is refused before anything is sent", function* () {
    yield* nobody
    const registry = yield* front(undefined, (_request, response) => response.end())
    for (const name of ["Team/app:1", "team/app:1:2", "team/app@1", "team/app:", "team//app"]) {
      const error = yield* failure("InvalidData", unchanged(Image.pull(`${registry.host}/${name}`)))
      assert.equal(error.format, "reference")
    }
    assert.deepEqual(registry.requests, [])
  })

  effect("every request to an unreachable registry fails with its host and port", function* () {
    yield* nobody
    const { host } = yield* Effect.scoped(front(undefined, () => {}))
    const pulled = yield* failure("RegistryError", unchanged(Image.pull(`${host}/team/app:1`)))
    assert.deepEqual([pulled.reason, pulled.registry], ["Unreachable", host])
    assert.ok(pulled.message.includes(`${host} cannot be reached`), pulled.message)
    const named = yield* failure("RegistryError", Image.pull("registry.invalid/app:1", { plainHttp: true }))
    assert.deepEqual([named.reason, named.registry], ["Unreachable", "registry.invalid:80"])
  })

  effect("a pull whose token expires and is not renewed fails with Unauthorized", function* () {
    yield* nobody
    const layout = yield* temporaryFolder
    const manifest = writeImage(layout, [{ tar: makeTar({ token: "expires" }) }])
    let issued = 0
    const tokens = yield* front(undefined, (_request, response) => {
      response.writeHead(++issued === 1 ? 200 : 403).end(JSON.stringify({ token: "once" }))
    })
    const registry = yield* serving(layout, manifest, (request, response) => {
      // The token is valid for the tag and its manifest.
      const good = request.headers.authorization === "Bearer once" && !request.url!.includes("/blobs/")
      if (!good) {
        const challenge = `Bearer realm="http://${tokens.host}/token",service="s",error="invalid_token"`
        response.writeHead(401, { "www-authenticate": challenge }).end()
      }
      return good
    })
    const error = yield* failure("RegistryError", unchanged(Image.pull(`${registry.host}/team/app:1`)))
    assert.equal(error.reason, "Unauthorized", error.message)
    assert.ok(error.message.includes(`the token service ${tokens.host} gives no token`), error.message)
    assert.equal(issued, 2)
    assert.ok(registry.requests.some((line) => line.startsWith("GET") && line.includes("/manifests/")))
  })

  effect("a pull continues a blob where an earlier pull's connection broke", function* () {
    yield* nobody
    const layout = yield* temporaryFolder
    const layers = ["kept", "late"].map((name) => ({ tar: makeTar({ [name]: name }) }))
    const manifest = writeImage(layout, layers)
    const [kept, late] = JSON.parse(fs.readFileSync(blobFile(layout, manifest.digest), "utf8")).layers
    let broken = true
    const registry = yield* serving(layout, manifest, (request, response) => {
      const fits = !broken || !request.url!.endsWith(late.digest)
      const isKept = (): boolean => fs.existsSync(blobFile(`${folder()}/store`, kept.digest))
      if (!fits) void until("the other layer's blob", isKept).then(() => response.socket?.destroy())
      return fits
    })
    const error = yield* failure("RegistryError", Image.pull(`${registry.host}/team/app:1`))
    assert.equal(error.reason, "Unreachable", error.message)
    broken = false
    yield* Image.pull(`${registry.host}/team/app:1`)
    assert.equal(registry.requests.filter((line) => line.endsWith(kept.digest)).length, 1)
  })

  effect("a Retry-After in seconds and as a date is waited for", function* () {
    const at: Array<number> = []
    const { text } = yield* downloading("hello", (_start, response, times) => {
      at.push(Date.now())
      if (times === 3) {
        response.end("hello")
        return
      }
      // An HTTP date has no milliseconds.
      const date = new Date(Math.ceil(Date.now() / 1000) * 1000 + 1000).toUTCString()
      response.writeHead(429, { "retry-after": times === 1 ? "1" : date }).end()
    })
    assert.equal(text._tag, "Right")
    const [first, second, third] = at as [number, number, number]
    assert.ok(second - first >= 990, `${second - first} ms`)
    assert.ok(third - second >= 990 && third - second < 5000, `${third - second} ms`)
  })

  effect("an invalid or past Retry-After is not waited for", function* () {
    const began = Date.now()
    const values = ["soon", "-5", new Date(0).toUTCString(), ""]
    const { text } = yield* downloading("hello", (_start, response, times) => {
      if (times <= values.length) {
        response.writeHead(503, { "retry-after": values[times - 1] }).end()
      } else {
        response.end("hello")
      }
    })
    assert.equal(text._tag, "Right")
    assert.ok(Date.now() - began < 5000)
  })

  effect("a download that stalls is resumed at that byte", function* () {
    const content = "0123456789".repeat(1000)
    const starts: Array<number> = []
    const { text } = yield* downloading(
      content,
      (start, response) => {
        starts.push(start)
        partial(response, content, start)
        // Only the last part is sent to its end.
        if (start < 8000) {
          response.write(content.slice(start, start + 4000))
        } else {
          response.end(content.slice(start))
        }
      },
      { stallTimeout: "1 second" }
    )
    assert.ok(text._tag === "Right" && text.right === content)
    assert.deepEqual(starts, [0, 4000, 8000])
  })

  effect("a download that stalls at each try fails with Unreachable", function* () {
    const { host, requests, text } = yield* downloading(
      "hello",
      (start, response) => {
        partial(response, "hello", start)
        response.flushHeaders()
      },
      { stallTimeout: 50 }
    )
    assert.ok(text._tag === "Left" && text.left._tag === "RegistryError")
    assert.equal(text.left.reason, "Unreachable")
    assert.match(text.left.message, /stopped sending/)
    assert.ok(text.left.message.includes(host))
    assert.equal(requests.length, 5)
  })

  effect("a slow download continues as long as bytes arrive", function* () {
    const { requests, text } = yield* downloading(
      "hello",
      (start, response) => {
        partial(response, "hello", start)
        const send = (i: number): void => {
          if (i === 5) {
            response.end()
          } else {
            response.write("hello"[i]!)
            // Slow, but faster than the stall timeout.
            setTimeout(() => send(i + 1), 300)
          }
        }
        send(0)
      },
      { stallTimeout: "1 second" }
    )
    assert.ok(text._tag === "Right" && text.right === "hello")
    assert.equal(requests.length, 1)
  })

  effect("a body without a length that ends early is resumed, and fails if it is never whole", function* () {
    const content = "0123456789"
    const whole = yield* downloading(content, (start, response) => {
      response.writeHead(start === 0 ? 200 : 206, { "content-range": `bytes ${start}-9/10` })
      response.write(content.slice(start, start + 4))
      response.end()
    })
    assert.ok(whole.text._tag === "Right" && whole.text.right === content)
    assert.equal(whole.requests.length, 3)
    const short = yield* downloading(content, (_start, response) => response.end("0123"))
    assert.ok(short.text._tag === "Left")
    assert.match(short.text.left.message, /sent 4 of 10 bytes/)
  })

  effect("an answer with another range than requested is refused", function* () {
    for (const range of ["bytes 7-9/10", "bytes */10", "pages 4-9/10", undefined]) {
      const { text } = yield* downloading("0123456789", (start, response) => {
        if (start === 0) {
          response.writeHead(200, { "content-length": 10 })
          response.write("0123", () => response.socket?.destroy())
        } else {
          response.writeHead(206, range === undefined ? {} : { "content-range": range }).end("456789")
        }
      })
      assert.ok(text._tag === "Left", range)
      assert.match(text.left.message, /another range/)
    }
  })

  effect("an invalid stallTimeout fails with InvalidOption", function* () {
    for (const stallTimeout of [0, -1, "soon" as never]) {
      const error = yield* failure("InvalidOption", Registry.connect("localhost:1", { stallTimeout }))
      assert.equal(error.option, "stallTimeout")
    }
  })
})
