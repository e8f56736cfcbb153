import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import { Network } from "../../lib/index.ts"
import { ip, refuse } from "../../lib/internal/network/netlink.ts"
import { masquerade } from "../../lib/internal/network/nftables.ts"
import { netlinkOperation, perform } from "../../lib/internal/network/router.ts"
import { failure, suite } from "../support/effect.ts"

suite("messages of netlink", (effect) => {
  effect("a refused message is named by its place, with the kernel's own words", function* () {
    const { berth, router } = (yield* Network.make()).state
    const send = (messages: ReadonlyArray<ReadonlyArray<number>>) =>
      perform(berth, router.namespace.fd, "routes", [netlinkOperation(messages)])
    const right = refuse(ip("10.7.0.0"), 16)
    yield* send([right])
    const error = yield* failure("OperationFailed", send([right, right, refuse(ip("10.0.0.1"), 8), right]))
    assert.equal(error.syscall, "netlink(2)")
    assert.equal(error.code, "EINVAL")
    assert.equal(error.text, "Invalid prefix for given prefix length")
    assert.match(error.message, /netlink\(2\): EINVAL \([^)]+\): Invalid prefix for given prefix length/)
  })

  effect("a refused message about which the kernel says nothing has no words", function* () {
    const { berth, router } = (yield* Network.make()).state
    // A chain of a family that there is none of.
    const messages = new Uint8Array(masquerade("eth0", [200]).flat())
    const sent = perform(berth, router.namespace.fd, "rules", [{ op: "netfilter", messages }])
    const error = yield* failure("OperationFailed", sent)
    assert.match(error.syscall, /^netlink\(\d+\)$/)
    assert.equal(error.text, undefined)
    yield* Effect.void
  })
})
