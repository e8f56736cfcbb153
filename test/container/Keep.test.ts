import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Berth, Container, Image, Namespace, RootFs, Store } from "../../lib/index.ts"
import { berthIn, failure, suite, whyNotRoot } from "../support/effect.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { environment } from "../support/scoped.ts"

const skip = whyNoBusybox

const changes = `
mkdir /srv; echo new > /srv/f; chown 5:6 /srv/f; chmod 4711 /srv/f; ln /srv/f /srv/g
rm -r /home; rm /etc/group
rm -r /root; mkdir /root; echo here > /root/x
`
const shown =
  "cat /srv/f /root/x; stat -c %a:%u:%g:%h /srv/f; ls -d /home /etc/group 2>/dev/null; ls /root /etc"

suite("Container.keep", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const keptFolder = () => `${berthFolder()}/layers/kept`
  const keptNames = () => (fs.existsSync(keptFolder()) ? fs.readdirSync(keptFolder()) : [])

  const ended = (from: Image.Image, script: string, options: Container.StartOptions = {}) =>
    Effect.tap(Container.start(from, { command: ["/bin/sh", "-c", script], ...options }), (box) => box.exit)

  const out = (from: Image.Image, script: string, options: Container.StartOptions = {}) =>
    Effect.map(
      Container.run(from, { command: ["/bin/sh", "-c", script], ...options }),
      ({ stdout }) => stdout
    )

  const expected = "new\nhere\n4711:5:6:2\n/etc:\nhostname\nhosts\npasswd\nresolv.conf\n\n/root:\nx\n"

  effect(
    "the next container has what the kept one wrote, and not what it removed",
    function* () {
      const from = yield* image
      const box = yield* ended(from, changes)
      const made = yield* Container.keep(box)
      assert.deepEqual(made.layers.slice(0, -1), from.layers)
      assert.equal(made.digest, undefined)
      assert.equal(yield* out(made, shown), expected)
      assert.equal(yield* out(from, "ls -d /home /srv 2>/dev/null"), "/home\n")
      // The layer is read-only.
      yield* ended(made, "rm -r /srv /root")
      assert.equal(yield* out(made, shown), expected)
    },
    { skip }
  )

  effect.asRoot(
    "a container with userns shows a kept layer with its own ids",
    function* () {
      const made = yield* Container.keep(yield* ended(yield* image, changes))
      assert.equal(yield* out(made, shown, { userns: "auto" }), expected)
    },
    { skip }
  )

  effect(
    "a kept image is kept again, with the layer of the second container on top",
    function* () {
      const first = yield* Container.keep(yield* ended(yield* image, "echo one > /one"))
      const second = yield* Container.keep(yield* ended(first, "echo two > /two; rm /one"))
      assert.equal(second.layers.length, first.layers.length + 1)
      assert.equal(yield* out(second, "cat /two; ls /one 2>/dev/null"), "two\n")
      assert.equal(yield* out(first, "cat /one; ls /two 2>/dev/null"), "one\n")
    },
    { skip }
  )

  effect(
    "another Berth finds a layer by its key, for the same image alone",
    function* () {
      const from = yield* image
      const made = yield* Container.keep(yield* ended(from, "echo one > /one"), { key: "one" })
      const [found, other, none] = yield* Effect.all([
        Image.kept(from, "one"),
        Image.kept(made, "one"),
        Image.kept(from, "two")
      ]).pipe(Effect.provide(berthIn(berthFolder())))
      assert.deepEqual(Option.getOrThrow(found).layers, made.layers)
      assert.deepEqual([other, none], [Option.none(), Option.none()])
      assert.equal(yield* out(Option.getOrThrow(found), "cat /one"), "one\n")
    },
    { skip }
  )

  effect(
    "the first layer of a key stays",
    function* () {
      const from = yield* image
      const boxes = yield* Effect.all([ended(from, "echo 1 > /n"), ended(from, "echo 2 > /n")])
      const made = yield* Effect.all(boxes.map((box) => Container.keep(box, { key: "n" })))
      assert.deepEqual(made[1]!.layers, made[0]!.layers)
      assert.equal(yield* out(made[1]!, "cat /n"), "1\n")
    },
    { skip }
  )

  effect(
    "a collection removes a layer without a key that nothing uses",
    function* () {
      const made = yield* Container.keep(yield* ended(yield* image, "echo one > /one"))
      const folder = made.layers.at(-1)!
      const scope = yield* Scope.make()
      const box = yield* Scope.extend(Container.start(made, { command: ["/bin/cat"], stdin: "pipe" }), scope)
      yield* Store.gc()
      assert.equal((yield* Container.exec(box, ["/bin/cat", "/one"])).stdout, "one\n")
      yield* Scope.close(scope, Exit.void)
      const { layers } = yield* Store.gc()
      assert.ok(layers >= 1)
      assert.equal(fs.existsSync(folder), false)
      const error = yield* failure("ImageError", Container.run(made, { command: ["/bin/true"] }))
      assert.equal(error.reason, "NotFound")
    },
    { skip }
  )

  effect(
    "a collection removes a layer with a key seven days after its last use",
    function* () {
      const from = yield* image
      const made = yield* Container.keep(yield* ended(from, "echo one > /one"), { key: "aged" })
      const top = yield* Container.keep(yield* ended(made, "echo two > /two"), { key: "aged" })
      const folders = [made, top].map(({ layers }) => layers.at(-1)!.replace(/\/upper$/, ""))
      const age = (folder: string, days: number) => {
        const then = new Date(Date.now() - days * 24 * 3600 * 1000)
        fs.utimesSync(folder, then, then)
      }
      age(folders[0]!, 8)
      age(folders[1]!, 6)
      yield* Store.gc()
      // The upper one needs the lower one.
      assert.deepEqual(
        folders.map((folder) => fs.existsSync(folder)),
        [true, true]
      )
      assert.ok(Option.isSome(yield* Image.kept(made, "aged")))
      age(folders[1]!, 8)
      yield* Store.gc()
      yield* Store.gc()
      assert.deepEqual(
        folders.map((folder) => fs.existsSync(folder)),
        [false, false]
      )
      assert.ok(Option.isNone(yield* Image.kept(from, "aged")))
    },
    { skip }
  )

  effect(
    "what a collection and a killed program left unfinished is swept",
    function* () {
      yield* Container.keep(yield* ended(yield* image, "echo one > /one"), { key: "swept" })
      const hex = "0".repeat(64)
      fs.mkdirSync(`${keptFolder()}/.${hex}.0011`)
      fs.writeFileSync(`${keptFolder()}/${hex}.lock`, "")
      yield* Store.gc()
      assert.deepEqual(
        keptNames().filter((name) => !/^[0-9a-f]{64}$/.test(name)),
        []
      )
    },
    { skip }
  )

  effect(
    "a failure leaves nothing in the store",
    function* () {
      const before = keptNames()
      const box = yield* ended(yield* image, "echo one > /one")
      const error = yield* Effect.scoped(
        Effect.zipRight(
          environment({ PATH: "/nowhere" }),
          failure("ImageError", Container.keep(box, { key: "none" }))
        )
      )
      assert.equal(error.reason, "Storage")
      assert.match(error.message, /sync/)
      assert.deepEqual(keptNames(), before)
      const { supervisor } = yield* Berth.Berth
      assert.deepEqual(
        fs.readdirSync(supervisor.folder).filter((name) => name.startsWith("kept-")),
        []
      )
    },
    { skip }
  )

  effect(
    "a container that runs, or whose scope has closed, is refused",
    function* () {
      const from = yield* image
      const running = yield* Container.start(from, { command: ["/bin/cat"], stdin: "pipe" })
      const error = yield* failure("ContainerError", Container.keep(running))
      assert.equal(error.reason, "Running")
      assert.match(error.message, /stop it/)
      const closed = yield* Effect.scoped(ended(from, "true"))
      assert.equal((yield* failure("ContainerError", Container.keep(closed))).reason, "NotRunning")
      const kept = yield* ended(from, "true")
      yield* Container.keep(kept)
      assert.equal((yield* failure("ContainerError", Container.keep(kept))).reason, "NotRunning")
      yield* failure("ContainerError", Effect.scoped(Container.exec(kept, ["/bin/true"])))
    },
    { skip }
  )

  effect(
    "a layer in memory, of the host's root, or of a shared pid namespace is refused",
    function* () {
      const from = yield* image
      const memory = yield* ended(from, "true", { upper: "memory" })
      assert.match((yield* failure("InvalidOption", Container.keep(memory))).message, /upper: "disk"/)
      const host = yield* ended(yield* Image.host, "true")
      assert.match((yield* failure("InvalidOption", Container.keep(host))).message, /host's root/)
      const rootfs = yield* RootFs.overlay(from)
      const namespaces = yield* Namespace.make(["pid", "mount"])
      const spawned = yield* Container.spawn({ rootfs, namespaces, command: ["/bin/true"] })
      yield* spawned.exit
      assert.match((yield* failure("InvalidOption", Container.keep(spawned))).message, /pid namespace/)
      const shared = yield* ended(from, "true", { namespaces: { pid: "host" } })
      assert.match((yield* failure("InvalidOption", Container.keep(shared))).message, /pid namespace/)
      for (const key of ["", "k".repeat(1025)])
        assert.equal((yield* failure("InvalidOption", Image.kept(from, key))).option, "key")
    },
    { skip }
  )

  for (const [name, options] of [
    ["with userns", { userns: "auto" }],
    ["with upperSize", { upperSize: "16MiB" }]
  ] as ReadonlyArray<readonly [string, Container.StartOptions]>)
    effect(
      `the layer of a container ${name} is kept as one without`,
      function* () {
        const box = yield* ended(yield* image, changes, options)
        const made = yield* Container.keep(box)
        assert.equal(yield* out(made, shown), expected)
        assert.equal(yield* out(made, shown, { userns: "auto" }), expected)
        assert.equal((yield* failure("ContainerError", Container.keep(box))).reason, "NotRunning")
      },
      { skip: skip || whyNotRoot }
    )

  effect(
    "an image with a kept layer is not saved, pushed or committed to",
    function* () {
      const made = yield* Container.keep(yield* ended(yield* image, "true"))
      for (const refused of [
        Image.save(made, `${berthFolder()}.tar`, { format: "oci-archive" }),
        Image.push(made, "127.0.0.1:1/none:1"),
        Effect.flatMap(ended(made, "true"), Container.commit())
      ])
        yield* failure("InvalidOption", refused)
    },
    { skip }
  )
})
