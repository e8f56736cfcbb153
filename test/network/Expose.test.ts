import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { Container, Network } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { firstLine } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["containers", {}],
  ...(whyNotRoot ? [] : [['containers with userns: "auto"', { userns: "auto" }] as const])
]

const skip = { skip: whyNoBusybox }

const hasIPv6 = fs.existsSync("/proc/sys/net/ipv6") && fs.readFileSync("/proc/net/if_inet6", "utf8") !== ""

const listening = (server: net.Server, ...where: ReadonlyArray<unknown>): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once("error", reject)
    server.listen(...(where as [string]), () => resolve())
  })

/** A server of this program, which answers with a text and what it has read. */
const serveAt = (text: string, ...where: ReadonlyArray<unknown>) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server = net.createServer({ allowHalfOpen: true }, (socket) => {
        socket.on("error", () => {})
        socket.write(text)
        socket.pipe(socket)
      })
      await listening(server, ...where)
      return server
    }),
    (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
  )

/** The same on this machine's loopback. */
const serve = (text: string, host = "127.0.0.1", port = 0) =>
  Effect.map(serveAt(text, port, host), (server) => ({ port: (server.address() as net.AddressInfo).port }))

/** A port of this machine on which nothing listens. */
const freePort = Effect.scoped(Effect.map(serve(""), ({ port }) => port))

const idle = (options: Container.StartOptions) =>
  Effect.flatMap(echoImage, (image) => Container.start(image, { ...options, command: ["sleep", "1000"] }))

/** What a container gets from a port: the text that comes back for "hello", or nothing. */
const ask = (box: Container.Container, host: string, port: number) =>
  Effect.map(
    Container.exec(box, ["sh", "-c", `echo hello | timeout 10 nc -w 5 ${host} ${port}`]),
    ({ stdout }) => stdout
  )

/** A container gets nothing from a port, which it waits two seconds for. */
const hidden = (box: Container.Container, host: string, port: number) =>
  Effect.map(Container.exec(box, ["sh", "-c", `echo hello | nc -w 2 ${host} ${port}`]), ({ stdout }) =>
    assert.equal(stdout, "", host)
  )

/** The same from when the port accepts: the proxy looks for the server again and again. */
const askUntil = (box: Container.Container, host: string, port: number, expected: string) =>
  Effect.gen(function* () {
    for (const limit = Date.now() + 15_000; ; ) {
      const text = yield* ask(box, host, port)
      if (text === expected || Date.now() > limit) return assert.equal(text, expected)
      yield* Effect.sleep("5 millis")
    }
  })

suite("an exposed port", (effect, folder) => {
  for (const [name, options] of modes)
    effect(
      `${name} reach it by name and address, on a port of its own, and nothing else of the host's loopback`,
      function* () {
        const network = yield* Network.make()
        const before = yield* idle({ ...options, network })
        const { port } = yield* serve("mock ")
        const { port: other } = yield* serve("other ")
        const stranger = yield* idle({ ...options, network: yield* Network.make() })
        const at = yield* Network.expose(network, { host: port, name: "mock.test", port: 80 })
        assert.deepEqual([at.name, at.port, at.addresses.length], ["mock.test", 80, hasIPv6 ? 2 : 1])
        const after = yield* idle({ ...options, network })
        for (const box of [before, after])
          for (const host of ["mock.test", "MOCK.test", ...at.addresses])
            assert.equal(yield* ask(box, host, 80), "mock hello\n", host)
        for (const host of [...at.addresses, "169.254.1.1", "127.0.0.1", `${network.range.slice(0, -7)}.0.1`])
          for (const one of [port, other]) yield* hidden(after, host, one)
        yield* hidden(stranger, "mock.test", 80)
        yield* hidden(stranger, at.addresses[0]!, 80)
      },
      skip
    )

  effect(
    "refuses connections until a server listens, over IPv6 as well, and is gone with its scope",
    function* () {
      const network = yield* Network.make()
      const box = yield* idle({ network })
      const port = yield* freePort
      const at = yield* Effect.scoped(
        Effect.gen(function* () {
          const at = yield* Network.expose(network, { host: port, name: "late" })
          assert.equal(at.port, port)
          const refused = yield* Container.exec(box, ["nc", "-w", "5", "late", String(port)])
          assert.match(refused.stderr, /refused/i)
          yield* serve("late ", hasIPv6 ? "::1" : "127.0.0.1", port)
          yield* askUntil(box, "late", port, "late hello\n")
          return at
        })
      )
      for (const host of ["late", ...at.addresses]) yield* hidden(box, host, port)
      yield* serve("again ", "127.0.0.1", port)
      yield* Network.expose(network, { host: port, name: "late" })
      yield* askUntil(box, "late", port, "again hello\n")
    },
    skip
  )

  effect(
    "leads to a Unix socket of the host, which may listen later",
    function* () {
      const network = yield* Network.make()
      const box = yield* idle({ network })
      const path = `${folder()}/exposed`
      yield* Network.expose(network, { host: { path }, name: "file", port: 80 })
      assert.equal(yield* ask(box, "file", 80), "")
      const abstract = `berth-exposed-${process.pid}`
      yield* Network.expose(network, { host: { path: `@${abstract}` }, name: "abstract", port: 80 })
      yield* serveAt("file ", path)
      yield* askUntil(box, "file", 80, "file hello\n")
      const echo = `${folder()}/echo/bin/echo`
      const server = yield* killedAfter(() =>
        spawn(echo, [`abstract:${abstract}`], { stdio: ["ignore", "pipe", "inherit"] })
      )
      yield* Effect.promise(() => firstLine(server))
      yield* askUntil(box, "abstract", 80, "hello\nbye")
    },
    skip
  )

  effect(
    "several have the same port, by their names",
    function* () {
      const network = yield* Network.make()
      const box = yield* idle({ network })
      const [one, two] = [yield* serve("one "), yield* serve("two ")]
      yield* Network.expose(network, { host: one.port, name: "one", port: 7 })
      yield* Network.expose(network, { host: two.port, name: "two", port: 7 })
      assert.equal(yield* ask(box, "one", 7), "one hello\n")
      assert.equal(yield* ask(box, "two", 7), "two hello\n")
    },
    skip
  )

  for (const [name, options] of modes)
    effect(
      `${name} reach it at host-gateway, which refuses all other connections`,
      function* () {
        const network = yield* Network.make()
        const extraHosts = ["host.docker.internal:host-gateway"]
        const box = yield* idle({ ...options, network: [network, yield* Network.make()], extraHosts })
        const [one, two] = [yield* serve("one "), yield* serve("two ")]
        const refused = Effect.gen(function* () {
          const command = ["nc", "-w", "10", "host.docker.internal", String(one.port)]
          assert.match((yield* Container.exec(box, command)).stderr, /refused/i)
        })
        yield* refused
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* Network.expose(network, { host: one.port, name: "one" })
            yield* Network.expose(network, { host: two.port, name: "two", port: one.port })
            yield* Network.expose(network, { host: two.port, name: "three", port: 80 })
            assert.equal(yield* ask(box, "host.docker.internal", one.port), "one hello\n")
            assert.equal(yield* ask(box, "host.docker.internal", 80), "two hello\n")
            const hosts = yield* Container.exec(box, ["cat", "/etc/hosts"])
            const own = [...hosts.stdout.matchAll(/^(\S+)\thost\.docker\.internal$/gm)]
            assert.equal(own.length, hasIPv6 ? 2 : 1)
            for (const [, address] of own) assert.equal(yield* ask(box, address!, 80), "two hello\n")
          })
        )
        yield* refused
      },
      skip
    )

  effect(
    "host-gateway is the network's of a pod and of another container, loopback on the host's network, and nothing without one",
    function* () {
      const network = yield* Network.make()
      const { port } = yield* serve("mock ")
      yield* Network.expose(network, { host: port, name: "mock" })
      const extraHosts = ["machine:host-gateway"]
      const pod = yield* Network.pod({ network })
      const inPod = yield* idle({ network: pod, extraHosts })
      const first = yield* idle({ network })
      const beside = yield* idle({ namespaces: { network: first }, extraHosts })
      for (const box of [inPod, beside]) assert.equal(yield* ask(box, "machine", port), "mock hello\n")
      const onHost = yield* idle({ network: "host", extraHosts })
      assert.equal(yield* ask(onHost, "machine", port), "mock hello\n")
      for (const options of [{}, { network: yield* Network.pod() }]) {
        const error = yield* failure("InvalidOption", Effect.scoped(idle({ ...options, extraHosts })))
        assert.match(error.message, /extraHosts\[0\]: "machine:host-gateway".*needs `network`/)
      }
    },
    skip
  )

  effect(
    "its name is not given twice, and what is no name or port is refused by name",
    function* () {
      const network = yield* Network.make({ name: "lab" })
      const box = yield* idle({ network, name: "db" })
      const expose = (options: Partial<Network.ExposeOptions>) =>
        failure("InvalidOption", Effect.scoped(Network.expose(network, { host: 1, name: "x", ...options })))
      yield* Network.expose(network, { host: 3000, name: "mock" })
      assert.match(
        (yield* expose({ name: "DB" })).message,
        new RegExp(`container ${box.id} has it on network lab`)
      )
      assert.match(
        (yield* expose({ name: "Mock" })).message,
        /name: "mock".*an exposed port has it on network lab/
      )
      const start = Effect.scoped(idle({ network, name: "mock" }))
      assert.match((yield* failure("InvalidOption", start)).message, /name: "mock".*an exposed port/)
      assert.match((yield* expose({ name: "a b" })).message, /name: "a b"/)
      assert.match((yield* expose({ host: 70_000 })).message, /host: 70000/)
      assert.match((yield* expose({ host: "3000" as never })).message, /host: 3000/)
      assert.match((yield* expose({ port: 0 })).message, /port: 0/)
      assert.match((yield* expose({ host: { path: "x" }, port: 1 })).message, /path: "x"/)
      assert.match((yield* expose({ host: { path: "/run/x" } })).message, /port: .*a port, from 1/)
      yield* Network.expose(network, { host: 3000, name: "x" })
    },
    skip
  )

  effect(
    "its scope may close after its network's, and a network that is closed has no more",
    function* () {
      const scope = yield* Scope.make()
      const network = yield* Effect.scoped(
        Effect.gen(function* () {
          const network = yield* Network.make()
          yield* Scope.extend(Network.expose(network, { host: 3000, name: "mock" }), scope)
          return network
        })
      )
      yield* Scope.close(scope, Exit.void)
      yield* Effect.flip(Network.expose(network, { host: 3000, name: "mock" }))
    },
    skip
  )
})
