import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as http from "node:http"
import type * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type Connection, Container, Image, Network } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const sleeping = (options: Container.StartOptions = {}) =>
  Effect.flatMap(echoImage, (image) => Container.start(image, { ...options, command: ["sleep", "100"] }))

/** What a client in a container gets that sends a text and the end of it. */
const ask = (box: Container.Container, port: number | undefined, text: string, host = "127.0.0.1") =>
  Effect.map(
    Container.exec(box, ["sh", "-c", `printf %s "${text}" | nc ${host} ${port}`]),
    ({ stdout }) => stdout
  )

/** The same by a connection of this program's. */
const exchange = (box: Container.Container, address: Connection.Address, text: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { sink, stream } = yield* Container.connect(box, address)
      yield* Stream.run(Stream.encodeText(Stream.make(text)), sink)
      return yield* Stream.mkString(Stream.decodeText(stream))
    })
  )

const echo = ({ sink, stream }: Connection.Connection) => Stream.run(stream, sink)

/** The inodes of the sockets of this process that listen on the host. */
const listeningOnHost = (): ReadonlyArray<string> => {
  const own = fs.readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [fs.readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return [] // of the listing itself
    }
  })
  const lines = ["tcp", "tcp6"].flatMap((name) => {
    const file = `/proc/self/net/${name}`
    return fs.existsSync(file) ? fs.readFileSync(file, "utf8").split("\n").slice(1) : []
  })
  return lines
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[3] === "0A" && own.includes(`socket:[${fields[9]}]`))
    .map((fields) => fields[9]!)
}

const scopedServer = (make: () => net.Server) =>
  Effect.acquireRelease(Effect.sync(make), (server) =>
    Effect.promise(() => new Promise<void>((resolve) => server.close(() => resolve())))
  )

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

suite("a server of the program inside a container", (effect) => {
  for (const [name, options] of modes) {
    effect(
      `${name}: serves its processes on a port, on a path and on an abstract name, and nothing on the host`,
      function* () {
        const box = yield* sleeping(options)
        const before = listeningOnHost()
        const at = yield* Effect.scoped(
          Effect.gen(function* () {
            const at = yield* Container.listen(box, 0, echo)
            assert.equal(at.address, `127.0.0.1:${at.port}`)
            assert.deepEqual(listeningOnHost(), before)
            assert.equal(yield* ask(box, at.port, "hello"), "hello")
            const answers = yield* Effect.forEach(
              Array.from({ length: 200 }, (_, k) => `number ${k}`),
              (text) => exchange(box, at.port!, text),
              { concurrency: 50 }
            )
            assert.equal(new Set(answers).size, 200)

            const file = yield* Container.listen(box, { path: "/tmp/mock.sock" }, echo)
            assert.deepEqual(file, { address: "/tmp/mock.sock", port: undefined })
            assert.equal(yield* exchange(box, { path: "/tmp/mock.sock" }, "hello"), "hello")
            const { stdout } = yield* Container.exec(box, ["stat", "-c", "%A", "/tmp/mock.sock"])
            assert.equal(stdout, "srw-rw-rw-\n")
            yield* Container.listen(box, { path: "@mock" }, echo)
            assert.equal(yield* exchange(box, { path: "@mock" }, "hello"), "hello")
            return at
          })
        )
        assert.equal(yield* ask(box, at.port, "hello"), "")
        assert.equal((yield* Container.exec(box, ["ls", "/tmp"])).stdout, "")
      },
      { skip: whyNoBusybox }
    )

    effect(
      `${name}: is a server of node:net for libraries, and nothing on the host`,
      function* () {
        const box = yield* sleeping(options)
        const before = listeningOnHost()
        const serve = (socket: net.Socket): void =>
          void socket.once("data", (data) => socket.end(`hello ${data}`))
        yield* scopedServer(() => Container.netServer(box, 3000, serve))
        assert.deepEqual(listeningOnHost(), before)
        assert.equal(yield* ask(box, 3000, "one"), "hello one")
        yield* scopedServer(() => Container.netServer(box, { path: "/tmp/mock.sock" }, serve))
        assert.equal(yield* exchange(box, { path: "/tmp/mock.sock" }, "two"), "hello two")
        assert.deepEqual(listeningOnHost(), before)
      },
      { skip: whyNoBusybox }
    )
  }

  effect(
    "serves HTTP by a server of node:http that does not listen",
    function* () {
      const box = yield* sleeping()
      const before = listeningOnHost()
      const web = http.createServer((request, response) => response.end(`you asked for ${request.url}`))
      yield* scopedServer(() => Container.netServer(box, 80, (socket) => web.emit("connection", socket)))
      const { stdout } = yield* Container.exec(box, ["wget", "-q", "-O", "-", "http://127.0.0.1/path"])
      assert.equal(stdout, "you asked for /path")
      assert.deepEqual(listeningOnHost(), before)
    },
    { skip: whyNoBusybox || ("Bun" in globalThis ? "node:http of Bun takes no connections" : false) }
  )

  effect(
    "is reached from other containers of its network where it listens on every address",
    function* () {
      const network = yield* Network.make()
      const box = yield* sleeping({ network, name: "mock" })
      const other = yield* sleeping({ network })
      yield* Container.listen(box, { port: 3000, host: "0.0.0.0" }, echo)
      yield* Container.listen(box, 3001, echo)
      const [address] = box.state.addresses
      assert.equal(yield* ask(other, 3000, "hello", address), "hello")
      assert.equal(yield* ask(other, 3001, "hello", address), "")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "goes on after a handler that fails, and closes the connection of a handler that ends",
    function* () {
      const box = yield* sleeping()
      let count = 0
      const { port } = yield* Container.listen(
        box,
        0,
        (connection): Effect.Effect<void, unknown> =>
          ++count === 1 ? Effect.fail("broken") : echo(connection)
      )
      yield* Effect.exit(exchange(box, port!, "one"))
      assert.equal(yield* exchange(box, port!, "two"), "two")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "makes no file outside of the container's root, and keeps a file that it has not made",
    function* () {
      const box = yield* sleeping()
      const links =
        "ln -s /../../../var /tmp/out; ln -s /tmp/none /tmp/link; echo kept > /tmp/file; mkdir -p /var/mine"
      yield* Container.exec(box, ["sh", "-c", links])
      yield* Container.listen(box, { path: "/tmp/out/mine/mock.sock" }, echo)
      assert.equal(fs.existsSync("/var/mine"), false)
      assert.equal(yield* exchange(box, { path: "/var/mine/mock.sock" }, "hello"), "hello")
      for (const path of ["/tmp/link", "/tmp/file"]) {
        const error = yield* failure("NetworkError", Effect.scoped(Container.listen(box, { path }, echo)))
        assert.equal(error.reason, "AddressInUse")
      }
      const { stdout } = yield* Container.exec(box, ["sh", "-c", "cat /tmp/file; ls /tmp"])
      assert.equal(stdout, "kept\nfile\nlink\nout\n")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that cannot be is an error that names it, in both interfaces",
    function* () {
      const box = yield* sleeping()
      yield* Container.listen(box, 3000, echo)
      const taken = yield* failure("NetworkError", Effect.scoped(Container.listen(box, 3000, echo)))
      assert.equal(taken.reason, "AddressInUse")
      assert.match(taken.message, /127\.0\.0\.1:3000: a socket in the container has it/)
      const event = yield* Effect.promise(
        () =>
          new Promise<NodeJS.ErrnoException>((resolve) => Container.netServer(box, 3000).on("error", resolve))
      )
      assert.match(event.message, /127\.0\.0\.1:3000/)
      const elsewhere = Container.listen(box, { port: 1, host: "192.0.2.1" }, echo)
      assert.equal((yield* failure("NetworkError", Effect.scoped(elsewhere))).reason, "Unreachable")
      const wrong: ReadonlyArray<readonly [number | Connection.ListenOptions, RegExp]> = [
        [70000, /port: 70000/],
        [{ port: 1, host: "example.com" }, /host: "example\.com"/],
        [{ path: "relative" }, /path: "relative"/],
        [{ path: "/tmp/" }, /a path that ends in a name/],
        [{ path: "/tmp/.." }, /a path that ends in a name/],
        [{ path: `/tmp/${"x".repeat(81)}` }, /at most 80 bytes/],
        [{ path: "/none/mock.sock" }, /a path in a folder that exists/]
      ]
      for (const [options, message] of wrong) {
        const refused = Effect.scoped(Container.listen(box, options, echo))
        assert.match((yield* failure("InvalidOption", refused)).message, message)
      }
    },
    { skip: whyNoBusybox }
  )

  effect("cannot be in a container that has ended", function* () {
    const box = yield* Container.start(yield* Image.host, { command: ["true"] })
    yield* box.exit
    const error = yield* failure("ContainerError", Effect.scoped(Container.listen(box, 3000, echo)))
    assert.equal(error.reason, "NotRunning")
  })
})
