/** A container that attacks at full speed must not delay the program's event loop or other containers. */
import assert from "node:assert/strict"
import * as os from "node:os"
import { monitorEventLoopDelay } from "node:perf_hooks"
import * as Effect from "effect/Effect"
import { Container, Image } from "../../lib/index.ts"
import { compile } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { attacker, checkExec } from "../support/soakWork.ts"
import { modes } from "./modes.ts"

const whyNoDelay = "Deno" in globalThis ? "Deno's monitorEventLoopDelay measures nothing" : false

/** The delay in milliseconds that is accepted. It is 50 ms on an idle machine, and grows with the load. */
const patience = (): number => 500 * Math.max(1, os.loadavg()[0]! / os.availableParallelism())

const SECONDS = 4

/** Repeats the effect for so many seconds, and gives the number of times. */
const often = <E>(effect: Effect.Effect<unknown, E>, seconds: number): Effect.Effect<number, E> => {
  let times = 0
  const counted = Effect.tap(effect, () => Effect.sync(() => times++))
  return Effect.forever(counted).pipe(
    Effect.timeoutTo({ duration: seconds * 1000, onSuccess: () => times, onTimeout: () => times })
  )
}

suite("a container that attacks at full speed", (effect, folder) => {
  for (const { name, options } of modes) {
    effect(
      `${name}: a container that attacks at full speed delays no event loop and fails no command in another container`,
      function* () {
        const root = `${folder()}/${name}`
        compile(`${makeRoot(root)}/births`, "births.c")
        const box = yield* Container.start(yield* Image.fromRootfs(root), {
          ...options,
          command: ["sleep", "1000"]
        })
        yield* attacker(root, options)
        // The first second warms up the code.
        yield* often(checkExec(box), 1)
        const delay = monitorEventLoopDelay({ resolution: 5 })
        delay.enable()
        const commands = yield* often(checkExec(box), SECONDS)
        delay.disable()
        const millis = delay.percentile(99.9) / 1e6
        if (process.env.BERTH_SHOW_DELAY !== undefined)
          console.log(`${name}: p99.9 ${millis.toFixed(1)} ms, ${commands} commands`)
        assert.ok(millis <= patience(), `the event loop was delayed by ${millis} ms`)
        assert.ok(commands >= SECONDS, `${commands} commands`)
      },
      { skip: whyNoBusybox || whyNoDelay }
    )
  }
})
