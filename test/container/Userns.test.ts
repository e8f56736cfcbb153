import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Container, Image, Namespace, RootFs } from "../../lib/index.ts"
import { textOf, waitUntil } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoImages } from "../support/images.ts"
import { isAlive } from "../support/leftovers.ts"
import { owners, ownersImage } from "../support/owners.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"

const whyNotRootless = process.getuid?.() === 0 ? "needs a non-root user: .ci/rootless runs this" : false

/** The ids of a process's user namespace: the first one on the host, and their number. */
const mapOf = (pid: number): { readonly host: number; readonly size: number } => {
  const [container, host, size] = fs
    .readFileSync(`/proc/${pid}/uid_map`, "utf8")
    .trim()
    .split(/\s+/)
    .map(Number)
  assert.equal(container, 0)
  return { host: host!, size: size! }
}

/** The user and group that a process runs as, as the host sees them. */
const idsOf = (pid: number): ReadonlyArray<string> =>
  /^Uid:\t(\d+).*\nGid:\t(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))!.slice(1)

const statAll = `stat -c '%n %u:%g %a' ${Object.keys(owners).join(" ")}`
const expected = Object.entries(owners)
  .map(([name, value]) => `${name} ${value}\n`)
  .join("")

suite("Container: userns", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const withOwners = Effect.suspend(() => ownersImage(`${berthFolder()}.owners`))
  const sleeping = { command: ["sleep", "1000"], userns: "auto" } as const
  const skip = whyNoBusybox

  for (const upper of ["disk", "memory"] as const)
    effect.asRoot(
      `a container with userns: auto shows the image's owners and writes with its own ids, its writable layer on ${upper}`,
      function* () {
        const from = yield* withOwners
        const box = yield* Container.start(from, { ...sleeping, upper, entrypoint: [] })
        const { host, size } = mapOf(box.pid)
        assert.equal(size, 65536)
        assert.deepEqual(idsOf(box.pid), [String(host), String(host)])
        const script = `${statAll}; cd /home/app; echo more >> private/secret; chown 7:8 setuid; touch new; stat -c '%n %u:%g' private/secret setuid new`
        const seen = yield* Container.exec(box, ["sh", "-c", script])
        assert.equal(seen.stderr, "")
        assert.equal(seen.stdout, `${expected}private/secret 1000:1001\nsetuid 7:8\nnew 0:0\n`)
        const mine = yield* Container.exec(box, ["sh", "-c", "id -u; cat /home/app/private/secret"], {
          user: "app"
        })
        assert.equal(mine.stdout, "1000\napp's\nmore\n")
        // The layers are shown with other ids, and their own are unchanged.
        const [lowest] = from.layers
        assert.deepEqual(
          ["bin/busybox", "etc/passwd"].map((name) => fs.statSync(`${lowest}/${name}`).uid),
          [0, 0]
        )
        if (upper === "memory") return
        const written = box.plan.operations.find((operation) => operation.op === "overlay")!
        const stat = (name: string) => fs.statSync(`${written.upper}/home/app/${name}`)
        assert.deepEqual([stat("new").uid, stat("new").gid], [host, host])
        assert.deepEqual([stat("setuid").uid, stat("setuid").gid], [host + 7, host + 8])
        assert.deepEqual([stat("private/secret").uid, stat("private").uid], [host + 1000, host + 1000])
      },
      { skip }
    )

  effect.asRoot(
    "containers with userns: auto have ids that do not overlap",
    function* () {
      const from = yield* image
      const boxes = yield* Effect.all(
        Array.from({ length: 8 }, () => Container.start(from, sleeping)),
        { concurrency: "unbounded" }
      )
      const hosts = boxes.map(({ pid }) => mapOf(pid).host)
      assert.equal(new Set(hosts).size, hosts.length)
      const sorted = hosts.toSorted((a, b) => a - b)
      for (const [k, host] of sorted.entries())
        assert.ok(k === 0 || host - sorted[k - 1]! >= 65536, `${sorted}`)
      const explicit = [{ container: 0, host: hosts[0]!, size: 10 }]
      const other = yield* Container.start(from, {
        ...sleeping,
        userns: { uidMap: explicit, gidMap: explicit }
      })
      assert.deepEqual(mapOf(other.pid), { host: hosts[0], size: 10 })
      assert.ok(boxes.every(({ pid }) => isAlive(pid)))
    },
    { skip }
  )

  effect.asRoot(
    "a container with userns: auto can neither read nor write a bound folder of the host's root",
    function* () {
      const source = `${berthFolder()}/bound`
      fs.mkdirSync(source, { recursive: true })
      fs.writeFileSync(`${source}/secret`, "root's\n", { mode: 0o600 })
      const mounts = [{ type: "bind", source, target: "/bound" }] as const
      const { stdout } = yield* Container.run(yield* image, {
        userns: "auto",
        mounts,
        capabilities: { add: ["ALL"] },
        command: [
          "sh",
          "-c",
          "cat /bound/secret || echo unread; echo x > /bound/new || echo unwritten; chown 0 /bound/secret || echo unowned; stat -c %u /bound/secret; mknod /tmp/null c 1 3 || echo unmade"
        ]
      })
      assert.equal(stdout, "unread\nunwritten\nunowned\n65534\nunmade\n")
      assert.deepEqual(fs.readdirSync(source), ["secret"])
    },
    { skip }
  )

  effect.asRoot(
    "a container with userns: auto is committed with the ids that it sees",
    function* () {
      const box = yield* Container.start(yield* withOwners, {
        userns: "auto",
        entrypoint: [],
        command: [
          "sh",
          "-c",
          "touch /root/mine; echo x >> /home/app/private/secret; touch /home/app/his; chown 1000:1001 /home/app/his"
        ]
      })
      assert.equal((yield* box.exit).exitCode, 0)
      const made = yield* Container.commit(box)
      const list = "stat -c '%n %u:%g' /root/mine /home/app/private/secret /home/app/his"
      const { stdout } = yield* Container.run(made, { entrypoint: [], command: ["sh", "-c", list] })
      assert.equal(stdout, "/root/mine 0:0\n/home/app/private/secret 1000:1001\n/home/app/his 1000:1001\n")
    },
    { skip }
  )

  effect.asRoot(
    "a container with userns: auto can open /dev/stdout and /dev/stderr",
    function* () {
      const { stderr, stdout } = yield* Container.run(yield* image, {
        userns: "auto",
        command: ["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"]
      })
      assert.deepEqual([stdout, stderr], ["out\n", "err\n"])
    },
    { skip }
  )

  effect.asRoot(
    "malformed id maps are refused before anything is made",
    function* () {
      const from = yield* image
      const before = fs.readdirSync(`${berthFolder()}/run`)
      const good = [{ container: 0, host: 500000, size: 1000 }]
      const bad: ReadonlyArray<readonly [RegExp, ReadonlyArray<Namespace.IdRange>]> = [
        [/at least one id/, [{ container: 0, host: 500000, size: 0 }]],
        [/without a gap/, [{ container: 5, host: 500000, size: 1000 }]],
        [/do not overlap/, [...good, { container: 10, host: 600000, size: 10 }]],
        [/do not overlap/, [...good, { container: 1000, host: 500999, size: 10 }]]
      ]
      for (const [message, uidMap] of bad) {
        const error = yield* failure(
          "InvalidOption",
          Container.start(from, { userns: { uidMap, gidMap: good } })
        )
        assert.equal(error.option, "userns.uidMap")
        assert.match(error.message, message)
      }
      const both = yield* failure(
        "InvalidOption",
        Container.start(from, { userns: "auto", namespaces: { user: "host" } })
      )
      assert.equal(both.option, "namespaces.user")
      yield* failure("InvalidOption", Container.start(from, { userns: "some" as never }))
      assert.deepEqual(fs.readdirSync(`${berthFolder()}/run`), before)
    },
    { skip }
  )

  effect.asRoot(
    "a failed start gives its ids back",
    function* () {
      const from = yield* image
      for (let k = 0; k < 3; k++)
        yield* failure("CommandFailed", Container.start(from, { ...sleeping, command: ["/no/such"] }))
      yield* Container.start(from, sleeping)
    },
    { skip }
  )

  effect(
    "userns is refused without root, with the alternative in the error",
    function* () {
      const error = yield* failure("Unsupported", Container.start(yield* image, sleeping))
      assert.match(error.message, /only root.*user: "new"/)
      const from = yield* image
      const { stdout } = yield* Container.run(from, { namespaces: { user: "new" }, command: ["id", "-u"] })
      assert.equal(stdout, "0\n")
    },
    { skip: skip || whyNotRootless }
  )
})

suite("Namespace and RootFs: userns", (effect, berthFolder) => {
  const withOwners = Effect.suspend(() => ownersImage(`${berthFolder()}.owners`))
  const every = ["user", "mount", "pid", "uts", "ipc", "network", "cgroup"] as const
  const skip = whyNoBusybox
  const skipImages = skip || whyNoImages
  const said = (process: Container.Container) =>
    Effect.map(Effect.all([textOf(process.stdout), textOf(process.stderr)]), ([out, err]) => {
      assert.equal(err, "")
      return out
    })

  for (const upper of ["disk", "memory"] as const)
    for (const kinds of [every, ["user"], ["user", "pid", "network"]] as const)
      effect.asRoot(
        `a root for the ids of ${kinds.join(", ")} shows the image's owners, its writable layer on ${upper}`,
        function* () {
          const from = yield* withOwners
          const namespaces = yield* Namespace.make(kinds, { ids: "auto" })
          const rootfs = yield* RootFs.overlay(from, { upper, userns: namespaces })
          const owned = (folder: string) =>
            ["bin/busybox", "etc/passwd"].map((name) => fs.statSync(`${folder}/${name}`).uid)
          const script = `${statAll}; cd /home/app; echo more >> private/secret; chown 7:8 setuid; touch new; stat -c '%n %u:%g' private/secret setuid new; cat /proc/self/uid_map`
          const first = yield* Container.spawn({
            rootfs,
            namespaces,
            entrypoint: [],
            command: ["sh", "-c", `${script}; exec sleep 1000`]
          })
          const lines = yield* Stream.decodeText(first.stdout).pipe(
            Stream.splitLines,
            Stream.take(expected.split("\n").length + 3),
            Stream.runCollect
          )
          const { host, size } = mapOf(namespaces.pid)
          assert.equal(size, 65536)
          assert.deepEqual(mapOf(first.pid), { host, size })
          assert.deepEqual(idsOf(first.pid), [String(host), String(host)])
          assert.equal(
            [...lines].slice(0, -1).join("\n"),
            `${expected}private/secret 1000:1001\nsetuid 7:8\nnew 0:0`
          )
          const mine = yield* Container.exec(first, ["sh", "-c", "id -u; cat /home/app/private/secret"], {
            user: "app"
          })
          assert.equal(mine.stdout, "1000\napp's\nmore\n")
          // The layers are shown with other ids, and their own are unchanged.
          assert.deepEqual(owned(from.layers[0]!), [0, 0])
          if (rootfs.upper === undefined) return
          const stat = (name: string) => fs.statSync(`${rootfs.upper}/home/app/${name}`)
          assert.deepEqual([stat("new").uid, stat("new").gid], [host, host])
          assert.deepEqual([stat("setuid").uid, stat("setuid").gid], [host + 7, host + 8])
          assert.deepEqual([stat("private/secret").uid, stat("private").uid], [host + 1000, host + 1000])
        },
        { skip: skipImages }
      )

  effect.asRoot(
    "processes in turn share a root with its own ids, and it is committed with the ids that they see",
    function* () {
      const namespaces = yield* Namespace.make(["user", "mount", "pid"], { ids: "auto" })
      const rootfs = yield* RootFs.overlay(yield* withOwners, { upper: "disk", userns: namespaces })
      const spawn = (script: string) =>
        Container.spawn({ rootfs, namespaces, entrypoint: [], command: ["sh", "-c", script] })
      const first = yield* spawn("touch /root/mine; chown 1000:1001 /root/mine")
      assert.equal(yield* said(first), "")
      assert.equal(yield* said(yield* spawn("stat -c %u:%g /root/mine")), "1000:1001\n")
      const made = yield* Container.commit(first)
      const { stdout } = yield* Container.run(made, {
        entrypoint: [],
        command: ["stat", "-c", "%u:%g", "/root/mine"]
      })
      assert.equal(stdout, "1000:1001\n")
    },
    { skip: skipImages }
  )

  effect.asRoot(
    "a process with its own ids on the host's root can neither read nor write a bound folder of root",
    function* () {
      const namespaces = yield* Namespace.make(every, { ids: "auto" })
      const rootfs = yield* RootFs.overlay(yield* Image.host, { userns: namespaces })
      const source = `${berthFolder()}/bound-parts`
      fs.mkdirSync(source, { recursive: true })
      fs.writeFileSync(`${source}/secret`, "root's\n", { mode: 0o600 })
      const process = yield* Container.spawn({
        rootfs,
        namespaces,
        mounts: [{ type: "bind", source, target: "/bound" }],
        capabilities: { add: ["ALL"] },
        command: [
          "sh",
          "-c",
          "exec 2>/dev/null; cat /bound/secret || echo unread; echo x > /bound/new || echo unwritten; stat -c %u /bound/secret /etc/passwd"
        ]
      })
      assert.equal(yield* said(process), "unread\nunwritten\n65534\n0\n")
      assert.deepEqual(fs.readdirSync(source), ["secret"])
    }
  )

  effect.asRoot(
    "a root is accepted in every namespace with its ids and refused in all others",
    function* () {
      const from = yield* makeImage(`${berthFolder()}.root`)
      const map = (host: number) => {
        const range = [{ container: 0, host, size: 1000 }]
        return { ids: { uids: range, gids: range } }
      }
      const kinds = ["user", "pid"] as const
      const [one, again, other] = yield* Effect.all([
        Namespace.make(kinds, map(500_000)),
        Namespace.make(kinds, map(500_000)),
        Namespace.make(kinds, map(600_000))
      ])
      const plain = yield* Namespace.make(kinds)
      const without = yield* Namespace.make(["pid"])
      const mapped = yield* RootFs.overlay(from, { userns: one })
      const unmapped = yield* RootFs.overlay(from, { userns: plain })
      const spawn = (rootfs: RootFs.RootFs, namespaces: Namespace.Namespace) =>
        Container.spawn({ rootfs, namespaces, command: ["sh", "-c", "echo x > /x; stat -c %u /x"] })
      for (const [rootfs, namespaces] of [
        [mapped, other],
        [mapped, plain],
        [mapped, without],
        [unmapped, one]
      ] as const) {
        const error = yield* failure("InvalidOption", spawn(rootfs, namespaces))
        assert.equal(error.option, "rootfs")
        assert.match(error.message, /made for the ids of these namespaces.*userns/)
      }
      for (const [rootfs, namespaces] of [
        [mapped, one],
        [mapped, again],
        [unmapped, plain],
        [unmapped, without]
      ] as const)
        assert.equal(yield* Effect.scoped(Effect.flatMap(spawn(rootfs, namespaces), said)), "0\n")
      assert.equal(fs.statSync(`${mapped.upper}/x`).uid, 500_000)
      const error = yield* failure("InvalidOption", RootFs.overlay(from, { userns: without }))
      assert.match(error.message, /a user namespace among them/)
    },
    { skip }
  )

  effect.asRoot(
    "ids stay reserved as long as a namespace or a root uses them",
    function* () {
      const from = yield* makeImage(`${berthFolder()}.root`)
      const held = yield* Effect.forEach([1, 2, 3], () => Namespace.make(["user"], { ids: "auto" }))
      const started = yield* Container.start(from, { command: ["sleep", "1000"], userns: "auto" })
      const hosts = [...held.map(({ pid }) => mapOf(pid).host), mapOf(started.pid).host]
      assert.equal(new Set(hosts).size, 4)
      // A root outlives its namespaces, and so do the files that were written with their ids.
      const closing = yield* Scope.make()
      const namespaces = yield* Scope.extend(Namespace.make(["user"], { ids: "auto" }), closing)
      const { host } = mapOf(namespaces.pid)
      const isHeld = () => spawnSync("flock", ["-n", `/run/berth/ids/${host}-${host}`, "true"]).status !== 0
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* RootFs.overlay(from, { userns: namespaces })
          yield* Scope.close(closing, Exit.void)
          assert.ok(isHeld())
          yield* failure("InvalidOption", RootFs.overlay(from, { userns: namespaces }))
        })
      )
      yield* waitUntil(`the ids from ${host} are free`, () => !isHeld())
    },
    { skip }
  )

  effect(
    "ids: auto is refused without root, and Berth's own ids can be used instead",
    function* () {
      const auto = yield* failure("Unsupported", Namespace.make(["user"], { ids: "auto" }))
      assert.match(auto.message, /only root/)
      const namespaces = yield* Namespace.make(["user", "mount", "pid"])
      const rootfs = yield* RootFs.overlay(yield* withOwners, { userns: namespaces })
      const process = yield* Container.spawn({
        rootfs,
        namespaces,
        entrypoint: [],
        command: ["sh", "-c", statAll]
      })
      assert.equal(yield* said(process), expected)
    },
    { skip: skipImages || whyNotRootless }
  )
})
