import assert from "node:assert/strict"
import * as fs from "node:fs"
import { setImmediate } from "node:timers/promises"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { type Berth, type BerthError, Container, Network } from "../../lib/index.ts"
import { AT_FDCWD, native, O_PATH } from "../../lib/internal/system/addon.ts"
import { echoImage } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { waitUntil } from "../support/until.ts"

const skip = { skip: whyNoBusybox }

/** Files that take the lowest free descriptors. */
const STRANGERS = 16

const openStrangers = (path: string): ReadonlyArray<number> =>
  Array.from({ length: STRANGERS }, () => native().openIn(AT_FDCWD, path, O_PATH, 0, 0))

/**
 * Closes a scope at once, after a turn of the event loop and so on, until what is made in it is there first. Files that are
 * opened then have the numbers of its descriptors; they stay as they are.
 */
const closeEarly = (
  path: string,
  make: Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>
) =>
  Effect.gen(function* () {
    for (let turns = 0, isMade = false; !isMade; turns += 1 + (turns >> 2)) {
      const scope = yield* Scope.make()
      const making = yield* Effect.fork(Scope.extend(make, scope))
      for (let k = 0; k < turns; k++) yield* Effect.promise(() => setImmediate())
      isMade = making.unsafePoll() !== null
      yield* Scope.close(scope, Exit.void)
      const strangers = openStrangers(path)
      yield* Effect.exit(Fiber.join(making))
      for (const fd of strangers) {
        assert.equal(fs.readlinkSync(`/proc/self/fd/${fd}`), path, `after ${turns} turns`)
        native().close(fd)
      }
    }
  })

const idle = (options: Container.StartOptions) =>
  Effect.flatMap(echoImage, (image) => Container.start(image, { ...options, command: ["sleep", "1000"] }))

suite("a scope that closes meanwhile", (effect, folder) => {
  effect(
    "takes no descriptor from what is made in it",
    function* () {
      const path = `${folder()}/stranger`
      fs.writeFileSync(path, "")
      const network = yield* Network.make()
      const box = yield* idle({ network })
      const made = {
        expose: Network.expose(network, { host: 1, name: "mock", port: 80 }),
        publish: Container.publish(box, 80),
        "publish a path": Container.publish(box, { container: 80, path: `${folder()}/published` }),
        network: Network.make({ outbound: { allow: ["example.test"] } }),
        pod: Network.pod({ network, ports: [80, "81/udp"] })
      }
      for (const make of Object.values(made)) yield* closeEarly(path, make)
    },
    skip
  )

  effect(
    "leaves a connection to end its way, and closes it then",
    function* () {
      const network = yield* Network.make()
      const server = yield* Effect.flatMap(echoImage, (image) =>
        Container.start(image, { network, command: ["/bin/echo", "any4:7"] })
      )
      const client = yield* idle({ network })
      const cut = yield* Scope.make()
      yield* Scope.extend(Network.partition(network, client, server), cut)
      const [host] = server.state.addresses
      const scope = yield* Scope.make()
      const connecting = yield* Effect.fork(
        Scope.extend(Container.connect(client, { host: host!, port: 7 }), scope)
      )
      // The states of tcp(7) in the kernel's table.
      const has = (state: string): boolean =>
        new RegExp(`:0007 ${state} `).test(fs.readFileSync(`/proc/${client.pid}/net/tcp`, "utf8"))
      yield* waitUntil("the first packet", () => has("02"))
      yield* Scope.close(scope, Exit.void)
      yield* Scope.close(cut, Exit.void)
      yield* Effect.timeout(Fiber.join(connecting), "15 seconds")
      yield* waitUntil("the end of the connection", () => !has("01") && !has("02"))
    },
    skip
  )
})
