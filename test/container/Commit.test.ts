import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Container, Image, Mount, Namespace, RootFs, Store } from "../../lib/index.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { makeImage, sh, whyNoImages } from "../support/images.ts"
import { podmanIn, whyNoPodman } from "../support/podman.ts"
import { treeOf } from "../support/trees.ts"

const skip = whyNoImages

const script = `
mkdir /srv; echo new > /srv/f; chmod 4711 /srv/f; ln /srv/f /srv/g 2>/dev/null || busybox ln /srv/f /srv/g
busybox rm /etc/motd; busybox chown 5:6 /etc/group; echo more >> /etc/group
busybox rm -r /root; busybox mkdir /root; echo here > /root/x
`

suite("Container.commit", (effect, berthFolder) => {
  let layout = ""
  const image = Effect.suspend(() => {
    if (layout === "") {
      // Beside the Berth's, in the folder that goes with the suite.
      layout = `${berthFolder()}.layout`
      makeImage(layout)
    }
    return Image.fromLayout(layout, { tag: "latest" })
  })

  const written = Effect.gen(function* () {
    const box = yield* Container.start(yield* image, {
      entrypoint: ["/bin/busybox", "sh", "-c"],
      command: [script],
      user: "root",
      cwd: "/"
    })
    const { exitCode } = yield* box.exit
    assert.equal(exitCode, 0)
    return box
  })

  const run = (made: Image.Image, command: string, options: Container.StartOptions = {}) =>
    Container.run(made, { entrypoint: ["/bin/busybox", "sh", "-c"], command: [command], ...options })

  const read = (digest: string) =>
    Effect.map(
      Effect.flatMap(Store.folder, (folder) =>
        Effect.sync(() => fs.readFileSync(`${folder}/blobs/${digest.replace(":", "/")}`, "utf8"))
      ),
      (text) => JSON.parse(text)
    )

  effect.asRoot(
    "podman runs a committed image",
    function* () {
      const here = makeTemporaryFolder()
      yield* Effect.addFinalizer(() => Effect.sync(() => remove(here)))
      const made = yield* Container.commit(yield* written, {
        tag: "127.0.0.1:5000/team/podman:1",
        config: { entrypoint: [], command: ["/bin/cat", "/srv/f"], user: "root" }
      })
      yield* Image.save(made, `${here}/made.tar`, { format: "oci-archive" })
      const { podman, run } = podmanIn(here)
      podman("load", "--input", `${here}/made.tar`)
      assert.equal(run("127.0.0.1:5000/team/podman:1"), "new\n")
    },
    { skip: skip || whyNoPodman }
  )

  effect.asRoot(
    "a committed image is run by Berth, read by skopeo and unpacked by umoci to the same tree",
    function* () {
      const here = makeTemporaryFolder()
      yield* Effect.addFinalizer(() => Effect.sync(() => remove(here)))
      const box = yield* written
      const made = yield* Container.commit(box, {
        tag: "127.0.0.1:5000/team/made:1",
        author: "somebody",
        comment: "what it wrote",
        config: {
          environment: { GREETING: "changed", ADDED: "a=b" },
          labels: { "org.example.new": "yes" },
          workingDirectory: "/srv",
          user: "root",
          entrypoint: [],
          command: ["/bin/cat", "f"],
          exposedPorts: ["9090/udp"]
        }
      })
      assert.equal((yield* Container.run(made)).stdout, "new\n")
      const seen = yield* run(
        made,
        "busybox stat -c '%n %a %u:%g %h' /srv/f /srv/g /etc/group /root/x; ls /etc /root; env"
      )
      assert.match(
        seen.stdout,
        /^\/srv\/f 4711 0:0 2\n\/srv\/g 4711 0:0 2\n\/etc\/group 644 5:6 1\n\/root\/x 644 0:0 1\n/
      )
      assert.doesNotMatch(seen.stdout, /motd/)
      assert.match(seen.stdout, /GREETING=changed/)
      assert.match(seen.stdout, /ADDED=a=b/)
      assert.equal(made.config.labels["org.example.purpose"], "test", "what is not said stays")
      assert.equal(made.config.stopSignal, "SIGINT")

      const store = `oci:${yield* Store.folder}:127.0.0.1:5000/team/made:1`
      const inspected = JSON.parse(sh("skopeo", "inspect", "--config", store))
      assert.deepEqual(inspected.config.Cmd, ["/bin/cat", "f"])
      assert.deepEqual(inspected.config.ExposedPorts, { "9090/udp": {} })
      assert.equal(inspected.author, "somebody")
      assert.equal(inspected.history.at(-1).comment, "what it wrote")
      assert.equal(inspected.rootfs.diff_ids.length, 3)
      assert.equal(JSON.parse(sh("skopeo", "inspect", store)).Layers.length, 3)

      sh("skopeo", "copy", store, `oci:${here}/copy:made`)
      sh("umoci", "unpack", "--image", `${here}/copy:made`, `${here}/bundle`)
      // The empty files that are the targets of mounts are in the root, but not in the image.
      const list =
        "find . ! -type d ! -path './etc/host*' ! -path ./etc/resolv.conf -printf '%p %y %m %U:%G %n %s %l %T@\\n'; find . -mindepth 1 -type d -printf '%p %m %U:%G\\n'"
      const root = yield* RootFs.overlay(made)
      const ours = sh("sh", "-c", `cd /proc/${process.pid}/fd/${root.mount} && { ${list}; } | sort`)
      const theirs = sh("sh", "-c", `cd ${here}/bundle/rootfs && { ${list}; } | sort`)
      assert.equal(ours, theirs)
    },
    { skip }
  )

  effect(
    "two commits have the same layer, and with the same time are the same image",
    function* () {
      const box = yield* written
      const created = new Date("2020-01-02T03:04:05Z")
      const one = yield* Container.commit(box, { created })
      const other = yield* Container.commit(box, { created })
      assert.equal(one.digest, other.digest)
      const later = yield* Container.commit(box, { comment: "later" })
      assert.notEqual(later.digest, one.digest)
      const layersOf = (made: Image.Image) =>
        Effect.map(read(made.digest!), ({ layers }) => layers.map(({ digest }: { digest: string }) => digest))
      assert.deepEqual(yield* layersOf(later), yield* layersOf(one))
      assert.equal(one.reference, one.digest, "without a tag it is named by its digest")
    },
    { skip }
  )

  effect(
    "a running container is committed as it is, and a container of that image again",
    function* () {
      const start = (from: Image.Image) =>
        Container.start(from, { entrypoint: [], command: ["/bin/sleep", "100"], user: "root" })
      const box = yield* start(yield* image)
      yield* Container.exec(box, ["/bin/sh", "-c", "echo one > /one"])
      const first = yield* Container.commit(box)
      yield* Container.exec(box, ["/bin/sh", "-c", "echo two > /two"])
      assert.equal((yield* run(first, "cat /one; ls /two")).stdout, "one\n")
      const next = yield* start(first)
      yield* Container.exec(next, ["/bin/busybox", "rm", "/one"])
      const second = yield* Container.commit(next)
      assert.equal(second.layers.length, first.layers.length + 1)
      assert.match((yield* run(second, "ls /")).stdout, /^bin\ndev\netc\nproc\n/)
      assert.doesNotMatch((yield* run(second, "ls /")).stdout, /one/)
      const { history, rootfs } = yield* read((yield* read(second.digest!)).config.digest)
      const counted = history.filter((entry: { empty_layer?: boolean }) => entry.empty_layer !== true)
      assert.equal(counted.length, rootfs.diff_ids.length)
    },
    { skip }
  )

  effect(
    "a process on a shared root of Image.scratch is committed as the first layer",
    function* () {
      const root = yield* RootFs.overlay(Image.scratch)
      const folder = `/proc/self/fd/${root.mount}`
      fs.mkdirSync(`${folder}/bin`)
      fs.copyFileSync("/bin/busybox", `${folder}/bin/busybox`)
      fs.chmodSync(`${folder}/bin/busybox`, 0o755)
      const namespaces = yield* Namespace.make(["pid", "uts", "ipc", "network"])
      const box = yield* Container.spawn({
        rootfs: root,
        namespaces,
        entrypoint: ["/bin/busybox"],
        command: ["true"]
      })
      yield* box.exit
      const made = yield* Container.commit(box, { config: { entrypoint: ["/bin/busybox"] } })
      assert.equal((yield* Container.run(made, { command: ["echo", "hello"] })).stdout, "hello\n")
    },
    { skip }
  )

  /** The names in the uppermost layer of an image. */
  const membersOf = (made: Image.Image) =>
    Effect.gen(function* () {
      const { layers } = yield* read(made.digest!)
      const blob = `${yield* Store.folder}/blobs/${layers.at(-1).digest.replace(":", "/")}`
      return sh("tar", "-tzf", blob).trim().split("\n").sort()
    })

  for (const upper of ["disk", "memory"] as const)
    effect(
      `a commit does not contain what a start makes in a writable layer ${upper === "disk" ? "on disk" : "in memory"}`,
      function* () {
        const here = makeTemporaryFolder()
        yield* Effect.addFinalizer(() => Effect.sync(() => remove(here)))
        fs.writeFileSync(`${here}/file`, "mounted")
        const start = (command: string) =>
          Effect.flatMap(image, (from) =>
            Container.start(from, {
              entrypoint: ["/bin/busybox", "sh", "-c"],
              command: [command],
              user: "root",
              upper,
              cwd: "/jobs/deep",
              mounts: [
                Mount.tmpfs("/data/cache"),
                Mount.bind(here, "/srv/host"),
                Mount.bind(`${here}/file`, "/etc/conf/a")
              ]
            })
          )
        const running = yield* start("sleep 100")
        const idle = yield* start("echo 10.0.0.1 more >> /etc/hosts; echo x > /data/cache/x; : > /srv/host/y")
        yield* idle.exit
        for (const box of [running, idle])
          assert.deepEqual(yield* membersOf(yield* Container.commit(box)), ["./"])
        const changing = yield* start("echo mine > made; busybox chmod 700 /data; echo mine > /etc/mine")
        assert.equal((yield* changing.exit).exitCode, 0)
        const made = yield* Container.commit(changing)
        const changed = ["./", "data/", "etc/", "etc/mine", "jobs/", "jobs/deep/", "jobs/deep/made"]
        assert.deepEqual(yield* membersOf(made), changed)
        const next = yield* run(made, "busybox stat -c '%a %n' /data /jobs/deep /etc; ls /srv", {
          user: "root"
        })
        assert.match(next.stdout, /^700 \/data\n755 \/jobs\/deep\n755 \/etc\n/, next.stderr)
        assert.doesNotMatch(next.stdout, /host/)
      },
      { skip }
    )

  effect(
    "a commit is the same for a writable layer in memory and on disk, without what is mounted",
    function* () {
      const here = makeTemporaryFolder()
      yield* Effect.addFinalizer(() => Effect.sync(() => remove(here)))
      fs.writeFileSync(`${here}/mounted`, "mounted")
      const changed = `${script}
          busybox rm /bin/uname; echo uname > /bin/uname; busybox chmod 700 /tmp; busybox touch -d @5 /etc/passwd
          busybox rm -r /sys/nothing /bin/hostname; busybox mkdir -p /deep/er; busybox ln -s x /deep/er/link
          busybox mkfifo /deep/fifo; busybox mv /deep/er /deeper; busybox cat /etc/passwd`
      const commitOf = (upper: "disk" | "memory") =>
        Effect.scoped(
          Effect.gen(function* () {
            const box = yield* Container.start(yield* image, {
              upper,
              entrypoint: ["/bin/busybox", "sh", "-c"],
              command: [changed],
              user: "root",
              cwd: "/",
              mounts: [{ type: "bind", source: here, target: "/tmp/mounted" }]
            })
            assert.equal((yield* box.exit).exitCode, 0)
            const made = yield* Container.commit(box, { tag: `${upper}:1`, created: new Date(0) })
            const { mount } = yield* RootFs.overlay(made)
            return treeOf(`/proc/${process.pid}/fd/${mount}/`)
          })
        )
      const [disk, memory] = [yield* commitOf("disk"), yield* commitOf("memory")]
      const own = (tree: ReturnType<typeof treeOf>) =>
        Object.fromEntries(
          Object.entries(tree).map(([path, node]) => [
            path,
            // They ran one after the other.
            Number(node.mtime) > 1_700_000_000 ? { ...node, mtime: "now" } : node
          ])
        )
      assert.deepEqual(own(memory), own(disk))
      assert.equal(memory["bin/uname"]?.kind, "file")
      assert.equal(memory["bin/hostname"], undefined)
      assert.deepEqual(memory["srv/f"]?.linked, ["srv/f", "srv/g"])
      assert.equal(memory["tmp/mounted/mounted"], undefined)
    },
    { skip }
  )

  for (const [what, options] of [
    ["of a fixed size", { upperSize: "16MiB" }],
    ["of a container with userns", { userns: "auto" }]
  ] as const)
    effect.asRoot(
      `a commit has the files, ids and attributes inside of a writable layer ${what}`,
      function* () {
        const box = yield* Container.start(yield* image, {
          entrypoint: ["/bin/busybox", "sh", "-c"],
          command: [
            "echo a > /tmp/a; busybox chown 5:6 /tmp/a; busybox chmod 4711 /tmp/a; busybox rm /etc/motd"
          ],
          user: "root",
          upper: "disk",
          cwd: "/",
          ...options
        })
        assert.equal((yield* box.exit).exitCode, 0)
        const made = yield* Container.commit(box)
        assert.deepEqual(yield* membersOf(made), ["./", "etc/", "etc/.wh.motd", "tmp/", "tmp/a"])
        const shown = yield* run(made, "busybox stat -c '%u:%g %a' / /etc /tmp/a", { user: "root" })
        assert.equal(shown.stdout, "0:0 755\n0:0 755\n5:6 4711\n")
      },
      { skip }
    )

  effect(
    "a commit of a running container with its layer in memory has only the files that it wrote",
    function* () {
      const box = yield* Container.start(yield* image, {
        entrypoint: ["/bin/busybox", "sh", "-c"],
        command: ["echo one > /tmp/one; echo ready; sleep 100"],
        user: "root",
        upper: "memory"
      })
      yield* Stream.runHead(box.stdout)
      const made = yield* Container.commit(box)
      const layer = made.layers.at(-1)!
      assert.deepEqual(
        fs
          .readdirSync(layer, { recursive: true })
          .map(String)
          .filter((path) => !/^(dev|proc|sys)\b/.test(path))
          .sort(),
        ["tmp", "tmp/one"]
      )
    },
    { skip }
  )

  effect(
    "a commit that is impossible is refused with the reason and leaves the store as it was",
    function* () {
      const host = yield* Container.start(yield* Image.host, { command: ["true"] })
      assert.match((yield* failure("InvalidOption", Container.commit(host))).message, /manifest/)
      const options = { entrypoint: [], command: ["/bin/sleep", "100"], user: "root" }
      const scope = yield* Scope.make()
      const box = yield* Scope.extend(Container.start(yield* image, options), scope)
      yield* failure("InvalidData", Container.commit(box, { tag: "Not A Tag" }))
      yield* failure("InvalidOption", Container.commit(box, { config: { environment: { "a=b": "c" } } }))
      yield* failure("InvalidOption", Container.commit(box, { config: { command: ["a\0b"] } }))
      const before = (yield* Store.list).length
      yield* Container.exec(box, ["/bin/sh", "-c", "echo > /tmp/.wh.name"])
      const error = yield* failure("ImageError", Container.commit(box, { tag: "refused:1" }))
      assert.equal(error.subject, "tmp/.wh.name")
      assert.equal((yield* Store.list).length, before)
      assert.deepEqual(fs.readdirSync(`${berthFolder()}/store/.partial`), [])
      yield* Scope.close(scope, Exit.void)
      yield* failure("ContainerError", Container.commit(box))
    },
    { skip }
  )
})
