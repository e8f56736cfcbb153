import assert from "node:assert/strict"
import * as net from "node:net"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { type Berth, type BerthError, Container, Network, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { ANSWER, ask, echoing, eventually, idle, lookUp } from "../support/networks.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** What a port of the host answers; nothing if it refuses. */
const answerOf = (port: number) =>
  Effect.promise(
    () =>
      new Promise<string>((resolve) => {
        let came = ""
        const socket = net.connect(port, "127.0.0.1", () => socket.end("hello"))
        socket.on("data", (bytes) => (came += bytes))
        socket.on("end", () => resolve(came))
        socket.on("error", () => resolve(came))
      })
  )

const freePort = Effect.promise(
  () =>
    new Promise<number>((resolve) => {
      const server = net.createServer().listen(0, "127.0.0.1", () => {
        const { port } = server.address() as net.AddressInfo
        server.close(() => resolve(port))
      })
    })
)

suite("a pod", (effect) => {
  effect(
    "shares loopback, addresses and names between its containers, and nothing else of them",
    function* () {
      const network = yield* Network.make()
      const pod = yield* Network.pod({ network, name: "web", aliases: ["www"] })
      const member = yield* echoing({ network, name: "member" })
      const server = yield* Container.start(yield* echoImage, {
        network: pod,
        command: ["/bin/echo", "v4:7"]
      })
      yield* WaitFor.log(server, "listening")
      const client = yield* idle({ network: pod })
      assert.equal(yield* ask(client, "127.0.0.1"), ANSWER)
      assert.equal(yield* ask(client, member.state.addresses[0]!), ANSWER)
      const [address] = pod.state.addresses
      for (const name of ["web", "www"]) assert.deepEqual(yield* lookUp(member, name), [address], name)
      for (const box of [server, client]) {
        assert.deepEqual(box.state.addresses, pod.state.addresses)
        assert.deepEqual(yield* lookUp(box, "member"), [member.state.addresses[0]])
        const hosts = yield* Container.exec(box, ["cat", "/etc/hosts"])
        assert.match(hosts.stdout, new RegExp(`^${address}\\s+${box.id}$`, "m"))
      }
      const seen = yield* Container.exec(client, ["ps"])
      assert.doesNotMatch(seen.stdout, /bin\/echo/)
      yield* Container.connect(server, 7)
      assert.equal(inspect(pod), `Pod(web, ${pod.state.addresses.join(", ")})`)
      assert.deepEqual(pod.toJSON(), { _id: "berth/Pod", name: "web", addresses: pod.state.addresses })
      assert.ok(Network.isPod(pod))
    },
    skip
  )

  effect(
    "lives until its scope closes, whatever its containers do",
    function* () {
      const network = yield* Network.make()
      const scope = yield* Scope.make()
      const pod = yield* Network.pod({ network, name: "web" }).pipe(Scope.extend(scope))
      const member = yield* idle({ network })
      for (let k = 0; k < 2; k++) {
        const addresses = pod.state.addresses
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* echoing({ network: pod })
            assert.equal(yield* ask(member, addresses[0]!), ANSWER)
          })
        )
        assert.deepEqual(pod.state.addresses, addresses)
        assert.equal(network.state.members.size, 2)
      }
      yield* Scope.close(scope, Exit.void)
      assert.equal(network.state.members.size, 1)
      assert.deepEqual(yield* lookUp(member, "web"), [])
      assert.match(
        (yield* failure("InvalidOption", Effect.scoped(idle({ network: pod })))).message,
        /network: .*a pod whose scope is open/
      )
    },
    skip
  )

  effect(
    "publishes ports of whichever of its containers listens, and joins and leaves networks while they run",
    function* () {
      const host = yield* freePort
      const pod = yield* Network.pod({ ports: [`${host}:7`] })
      const box = yield* idle({ network: pod })
      assert.deepEqual(pod.state.addresses, [])
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* echoing({ network: pod })
          yield* eventually(
            "an answer",
            Effect.map(answerOf(host), (text) => text === "hellobye")
          )
        })
      )
      const network = yield* Network.make()
      const member = yield* echoing({ network, name: "member" })
      yield* Network.join(network, pod, { aliases: ["late"] })
      assert.deepEqual(yield* lookUp(box, "member"), [member.state.addresses[0]])
      assert.deepEqual(yield* lookUp(member, "late"), [pod.state.addresses[0]])
      assert.equal(yield* ask(box, member.state.addresses[0]!), ANSWER)
      yield* Network.leave(network, pod)
      assert.deepEqual(yield* lookUp(box, "member"), [])
    },
    skip
  )

  effect(
    "refuses what it cannot be, and what a container in it cannot have",
    function* () {
      const network = yield* Network.make()
      const pod = yield* Network.pod({ network, name: "web" })
      const wrong: ReadonlyArray<
        readonly [Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>, RegExp]
      > = [
        [Network.pod({ network, name: "web" }), /name: "web" .*container web has it/],
        [Network.pod({ name: "a b" }), /name: "a b"/],
        [Network.pod({ network: [network, network] }), /without repetition/],
        [Network.pod({ ports: ["x"] }), /ports/],
        [idle({ network: pod, name: "own" }), /name: .*has the pod's names/],
        [idle({ network: pod, aliases: ["own"] }), /aliases: .*has the pod's names/],
        [idle({ network: pod, namespaces: { network: "new" } }), /namespaces\.network/],
        ...(whyNotRoot
          ? []
          : [[idle({ network: pod, userns: "auto" }), /userns: "auto" .*in a pod/] as const]),
        [idle({ network: [pod] as never }), /network: /]
      ]
      for (const [made, message] of wrong)
        assert.match((yield* failure("InvalidOption", Effect.scoped(made))).message, message)
      assert.equal(network.state.members.size, 1)
    },
    skip
  )
})
