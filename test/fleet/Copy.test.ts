import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { copyOut } from "../../lib/internal/tar/farCopy.ts"
import {
  keepsAttributes,
  placesAsDocker,
  refusesTheImpossible,
  shell,
  whyNoPython
} from "../support/copies.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"
import { temporaryFolder } from "../support/scoped.ts"
import * as tar from "../support/tar.ts"

suite("copies between a program and a container of a fleet", (effect) => {
  const start = Effect.flatMap(
    Effect.suspend(() => Image.pull("host")),
    (image) => Container.start(image, { command: ["sleep", "1000"] })
  )
  const copies = () => fs.readdirSync(os.tmpdir()).filter((name) => name.startsWith("berth-copy-"))

  effect(
    "keep every attribute",
    function* () {
      const program = Effect.flatMap(start, (box) => keepsAttributes(box, "/srv"))
      // The runner is in this program, which waits for python3 and does nothing else meanwhile.
      yield* program.pipe(onFleet([yield* runner({ lease: "2 minutes" })]))
    },
    { skip: whyNoPython }
  )

  effect("go where docker cp puts them", function* () {
    yield* Effect.flatMap(start, placesAsDocker).pipe(onFleet([yield* runner()]))
  })

  effect("fail with the errno of what is impossible", function* () {
    yield* Effect.flatMap(start, refusesTheImpossible).pipe(onFleet([yield* runner()]))
  })

  effect("out of a container take a folder, its contents, what a link leads to, and all", function* () {
    const here = yield* temporaryFolder
    yield* Effect.gen(function* () {
      const box = yield* start
      yield* shell(box, "mkdir -m 750 /d; echo f > /d/f; ln -s d /l; chmod 4755 /d/f")
      for (const [from, to] of [
        ["/d", "folder"],
        ["/d/.", "contents"],
        ["/l/", "followed"],
        ["/l/.", "through"],
        ["/d/../d/.", "around"]
      ] as const) {
        yield* Container.copyOut(box, from, `${here}/${to}`)
        assert.equal(fs.readFileSync(`${here}/${to}/f`, "utf8"), "f\n", from)
        assert.equal(fs.statSync(`${here}/${to}`).mode & 0o7777, 0o750, from)
        // What gives rights on this machine stays behind.
        assert.equal(fs.statSync(`${here}/${to}/f`).mode & 0o7777, 0o755, from)
      }
      yield* Container.copyOut(box, "/l", `${here}/link`)
      assert.equal(fs.readlinkSync(`${here}/link`), "d")
      yield* Container.copyOut(box, "/d/f", `${here}/folder`)
      yield* Container.copyOut(box, "/d", `${here}/folder`)
      assert.deepEqual(fs.readdirSync(`${here}/folder`).sort(), ["d", "f"])
    }).pipe(onFleet([yield* runner()]))
    assert.deepEqual(copies(), [])
  })

  effect("write nothing beside their target, whatever a runner's archive has", function* () {
    const here = yield* temporaryFolder
    const victim = `${here}/victim`
    const target = `${here}/target`
    const of = (path: string, entries: ReadonlyArray<Uint8Array>) =>
      copyOut(
        { tarOut: () => Stream.make(tar.tar(...entries)) } as unknown as Parameters<typeof copyOut>[0],
        path,
        target,
        {}
      )
    fs.mkdirSync(victim)
    for (const [what, entries] of Object.entries({
      "a link to a folder, and a file in it": [tar.symlink("d", victim), tar.file("d/x", "x")],
      "a link to the folder above": [tar.symlink("d", ".."), tar.file("d/victim/x", "x")],
      "a link in a folder": [tar.folder("d"), tar.symlink("d/l", victim), tar.file("d/l/x", "x")],
      "names that lead up": [tar.folder("d"), tar.file("d/../../victim/x", "x")],
      "a hard link": [tar.folder("d"), tar.hardlink("d/x", `${victim}/x`)],
      "more than was asked for": [tar.folder("d"), tar.file("victim", "x")],
      "a device": [tar.entry({ name: "d", type: "3", major: 1, minor: 3 })]
    })) {
      yield* Effect.either(of("/d", entries))
      assert.deepEqual(
        [fs.readdirSync(victim), fs.readdirSync(here).filter((name) => name !== "target")],
        [[], ["victim"]],
        what
      )
      fs.rmSync(target, { recursive: true, force: true })
    }
    // The contents of a link would be those of a folder of this machine.
    yield* failure("OperationFailed", of("/d/.", [tar.symlink("d", victim)]))
    const more = yield* failure("InvalidData", of("/d", [tar.folder("d"), tar.file("e", "x")]))
    assert.match(more.message, /expected [de] and what is in it/)
    assert.deepEqual(copies(), [])
  })
})
