/** What a container finds of Berth's own programs: the init that it has, and what is started in it before its command is. */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Namespace } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

suite("programs of Berth in a container", (effect, folder) => {
  for (const { name, options } of modes)
    effect(
      `${name}: the program of an init, which other containers have as well, cannot be changed`,
      () =>
        Effect.gen(function* () {
          const image = yield* makeImage(`${folder()}/root`)
          const script = [
            "chown 1000 /proc/1/exe; touch /proc/1/exe; chmod 4777 /proc/1/exe; chmod 0 /proc/1/exe",
            "echo x >/proc/1/exe",
            "echo tried; exec sleep 1000"
          ]
          const attacker = yield* Container.start(image, {
            ...options,
            init: true,
            command: ["sh", "-c", `{ ${script.join("; ")}; } 2>&1`]
          })
          const tried = yield* attacker.stdout.pipe(
            Stream.decodeText(),
            Stream.splitLines,
            Stream.takeUntil((line) => line === "tried"),
            Stream.runCount
          )
          assert.ok(tried > 1, "nothing of it was refused")
          const other = yield* Container.run(image, { ...options, init: true, command: ["echo", "runs"] })
          assert.equal(other.stdout, "runs\n")
          yield* Namespace.make(["pid"])
        }),
      { skip }
    )
})
