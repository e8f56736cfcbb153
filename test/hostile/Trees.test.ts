/** Files and trees that a container makes to harm who copies, archives, commits, lists or removes them. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Container } from "../../lib/index.ts"
import * as inRoot from "../../lib/internal/inRoot.ts"
import { xattrsOf } from "../../lib/internal/metadata.ts"
import { plantImage } from "../support/attack.ts"
import { makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

/** A folder on the host, which is gone after the test, however deep it is. */
const hostFolder = Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (path) =>
  Effect.sync(() => {
    // rm(1) has no bound on the length of a path, as node:fs has.
    execFileSync("chmod", ["-R", "u+rwx", path])
    execFileSync("rm", ["-rf", "--", path])
    remove(path)
  })
)

const attributesOf = (path: string): ReadonlyArray<string> =>
  inRoot
    .using(inRoot.openHost(path, inRoot.O_RDONLY), (fd) => xattrsOf(fd, path, () => true))
    .map(([name]) => name)

suite("files that a container makes to harm", (effect) => {
  for (const mode of modes) {
    const start = (script: string) =>
      Effect.gen(function* () {
        const box = yield* Container.start(yield* plantImage, {
          command: ["/bin/sleep", "1000"],
          ...mode.options
        })
        const { exitCode, stderr } = yield* Container.exec(box, ["/bin/sh", "-euc", script])
        assert.equal(exitCode, 0, stderr)
        return box
      })

    effect(
      `${mode.name}: a copy on the host has no rights that the container gave it`,
      () =>
        Effect.gen(function* () {
          const here = yield* hostFolder
          const box = yield* start(`
            mkdir /t && cp /bin/busybox /t/rootshell && chmod 6755 /t/rootshell
            plant capability /t/admin
            mkdir /t/folder && chmod 3777 /t/folder && chmod 6755 /t`)
          for (const [from, to] of [
            ["/t", "whole"],
            ["/t/.", "contents"]
          ] as const) {
            yield* Container.copyOut(box, from, `${here}/${to}`)
            for (const name of ["", "/rootshell", "/admin", "/folder"])
              assert.equal(fs.statSync(`${here}/${to}${name}`).mode & 0o6000, 0, `${to}${name}`)
            assert.equal(fs.statSync(`${here}/${to}/folder`).mode & 0o7777, 0o1777)
            assert.deepEqual(attributesOf(`${here}/${to}/admin`), [])
          }
          yield* Container.copyOut(box, "/t/rootshell", `${here}/alone`)
          assert.equal(fs.statSync(`${here}/alone`).mode & 0o7777, 0o755)
          // Whoever asks for it gets it.
          yield* Container.copyOut(box, "/t/rootshell", `${here}/asked`, { keepPrivileges: true })
          assert.equal(fs.statSync(`${here}/asked`).mode & 0o7777, 0o6755)
        }),
      { skip }
    )
  }
})
