import assert from "node:assert/strict"
import * as nodeFs from "node:fs"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container, WaitFor } from "../../lib/index.ts"
import { ranges } from "../../lib/internal/ids/idMaps.ts"
import { attackImage } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { outcomes } from "../support/fileSystemCases.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const ids = ranges()
const skip =
  process.getuid?.() === 0
    ? "root does not use that child: .ci/rootless runs this"
    : whyNoBusybox || (typeof ids === "string" ? `the user has no other ids: ${ids}` : false)

// A container that sees this program's processes and has every privilege of its user namespace.
const strong = {
  namespaces: { pid: "host" },
  capabilities: { add: ["ALL"] },
  seccomp: "unconfined",
  noNewPrivileges: false,
  cgroup: undefined
} as const

suite("Files of other users, without root", (effect) => {
  const attacked = (word: string, user: string) =>
    Effect.gen(function* () {
      const image = yield* attackImage
      const script =
        "mkdir /d && echo x >/d/f && chown -R 1000:1000 /d && chmod 600 /d/f && chmod 700 /d && echo ready; exec sleep 1000"
      const box = yield* Container.start(image, { command: ["sh", "-c", script] })
      yield* WaitFor.log(box, "ready")
      const attacker = yield* Container.start(image, {
        ...strong,
        user,
        command: ["attack", `${word}:${process.pid}`]
      })
      const said = yield* Effect.fork(Stream.mkString(Stream.decodeText(attacker.stdout)))
      const fs = Container.fileSystem(box)
      const results = new Set<unknown>()
      // The attack is a race: it gets this long.
      for (const end = Date.now() + 1500; Date.now() < end; )
        for (const result of yield* outcomes([
          fs.stat("/d/f"),
          fs.chmod("/d/f", 0o600),
          fs.readDirectory("/d")
        ]))
          results.add(typeof result === "string" && result.startsWith("SystemError") ? result : "done")
      yield* Container.fileSystem(attacker).writeFileString("/tmp/stop", "")
      return { said: yield* Fiber.join(said), exitCode: (yield* attacker.exit).exitCode, results, fs }
    })

  for (const user of ["root", "app"])
    effect(
      `the child that reaches these files cannot be inspected or traced from a container with the host's pids, as ${user}`,
      function* () {
        const { exitCode, results, said } = yield* attacked("children", user)
        assert.equal(exitCode, 0)
        assert.equal(said, "children seen refused caught 0\n")
        assert.deepEqual([...results], ["done"])
      },
      { skip }
    )

  effect(
    "a container that kills the child that reaches these files makes one call fail, and the next one succeeds",
    function* () {
      const before = nodeFs.readdirSync("/proc/self/fd").length
      const { fs, results, said } = yield* attacked("kill-children", "root")
      assert.equal(said, "children seen killed caught 0\n")
      assert.ok(results.has("done"))
      yield* fs.writeFileString("/d/f", "more")
      assert.equal(yield* fs.readFileString("/d/f"), "more")
      assert.ok(nodeFs.readdirSync("/proc/self/fd").length <= before + 20)
    },
    { skip }
  )
})
