import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { bytesOf, repeatUntil } from "../support/containers.ts"
import {
  describe,
  keepsAttributes,
  makeTree,
  placesAsDocker,
  refusesTheImpossible,
  shell,
  whyNoPython
} from "../support/copies.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { temporaryFolder } from "../support/scoped.ts"
import * as tar from "../support/tar.ts"

const skip = whyNoBusybox
const freezes = detect().controllers.freezer !== undefined

const packed = (...members: ReadonlyArray<tar.Fields>): Uint8Array => tar.tar(...members.map(tar.entry))

suite("Container.copyIn, copyOut, tarIn, tarOut", (effect, folder) => {
  const start = (options: Container.StartOptions = {}) =>
    Effect.flatMap(
      Effect.suspend(() => makeImage(`${folder()}-root`)),
      (image) => Container.start(image, { command: ["/bin/sleep", "1000"], ...options })
    )

  for (const upper of ["memory", "disk"] as const)
    effect(
      `a copy in and out keeps every attribute, with the writable layer ${upper === "disk" ? "on disk" : "in memory"}`,
      function* () {
        yield* keepsAttributes(yield* start({ upper }), "/root")
      },
      { skip: skip || whyNoPython }
    )

  effect("a tar archive keeps names and links that are not UTF-8", function* () {
    const box = yield* start()
    yield* shell(
      box,
      `cd /root; d=$(printf 'caf\\351'); mkdir "$d"; echo in >"$d/f"; ln -s "$(printf 't\\377')" "$d/s"; ln "$d/f" "$d/g"`
    )
    const listed = execFileSync("tar", ["-tv", "--quoting-style=escape"], {
      input: yield* bytesOf(Container.tarOut(box, "/root")),
      encoding: "utf8"
    })
    for (const line of [
      / root\/caf\\351\/$/m,
      / root\/caf\\351\/s -> t\\377$/m,
      / root\/caf\\351\/[fg] link to root\/caf\\351\/[fg]$/m
    ])
      assert.match(listed, line)
  })

  effect(
    "tarOut keeps every attribute, for tar(1) and for tarIn",
    function* () {
      const here = yield* temporaryFolder
      const tree = makeTree(here)
      const box = yield* start()
      yield* Container.copyIn(box, tree, "/root")
      const archive = yield* bytesOf(Container.tarOut(box, "/root/tree"))
      fs.mkdirSync(`${here}/tar`)
      execFileSync(
        "tar",
        ["-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", `${here}/tar`],
        {
          input: archive
        }
      )
      const plain = (value: unknown) => JSON.stringify(value).replaceAll(/(true|false),\{/g, "{")
      assert.equal(plain(describe(`${here}/tar/tree`)), plain(describe(tree)))

      yield* shell(box, "mkdir /again")
      // In pieces whose ends match no block of the archive.
      yield* Stream.run(
        Stream.rechunk(Stream.fromIterable(cut(archive, 10_007)), 1),
        Container.tarIn(box, "/again")
      )
      yield* Container.copyOut(box, "/again/tree", `${here}/again`, { keepPrivileges: true })
      assert.deepEqual(describe(`${here}/again`), describe(tree))
    },
    { skip: skip || whyNoPython }
  )

  effect(
    "tarIn reads the archives of tar(1) in each of its formats",
    function* () {
      const here = yield* temporaryFolder
      const tree = makeTree(here)
      const box = yield* start()
      for (const format of ["gnu", "pax", "oldgnu"]) {
        const flags = format === "pax" ? ["--xattrs", "--xattrs-include=*"] : []
        const archive = execFileSync("tar", ["-c", `--format=${format}`, ...flags, "-C", here, "tree"], {
          maxBuffer: 2 ** 30
        })
        yield* shell(box, `mkdir /${format}`)
        yield* Stream.run(Stream.fromIterable(cut(archive, 65_536)), Container.tarIn(box, `/${format}`))
        yield* Container.copyOut(box, `/${format}/tree`, `${here}/${format}`, { keepPrivileges: true })
        const [got, wanted] = [describe(`${here}/${format}`), describe(tree)]
        const rough = (value: unknown) =>
          JSON.stringify(value)
            .replaceAll(/"security.[^}]*|"user.[^}]*/g, "")
            .replaceAll(/(-?\d+)\d{9}(?=,)/g, "$1")
        if (format === "pax") assert.deepEqual(got, wanted)
        else assert.equal(rough(got).replaceAll("-1,", "-2,"), rough(wanted).replaceAll("-1,", "-2,"))
      }
    },
    { skip: skip || whyNoPython }
  )

  effect(
    "copyIn puts files where docker cp puts them",
    function* () {
      yield* placesAsDocker(yield* start())
    },
    { skip }
  )

  effect(
    "an impossible copy fails with its errno and replaces no folder by a file",
    function* () {
      yield* refusesTheImpossible(yield* start())
    },
    { skip }
  )

  effect(
    "files are copied in a paused container and in one that has ended",
    function* () {
      const here = yield* temporaryFolder
      fs.writeFileSync(`${here}/f`, "f")
      const box = yield* start()
      yield* shell(box, "echo inside > /inside")
      yield* freezes ? Container.pause(box) : Container.signal(box, "SIGSTOP")
      yield* Container.copyIn(box, `${here}/f`, "/paused")
      yield* Container.copyOut(box, "/paused", `${here}/paused`)
      yield* Container.signal(box, "SIGKILL")
      yield* box.exit
      yield* Container.copyIn(box, `${here}/f`, "/ended")
      yield* Container.copyOut(box, "/ended", `${here}/ended`)
      yield* Container.copyOut(box, "/inside", here)
      assert.deepEqual(fs.readdirSync(here).toSorted(), ["ended", "f", "inside", "paused"])
      assert.ok((yield* bytesOf(Container.tarOut(box, "/inside"))).length > 1024)
    },
    { skip }
  )

  effect(
    "a copy follows no link out of the root, in its source or its target",
    function* () {
      const here = yield* temporaryFolder
      fs.mkdirSync(`${here}/host`)
      fs.writeFileSync(`${here}/host/secret`, "of the host")
      fs.writeFileSync(`${here}/f`, "f")
      const box = yield* start()
      const up = "../".repeat(30)
      yield* shell(
        box,
        `ln -s ${here}/host /l; ln -s ${up}${here}/host /r; mkdir /t; ln -s ${here}/host/secret /t/s`
      )
      for (const way of ["/l", "/r", `/${up}${here}/host`]) {
        for (const attempt of [
          Container.copyOut(box, `${way}/secret`, `${here}/got`),
          Container.copyOut(box, `${way}/`, `${here}/got`),
          Container.copyIn(box, `${here}/f`, `${way}/new`),
          Container.copyIn(box, `${here}/f`, `${way}/`),
          Stream.runDrain(Container.tarOut(box, `${way}/`)),
          Stream.run(Stream.empty, Container.tarIn(box, way))
        ]) {
          const error = yield* failure("OperationFailed", attempt)
          assert.equal(error.code, "ENOENT")
        }
      }
      yield* Container.copyOut(box, "/t", `${here}/t`)
      assert.equal(fs.readlinkSync(`${here}/t/s`), `${here}/host/secret`)
      // A link from an earlier copy is replaced, not followed.
      yield* shell(box, "echo later > /later")
      yield* Container.copyOut(box, "/later", `${here}/t/s`)
      assert.equal(fs.readFileSync(`${here}/t/s`, "utf8"), "later\n")
      yield* Container.copyOut(box, "/l", `${here}/copied-link`)
      yield* failure("OperationFailed", Container.copyOut(box, "/t", `${here}/copied-link`))
      yield* Container.copyOut(box, "/later", `${here}/copied-link`)
      fs.symlinkSync("t", `${here}/to-t`)
      yield* Container.copyOut(box, "/later", `${here}/to-t/`)
      assert.deepEqual(fs.readdirSync(`${here}/t`).toSorted(), ["later", "s"])
      const name = yield* failure(
        "InvalidData",
        Stream.run(archiveOf({ name: "../../x", content: "x" }), Container.tarIn(box, "/t"))
      )
      assert.match(name.message, /\.\./)
      yield* Stream.run(
        archiveOf(
          { name: "out", type: "2", link: `${here}/host` },
          { name: "/absolute", content: "x" },
          { name: "s", content: "replaced" }
        ),
        Container.tarIn(box, "/t")
      )
      yield* failure(
        "OperationFailed",
        Stream.run(archiveOf({ name: "hard", type: "1", link: `out/secret` }), Container.tarIn(box, "/t"))
      )
      yield* Stream.run(archiveOf({ name: "out/new", content: "x" }), Container.tarIn(box, "/t")).pipe(
        Effect.either
      )
      assert.equal(yield* shell(box, "cat /t/absolute /t/s"), "xreplaced")
      assert.deepEqual(fs.readdirSync(`${here}/host`), ["secret"])
      assert.equal(fs.readFileSync(`${here}/host/secret`, "utf8"), "of the host")
    },
    { skip }
  )

  effect(
    "CVE-2018-15664, CVE-2019-10152: a copy stays inside the root while the container swaps folders, links and files",
    function* () {
      const here = yield* temporaryFolder
      fs.mkdirSync(`${here}/host`)
      fs.writeFileSync(`${here}/host/f`, "of the host")
      fs.mkdirSync(`${here}/d`)
      fs.writeFileSync(`${here}/d/f`, "inside")
      const box = yield* start({
        command: [
          "/bin/sh",
          "-c",
          `mkdir -p /a/x; echo inside > /a/x/f; ln -s ${here}/host /a/y
             while :; do mv /a/x /a/z; mv /a/y /a/x; mv /a/x /a/y; mv /a/z /a/x; ln -sf ${here}/host/f /a/x/f; rm /a/x/f; echo inside > /a/x/f; done`
        ]
      })
      let copied = 0
      for (const end = Date.now() + 2000; Date.now() < end; ) {
        fs.rmSync(`${here}/out`, { recursive: true, force: true })
        yield* Effect.either(Container.copyOut(box, "/a", `${here}/out`))
        yield* Effect.either(Container.copyOut(box, "/a/x/f", `${here}/file`))
        yield* Effect.either(Container.copyIn(box, `${here}/d/.`, "/a/x"))
        yield* Effect.either(Container.copyIn(box, `${here}/d/f`, "/a/x/f"))
        yield* Effect.either(Stream.run(archiveOf({ name: "x/g", content: "x" }), Container.tarIn(box, "/a")))
        const archive = yield* Effect.either(bytesOf(Container.tarOut(box, "/a/x/.")))
        if (archive._tag === "Right") assert.ok(!archive.right.includes("of the host"))
        for (const path of [`${here}/out/x/f`, `${here}/out/z/f`, `${here}/file`]) {
          const status = fs.lstatSync(path, { throwIfNoEntry: false })
          if (status?.isFile() !== true || fs.realpathSync(path) !== path) continue
          copied++
          assert.doesNotMatch(fs.readFileSync(path, "utf8"), /host/)
        }
      }
      assert.ok(copied > 0)
      assert.deepEqual(fs.readdirSync(`${here}/host`), ["f"])
      assert.equal(fs.readFileSync(`${here}/host/f`, "utf8"), "of the host")
    },
    { skip }
  )

  effect(
    "tarIn refuses a malformed archive",
    function* () {
      const box = yield* start()
      const whole = packed({ name: "f", content: "x".repeat(2000) })
      const flipped = whole.slice()
      flipped[0]! ^= 1
      for (const bytes of [
        whole.subarray(0, 1000),
        whole.subarray(0, 200),
        flipped,
        new TextEncoder().encode("no archive ".repeat(100)),
        packed({ name: "null", type: "3", major: 1, minor: 3 }),
        packed({ name: "x", type: "x", content: "99 path=y\n" }),
        packed({ name: "x", type: "L", size: 2 ** 40 }),
        packed({ name: "huge-id", uid: 2 ** 32 - 1, content: "" }),
        packed({ name: "sparse", type: "S" })
      ])
        yield* failure("InvalidData", Stream.run(Stream.make(bytes), Container.tarIn(box, "/root")))
    },
    { skip }
  )

  effect(
    "an interrupted copy stops and leaves no descriptor open",
    function* () {
      const here = yield* temporaryFolder
      fs.mkdirSync(`${here}/many`)
      for (let k = 0; k < 3000; k++) fs.writeFileSync(`${here}/many/${k}`, "x")
      const box = yield* start()
      const before = fs.readdirSync("/proc/self/fd").length
      const copying = yield* Effect.fork(Container.copyIn(box, `${here}/many`, "/many"))
      const arrived = Container.fileSystem(box).readDirectory("/many")
      yield* repeatUntil(
        "the first copied files",
        Effect.orElseSucceed(arrived, () => []),
        (names) => names.length > 0
      )
      yield* Fiber.interrupt(copying)
      const begun = yield* Deferred.make<void>()
      const archive = Stream.tap(Container.tarOut(box, "/many"), () => Deferred.succeed(begun, undefined))
      const reading = yield* Effect.fork(Stream.runDrain(archive))
      yield* Deferred.await(begun)
      yield* Fiber.interrupt(reading)
      yield* Stream.runDrain(Stream.take(Container.tarOut(box, "/many"), 3))
      const count = Number(yield* shell(box, "ls /many | wc -l"))
      assert.ok(count < 3000, `${count}`)
      assert.ok(fs.readdirSync("/proc/self/fd").length <= before + 1)
    },
    { skip }
  )

  const archiveOf = (...members: ReadonlyArray<tar.Fields>) => Stream.make(packed(...members))
})

const cut = (bytes: Uint8Array, size: number): ReadonlyArray<Uint8Array> =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, k) => bytes.subarray(k * size, (k + 1) * size))
