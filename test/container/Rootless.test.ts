import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Berth, Cgroup, Container, Image, Namespace, Store, WaitFor } from "../../lib/index.ts"
import { firstLineOf } from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { isAlive } from "../support/leftovers.ts"
import { fileOf, owners, ownersImage } from "../support/owners.ts"
import { whyNoServer } from "../support/registry.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { environment, runningRegistry } from "../support/scoped.ts"

const rootless = process.getuid?.() !== 0
const skip = rootless ? whyNoBusybox : "needs a non-root user: .ci/rootless runs this"

const rangesIn = (file: string): number | undefined => {
  const name = spawnSync("id", ["-un"], { encoding: "utf8" }).stdout.trim()
  const line =
    fs.existsSync(file) &&
    fs
      .readFileSync(file, "utf8")
      .split("\n")
      .find((l) => l.startsWith(`${name}:`))
  return line ? Number(line.split(":")[1]) : undefined
}
const [subuid, subgid] = [rangesIn("/etc/subuid"), rangesIn("/etc/subgid")]
const newuidmap = spawnSync("sh", ["-c", "command -v newuidmap && command -v newgidmap"]).status === 0
const skipRanges =
  skip ||
  (subuid !== undefined && subgid !== undefined && newuidmap
    ? false
    : "the user has no ranges of ids, or newuidmap is not installed")

const statAll = `stat -c '%n %u:%g %a' ${Object.keys(owners).join(" ")}`
const expected = Object.entries(owners)
  .map(([name, value]) => `${name} ${value}\n`)
  .join("")

const shell = (script: string) => ({ entrypoint: [], command: ["sh", "-c", script] })

suite("Berth without root", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const withOwners = Effect.suspend(() => ownersImage(`${berthFolder()}.owners`))

  /** Runs an effect in another Berth, which has one id and its own folder. */
  const single = <A, E>(effect: Effect.Effect<A, E, Berth.Berth | NodeContext.NodeContext>) => {
    const layer = Berth.layerWith({ folder: `${berthFolder()}.single`, ids: "single" })
    return Effect.provide(effect, Layer.provideMerge(layer, NodeContext.layer))
  }

  effect(
    "Berth has the ids that /etc/subuid and /etc/subgid give",
    function* () {
      const { ids, rootless } = yield* Berth.Berth
      assert.equal(rootless, true)
      assert.deepEqual(
        ids.uids.slice(0, 2).map(({ container, host }) => [container, host]),
        [
          [0, process.getuid!()],
          [1, subuid]
        ]
      )
      const { stdout } = yield* Container.run(yield* image, shell("wc -l < /proc/self/uid_map; id -u; id -g"))
      assert.equal(stdout, `${ids.uids.length}\n0\n0\n`)
    },
    { skip: skipRanges }
  )

  effect(
    "an image's files keep their owners, in the container and as subordinate ids on the host",
    function* () {
      const from = yield* withOwners
      const { stdout } = yield* Container.run(from, shell(statAll))
      assert.equal(stdout, expected)
      const app = fs.statSync(`${from.layers.at(-1)}/home/app`)
      assert.deepEqual([app.uid, app.gid], [subuid! + 999, subgid! + 1000])
      const mine = yield* Container.run(from, {
        ...shell("id -u; cat /home/app/private/secret"),
        user: "app"
      })
      assert.equal(mine.stdout, "1000\napp's\n")
    },
    { skip: skipRanges }
  )

  effect(
    "an image is the same after a push and a pull",
    function* () {
      const { host } = yield* runningRegistry()
      const pushed = yield* Image.push(yield* withOwners, `${host}/team/owners:1`)
      const pulled = yield* Image.pull(`${host}/team/owners:1`, { progress: "none" }).pipe(
        Effect.provide(berthIn(`${berthFolder()}.pulled`))
      )
      assert.equal(pulled.digest, pushed.digest)
      const app = fs.statSync(`${pulled.layers.at(-1)}/home/app`)
      assert.deepEqual([app.uid, app.gid], [subuid! + 999, subgid! + 1000])
    },
    { skip: skipRanges || whyNoServer }
  )

  effect(
    "an image's file whose owner is outside the ids is refused by name",
    function* () {
      const more = [fileOf("far", { uid: 4_000_000, gid: 0 })]
      const error = yield* failure("ImageError", ownersImage(`${berthFolder()}.far`, more))
      assert.equal(error.reason, "Unsupported")
      assert.match(error.message, /far.*owner 4000000:0 is not among the ids/)
    },
    { skip: skipRanges }
  )

  effect(
    "Store.gc removes layers with files of several owners",
    function* () {
      const more = [fileOf("home/app/private/extra", { uid: 1000, gid: 1001, mode: 0 })]
      const layers = (yield* ownersImage(`${berthFolder()}.doomed`, more)).layers
      assert.ok(fs.existsSync(layers.at(-1)!))
      yield* Store.gc()
      const folder = layers.at(-1)!
      assert.ok(!fs.existsSync(folder))
      const siblings = fs.readdirSync(folder.slice(0, folder.lastIndexOf("/")))
      assert.deepEqual(
        siblings.filter((name) => name.startsWith(".")),
        []
      )
    },
    { skip: skipRanges }
  )

  effect(
    "a Berth of one id gives every file to root and refuses other users",
    function* () {
      yield* single(
        Effect.gen(function* () {
          const { ids } = yield* Berth.Berth
          assert.deepEqual(ids.uids, [{ container: 0, host: process.getuid!(), size: 1 }])
          const from = yield* withOwners
          const box = yield* Container.start(from, {})
          const { stdout } = yield* Container.exec(box, [
            "sh",
            "-c",
            `${statAll}; chown 5 /etc/passwd; echo $?`
          ])
          assert.equal(stdout, `${expected.replaceAll(/ \d+:\d+ /g, " 0:0 ")}1\n`)
          const error = yield* failure("OperationFailed", Container.exec(box, ["id"], { user: "app" }))
          assert.match(error.message, /user uid=1000/)
        }).pipe(Effect.scoped)
      )
    },
    { skip }
  )

  effect(
    "layers that were unpacked for other ids are not reused",
    function* () {
      const folder = `${berthFolder()}.both`
      const use = (ids: "single" | "ranges") =>
        Effect.flatMap(withOwners, (from) => Container.run(from, shell(statAll))).pipe(
          Effect.provide(Layer.provideMerge(Berth.layerWith({ folder, ids }), NodeContext.layer)),
          Effect.map(({ stdout }) => stdout)
        )
      assert.match(yield* use("single"), /\/home\/app 0:0/)
      assert.equal(yield* use("ranges"), expected)
      assert.match(yield* use("single"), /\/home\/app 0:0/)
    },
    { skip: skipRanges }
  )

  effect(
    "an exec and a commit can follow each other five times",
    function* () {
      const { supervisor } = yield* Berth.Berth
      const box = yield* Container.start(yield* withOwners, {})
      for (let k = 0; k < 5; k++) {
        const { exitCode } = yield* Container.exec(box, [
          "sh",
          "-c",
          `echo ${k} > /root/count; chown 7:8 /root/count`
        ])
        assert.equal(exitCode, subuid === undefined ? 1 : 0)
        const made = yield* Container.commit(box)
        const { stdout } = yield* Container.run(made, shell("cat /root/count; stat -c %u:%g /root/count"))
        assert.equal(stdout, `${k}\n${subuid === undefined ? "0:0" : "7:8"}\n`)
      }
      assert.ok(isAlive(supervisor.pid))
    },
    { skip }
  )

  effect(
    "private files of other users are copied out, archived and committed with their owners",
    function* () {
      const script = `
          mkdir -p /data/private && cd /data/private
          head -c 300000 /dev/urandom >big && echo small >small && ln -s small link && ln small again
          chown -R 1000:1001 /data && chown -h 7:8 link
          chmod 600 big small && chmod 700 . && chmod 0 /data
          sha256sum big small; sleep 1000`
      const box = yield* Container.start(yield* withOwners, { ...shell(script), init: true })
      const sums = yield* Container.logs(box, { follow: true }).pipe(
        Stream.filter(({ stream }) => stream === "stdout"),
        Stream.map(({ line }) => line),
        Stream.take(2),
        Stream.runCollect
      )
      const expect = [...sums]

      const out = `${berthFolder()}.out`
      yield* Container.copyOut(box, "/data/private", out)
      const copied = spawnSync("sha256sum", ["big", "small"], { cwd: out, encoding: "utf8" })
      assert.deepEqual(copied.stdout.trim().split("\n"), expect)
      assert.equal(fs.readlinkSync(`${out}/link`), "small")
      assert.equal(fs.statSync(`${out}/again`).ino, fs.statSync(`${out}/small`).ino)

      const parts = yield* Stream.runCollect(Container.tarOut(box, "/data"))
      const listed = spawnSync("tar", ["--numeric-owner", "-tv"], { input: Buffer.concat([...parts]) })
      const names = listed.stdout.toString().split("\n")
      assert.ok(
        names.some((line) => /^d--------- 1000\/1001 .* data\/$/.test(line)),
        names.join("\n")
      )
      assert.ok(names.some((line) => /^-rw------- 1000\/1001 +300000 .* data\/private\/big$/.test(line)))
      assert.ok(names.some((line) => /^lrwxrwxrwx 7\/8 .* data\/private\/link -> small$/.test(line)))

      const made = yield* Container.commit(box)
      const check = "stat -c '%n %u:%g %a' /data /data/private/big; cd /data/private; sha256sum big small"
      const { stdout } = yield* Container.run(made, shell(check))
      assert.deepEqual(stdout.trim().split("\n"), [
        "/data 1000:1001 0",
        "/data/private/big 1000:1001 600",
        ...expect
      ])
    },
    { skip: skipRanges }
  )

  effect(
    "a file of mode 0 is copied out and committed in a Berth of one id",
    function* () {
      yield* single(
        Effect.gen(function* () {
          const script = "mkdir /data && echo x >/data/file && chmod 0 /data/file /data && sleep 1000"
          const box = yield* Container.start(yield* withOwners, { ...shell(script), init: true })
          yield* WaitFor.command(box, ["sh", "-c", "test $(stat -c %a /data) = 0"])
          const out = `${berthFolder()}.out-single`
          yield* Container.copyOut(box, "/data/file", out)
          assert.equal(fs.statSync(out).size, 2)
          const { stdout } = yield* Container.run(yield* Container.commit(box), shell("cat /data/file"))
          assert.equal(stdout, "x\n")
        }).pipe(Effect.scoped)
      )
    },
    { skip }
  )

  effect(
    "the files that a killed supervisor left are swept, whoever owns them",
    function* () {
      const at = `${berthFolder()}.killed`
      const from = yield* image
      const pid = yield* Effect.gen(function* () {
        const { supervisor } = yield* Berth.Berth
        const script =
          "mkdir -p /a/b; touch /a/b/c; chmod 0 /a/b; chown -R 1000 /a; echo done; exec sleep 1000"
        const box = yield* Container.start(from, { ...shell(script), upper: "disk" })
        yield* firstLineOf(box)
        assert.equal(fs.readdirSync(`${at}/run`).length, 1)
        process.kill(supervisor.pid, "SIGKILL")
        yield* Effect.either(box.exit)
        return box.pid
      }).pipe(Effect.scoped, Effect.provide(berthIn(at)))
      assert.ok(!isAlive(pid))
      // The Berth whose supervisor was killed has swept it with another supervisor.
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    },
    { skip }
  )

  effect(
    "a container of the host's root reads its folders and writes to its own /tmp and /root",
    function* () {
      const file = `/tmp/berth-${process.pid}`
      const script = `cat /etc/passwd; touch /etc/x 2>/dev/null || echo unwritten
          echo 1 > ${file}; echo 2 > /root/y; cat ${file} /root/y`
      const { stdout } = yield* Container.run(yield* Image.host, { command: ["sh", "-c", script] })
      assert.equal(stdout, `${fs.readFileSync("/etc/passwd", "utf8")}unwritten\n1\n2\n`)
      assert.ok(!fs.existsSync(file))
    },
    { skip }
  )

  effect(
    "limits hold in a delegated cgroup, and elsewhere the error says what is missing",
    function* () {
      const made = yield* Effect.either(
        Effect.scoped(
          Effect.gen(function* () {
            const box = yield* Container.start(yield* image, {
              command: ["sleep", "1000"],
              limits: { memory: "32MiB", pids: 9 }
            })
            return yield* Cgroup.stats(box.state.cgroup!)
          })
        )
      )
      if (made._tag === "Right")
        return assert.deepEqual([made.right.memory.limit, made.right.pids.limit], [32 * 2 ** 20, 9])
      assert.match(made.left.message, /not delegated|no cgroup|cgroup\.subtree_control/)
    },
    { skip }
  )

  effect(
    "a Berth folder of another user is refused with the owner's uid",
    function* () {
      const error = yield* failure("OperationFailed", Effect.provide(Berth.Berth, berthIn("/etc")))
      assert.match(error.message, /\/etc.*belongs to uid 0.*layerWith/)
    },
    { skip }
  )

  effect(
    "Berth keeps everything in $XDG_DATA_HOME",
    function* () {
      const home = `${berthFolder()}.xdg`
      yield* environment({ XDG_DATA_HOME: home })
      const layer = Layer.provideMerge(Berth.layer, NodeContext.layer)
      const { folder } = yield* Effect.provide(Berth.Berth, layer)
      assert.equal(folder, `${home}/berth`)
      assert.deepEqual(fs.readdirSync(`${folder}/run`), [])
    },
    { skip }
  )

  effect(
    "ids beyond the user's ranges are refused with a reference to /etc/subuid",
    function* () {
      const beyond = [{ container: 0, host: 1, size: 2 ** 30 }]
      const error = yield* failure(
        "InvalidOption",
        Namespace.make(["user"], { ids: { uids: beyond, gids: beyond } })
      )
      assert.match(error.message, /ids\.uids.*\/etc\/subuid/)
    },
    { skip }
  )

  effect(
    "an error of newuidmap is passed on, with what to do",
    function* () {
      const path = `${berthFolder()}.path`
      fs.mkdirSync(path, { recursive: true })
      const refusal = "#!/bin/sh\necho 'newuidmap: uid range [0-1) -> [0-1) not allowed' >&2; exit 1\n"
      fs.writeFileSync(`${path}/newuidmap`, refusal, { mode: 0o755 })
      yield* environment({ PATH: `${path}:${process.env.PATH}` })
      const at = `${berthFolder()}.refused`
      const error = yield* failure("Unsupported", Effect.provide(Berth.Berth, berthIn(at)))
      assert.match(error.message, /ranges of ids: .*uid range \[0-1\).*not allowed.*ids: "single"/)
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    },
    { skip: skipRanges }
  )
})
