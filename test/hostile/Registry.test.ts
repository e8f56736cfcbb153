/** Registries whose answers keep a client busy: they have no end, or more bytes than the client asked for. */
import assert from "node:assert/strict"
import * as net from "node:net"
import { gzipSync } from "node:zlib"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../lib/BerthError.ts"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { suite } from "../support/effect.ts"
import { sha256, types } from "../support/images.ts"
import { front, nobody } from "../support/scoped.ts"

const content = "0123456789".repeat(10_000)
const blob = {
  mediaType: types.tar,
  digest: sha256(new TextEncoder().encode(content)),
  size: content.length
}

/** A server that gives each connection to `answer` after the first bytes of a request, and counts the requests. */
const raw = (answer: (socket: net.Socket, request: string) => void) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const sockets = new Set<net.Socket>()
      let requests = 0
      const server = net.createServer((socket) => {
        sockets.add(socket)
        socket.on("error", () => {})
        socket.once("data", (data) => {
          requests++
          answer(socket, String(data))
        })
        socket.on("close", () => sockets.delete(socket))
      })
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
      const { port } = server.address() as net.AddressInfo
      return { host: `127.0.0.1:${port}`, requests: () => requests, server, sockets }
    }),
    ({ server, sockets }) =>
      Effect.promise(async () => {
        for (const socket of sockets) socket.destroy()
        await new Promise((resolve) => server.close(resolve))
      })
  )

/** Writes the text again and again until the connection is closed. */
const flood = (socket: net.Socket, text: string, millis = 0): void => {
  const timer = setInterval(() => {
    if (socket.destroyed) clearInterval(timer)
    else if (socket.writableLength < 1 << 16) socket.write(text)
  }, millis)
  timer.unref()
  socket.on("close", () => clearInterval(timer))
}

const SPEED = 10

/**
 * A clock that runs ten times as fast: the client measures its time limits on it, so a minute's limit ends after 6 seconds.
 * A delay of this machine counts ten times as well, so the bounds below are generous.
 */
const fastClock = (): Clock.Clock => {
  const clock = Clock.make()
  return {
    ...clock,
    unsafeCurrentTimeMillis: () => clock.unsafeCurrentTimeMillis() * SPEED,
    unsafeCurrentTimeNanos: () => clock.unsafeCurrentTimeNanos() * BigInt(SPEED),
    currentTimeMillis: Effect.map(clock.currentTimeMillis, (millis) => millis * SPEED),
    currentTimeNanos: Effect.map(clock.currentTimeNanos, (nanos) => nanos * BigInt(SPEED)),
    sleep: (duration) => clock.sleep(Duration.times(duration, 1 / SPEED))
  }
}

/** The error of the effect, and how many seconds of the fast clock it has taken. */
const refusal = <A, R>(effect: Effect.Effect<A, BerthError, R>) =>
  Effect.map(
    Effect.timed(Effect.flip(effect)),
    ([took, error]) => [error, Duration.toSeconds(took)] as const
  ).pipe(Effect.withClock(fastClock()))

const download = (host: string, options: Registry.ConnectOptions) =>
  Effect.flatMap(Registry.connect(host, options), (registry) =>
    refusal(Stream.runDrain(Registry.blob(registry, "team/app", blob)))
  )

const HEAD = `HTTP/1.1 200 OK\r\ncontent-length: ${content.length}\r\n\r\n`
const CHUNKED = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

suite("a client of a hostile registry", (effect) => {
  effect("a Retry-After of more than a minute fails the request at once", function* () {
    yield* nobody
    for (const [status, reason] of [
      [429, "TooManyRequests"],
      [503, "Protocol"]
    ] as const)
      for (const wait of ["999999999", "61", "Fri, 31 Dec 9999 23:59:59 GMT"]) {
        const { host, requests } = yield* front(undefined, (_request, response) => {
          response.writeHead(status, { "retry-after": wait }).end()
        })
        const registry = yield* Registry.connect(host)
        const manifest = yield* refusal(Registry.resolve(registry, "team/app", "1"))
        const layer = yield* download(host, {})
        for (const [error, took] of [manifest, layer]) {
          assert.ok(error._tag === "RegistryError" && error.reason === reason, error.message)
          assert.match(error.message, /to wait for \d+ seconds/)
          assert.ok(took < 60, `${took} s`)
        }
        assert.ok(requests.length <= 3, requests.join("\n"))
      }
  })

  effect(
    "a blob that drips in slowly fails the download, whatever part of the message the bytes belong to",
    function* () {
      yield* nobody
      const answers: ReadonlyArray<(socket: net.Socket) => void> = [
        (socket) => {
          socket.write(HEAD)
          flood(socket, "0", 50)
        },
        (socket) => {
          socket.write(CHUNKED)
          flood(socket, "1\r\n0\r\n", 50)
        },
        // A chunk's extension and the trailers after the last chunk do not belong to the body.
        (socket) => {
          socket.write(`${CHUNKED}5;`)
          flood(socket, "extension=".repeat(100))
        },
        (socket) => {
          socket.write(`${CHUNKED}5;x="`)
          flood(socket, "x", 20)
        },
        (socket) => {
          socket.write(`${CHUNKED}1\r\n0\r\n0\r\n`)
          flood(socket, "trailer: x\r\n", 20)
        },
        (socket) => socket.write(HEAD)
      ]
      const took = yield* Effect.forEach(
        answers,
        (answer) =>
          Effect.gen(function* () {
            const { host, requests } = yield* raw(answer)
            const [error, took] = yield* download(host, { stallTimeout: "5 seconds" })
            assert.ok(error._tag === "RegistryError", `${error._tag}: ${error.message}`)
            assert.ok(requests() <= 5, `${requests()} requests`)
            return took
          }),
        { concurrency: "unbounded" }
      )
      assert.ok(Math.max(...took) < 100, took.join(" "))
    }
  )

  effect(
    "a connection that breaks after each byte is resumed a few times, then the download fails",
    function* () {
      yield* nobody
      const { host, requests } = yield* front(undefined, (request, response) => {
        const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0)
        response.writeHead(206, { "content-range": `bytes ${start}-${content.length - 1}/${content.length}` })
        response.write(content[start]!, () => response.socket?.destroy())
      })
      const [error] = yield* download(host, {})
      assert.equal(error._tag, "RegistryError")
      assert.ok(requests.length <= 5, `${requests.length} requests`)
    }
  )

  effect(
    "an endless flood or drip of headers, early hints or a token fails the download within minutes",
    function* () {
      yield* nobody
      const answers: ReadonlyArray<(socket: net.Socket, request: string) => void> = [
        (socket, request) => {
          const port = socket.localPort
          const challenge = `Bearer realm="http://127.0.0.1:${port}/token",service="s"`
          if (request.startsWith("GET /token")) {
            socket.write(`${CHUNKED}1\r\n{\r\n`)
            flood(socket, "1\r\n \r\n", 500)
          } else {
            const head = `HTTP/1.1 401 Unauthorized\r\nwww-authenticate: ${challenge}\r\n`
            socket.end(`${head}content-length: 0\r\nconnection: close\r\n\r\n`)
          }
        },
        (socket) => flood(socket, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
        (socket) => flood(socket, "HTTP/1.1 102 Processing\r\n\r\n", 10),
        (socket) => {
          socket.write("HTTP/1.1 200 OK\r\n")
          flood(socket, "x-header: x\r\n")
        },
        (socket) => {
          socket.write("HTTP/1.1 200 OK\r\nx-header: ")
          flood(socket, "x", 100)
        },
        () => {}
      ]
      const took = yield* Effect.forEach(
        answers,
        (answer) =>
          Effect.gen(function* () {
            const { host, requests } = yield* raw(answer)
            const [error, took] = yield* download(host, {})
            assert.ok(error._tag === "RegistryError", `${error._tag}: ${error.message}`)
            assert.ok(requests() <= 5, `${requests()} requests`)
            return took
          }),
        { concurrency: "unbounded" }
      )
      assert.ok(Math.max(...took) < 240, took.join(" "))
    }
  )

  effect("endless redirects, challenges and pages of a list end at their limits", function* () {
    yield* nobody
    const redirecting = yield* front(undefined, (request, response) => {
      response.writeHead(307, { location: `${request.url}x` }).end()
    })
    const [redirected] = yield* download(redirecting.host, {})
    assert.ok(redirected._tag === "RegistryError" && redirected.reason === "Protocol", redirected.message)
    assert.ok(redirecting.requests.length <= 6)

    let tokens = 0
    const challenging = yield* front(undefined, (request, response) => {
      if (request.url!.startsWith("/token")) {
        response.end(JSON.stringify({ token: `token${tokens++}` }))
      } else {
        const realm = `http://${challenging.host}/token`
        response.writeHead(401, { "www-authenticate": `Bearer realm="${realm}",service="s"` }).end()
      }
    })
    const [challenged] = yield* download(challenging.host, {})
    assert.ok(challenged._tag === "RegistryError" && challenged.reason === "Unauthorized", challenged.message)
    assert.ok(challenging.requests.length <= 4, challenging.requests.join("\n"))

    let page = 0
    const listing = yield* front(undefined, (_request, response) => {
      response.writeHead(200, { link: `</v2/team/app/tags/list?last=${page++}>; rel="next"` })
      response.end(JSON.stringify({ tags: [`t${page}`] }))
    })
    const registry = yield* Registry.connect(listing.host)
    const [listed, took] = yield* refusal(Registry.tags(registry, "team/app"))
    assert.ok(listed._tag === "ImageError" && listed.reason === "TooLarge", listed.message)
    assert.ok(page <= 1000 && took < 600, `${page} pages, ${took} s`)
  })

  effect("an answer with a content encoding is refused, and its body is not read", function* () {
    yield* nobody
    const zeros = gzipSync(new Uint8Array(100_000_000))
    const { host, requests } = yield* front(undefined, (request, response) => {
      response.writeHead(200, { "content-encoding": "gzip", "docker-content-digest": "none" })
      response.end(request.method === "HEAD" ? undefined : zeros)
    })
    const [layer] = yield* download(host, {})
    assert.ok(layer._tag === "RegistryError" && layer.reason === "Protocol", layer.message)
    assert.match(layer.message, /encoding/)
    const error = yield* Effect.flip(Image.pull(`${host}/team/app:1`))
    assert.ok(error._tag === "RegistryError" && error.reason === "Protocol", error.message)
    assert.ok(requests.length <= 4, requests.join("\n"))
  })

  effect("a blob whose Content-Length is wrong or malformed fails the download", function* () {
    yield* nobody
    for (const [length, reason] of [
      ["1", "Protocol"],
      ["99999999999999", "Unreachable"],
      ["-1", "Unreachable"],
      ["0x10", "Unreachable"],
      ["5, 7", "Unreachable"]
    ] as const) {
      const { host } = yield* raw((socket) =>
        socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\nhello`)
      )
      const [error, took] = yield* download(host, { stallTimeout: "10 seconds" })
      assert.ok(error._tag === "RegistryError" && error.reason === reason, error.message)
      assert.ok(took < 100, `${took} s`)
    }
  })
})
