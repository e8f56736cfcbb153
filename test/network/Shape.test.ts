import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type BerthError, Container, Network } from "../../lib/index.ts"
import { echoing, flood, modes } from "../support/boxes.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

type Change = Effect.Effect<void, BerthError.BerthError, Scope.Scope>

suite("a slow link", (effect) => {
  for (const [name, options] of modes)
    effect(
      `${name} receives, or sends, no faster than its rate, and as it likes when the scope has closed`,
      function* () {
        const network = yield* Network.make()
        const [box, other] = [
          yield* echoing({ ...options, network }),
          yield* echoing({ ...options, network })
        ]
        for (const way of ["down", "up"] as const) {
          const slow = way === "down" ? ([other, box] as const) : ([box, other] as const)
          yield* Effect.scoped(
            Effect.gen(function* () {
              // 20,000 bytes a second, of which 3,028 come at once.
              yield* Network.rate(network, box, { [way]: "160kbit" })
              const taken = yield* flood(...slow, 40_000)
              assert.ok(taken > 1500, `${way}: ${taken} ms`)
              // At the rate of the other way, this would take 25 seconds.
              yield* Effect.timeout(flood(slow[1], slow[0], 500_000), "15 seconds")
            })
          )
          yield* Effect.timeout(flood(...slow, 500_000), "15 seconds")
        }
      },
      skip
    )

  effect(
    "that is none, or a second one of a direction, is refused by name, and so is a bad link that is none",
    function* () {
      const [network, second] = [yield* Network.make({ name: "lab" }), yield* Network.make()]
      const [box, stranger] = [yield* echoing({ network }), yield* echoing({ network: second })]
      yield* Network.rate(network, box, { up: 1e6, down: "2.5 Mbit" })
      const wrong: ReadonlyArray<readonly [Change, RegExp]> = [
        [Network.rate(network, box, { down: "fast" }), /^down: "fast" .*bits a second/],
        [Network.rate(network, box, { up: 7999 }), /^up: 7999 /],
        [Network.rate(network, box, { up: "101gbit" }), /^up: /],
        [Network.rate(network, box, { up: Number.NaN }), /^up: /],
        [Network.rate(network, box, {}), /^rates: \{\} /],
        [Network.rate(network, stranger, { up: "1mbit" }), /^container: .*this network, lab/],
        [Network.rate(network, box, { up: "1mbit" }), /^rate up: .*close the scope of the first/],
        [Network.impair(network, box, {}), /^impairment: \{\} /],
        [Network.impair(network, box, { loss: 1.5 }), /^loss: 1.5 /],
        [Network.impair(network, box, { corrupt: Number.NaN }), /^corrupt: /],
        [Network.impair(network, box, { delay: "soon" as never }), /^delay: "soon" /],
        [Network.impair(network, box, { delay: "2 hours" }), /^delay: "2 hours" /],
        [Network.impair(network, box, { delay: 10, jitter: 20 }), /^jitter: 20 /],
        [Network.impair(network, box, { loss: 1, direction: "left" as never }), /^direction: "left" /]
      ]
      for (const [change, message] of wrong)
        assert.match((yield* failure("InvalidOption", Effect.scoped(change))).message, message)
    },
    skip
  )

  effect(
    "cannot be had by a container that has ended",
    function* () {
      const network = yield* Network.make()
      const box = yield* echoing({ network })
      yield* Network.rate(network, box, { up: "1mbit", down: "1mbit" })
      const other = yield* echoing({ network })
      for (const ended of [box, other]) {
        yield* Container.signal(ended, "SIGKILL")
        yield* ended.exit
      }
      const error = yield* failure(
        "ContainerError",
        Effect.scoped(Network.rate(network, other, { up: "1mbit" }))
      )
      assert.equal(error.reason, "NotRunning")
    },
    skip
  )
})
