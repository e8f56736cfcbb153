import assert from "node:assert/strict"
import type * as net from "node:net"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { type Connection, Container, Image, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

/** A container in which `echo` serves at all kinds of addresses. */
const echoing = (options: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    const command = ["/bin/echo", "v4:7", "v6:77", "unix:/tmp/echo", "abstract:echo"]
    const box = yield* Container.start(yield* echoImage, { ...options, command })
    yield* WaitFor.log(box, "listening")
    return box
  })

/** Sends a text, ends the sending half, and gives all that comes back. */
const exchange = (box: Container.Container, address: Connection.Address, text: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { sink, stream } = yield* Container.connect(box, address)
      yield* Stream.run(Stream.make(bytes(text)), sink)
      return yield* Stream.mkString(Stream.decodeText(stream))
    })
  )

/** What a socket of node:net receives until it is closed; fails with its error. */
const received = (socket: net.Socket): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = ""
    socket.on("data", (data) => {
      text += data
    })
    socket.on("error", reject)
    socket.on("close", () => resolve(text))
  })

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

suite("a connection into a container", (effect) => {
  for (const [name, options] of modes) {
    effect(
      `${name}: TCP over IPv4 and IPv6, a Unix socket by its path and by its abstract name`,
      function* () {
        const box = yield* echoing(options)
        const addresses: ReadonlyArray<Connection.Address> = [
          7,
          77,
          { port: 7, host: "127.0.0.1" },
          { port: 77, host: "::1" },
          { port: 77, host: "localhost" },
          { path: "/tmp/echo" },
          { path: "@echo" }
        ]
        for (const address of addresses)
          assert.equal(yield* exchange(box, address, "hello"), "hellobye", JSON.stringify(address))
      },
      { skip: whyNoBusybox }
    )

    effect(
      `${name}: UDP, over IPv4 and IPv6, a datagram at a time`,
      function* () {
        const command = ["/bin/echo", "udp:any4:7", "udp:v6:77"]
        const box = yield* Container.start(yield* echoImage, { ...options, command })
        yield* WaitFor.log(box, "listening")
        const sent = [bytes("hello"), bytes(""), new Uint8Array(65_507).fill(7), bytes("bye")]
        for (const address of [{ port: 7 }, { port: 77, host: "::1" }]) {
          const { sink, stream } = yield* Container.connect(box, { ...address, protocol: "udp" })
          yield* Stream.run(Stream.fromIterable(sent), sink)
          const came = yield* Stream.runCollect(Stream.take(stream, sent.length))
          assert.deepEqual(Chunk.toReadonlyArray(came).map(String), sent.map(String))
        }
      },
      { skip: whyNoBusybox }
    )

    effect(
      `${name}: a socket of node:net connects inside, whatever address its client names`,
      function* () {
        const box = yield* echoing(options)
        const socket = Container.netSocket(box, 7)
        yield* Effect.promise(
          () => new Promise((resolve) => socket.connect(1, "192.0.2.1", () => resolve(0)))
        )
        socket.end("hello")
        assert.equal(yield* Effect.promise(() => received(socket)), "hellobye")
        socket.connect(1, "127.0.0.1")
        assert.equal(socket.connecting, false)
      },
      { skip: whyNoBusybox }
    )
  }

  effect(
    "a port that nobody listens on is refused by its name, in both interfaces",
    function* () {
      const box = yield* echoing()
      const error = yield* failure("NetworkError", Effect.scoped(Container.connect(box, 8)))
      assert.equal(error.reason, "Refused")
      assert.match(error.message, /127\.0\.0\.1:8: nothing listens there/)
      const missing = yield* failure(
        "NetworkError",
        Effect.scoped(Container.connect(box, { path: "/tmp/none" }))
      )
      assert.match(missing.message, /\/tmp\/none: there is no such socket/)
      const thrown: unknown = yield* Effect.flip(
        Effect.tryPromise(() => received(Container.netSocket(box, 8)))
      )
      assert.match(String((thrown as { error: Error }).error.message), /nothing listens there/)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a port of UDP that nobody listens on is refused after the first datagram, with the last lines of the log",
    function* () {
      const box = yield* Container.start(yield* Image.host, {
        command: ["sh", "-c", "echo no server here; exec sleep 100"]
      })
      yield* WaitFor.log(box, "no server")
      const { sink, stream } = yield* Container.connect(box, { port: 8, protocol: "udp" })
      yield* Stream.run(Stream.make(bytes("hello")), sink)
      const error = yield* failure("NetworkError", Stream.runDrain(stream))
      assert.equal(error.reason, "Refused")
      assert.match(error.message, /127\.0\.0\.1:8: nothing listens there.*no server here/s)
      const sctp = Container.connect(box, { port: 8, protocol: "sctp" as "udp" })
      assert.match((yield* failure("InvalidOption", Effect.scoped(sctp))).message, /protocol: sctp/)
    }
  )

  effect("a port, a host or a path that cannot be is named by the error", function* () {
    const box = yield* Container.start(yield* Image.host, { command: ["sleep", "100"] })
    const wrong: ReadonlyArray<readonly [Connection.Address, RegExp]> = [
      [0, /port: 0/],
      [70000, /port: 70000/],
      [1.5, /port: 1\.5/],
      [{ port: 1, host: "example.com" }, /host: "example\.com"/],
      [{ port: 1, host: "fe80::1%eth0" }, /host/],
      [{ path: "relative" }, /path: "relative"/],
      [{ path: `@${"x".repeat(200)}` }, /at most 108 bytes/]
    ]
    for (const [address, message] of wrong)
      assert.match(
        (yield* failure("InvalidOption", Effect.scoped(Container.connect(box, address)))).message,
        message
      )
  })

  effect(
    "the errors of a refused connection and of an ended container have the last lines of its log",
    function* () {
      const script = "seq 20; echo starting >&2; read go; echo cannot start >&2; exit 3"
      const command = ["sh", "-c", script]
      const box = yield* Container.start(yield* echoImage, { command, stdin: "pipe" })
      yield* WaitFor.log(box, "starting")
      const refused = [
        yield* failure("NetworkError", Effect.scoped(Container.connect(box, 8))),
        yield* failure("NetworkError", Effect.scoped(Container.fetch(box, "http://localhost:8/")))
      ]
      for (const error of refused) {
        assert.equal(error.reason, "Refused")
        assert.equal(error.log?.length, 10)
        assert.match(
          error.message,
          /127\.0\.0\.1:8: nothing listens there .*Last lines of its log:\n12\n(.*\n)*starting$/
        )
      }
      yield* Stream.run(Stream.make(bytes("go\n")), box.stdin)
      yield* box.exit
      yield* WaitFor.log(box, "cannot start")
      const ended = [
        yield* failure("ContainerError", Effect.scoped(Container.connect(box, 8))),
        yield* failure("ContainerError", Effect.scoped(Container.publish(box, 8)))
      ]
      for (const error of ended) {
        assert.equal(error.reason, "NotRunning")
        assert.match(
          error.message,
          /it has ended with exit code 3, and nothing can .*:\n(.*\n)*cannot start$/
        )
      }
    },
    { skip: whyNoBusybox }
  )

  effect("a container that has ended cannot be connected to", function* () {
    const box = yield* Container.start(yield* Image.host, { command: ["sleep", "100"] })
    yield* Container.signal(box, "SIGKILL")
    yield* box.exit
    const error = yield* failure("ContainerError", Effect.scoped(Container.connect(box, 7)))
    assert.equal(error.reason, "NotRunning")
    assert.match(error.message, /it has been ended by SIGKILL, and nothing can connect to it$/)
  })

  effect(
    "a path leads to a socket of the container's, not of the host's, whatever its links say",
    function* () {
      const box = yield* echoing()
      yield* Container.exec(box, ["ln", "-s", "../../../../tmp/echo", "/tmp/link"])
      assert.equal(yield* exchange(box, { path: "/tmp/link" }, "hello"), "hellobye")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a server that breaks the connection off is an error of the stream",
    function* () {
      const box = yield* echoing()
      const exit = yield* Effect.exit(exchange(box, 7, "reset"))
      assert.ok(Exit.isFailure(exit))
    },
    { skip: whyNoBusybox }
  )

  effect(
    "400 connections at once are each their own",
    function* () {
      const box = yield* echoing()
      const texts = Array.from({ length: 400 }, (_, k) => `number ${k} `)
      const answers = yield* Effect.forEach(texts, (text) => exchange(box, 7, text), { concurrency: 400 })
      assert.deepEqual(
        answers,
        texts.map((text) => `${text}bye`)
      )
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a flood is read as far as it is wanted, and interrupting its reader closes the connection",
    function* () {
      const box = yield* echoing()
      const { sink, stream } = yield* Container.connect(box, 7)
      yield* Stream.run(Stream.make(bytes("flood")), sink)
      const some = yield* Stream.runCollect(Stream.take(stream, 4))
      assert.equal(Chunk.size(some), 4)
      const fiber = yield* Effect.fork(Stream.runDrain(stream))
      yield* Effect.yieldNow()
      yield* Fiber.interrupt(fiber)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "fetch gives the runtime's own response",
    function* () {
      const script =
        "mkdir /tmp/www && echo text > /tmp/www/file && echo ready && exec busybox httpd -f -p 127.0.0.1:80 -h /tmp/www"
      const box = yield* Container.start(yield* echoImage, { command: ["sh", "-c", script] })
      yield* WaitFor.port(box, 80)
      const response = yield* Container.fetch(box, "http://localhost/file")
      assert.ok(response instanceof Response)
      assert.equal(response.status, 200)
      assert.equal(yield* Effect.promise(() => response.text()), "text\n")
      assert.equal(
        (yield* Container.fetch(box, new URL("http://any.name/none"), { method: "HEAD" })).status,
        404
      )
      const refused = yield* failure("NetworkError", Container.fetch(box, "http://localhost:81/"))
      assert.match(refused.message, /127\.0\.0\.1:81: nothing listens there/)
      const wrong = yield* failure("InvalidOption", Container.fetch(box, "not a url"))
      assert.match(wrong.message, /url: "not a url"/)
    },
    { skip: whyNoBusybox }
  )
})
