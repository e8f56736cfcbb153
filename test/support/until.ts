/** Waiting for a state that nothing announces: the state is looked at again and again, up to a limit that fails by name. */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import { sleep } from "./leftovers.ts"

/** Waits until `isThere` is true. Fails with `what` after `limitMillis`. */
export const until = async (what: string, isThere: () => boolean, limitMillis = 15_000): Promise<void> => {
  for (const end = Date.now() + limitMillis; !isThere(); await sleep(1))
    assert.ok(Date.now() < end, `waited ${limitMillis} ms in vain for ${what}`)
}

/** The same, as an effect. */
export const waitUntil = (what: string, isThere: () => boolean): Effect.Effect<void> =>
  Effect.promise(() => until(what, isThere))
