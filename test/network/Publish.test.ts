import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Connection, Container, Image, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const start = (addresses: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    return yield* Container.start(yield* echoImage, { ...options, command: ["/bin/echo", ...addresses] })
  })

/** Connects as any client on the host does. */
const connect = (port: number, host = "127.0.0.1"): Promise<net.Socket> =>
  new Promise((resolve, reject) => {
    const socket = net.connect({ port, host, allowHalfOpen: true })
    socket.once("error", reject)
    socket.once("connect", () => {
      socket.off("error", reject)
      resolve(socket)
    })
  })

const received = (socket: net.Socket): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = ""
    socket.on("data", (data) => {
      text += data
    })
    socket.once("error", reject)
    socket.once("end", () => resolve(text))
  })

const exchange = async (port: number, text: string, host?: string): Promise<string> => {
  const socket = await connect(port, host)
  socket.end(text)
  return received(socket).finally(() => socket.destroy())
}

const promise = <A>(body: () => Promise<A>): Effect.Effect<A> => Effect.promise(body)

/** Published, from when it accepts. */
const published = (
  box: Container.Container,
  port: number | Connection.PublishOptions
): Effect.Effect<Connection.PublishedPort, unknown, Scope.Scope> =>
  Effect.tap(Container.publish(box, port), (at) =>
    promise(async () => {
      for (const limit = Date.now() + 10_000; ; await new Promise((resolve) => setTimeout(resolve, 2))) {
        const refused = await connect(at.port, at.hostname).then(
          (socket) => void socket.destroy(),
          (error: unknown) => error
        )
        if (refused === undefined) return
        if (Date.now() > limit) throw refused
      }
    })
  )

const hasIPv6 = fs.existsSync("/proc/sys/net/ipv6") && fs.readFileSync("/proc/net/if_inet6", "utf8") !== ""

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

suite("a published port", (effect) => {
  for (const [name, options] of modes)
    effect(
      `${name}: leads to the server on the same port of IPv4 and IPv6, for as long as the scope is open`,
      function* () {
        const box = yield* start(["v4:7"], options)
        const at = yield* Effect.scoped(
          Effect.gen(function* () {
            const at = yield* published(box, 7)
            assert.equal(at.hostname, "127.0.0.1")
            assert.equal(yield* promise(() => exchange(at.port, "hello")), "hellobye")
            if (hasIPv6) assert.equal(yield* promise(() => exchange(at.port, "hello", "::1")), "hellobye")
            return at
          })
        )
        yield* promise(() => assert.rejects(connect(at.port), { code: "ECONNREFUSED" }))
      },
      { skip: whyNoBusybox }
    )

  effect(
    "refuses connections until the server listens, and a server of IPv6 alone is found",
    function* () {
      const script = "cat /tmp/begin; exec /bin/echo v6:7"
      const box = yield* Container.start(yield* echoImage, {
        command: ["sh", "-c", `mkfifo /tmp/begin; echo waiting; ${script}`]
      })
      yield* WaitFor.log(box, "waiting")
      const { port } = yield* Container.publish(box, 7)
      yield* promise(() => assert.rejects(connect(port), { code: "ECONNREFUSED" }))
      yield* Container.exec(box, ["sh", "-c", "echo > /tmp/begin"])
      yield* WaitFor.log(box, "listening")
      assert.equal(
        yield* Effect.retry(
          Effect.tryPromise(() => exchange(port, "hello")),
          { times: 100 }
        ),
        "hellobye"
      )
    },
    { skip: whyNoBusybox }
  )

  effect(
    "of a server that has ended breaks each connection off",
    function* () {
      const box = yield* start(["v4:7"])
      const { port } = yield* published(box, 7)
      yield* Container.signal(box, "SIGKILL")
      yield* box.exit
      yield* promise(() => assert.rejects(connect(port).then(received), { code: "ECONNRESET" }))
    },
    { skip: whyNoBusybox }
  )

  effect(
    "passes on a reset of the server, and each half's end by itself",
    function* () {
      const box = yield* start(["v4:7"])
      const { port } = yield* published(box, 7)
      yield* promise(() => assert.rejects(exchange(port, "reset"), { code: "ECONNRESET" }))
      const socket = yield* promise(() => connect(port))
      socket.write("one")
      yield* promise(() => new Promise((resolve) => socket.once("data", resolve)))
      socket.end("two")
      assert.equal(yield* promise(() => received(socket)), "twobye")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "holds back a server that floods a client that does not read, and serves others meanwhile",
    function* () {
      const box = yield* start(["v4:7"])
      const { port } = yield* published(box, 7)
      const idle = yield* promise(() => connect(port))
      idle.pause().write("flood")
      for (let k = 0; k < 20; k++) assert.equal(yield* promise(() => exchange(port, `${k} `)), `${k} bye`)
      idle.destroy()
    },
    { skip: whyNoBusybox }
  )

  effect(
    "serves a thousand connections at a time",
    function* () {
      const box = yield* start(["v4:7"])
      const { port } = yield* published(box, 7)
      yield* promise(async () => {
        const sockets = await Promise.all(Array.from({ length: 1000 }, () => connect(port)))
        const texts = await Promise.all(
          sockets.map((socket, k) => {
            socket.end(`number ${k} `)
            return received(socket)
          })
        )
        assert.deepEqual(
          texts,
          texts.map((_, k) => `number ${k} bye`)
        )
        for (const socket of sockets) socket.destroy()
      })
    },
    { skip: whyNoBusybox }
  )

  effect(
    "carries 64 MiB unchanged in both directions at once",
    function* () {
      const box = yield* start(["v4:7"])
      const { port } = yield* published(box, 7)
      yield* promise(async () => {
        const socket = await connect(port)
        const chunk = Buffer.alloc(1 << 20, "0123456789abcdef")
        let came = 0
        const all = new Promise<void>((resolve, reject) => {
          socket.on("data", (data) => {
            const expected = Array.from({ length: 16 }, (_, k) => "0123456789abcdef".charCodeAt(k))
            if (came < 64 << 20 && data[0] !== expected[came % 16]) reject(new Error(`wrong byte at ${came}`))
            came += data.length
          })
          socket.on("end", resolve)
          socket.on("error", reject)
        })
        for (let k = 0; k < 64; k++)
          if (!socket.write(chunk)) await new Promise((resolve) => socket.once("drain", resolve))
        socket.end()
        await all
        assert.equal(came, (64 << 20) + 3)
        socket.destroy()
      })
    },
    { skip: whyNoBusybox }
  )

  effect("that is taken is an error that names its holder", function* () {
    const server = yield* Effect.acquireRelease(
      promise(
        () =>
          new Promise<net.Server>((resolve) => {
            const made = net.createServer().listen(0, "127.0.0.1", () => resolve(made))
          })
      ),
      (made) => Effect.sync(() => made.close())
    )
    const { port } = server.address() as net.AddressInfo
    const box = yield* Container.start(yield* Image.host, { command: ["sleep", "100"] })
    const error = yield* failure(
      "NetworkError",
      Effect.scoped(Container.publish(box, { container: 7, host: port }))
    )
    assert.equal(error.reason, "AddressInUse")
    assert.match(
      error.message,
      new RegExp(`127\\.0\\.0\\.1:${port}: the port is taken by .*\\(pid ${process.pid}\\)`)
    )
  })

  effect("that cannot be is refused by name", function* () {
    const box = yield* Container.start(yield* Image.host, { command: ["sleep", "100"] })
    const wrong: ReadonlyArray<readonly [number | Connection.PublishOptions, RegExp]> = [
      [0, /container: 0/],
      [70000, /container: 70000/],
      [{ container: 7, host: -1 }, /host: -1/],
      [{ container: 7, host: 65536 }, /host: 65536/],
      [{ container: 7, hostname: "example.com" }, /host: "example\.com"/]
    ]
    for (const [options, message] of wrong)
      assert.match(
        (yield* failure("InvalidOption", Effect.scoped(Container.publish(box, options)))).message,
        message
      )
    const elsewhere = { container: 7, hostname: "192.0.2.1" }
    const error = yield* failure("NetworkError", Effect.scoped(Container.publish(box, elsewhere)))
    assert.match(error.message, /this machine does not have the address/)
  })
})
