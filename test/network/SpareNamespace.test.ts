/** The namespace of a network that is made in advance. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Container, Network, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { ask, eventually, lookUp } from "../support/networks.ts"

const target = (fd: number | string): string => {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return "" // closed meanwhile
  }
}

/** The network namespaces of which this program has descriptors. */
const namespaces = (): ReadonlySet<string> =>
  new Set(
    fs
      .readdirSync("/proc/self/fd")
      .map(target)
      .filter((name) => name.startsWith("net:"))
  )

const namespaceOf = ({ state }: Network.Network): string => target(state.router.namespace.fd)

suite("the namespace of the next network", (effect) => {
  effect("is made in advance after two networks, and is like any other", function* () {
    const before = namespaces()
    const added = () => [...namespaces()].filter((name) => !before.has(name))
    const earlier = [yield* Network.make(), yield* Network.make()]
    yield* eventually(
      "a namespace is made in advance",
      Effect.sync(() => added().length === 3)
    )
    const spare = added().find((name) => !earlier.map(namespaceOf).includes(name))

    const own = yield* Network.make({ range: "10.5.0.0/16" })
    assert.notEqual(namespaceOf(own), spare)
    const network = yield* Network.make()
    assert.equal(namespaceOf(network), spare)
    const ranges = [...earlier, network].map(({ range }) => range)
    assert.equal(new Set(ranges).size, 3)

    const image = yield* echoImage
    const server = yield* Container.start(image, {
      network,
      name: "server",
      command: ["/bin/echo", "any4:7"]
    })
    yield* WaitFor.log(server, "listening")
    const client = yield* Container.start(image, { network, command: ["sleep", "1000"] })
    assert.match(yield* ask(client, server.state.addresses[0]!), /^hello/)
    assert.deepEqual(yield* lookUp(client, "server"), [server.state.addresses[0]])
  })

  effect("ends with its network", function* () {
    const ended = yield* Effect.scoped(
      Effect.gen(function* () {
        yield* Network.make()
        yield* Network.make()
        const network = yield* Network.make()
        return { name: namespaceOf(network), network }
      })
    )
    assert.ok(!namespaces().has(ended.name))
    assert.equal(ended.network.state.router.namespace.fd, -1)
  })
})
