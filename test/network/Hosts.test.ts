import assert from "node:assert/strict"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import * as HttpClient from "@effect/platform/HttpClient"
import * as Effect from "effect/Effect"
import { Container, Network, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite } from "../support/effect.ts"
import { hostNetwork } from "../support/hostNetwork.ts"
import { modes } from "../support/networks.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const text = (network: Network.Network, url: string) =>
  Effect.scoped(
    Effect.flatMap(Network.fetch(network, url), (response) => Effect.promise(() => response.text()))
  )

/** A container whose server has a page with the container's name. */
const serving = (name: string, options: Container.StartOptions) =>
  Effect.gen(function* () {
    const page = `mkdir /tmp/www && echo ${name} > /tmp/www/page`
    const box = yield* Container.start(yield* echoImage, {
      ...options,
      name,
      command: ["sh", "-c", `${page} && exec busybox httpd -f -p 80 -h /tmp/www`]
    })
    yield* WaitFor.port(box, 80)
    return box
  })

suite("the hosts of a network for the program", (effect) => {
  for (const [mode, options] of modes)
    effect(
      `${mode} are found by name, alias, id and address`,
      function* () {
        const before = hostNetwork()
        const network = yield* Network.make({ name: "lab" })
        const other = yield* Network.make()
        const one = yield* serving("one", { ...options, network, aliases: ["pages"] })
        yield* serving("two", { ...options, network: [other, network], aliases: ["pages"] })
        yield* serving("stranger", { ...options, network: other })
        const hosts = [
          "one",
          "ONE",
          one.id,
          ...one.state.addresses.map((a) => (a.includes(":") ? `[${a}]` : a))
        ]
        for (const host of hosts) assert.equal(yield* text(network, `http://${host}/page`), "one\n", host)
        assert.equal(yield* text(network, "http://two/page"), "two\n")
        const pages = new Set<string>()
        for (let k = 0; k < 200 && pages.size < 2; k++) pages.add(yield* text(network, "http://pages/page"))
        assert.deepEqual([...pages].sort(), ["one\n", "two\n"])

        const unknown = yield* failure("InvalidOption", text(network, "http://stranger/page"))
        assert.match(unknown.message, /url: .*stranger.*a host of network lab: one, pages, two/)
        const refused = yield* failure("NetworkError", text(network, "http://one:81/page"))
        assert.equal(refused.reason, "Refused")
        assert.match(refused.message, /network lab.*one:81.*nothing listens there/)
        assert.deepEqual(hostNetwork(), before)
      },
      skip
    )

  effect(
    "are those that are there now, and no host of a network that is closed",
    function* () {
      const network = yield* Network.make({ name: "lab" })
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* serving("api", { network })
          assert.equal(yield* text(network, "http://api/page"), "api\n")
        })
      )
      const gone = yield* failure("InvalidOption", text(network, "http://api/page"))
      assert.match(gone.message, /it has no names yet/)
      const box = yield* serving("later", {})
      yield* Network.join(network, box, { aliases: ["api"] })
      assert.equal(yield* text(network, "http://api/page"), "later\n")
      const closed = yield* Effect.scoped(Network.make())
      const error = yield* failure("InvalidOption", text(closed, "http://api/page"))
      assert.match(error.message, /a network whose scope is open/)
    },
    skip
  )

  effect(
    "include what is exposed, and serve an HttpClient and a dispatcher",
    function* () {
      const mock = yield* Effect.acquireRelease(
        Effect.promise(
          () =>
            new Promise<http.Server>((resolve) => {
              const server = http.createServer((request, response) => response.end(request.headers.host))
              server.listen(0, "127.0.0.1", () => resolve(server))
            })
        ),
        (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
      )
      const network = yield* Network.make()
      yield* Network.expose(network, {
        host: (mock.address() as AddressInfo).port,
        name: "mock.test",
        port: 80
      })
      assert.equal(yield* text(network, "http://mock.test/"), "mock.test")
      yield* serving("api", { network })
      const page = yield* HttpClient.get("http://api/page").pipe(
        Effect.flatMap((response) => response.text),
        Effect.provide(Network.httpClient(network))
      )
      assert.equal(page, "api\n")
      if ("Bun" in globalThis) {
        yield* failure("Unsupported", Network.dispatcher(network))
        return
      }
      const dispatcher = yield* Network.dispatcher(network)
      const { default: undici } = yield* Effect.promise(() => import("undici"))
      const { body } = yield* Effect.promise(() => undici.request("http://api/page", { dispatcher }))
      assert.equal(yield* Effect.promise(() => body.text()), "api\n")
    },
    skip
  )
})
