import assert from "node:assert/strict"
import * as net from "node:net"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Container, Network } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { waitUntil } from "../support/until.ts"

const skip = { skip: whyNoBusybox }

const address = Object.values(os.networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ family, internal }) => family === "IPv4" && !internal)?.address

const whyNoAddress = whyNoBusybox || (address === undefined ? "this machine has no address" : false)

/** A server of this program that sends back what it receives. */
interface Server {
  readonly server: net.Server
  readonly sockets: Set<net.Socket>
  text: string
  /** The connections that have ended. */
  ended: number
}

const serve = (...where: ReadonlyArray<unknown>): Effect.Effect<Server, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server = net.createServer()
      const made: Server = { server, sockets: new Set(), text: "", ended: 0 }
      server.on("connection", (socket) => {
        made.sockets.add(socket)
        socket.setEncoding("latin1").on("data", (data) => {
          made.text += data
          socket.write(data)
        })
        socket.on("error", () => {})
        socket.on("close", () => {
          made.ended++
        })
      })
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject)
        server.listen(...(where as [string]), () => resolve())
      })
      return made
    }),
    ({ server, sockets }) =>
      Effect.promise(() => {
        for (const socket of sockets) socket.destroy()
        return new Promise((resolve) => server.close(resolve))
      })
  )

const portOf = ({ server }: Server): number => (server.address() as net.AddressInfo).port

/** A client in a container, with what it has received so far. */
const connect = (box: Container.Container, host: string, port: number) =>
  Effect.gen(function* () {
    const client = { text: "", over: false, send: (_: string): void => {} }
    const input = yield* Queue.unbounded<Uint8Array>()
    client.send = (text) => input.unsafeOffer(new TextEncoder().encode(text))
    const nc = yield* Container.execStream(box, ["nc", host, String(port)], { stdin: "pipe", stdout: "pipe" })
    yield* Effect.forkScoped(Effect.ignore(Stream.run(Stream.fromQueue(input), nc.stdin)))
    const read = Stream.runForEach(nc.stdout, (bytes) =>
      Effect.sync(() => {
        client.text += new TextDecoder().decode(bytes)
      })
    )
    yield* Effect.forkScoped(
      Effect.zipRight(
        read,
        Effect.sync(() => (client.over = true))
      )
    )
    return client
  })

const making = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>) =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    yield* Scope.extend(effect, scope)
    return Scope.close(scope, Exit.void)
  })

/** Each direction has faults of its own, while the connection runs and until their scope closes; a reset ends both ends. */
const checkFaults = (
  target: Network.ToxicTarget,
  box: Container.Container,
  server: Server,
  host: string,
  port: number
) =>
  Effect.gen(function* () {
    const client = yield* connect(box, host, port)
    client.send("first ")
    yield* waitUntil("the first bytes", () => client.text === "first ")
    // What the proxy has received by now it would have passed on before it answers this.
    const settled = Effect.scoped(Network.toxic(target, { rate: 1_000_000 }))

    const up = yield* making(Network.toxic(target, { latency: "1 hour", direction: "up" }))
    client.send("up ")
    for (const socket of server.sockets) socket.write("down ")
    yield* waitUntil("the other direction", () => client.text === "first down ")
    yield* settled
    assert.equal(server.text, "first ")
    yield* up
    yield* waitUntil(
      "the delayed bytes",
      () => server.text === "first up " && client.text === "first down up "
    )

    const down = yield* making(Network.toxic(target, { halfOpen: true, direction: "down" }))
    client.send("again")
    yield* waitUntil("the other direction", () => server.text === "first up again")
    yield* settled
    assert.equal(client.text, "first down up ")
    yield* down
    yield* waitUntil("the delayed bytes", () => client.text === "first down up again")

    yield* Effect.scoped(
      Effect.gen(function* () {
        yield* Network.toxic(target, { reset: { after: 0 } })
        yield* waitUntil("the reset", () => client.over && server.ended === 1)
      })
    )
    const next = yield* connect(box, host, port)
    next.send("next")
    yield* waitUntil("a connection without faults", () => next.text === "next")
  })

const idle = (network: Network.Network) =>
  Effect.flatMap(echoImage, (image) => Container.start(image, { network, command: ["sleep", "1000"] }))

suite("faults of an exposed port and of the way out of a network", (effect, folder) => {
  effect(
    "an exposed port has them by direction, until their scope closes",
    function* () {
      const network = yield* Network.make()
      const box = yield* idle(network)
      const server = yield* serve(0, "127.0.0.1")
      const exposed = yield* Network.expose(network, { host: portOf(server), name: "mock", port: 80 })
      yield* checkFaults(exposed, box, server, "mock", 80)
    },
    skip
  )

  effect(
    "an exposed Unix socket has them, apart from what else is exposed",
    function* () {
      const network = yield* Network.make()
      const box = yield* idle(network)
      const path = `${folder()}/exposed`
      const server = yield* serve(path)
      const other = yield* serve(0, "127.0.0.1")
      const exposed = yield* Network.expose(network, { host: { path }, name: "file", port: 80 })
      yield* Network.expose(network, { host: portOf(other), name: "other", port: 80 })
      yield* Network.toxic(exposed, { halfOpen: true })
      const client = yield* connect(box, "file", 80)
      client.send("hello")
      const beside = yield* connect(box, "other", 80)
      beside.send("hello")
      yield* waitUntil("the other port", () => beside.text === "hello")
      yield* Effect.scoped(Network.toxic(exposed, { rate: 1_000_000 }))
      assert.equal(server.text, "")
    },
    skip
  )

  effect(
    "connections that leave a network have them by direction, until their scope closes",
    function* () {
      const server = yield* serve(0, address!)
      const network = yield* Network.make({ outbound: { allow: [`${address}:${portOf(server)}`] } })
      yield* checkFaults(network, yield* idle(network), server, address!, portOf(server))
    },
    { skip: whyNoAddress }
  )

  effect(
    "those of a network are refused without outbound, and end with it",
    function* () {
      const network = yield* Network.make()
      const refused = yield* failure("InvalidOption", Effect.scoped(Network.toxic(network, { latency: 1 })))
      assert.match(refused.message, /target: .*berth.Network.*a network with outbound/)
      const scope = yield* Scope.make()
      const closed = yield* Scope.extend(Network.make({ outbound: "proxy" }), scope)
      const undo = yield* making(Network.toxic(closed, { latency: 1 }))
      yield* Scope.close(scope, Exit.void)
      yield* undo
      yield* Effect.scoped(Network.toxic(closed, { latency: 1 }))
    },
    skip
  )
})
