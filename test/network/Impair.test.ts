import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import { Container, Network } from "../../lib/index.ts"
import { echoing, flood } from "../support/boxes.ts"
import { suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

suite("a bad link", (effect) => {
  effect(
    "delays and loses packets both ways, beside a rate, until the scope closes; and is Unsupported where the kernel has none",
    function* () {
      const network = yield* Network.make()
      const [box, other] = [yield* echoing({ network }), yield* echoing({ network })]
      yield* Network.rate(network, box, { up: "100mbit", down: "100mbit" })
      const lossy = yield* Effect.either(Effect.scoped(Network.impair(network, box, { loss: 1 })))
      if (lossy._tag === "Left") {
        assert.equal(lossy.left._tag, "Unsupported")
        assert.match(lossy.left.message, /sch_netem/)
        // The rate is still there, and nothing else.
        yield* Effect.timeout(flood(other, box, 10_000), "15 seconds")
        return
      }
      for (const [direction, millis] of [
        ["up", 300],
        ["down", 300],
        ["both", 600]
      ] as const)
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* Network.impair(network, box, { delay: "300 millis", direction })
            // A connection takes a round trip, and an answer another one.
            assert.ok((yield* flood(other, box, 10)) >= 2 * millis)
          })
        )
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Network.impair(network, box, { loss: 1, direction: "down" })
          const ask = `echo hello | timeout 1 nc ${other.state.addresses[0]} 7`
          assert.equal((yield* Container.exec(box, ["sh", "-c", ask])).stdout, "")
        })
      )
      yield* Effect.timeout(flood(other, box, 10_000), "15 seconds")
    },
    skip
  )
})
