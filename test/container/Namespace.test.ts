import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container, Image, Namespace, RootFs } from "../../lib/index.ts"
import { gone } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { isAlive } from "../support/leftovers.ts"

const files: Readonly<Record<Namespace.Kind, string>> = {
  mount: "mnt",
  pid: "pid",
  uts: "uts",
  ipc: "ipc",
  network: "net",
  cgroup: "cgroup",
  user: "user",
  time: "time"
}

const all = Object.keys(files) as ReadonlyArray<Namespace.Kind>

const own = (kind: Namespace.Kind): string => fs.readlinkSync(`/proc/self/ns/${files[kind]}`)
const of = (pid: number, kind: Namespace.Kind): string => fs.readlinkSync(`/proc/${pid}/ns/${files[kind]}`)

const rootfs = Effect.flatMap(Image.host, (image) => RootFs.overlay(image, { upper: "memory" }))

suite("Namespace", (effect) => {
  for (const kind of all) {
    const skip = fs.existsSync(`/proc/self/ns/${files[kind]}`)
      ? false
      : `this kernel has no ${kind} namespaces`
    effect(
      `a ${kind} namespace is new, is held, can be joined alone, and ends with its scope`,
      function* () {
        const pid = yield* Effect.scoped(
          Effect.gen(function* () {
            const namespace = yield* Namespace.make([kind])
            assert.notEqual(of(namespace.pid, kind), own(kind))
            // A process in a user namespace needs a root for its ids: Userns.test.ts has these tests.
            if (kind === "user") return namespace.pid
            const spawned = yield* Container.spawn({
              rootfs: yield* rootfs,
              namespaces: namespace,
              command: ["sleep", "1000"]
            })
            assert.equal(of(spawned.pid, kind), of(namespace.pid, kind))
            // Without root, every process is in the supervisor's user namespace.
            const { rootless } = yield* Berth.Berth
            const other = rootless ? ["mount", "user", kind] : ["mount", kind]
            for (const hosts of all.filter((name) => !other.includes(name)))
              assert.equal(of(spawned.pid, hosts), own(hosts), hosts)
            return namespace.pid
          })
        )
        yield* gone(pid)
      },
      { skip }
    )
  }

  effect("a network namespace that was made ahead is used by one container only", function* () {
    const image = yield* Image.host
    const berth = yield* Berth.Berth
    const start = (network: "new" | "host") =>
      Container.start(image, { command: ["sleep", "infinity"], namespaces: { network } })
    const seen = new Set([own("network")])
    // At once, before a namespace is made ahead, and later, when one has been: nothing tells when, so time has to pass.
    for (const pause of [0, 0, 100, 100]) {
      yield* Effect.sleep(pause)
      const [ours, hosts] = [yield* start("new"), yield* start("host")]
      seen.add(of(ours.pid, "network"))
      assert.equal(of(hosts.pid, "network"), own("network"))
      // Without root the supervisor's namespaces cannot be read.
      if (!berth.rootless) assert.equal(of(berth.supervisor.pid, "network"), own("network"))
    }
    assert.equal(seen.size, 5)
  })

  effect("a Namespace prints with its type, kinds and pid", function* () {
    const namespace = yield* Namespace.make(["uts", "ipc"])
    assert.deepEqual(namespace.toJSON(), { _id: "Namespace", kinds: ["uts", "ipc"], pid: namespace.pid })
    assert.ok(Namespace.isNamespace(namespace))
  })

  effect(
    "the holder of a namespace has no capabilities and no descriptors beyond the standard ones",
    function* () {
      const { pid } = yield* Namespace.make(["pid", "mount", "network"])
      const status = fs.readFileSync(`/proc/${pid}/status`, "utf8")
      for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
        assert.match(status, new RegExp(`^${set}:\\s+0+$`, "m"))
      assert.match(status, /^NoNewPrivs:\s+1$/m)
      assert.deepEqual(fs.readdirSync(`/proc/${pid}/fd`), ["0", "1", "2"])
    }
  )

  effect("processes spawned in the same namespaces share processes, files and hostname", function* () {
    const namespaces = yield* Namespace.make(["pid", "mount", "uts", "ipc", "network", "cgroup"])
    const root = yield* rootfs
    const common = { rootfs: root, namespaces }
    const first = yield* Container.spawn({ ...common, command: ["sleep", "1000"], hostname: "shared" })
    const script =
      "set -e; echo here > /written; [ $(uname -n) = shared ] && [ $(ls -d /proc/[0-9]* | wc -l) -ge 3 ]"
    const second = yield* Container.spawn({ ...common, command: ["sh", "-c", script] })
    const seen = yield* Stream.runCollect(Stream.decodeText(second.stderr))
    assert.equal((yield* second.exit).exitCode, 0, [...seen].join(""))
    const third = yield* Container.spawn({ ...common, command: ["cat", "/written"] })
    assert.equal((yield* third.exit).exitCode, 0)
    for (const kind of namespaces.kinds) assert.equal(of(first.pid, kind), of(namespaces.pid, kind), kind)
  })

  effect("five processes can be spawned at once in namespaces that are not set up yet", function* () {
    const namespaces = yield* Namespace.make(["pid", "mount", "uts"])
    const root = yield* rootfs
    const codes = yield* Effect.forEach(
      [1, 2, 3, 4, 5],
      (k) =>
        Effect.scoped(
          Effect.gen(function* () {
            const script = `[ $(grep -c ' / / ' /proc/self/mountinfo) = 1 ] || exit 99; exit ${k}`
            const child = yield* Container.spawn({
              rootfs: root,
              namespaces,
              command: ["sh", "-c", script]
            })
            return (yield* child.exit).exitCode
          })
        ),
      { concurrency: "unbounded" }
    )
    assert.deepEqual(codes, [1, 2, 3, 4, 5])
  })

  effect("a mount namespace keeps its first root and refuses another", function* () {
    const namespaces = yield* Namespace.make(["pid", "mount"])
    const [one, two] = [yield* rootfs, yield* rootfs]
    yield* Container.spawn({ rootfs: one, namespaces, command: ["sleep", "1000"] })
    const error = yield* failure(
      "InvalidOption",
      Container.spawn({ rootfs: two, namespaces, command: ["true"] })
    )
    assert.equal(error.option, "rootfs")
  })

  effect.asRoot(
    "processes spawned without a shared mount namespace have their own mounts on the same root",
    function* () {
      const namespaces = yield* Namespace.make(["pid", "network"])
      const root = yield* rootfs
      const spawn = (script: string) =>
        Effect.scoped(
          Effect.flatMap(
            Container.spawn({ rootfs: root, namespaces, command: ["sh", "-c", script] }),
            (child) => Effect.map(child.exit, ({ exitCode }) => exitCode)
          )
        )
      assert.equal(yield* spawn("echo 1 > /written; mount -t tmpfs x /mnt; exit 3"), 3)
      assert.equal(yield* spawn("[ $(cat /written) = 1 ] && ! grep -q ' /mnt ' /proc/self/mounts"), 0)
    }
  )

  effect("the end of a pid namespace's holder ends every process in it", function* () {
    const root = yield* rootfs
    const pid = yield* Effect.scoped(
      Effect.gen(function* () {
        const namespaces = yield* Namespace.make(["pid", "mount"])
        const spawned = yield* Effect.uninterruptible(
          Container.spawn({ rootfs: root, namespaces, command: ["sh", "-c", "setsid sleep 1000 & wait"] })
        )
        process.kill(namespaces.pid, "SIGKILL")
        assert.equal((yield* spawned.exit).signal, "SIGKILL")
        return spawned.pid
      })
    )
    assert.ok(!isAlive(pid))
  })

  effect("a user namespace has the ids that it is given, and overlapping ranges are refused", function* () {
    const range = [{ container: 0, host: 1000, size: 60000 }]
    const { pid } = yield* Namespace.make(["user"], { ids: { uids: range, gids: range } })
    const map = fs.readFileSync(`/proc/${pid}/uid_map`, "utf8")
    assert.match(map, process.getuid?.() === 0 ? /^ *0 +1000 +60000\n$/ : /^ *0 +\d+ +60000\n$/)
    const overlapping = [...range, { container: 0, host: 0, size: 1 }]
    const error = yield* failure(
      "InvalidOption",
      Namespace.make(["user"], { ids: { uids: overlapping, gids: range } })
    )
    assert.match(error.message, /ids\.uids.*do not overlap/)
  })

  effect("an unknown kind of namespace is refused", function* () {
    const error = yield* failure("InvalidOption", Namespace.make(["planet" as never]))
    assert.match(error.message, /planet/)
  })
})
