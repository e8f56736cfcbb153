import assert from "node:assert/strict"
import * as dgram from "node:dgram"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Container, Network, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const promise = <A>(body: () => Promise<A>): Effect.Effect<A> => Effect.promise(body)

const start = (addresses: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    const command = ["/bin/echo", ...addresses]
    const box = yield* Container.start(yield* echoImage, { ...options, command })
    yield* WaitFor.log(box, "listening")
    return box
  })

/** A UDP socket of the host that has sent to no one yet. */
const udpSocket = (kind: dgram.SocketType = "udp4"): Effect.Effect<dgram.Socket, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => dgram.createSocket(kind)),
    (socket) => promise(() => new Promise<void>((resolve) => socket.close(() => resolve())))
  )

/** Sends a datagram until an answer comes: the network may lose each of them. */
const ask = (socket: dgram.Socket, port: number, text: string, host = "127.0.0.1"): Promise<string> =>
  new Promise((resolve, reject) => {
    const limit = setTimeout(() => done(() => reject(new Error(`no answer to ${text.slice(0, 20)}`))), 15_000)
    const again = setInterval(() => socket.send(text, port, host), 500)
    const take = (data: Uint8Array): void => {
      // Answers to earlier questions may still come.
      if (String(data) === text) done(() => resolve(String(data)))
    }
    const done = (then: () => void): void => {
      clearTimeout(limit)
      clearInterval(again)
      socket.off("message", take)
      then()
    }
    socket.on("message", take)
    socket.send(text, port, host)
  })

/** The pids of the proxies of the container's Berth. */
const proxiesOf = (box: Container.Container): ReadonlyArray<string> =>
  fs.readdirSync("/proc").filter((pid) => {
    try {
      const [program, folder] = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0")
      return program === "berth-proxy" && folder === box.state.berth.supervisor.folder
    } catch {
      return false // gone, or no process
    }
  })

const hasIPv6 = fs.existsSync("/proc/sys/net/ipv6") && fs.readFileSync("/proc/net/if_inet6", "utf8") !== ""

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

suite("a published UDP port", (effect) => {
  for (const [name, options] of modes)
    effect(
      `${name}: datagrams go to the server on the same port of IPv4 and IPv6, and the answers to who asked`,
      function* () {
        const box = yield* start(["udp:v4:7"], options)
        const at = yield* Container.publish(box, { container: 7, protocol: "udp" })
        const [one, other] = [yield* udpSocket(), yield* udpSocket()]
        const answers = yield* promise(() =>
          Promise.all([ask(one, at.port, "one"), ask(other, at.port, "other"), ask(one, at.port, "again")])
        )
        assert.deepEqual(answers, ["one", "other", "again"])
        const long = "x".repeat(60_000)
        assert.equal(yield* promise(() => ask(one, at.port, long)), long)
        if (!hasIPv6) return
        const six = yield* udpSocket("udp6")
        assert.equal(yield* promise(() => ask(six, at.port, "six", "::1")), "six")
      },
      { skip: whyNoBusybox }
    )

  effect(
    "finds a server of IPv6 alone, one that is started later, and one that has been started again",
    function* () {
      const server = (address: string) => ["sh", "-c", `/bin/echo udp:${address} & echo $! > /tmp/pid; wait`]
      const box = yield* Container.start(yield* echoImage, { command: ["sleep", "100"] })
      const { port } = yield* Container.publish(box, "7/udp")
      const socket = yield* udpSocket()
      socket.send("to nobody", port, "127.0.0.1")
      for (const address of ["v6:7", "any4:7", "v6:7"]) {
        const process = yield* Container.execStream(box, server(address))
        assert.equal(yield* promise(() => ask(socket, port, address)), address)
        yield* Container.exec(box, ["sh", "-c", "kill $(cat /tmp/pid)"])
        yield* process.exit
      }
    },
    { skip: whyNoBusybox }
  )

  effect(
    "serves 3000 peers, of which it knows 1024 at a time",
    function* () {
      const box = yield* start(["udp:v4:7"])
      const { port } = yield* Container.publish(box, "7/udp")
      const first = yield* udpSocket()
      assert.equal(yield* promise(() => ask(first, port, "first")), "first")
      for (let k = 0; k < 60; k++)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const sockets = yield* Effect.all(Array.from({ length: 50 }, () => udpSocket()))
            const texts = yield* promise(() =>
              Promise.all(sockets.map((socket, n) => ask(socket, port, `${k} ${n}`)))
            )
            assert.deepEqual(
              texts,
              texts.map((_, n) => `${k} ${n}`)
            )
          })
        )
      assert.equal(yield* promise(() => ask(first, port, "last")), "last")
      const own = proxiesOf(box)
      assert.equal(own.length, 1)
      if (!whyNotRoot) {
        const open = fs.readdirSync(`/proc/${own[0]}/fd`).length
        assert.ok(open > 1000 && open < 1050, `${open} descriptors`)
      }
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that is taken is an error that names its holder; a TCP port of the same number is another one",
    function* () {
      const box = yield* start(["udp:v4:7", "v4:7"])
      const { port } = yield* Container.publish(box, { container: 7, protocol: "udp" })
      const again = { container: 7, protocol: "udp", host: port } as const
      const error = yield* failure("NetworkError", Effect.scoped(Container.publish(box, again)))
      assert.equal(error.reason, "AddressInUse")
      assert.match(error.message, /the port is taken by .*berth-proxy \(pid \d+\)/)
      // A number that is free for both is found after some tries, as other programs have ports too.
      const both = Effect.flatMap(Container.publish(box, 7), (at) =>
        Container.publish(box, { container: 7, protocol: "udp", host: at.port })
      )
      yield* Effect.retry(Effect.scoped(both), { times: 20 })
    },
    { skip: whyNoBusybox }
  )

  effect(
    "ends with its scope",
    function* () {
      const box = yield* start(["udp:v4:7"])
      const at = yield* Effect.scoped(Container.publish(box, "7/udp"))
      const socket = yield* udpSocket()
      yield* promise(() => new Promise<void>((resolve) => socket.bind(at.port, "127.0.0.1", () => resolve())))
    },
    { skip: whyNoBusybox }
  )
})

suite("the ports of a start", (effect) => {
  effect(
    "take Docker's spelling, with ranges; a wrong one is refused before anything is started",
    function* () {
      const image = yield* echoImage
      const sleeping = yield* Container.start(image, { command: ["sleep", "100"] })
      const onFreePort = Effect.gen(function* () {
        const { port } = yield* Effect.scoped(Container.publish(sleeping, "7/udp"))
        const ports = [`${port}:7/udp`, `127.0.0.1:${port}:7`]
        const box = yield* Container.start(image, { command: ["/bin/echo", "v4:7", "udp:v4:7"], ports })
        return { box, free: port }
      })
      const { box, free } = yield* Effect.retry(onFreePort, { times: 20 })
      yield* WaitFor.log(box, "listening")
      const socket = yield* udpSocket()
      assert.equal(yield* promise(() => ask(socket, free, "hello")), "hello")
      assert.deepEqual(yield* Container.published(box, 7), { hostname: "127.0.0.1", port: free })
      assert.deepEqual(yield* Container.published(box, 7, "udp"), { hostname: "127.0.0.1", port: free })
      const many = yield* Container.start(image, {
        command: ["/bin/echo", "v4:80"],
        ports: ["0.0.0.0::60-99"]
      })
      assert.equal(proxiesOf(box).length, 2)
      yield* Network.toxic(yield* Container.published(many, 80), { halfOpen: true })
      const none = yield* failure("InvalidOption", Container.published(box, 8))
      assert.match(none.message, /port: "8\/tcp".*of container [0-9a-f]+: 7\/udp, 7\/tcp/)
      const wrong = Container.start(image, { command: ["true"], ports: ["80", "8080:70000"] })
      const error = yield* failure("InvalidOption", Effect.scoped(wrong))
      assert.match(error.message, /ports: "8080:70000"/)
      const range = yield* failure("InvalidOption", Effect.scoped(Container.publish(box, "80-81")))
      assert.match(range.message, /a range is for the option `ports`/)
    },
    { skip: whyNoBusybox }
  )
})
