import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Namespace, Plan, RootFs } from "../../lib/index.ts"
import { nested } from "../../lib/internal/ids/idMaps.ts"
import { flagsOf, idMap } from "../../lib/internal/ids/namespaceFlags.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, makeRoot, whyNoBusybox, withLayers } from "../support/rootfs.ts"

const sh = (image: Image.Image, script: string, options: Container.StartOptions = {}) =>
  Effect.map(
    Container.run(image, { command: ["sh", "-c", script], ...options }),
    ({ exitCode, stdout, stderr }) => {
      assert.equal(exitCode, 0, stderr)
      return stdout
    }
  )

/** A busybox and layers above it. Each layer has a file of its own, and the file `top` with its number. */
const layers = (folder: string, count: number, name = (k: number): string => `layer-${k}`) => {
  const made = Array.from({ length: count - 1 }, (_, k) => {
    const path = `${folder}/${name(k + 1)}`
    fs.mkdirSync(`${path}/numbers`, { recursive: true })
    fs.writeFileSync(`${path}/numbers/${k + 1}`, `${k + 1}\n`)
    fs.writeFileSync(`${path}/top`, `${k + 1}\n`)
    return path
  })
  return [makeRoot(`${folder}/${name(0)}`), ...made]
}

const digest = (folder: string): string =>
  execFileSync("sh", ["-c", "find . -printf '%p %m %U %T@ %s %l\\n' | sort | sha256sum"], {
    cwd: folder,
    encoding: "utf8"
  })

const spawnExit = (rootfs: RootFs.RootFs, script: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const namespaces = yield* Namespace.make(["pid", "mount"])
      const child = yield* Container.spawn({ rootfs, namespaces, command: ["sh", "-c", script] })
      return (yield* child.exit).exitCode
    })
  )

suite("RootFs", (effect, folder) => {
  for (const count of [1, 2, 15, 16, 100]) {
    for (const upper of ["disk", "memory"] as const) {
      effect(
        `a root of ${count} layer${count === 1 ? "" : "s"} and a writable one ${upper === "disk" ? "on disk" : "in memory"} shows the uppermost file`,
        function* () {
          const at = `${folder()}/${count}-${upper}`
          const all = layers(at, count)
          const before = digest(at)
          const image = withLayers(yield* makeImage(all[0]!), all)
          const script =
            "cat /top 2>/dev/null; ls /numbers 2>/dev/null | wc -l; echo w > /written; rm -rf /numbers /top; mkdir /numbers; ls /numbers"
          const text = yield* sh(image, script, { upper })
          assert.equal(text, count === 1 ? "0\n" : `${count - 1}\n${count - 1}\n`)
          assert.equal(digest(at), before)
        },
        { skip: whyNoBusybox }
      )
    }
  }

  effect(
    "paths of layers may be long and contain the special characters of overlayfs",
    function* () {
      const names = [(k: number) => `${"long".repeat(60)}/${k}`, (k: number) => `a:b,c\\d=e f ${k}`]
      for (const [n, name] of names.entries()) {
        const all = layers(`${folder()}/odd-${n}`, 4, name)
        const image = withLayers(yield* makeImage(all[0]!), all)
        for (const upper of ["disk", "memory"] as const)
          assert.equal(yield* sh(image, "cat /top; ls /numbers | wc -l", { upper }), "3\n3\n")
      }
    },
    { skip: whyNoBusybox }
  )

  effect("a root shows what an earlier process wrote, and another root does not", function* () {
    const image = yield* Image.host
    const root = yield* RootFs.overlay(image)
    assert.equal(yield* spawnExit(root, "echo one > /written; exit 3"), 3)
    assert.equal(yield* spawnExit(root, "[ $(cat /written) = one ] && exit 4"), 4)
    const other = yield* RootFs.overlay(image)
    assert.equal(yield* spawnExit(other, "[ -e /written ] || exit 5"), 5)
    assert.ok(!fs.existsSync("/written"))
  })

  effect("a root can be used by four processes at once", function* () {
    const root = yield* RootFs.overlay(yield* Image.host, { upper: "memory" })
    const scripts = [1, 2, 3, 4].map((k) => `echo ${k} > /w${k}; exit ${k}`)
    const codes = yield* Effect.forEach(scripts, (script) => spawnExit(root, script), { concurrency: 4 })
    assert.deepEqual(codes, [1, 2, 3, 4])
    assert.equal(yield* spawnExit(root, "cat /w1 /w2 /w3 /w4 && exit 9"), 9)
  })

  effect(
    "processes that start at once on a new root share its missing folders",
    function* () {
      const image = yield* makeImage(`${folder()}/missing`)
      for (let k = 0; k < 10; k++) {
        const root = yield* RootFs.overlay(image, { upper: "memory" })
        const start = spawnExit(root, "cat /proc/1/comm /dev/null >/dev/null; exit 7")
        const codes = yield* Effect.all(
          Array.from({ length: 8 }, () => start),
          { concurrency: 8 }
        )
        assert.deepEqual([...new Set(codes)], [7])
      }
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a writable layer on disk is in the folder that the root names until its scope closes",
    function* () {
      const image = yield* makeImage(`${folder()}/image`)
      const upper = yield* Effect.scoped(
        Effect.gen(function* () {
          const root = yield* RootFs.overlay(image, { upper: "disk" })
          assert.deepEqual(root.toJSON(), { _id: "berth/RootFs", image: image.reference, upper: root.upper })
          assert.equal(inspect(root), `RootFs(${image.reference}, written to ${root.upper})`)
          assert.equal(yield* spawnExit(root, "echo text > /etc/made"), 0)
          assert.equal(fs.readFileSync(`${root.upper}/etc/made`, "utf8"), "text\n")
          return root.upper!
        })
      )
      assert.ok(!fs.existsSync(upper))
    },
    { skip: whyNoBusybox }
  )

  effect("a writable layer in memory holds no more than its size", function* () {
    const root = yield* RootFs.overlay(yield* Image.host, { upper: "memory", size: "1MiB" })
    assert.equal(root.upper, undefined)
    assert.equal(yield* spawnExit(root, "head -c 3000000 /dev/zero > /fill || exit 7"), 7)
  })

  effect(
    "without root a size is refused for a writable layer on disk, and the error names what can be done",
    function* () {
      const image = yield* makeImage(`${folder()}/sized`)
      const refused = [
        sh(image, "true", { upperSize: "16MiB" }),
        sh(image, "true", { upper: "disk", upperSize: "16MiB" }),
        RootFs.overlay(image, { size: "16MiB" })
      ]
      for (const start of refused) assert.match((yield* failure("Unsupported", start)).message, /in memory/)
      const fill = ["sh", "-c", "head -c 50000000 /dev/zero > /fill"]
      const full = yield* Container.run(image, { command: fill, upper: "memory", upperSize: "16MiB" })
      assert.notEqual(full.exitCode, 0)
    },
    { skip: whyNoBusybox || (process.getuid?.() === 0 ? "root may mount files" : false) }
  )

  effect(
    "a root has the mode of its image's root",
    function* () {
      const at = makeRoot(`${folder()}/closed`)
      fs.chmodSync(at, 0o711)
      const image = yield* makeImage(at)
      for (const upper of ["disk", "memory"] as const)
        assert.equal(yield* sh(image, "stat -c %a /", { upper }), "711\n")
    },
    { skip: whyNoBusybox }
  )

  effect("a container of an empty image finds no command", function* () {
    const error = yield* failure("CommandFailed", Container.run(Image.scratch, { command: ["/bin/sh"] }))
    assert.equal(error.reason, "NotFound")
  })

  effect(
    "a writable layer on disk is refused for the host's root, and so is a size that cannot be parsed",
    function* () {
      const error = yield* failure("InvalidOption", RootFs.overlay(yield* Image.host, { upper: "disk" }))
      assert.equal(error.option, "upper")
      const size = yield* failure("InvalidOption", RootFs.overlay(yield* Image.host, { size: "12 parsecs" }))
      assert.equal(size.option, "size")
    }
  )

  effect("a layer that has been removed is an error with its path", function* () {
    const at = `${folder()}/short-lived`
    fs.mkdirSync(at, { recursive: true })
    const image = yield* Image.fromRootfs(at)
    fs.rmdirSync(at)
    const error = yield* failure("ImageError", RootFs.overlay(image))
    assert.equal(error.reason, "NotFound")
    assert.ok(error.message.includes(at))
  })

  effect(
    "an overlay that the kernel refuses in a user namespace is an error that says what would help",
    function* () {
      const { ids, supervisor } = yield* Berth.Berth
      // In a user namespace without a mount namespace, mounts are refused, as overlays were before Linux 5.11.
      const plan = Plan.make([
        { op: "process", namespaces: flagsOf(["user"]) },
        idMap(nested(ids)),
        { op: "stdio", stdin: null, stdout: null, stderr: null },
        {
          op: "overlay-memory",
          lower: [`${supervisor.folder}/empty`],
          mode: 0o755,
          tmpfs: [],
          options: ["volatile", "userxattr"],
          attributes: 0
        },
        { op: "exec-self", arguments: ["berth-hold"], environment: [] }
      ])
      const error = yield* failure("OperationFailed", supervisor.start(supervisor.nextId(), plan, {}))
      assert.equal(error.code, "EPERM")
      assert.match(error.message, /Linux 5\.11 .*modprobe overlay.*run as root.*doctor/)
    }
  )
})
