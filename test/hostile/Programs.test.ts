/** Attacks of a container on Berth's own programs in it: its init, and a process that joins it. */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Namespace } from "../../lib/index.ts"
import { compile } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { makeEvilImage, makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

suite("Berth's programs in a container", (effect, folder) => {
  for (const { name, options } of modes)
    effect(
      `${name}: a container cannot change the program of its init, which other containers share`,
      function* () {
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
        assert.ok(tried > 1, "no change was refused")
        const other = yield* Container.run(image, { ...options, init: true, command: ["echo", "runs"] })
        assert.equal(other.stdout, "runs\n")
        yield* Namespace.make(["pid"])
      },
      { skip }
    )

  effect.asRoot(
    "a container that stops a joining process and takes its descriptors gets none of the host's, and blocks no supervisor",
    function* () {
      const image = yield* makeEvilImage("linger", (root) => compile(`${root}/bin/linger`, "linger.c"))
      const attacker = yield* Container.start(image, {
        command: ["linger"],
        capabilities: { add: ["SYS_PTRACE"] }
      })
      const said = yield* Stream.toPull(
        attacker.stdout.pipe(Stream.decodeText(), Stream.splitLines, Stream.rechunk(1))
      )
      const line = Effect.map(said, (chunk) => [...chunk][0] ?? "")
      assert.equal(yield* line, "ready")
      // The attacker can be too late for a process, and tries again with the next.
      for (let caught = 0, tries = 0; caught < 3; tries++) {
        assert.ok(tries < 60, `the attacker caught ${caught} of 60 processes`)
        yield* Effect.either(Effect.timeout(Container.exec(attacker, ["sleep", "1"]), "10 seconds"))
        const outcome = yield* line
        assert.match(outcome, /^(late|none|sent) /)
        if (!outcome.startsWith("late")) caught++
        assert.ok(!outcome.includes(folder()), outcome)
      }
      const other = yield* Effect.timeout(Container.run(image, { command: ["echo", "runs"] }), "20 seconds")
      assert.equal(other.stdout, "runs\n")
    },
    { skip }
  )
})
