import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Berth, Container, Image, Mount, Namespace, RootFs, Volume } from "../../lib/index.ts"
import { open } from "../../lib/promise.ts"
import { out, run, start, waitUntil } from "../support/containers.ts"
import { berthIn, failure, rejection, suite } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { firstLine, program } from "../support/program.ts"
import { makeImage, makeRoot, whyNoBusybox } from "../support/rootfs.ts"

// With the sanitizers the holder of a Namespace is linked dynamically, and its empty root has no libraries.
const whyNoHolder = process.env.BERTH_NATIVE?.includes("sanitize") === true ? "the sanitizers" : false

const withoutRoot = process.getuid?.() === 0 ? "root may mount files" : false

/** The loop devices of files below a folder. */
const loopsIn = (folder: string): ReadonlyArray<string> =>
  fs.readdirSync("/sys/block").filter((name) => {
    try {
      return fs.readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").startsWith(`${folder}/`)
    } catch {
      return false
    }
  })

const noLoopsIn = (folder: string) =>
  waitUntil(`no loop device in ${folder}`, () => loopsIn(folder).length === 0)

/** The volume at /data. */
const at = (volume: Volume.Volume, readOnly = false): Container.StartOptions => ({
  mounts: [Mount.volume(volume, "/data", { readOnly })]
})

/** Another Berth in a folder. */
const another = (folder: string) =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (made) => Scope.close(made, Exit.void))
    const context = yield* Layer.buildWithScope(Layer.fresh(berthIn(folder)), scope)
    return <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, context)
  })

/** The folder of a scoped volume, as long as the state folder has it. */
const volumesOf = (state: string): ReadonlyArray<string> =>
  fs.readdirSync(state).filter((name) => name.startsWith("volume-"))

suite("Volume", (effect, folder) => {
  const kinds: ReadonlyArray<Volume.Options> = [{}, { storage: "memory" }, { name: "kinds" }]
  for (const options of kinds) {
    const kind = options.name === undefined ? (options.storage ?? "disk") : "disk, with a name"
    effect(`containers share the files of a volume (${kind}), each with its own access`, function* () {
      const volume = yield* Volume.make(options)
      assert.equal(yield* out("ls -A /data; echo one > /data/file; stat -c %a /data", at(volume)), "1777\n")
      const reader = yield* run("cat /data/file; echo two > /data/file", at(volume, true))
      assert.equal(reader.stdout, "one\n")
      assert.match(reader.stderr, /Read-only/)
      const mounts = [
        Mount.volume(volume, "/data"),
        Mount.volume(volume, "/again", { readOnly: true }),
        Mount.tmpfs("/data/below")
      ]
      const twice =
        "cat /again/file; echo three > /data/file; cat /again/file; touch /again/no || true; ls /data"
      assert.equal(yield* out(twice, { mounts }), "one\nthree\nbelow\nfile\n")
    })
  }

  effect("the files of a volume are gone with its scope", function* () {
    const { supervisor } = yield* Berth.Berth
    const before = volumesOf(supervisor.folder)
    const closed = yield* Effect.scoped(
      Effect.gen(function* () {
        const volume = yield* Volume.make()
        yield* out("seq 300 | while read n; do echo > /data/$n; done", at(volume))
        assert.equal(volumesOf(supervisor.folder).length, before.length + 1)
        return volume
      })
    )
    assert.deepEqual(volumesOf(supervisor.folder), before)
    const { message } = yield* failure("InvalidOption", run("true", at(closed)))
    assert.match(message, /mounts\[0\]\.volume: .* a volume of this Berth in an open scope/)
  })

  effect("a volume whose scope closes is there until its last container ends", function* () {
    const { supervisor } = yield* Berth.Berth
    const before = volumesOf(supervisor.folder)
    yield* Effect.scoped(
      Effect.gen(function* () {
        const inner = yield* Scope.make()
        const volume = yield* Scope.extend(Volume.make(), inner)
        const user = yield* start("exec sleep 1000", at(volume))
        yield* Container.exec(user, ["sh", "-c", "echo one > /data/file"])
        yield* Scope.close(inner, Exit.void)
        const { stdout } = yield* Container.exec(user, ["sh", "-c", "echo two >> /data/file; cat /data/file"])
        assert.equal(stdout, "one\ntwo\n")
      })
    )
    assert.deepEqual(volumesOf(supervisor.folder), before)
  })

  effect(
    "a volume with a name is found again by another Berth, listed, and removed by its name",
    function* () {
      const home = `${folder()}-named`
      const first = yield* another(home)
      yield* first(
        Effect.scoped(Effect.flatMap(Volume.make({ name: "db" }), (v) => out("echo one > /data/file", at(v))))
      )
      const second = yield* another(home)
      const read = Effect.flatMap(Volume.make({ name: "db" }), (v) => out("cat /data/file", at(v)))
      assert.equal(yield* second(Effect.scoped(read)), "one\n")
      assert.deepEqual(yield* second(Volume.list), [{ name: "db", size: undefined, from: undefined }])
      yield* second(Volume.remove("db"))
      assert.deepEqual(yield* first(Volume.list), [])
      assert.deepEqual(fs.readdirSync(`${home}/volumes`), [])
      const missing = yield* failure("VolumeError", first(Volume.remove("db")))
      assert.equal(missing.reason, "NotFound")
    }
  )

  effect("a volume in use is not removed, and the error names the container and the program", function* () {
    const home = `${folder()}-used`
    const first = yield* another(home)
    const second = yield* another(home)
    yield* Effect.scoped(
      Effect.gen(function* () {
        const volume = yield* first(Volume.make({ name: "used" }))
        const box = yield* first(start("exec sleep 1000", at(volume)))
        for (const on of [first, second]) {
          const error = yield* failure("VolumeError", on(Volume.remove("used")))
          assert.equal(error.reason, "InUse")
          assert.match(error.message, new RegExp(`process ${process.pid} \\(container ${box.id} writes\\)`))
        }
      })
    )
    yield* second(Volume.remove("used"))
  })

  effect("a volume with a name has one size and one source", function* () {
    yield* Volume.make({ name: "same" })
    yield* Volume.make({ name: "same" })
    const wrong = yield* failure(
      "VolumeError",
      Volume.make({ name: "same", from: yield* Volume.make({ name: "other" }) })
    )
    assert.equal(wrong.reason, "Mismatch")
    assert.match(wrong.message, /volume same: exists and is no copy, and not a copy of other: /)
  })

  for (const [options, about] of [
    [{ name: "../escape" }, "name"],
    [{ name: ".hidden" }, "name"],
    [{ name: "a/b" }, "name"],
    [{ name: "x".repeat(129) }, "name"],
    [{ name: "a", storage: "memory" }, "storage"],
    [{ storage: "tape" }, "storage"],
    [{ size: "big" }, "size"],
    [{ size: 0, storage: "memory" }, "size"],
    [{ size: "1MiB" }, "size"],
    [{ mode: 0o10000 }, "mode"],
    [{ from: {} }, "from"]
  ] as ReadonlyArray<readonly [Volume.Options, string]>) {
    effect(`${JSON.stringify(options).slice(0, 60)} is refused, with the option`, function* () {
      assert.equal((yield* failure("InvalidOption", Volume.make(options))).option, about)
    })
  }

  effect("a volume in memory holds no more than its size", function* () {
    const volume = yield* Volume.make({ storage: "memory", size: "1MiB" })
    assert.equal(volume.size, 2 ** 20)
    const { exitCode, stderr } = yield* run("head -c 3000000 /dev/zero > /data/fill || exit 7", at(volume))
    assert.equal(exitCode, 7)
    assert.match(stderr, /No space left/)
  })

  for (const options of [{ size: "8MiB" }, { size: "8MiB", name: "full" }]) {
    effect.asRoot(
      `a volume on disk ${options.name === undefined ? "" : "with a name "}holds no more than its size`,
      function* () {
        const home = `${folder()}-sized-${options.name}`
        const on = yield* another(home)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const volume = yield* on(Volume.make(options))
            assert.equal(loopsIn(home).length, 1)
            const full = yield* on(run("head -c 30000000 /dev/zero > /data/fill || exit 7", at(volume)))
            assert.equal(full.exitCode, 7)
            assert.match(full.stderr, /No space left/)
            const image = fs
              .readdirSync(home, { recursive: true, encoding: "utf8" })
              .find((name) => path.basename(name) === "image")!
            assert.ok(fs.statSync(`${home}/${image}`).blocks * 512 <= 8 * 2 ** 20)
            assert.equal(
              yield* on(out("rm /data/fill; echo kept > /data/file; ls /data", at(volume))),
              "file\n"
            )
          })
        )
        yield* noLoopsIn(home)
        if (options.name === undefined) return
        const again = Effect.flatMap(Volume.make({ name: options.name }), (v) => out("cat /data/file", at(v)))
        assert.equal(yield* on(Effect.scoped(again)), "kept\n")
        const other = yield* failure(
          "VolumeError",
          Effect.scoped(on(Volume.make({ ...options, size: "9MiB" })))
        )
        assert.equal(other.reason, "Mismatch")
        yield* on(Volume.remove(options.name))
        yield* noLoopsIn(home)
      }
    )
  }

  effect(
    "without root a size on disk is refused, for a volume and for a writable layer",
    function* () {
      for (const refused of [Volume.make({ size: "8MiB" }), Volume.make({ size: "8MiB", name: "refused" })])
        assert.match((yield* failure("Unsupported", refused)).message, /only root .*loop\(4\)/)
      assert.deepEqual(
        (yield* Volume.list).filter(({ name }) => name === "refused"),
        []
      )
    },
    { skip: withoutRoot }
  )

  effect.asRoot("two programs see one file system in a volume with a size", function* () {
    const home = `${folder()}-shared`
    const [first, second] = [yield* another(home), yield* another(home)]
    yield* Effect.scoped(
      Effect.gen(function* () {
        const one = yield* first(Volume.make({ name: "shared", size: "8MiB" }))
        const two = yield* second(Volume.make({ name: "shared" }))
        assert.equal(two.size, 8 * 2 ** 20)
        for (let k = 0; k < 3; k++) {
          yield* first(out(`echo one-${k} > /data/file`, at(one)))
          assert.equal(yield* second(out("cat /data/file; echo two > /data/file", at(two))), `one-${k}\n`)
          assert.equal(yield* first(out("cat /data/file", at(one))), "two\n")
        }
        assert.equal(loopsIn(home).length, 1)
      })
    )
    yield* noLoopsIn(home)
  })

  for (const [title, options] of [
    ["without a name", {}],
    ["with a name", { name: "source" }]
  ] as const) {
    effect(`a copy begins with the files of a volume ${title}, which stays as it is`, function* () {
      const source = yield* Volume.make(options)
      yield* out("mkdir /data/d; echo one > /data/d/file; chmod 700 /data; echo two > /data/two", at(source))
      yield* Effect.scoped(
        Effect.gen(function* () {
          const copy = yield* Volume.make({ from: source })
          const second = yield* Volume.make({ from: copy, storage: "memory" })
          const third = yield* Volume.make({ from: source })
          const change = "stat -c %a /data; cat /data/d/file; echo new > /data/d/file; rm /data/two; ls /data"
          yield* failure("VolumeError", out(change, at(copy)))
          assert.equal(yield* out("cat /data/d/file /data/two", at(second)), "one\ntwo\n")
          assert.equal(yield* out(change, at(second)), "700\none\nd\n")
          assert.equal(yield* out(change, at(third)), "700\none\nd\n")
          assert.equal(yield* out("cat /data/d/file", at(third)), "new\n")
          assert.equal(yield* out("cat /data/d/file; ls /data", at(source, true)), "one\nd\ntwo\n")
        })
      )
      // Without copies it can change again.
      assert.equal(yield* out("echo more >> /data/two; cat /data/two", at(source)), "two\nmore\n")
    })
  }

  effect("a volume with copies must not change, and one that is written to cannot be copied", function* () {
    const source = yield* Volume.make()
    yield* Effect.scoped(
      Effect.gen(function* () {
        const writer = yield* start("exec sleep 1000", at(source))
        const error = yield* failure("VolumeError", Volume.make({ from: source }))
        assert.equal(error.reason, "InUse")
        assert.match(error.message, new RegExp(`container ${writer.id}.* cannot be copied`))
      })
    )
    yield* Volume.make({ from: source })
    const refused = yield* failure("VolumeError", run("true", at(source)))
    assert.match(refused.message, /a volume with copies must not change: mount it with readOnly/)
  })

  effect("a copy holds its source, and a copy with a name does so while no program runs", function* () {
    const home = `${folder()}-copies`
    const first = yield* another(home)
    const inner = yield* Scope.make()
    const source = yield* Scope.extend(first(Volume.make({ name: "base" })), inner)
    yield* first(out("echo one > /data/file", at(source)))
    yield* Effect.scoped(
      Effect.gen(function* () {
        const copy = yield* first(Volume.make({ name: "copy", from: source }))
        yield* Scope.close(inner, Exit.void)
        assert.equal(yield* first(out("cat /data/file; echo two >> /data/file", at(copy))), "one\n")
        const second = yield* another(home)
        const open = yield* failure("VolumeError", Effect.scoped(second(Volume.make({ name: "copy" }))))
        assert.match(open.message, /a copy can be open in one program at a time/)
      })
    )
    const second = yield* another(home)
    const again = Effect.flatMap(Volume.make({ name: "copy" }), (v) => out("cat /data/file", at(v)))
    assert.equal(yield* second(Effect.scoped(again)), "one\ntwo\n")
    const write = Effect.flatMap(Volume.make({ name: "base" }), (v) => run("true", at(v)))
    assert.match((yield* failure("VolumeError", second(Effect.scoped(write)))).message, /its copy copy/)
    assert.match((yield* failure("VolumeError", second(Volume.remove("base")))).message, /its copy copy/)
    yield* second(Volume.remove("copy"))
    yield* second(Volume.remove("base"))
  })

  effect.asRoot(
    "containers with userns share a volume, whose files each of them sees with its own ids",
    function* () {
      for (const options of [{}, { size: "8MiB" }]) {
        const volume = yield* Volume.make(options)
        yield* out("echo root > /data/root; chown 1000:1000 /data", at(volume))
        const mine = { ...at(volume), userns: "auto", user: "1000:1000" } as const
        assert.equal(
          yield* out("stat -c %u:%g /data /data/root; echo mine > /data/mine", mine),
          "1000:1000\n0:0\n"
        )
        assert.equal(yield* out("stat -c %u /data/mine; rm /data/mine", mine), "1000\n")
        const copy = yield* Volume.make({ from: volume })
        const refused = yield* failure("Unsupported", run("true", { ...at(copy), userns: "auto" }))
        assert.match(refused.message, /overlayfs has no idmapped mounts/)
      }
    }
  )

  effect.asRoot(
    "a process in existing namespaces with ids of their own sees a volume with these ids",
    function* () {
      const volume = yield* Volume.make()
      const namespaces = yield* Namespace.make(["user", "mount", "pid"], { ids: "auto" })
      const image = yield* makeImage(`${folder()}/userns`)
      const rootfs = yield* RootFs.overlay(image, { userns: namespaces })
      const command = ["sh", "-c", "echo here > /data/file; stat -c %u /data/file"]
      const process = yield* Container.spawn({
        rootfs,
        namespaces,
        command,
        mounts: [Mount.volume(volume, "/data")]
      })
      assert.equal((yield* process.exit).exitCode, 0)
      assert.equal(yield* out("stat -c %u /data/file", at(volume)), "0\n")
    },
    { skip: whyNoBusybox || whyNoHolder }
  )

  effect("links that a container makes in a volume lead nowhere on the host", function* () {
    const secret = `${folder()}-secret`
    fs.writeFileSync(secret, "secret\n")
    const volume = yield* Volume.make({ name: "links" })
    yield* out(
      `ln -s ${secret} /data/file; ln -s / /data/root; ln -s ../../../../../../.. /data/up`,
      at(volume)
    )
    const looked = yield* run(`cat /data/file; cat /data/root${secret}; cat /data/up${secret}; true`, {
      mounts: [Mount.volume(volume, "/data"), Mount.tmpfs(path.dirname(secret))]
    })
    assert.equal(looked.stdout, "")
    yield* Effect.scoped(Effect.flatMap(Volume.make({ name: "links" }), (v) => out("rm /data/*", at(v))))
    assert.equal(fs.readFileSync(secret, "utf8"), "secret\n")
    fs.rmSync(secret)
  })

  effect("nothing is followed that takes the place of a volume's folder", function* () {
    const outside = `${folder()}-outside`
    fs.mkdirSync(`${outside}/data`, { recursive: true })
    fs.writeFileSync(`${outside}/data/file`, "the host's\n")
    const { folder: home } = yield* Berth.Berth
    yield* Effect.scoped(Volume.make({ name: "replaced" }))
    fs.renameSync(`${home}/volumes/replaced/files`, `${home}/volumes/replaced/old`)
    fs.symlinkSync(outside, `${home}/volumes/replaced/files`)
    const linked = yield* failure("OperationFailed", Effect.scoped(Volume.make({ name: "replaced" })))
    assert.match(linked.message, /ELOOP .*symbolic link/)
    yield* Volume.remove("replaced")
    fs.symlinkSync(outside, `${home}/volumes/replaced`)
    const broken = yield* failure("VolumeError", Effect.scoped(Volume.make({ name: "replaced" })))
    assert.equal(broken.reason, "Broken")
    assert.equal((yield* failure("VolumeError", Volume.list)).reason, "Broken")
    yield* Volume.remove("replaced")
    assert.equal(fs.readFileSync(`${outside}/data/file`, "utf8"), "the host's\n")
    fs.rmSync(outside, { recursive: true })
  })

  for (const both of [false, true]) {
    effect(
      `volumes of a killed program ${both ? "and supervisor " : ""}are gone, with their loop devices, and those with a name stay`,
      function* () {
        const home = `${folder()}-killed-${both}`
        yield* Effect.scoped(
          Effect.gen(function* () {
            const child = yield* killedAfter(() => program("volumeKeeper.ts", [home]))
            const supervisor = Number(yield* Effect.promise(() => firstLine(child)))
            assert.ok(supervisor > 1)
            if (both) process.kill(supervisor, "SIGKILL")
          })
        )
        const on = yield* another(home)
        yield* noLoopsIn(home)
        for (const { name } of yield* on(Volume.list)) {
          const kept = Effect.flatMap(Volume.make({ name }), (v) => out("cat /data/file", at(v)))
          assert.equal(yield* on(Effect.scoped(kept)), "kept\n")
          yield* on(Volume.remove(name))
        }
        const own = yield* on(Berth.Berth)
        yield* waitUntil("the sweep", () => {
          const states = fs.readdirSync(`${home}/run`)
          return states.length === 1 && volumesOf(own.supervisor.folder).length === 0
        })
      }
    )
  }

  effect("a copy whose source was taken away cannot be opened, but removed", function* () {
    const { folder: home } = yield* Berth.Berth
    yield* Effect.scoped(
      Effect.flatMap(Volume.make({ name: "gone" }), (from) => Volume.make({ name: "orphan", from }))
    )
    fs.rmSync(`${home}/volumes/gone`, { recursive: true })
    const error = yield* failure("VolumeError", Effect.scoped(Volume.make({ name: "orphan" })))
    assert.equal(error.reason, "Broken")
    assert.ok(!fs.existsSync(`${home}/volumes/gone`))
    yield* Volume.remove("orphan")
  })

  effect("a plan shows a volume, and refuses what is no volume", function* () {
    const volume = yield* Volume.make()
    const host = yield* Image.host
    const plan = String(yield* Container.plan(host, { command: ["true"], ...at(volume, true) }))
    assert.match(plan, /tree path=\S+\/data mapped=no attributes=ro,nosuid,nodev\n.* hand-over\n/)
    assert.match(plan, /place target=\/data\n/)
    const nothing = { mounts: [Mount.volume({} as Volume.Volume, "/data")] }
    for (const refused of [run("true", nothing), Container.plan(host, { command: ["true"], ...nothing })])
      assert.equal((yield* failure("InvalidOption", refused)).option, "mounts[0].volume")
  })

  effect("berth/promise makes volumes, lists them and removes them", function* () {
    const session = yield* Effect.acquireRelease(
      Effect.promise(() => open({ folder: `${folder()}-promise` })),
      (opened) => Effect.promise(() => opened.close())
    )
    yield* Effect.promise(async () => {
      const data = await session.volume({ name: "data" })
      const mounts = [{ type: "volume", volume: data, target: "/data" }] as const
      const command = ["sh", "-c", "echo one >> /data/file; cat /data/file"]
      assert.equal((await session.run("host", { mounts, command })).stdout, "one\n")
      const error = await rejection(session.volumes.remove("data"))
      assert.equal((error as { reason?: string }).reason, "InUse")
      await data.close()
      assert.deepEqual(await session.volumes.list(), [{ name: "data", size: undefined, from: undefined }])
      await session.volumes.remove("data")
    })
  })

  effect.asRoot(
    "a size limits a writable layer on disk, also with userns",
    function* () {
      const home = `${folder()}-layer`
      const on = yield* another(home)
      const image = yield* on(makeImage(`${home}-root`))
      // busybox's head calls every failure an I/O error.
      const fill = "dd if=/dev/zero of=/fill bs=1M count=30 || exit 7"
      for (const options of [{}, { userns: "auto" }] as const) {
        const full = yield* on(
          Container.run(image, { command: ["sh", "-c", fill], upper: "disk", upperSize: "8MiB", ...options })
        )
        assert.equal(full.exitCode, 7)
        assert.match(full.stderr, /No space left/)
      }
      const small = yield* failure("InvalidOption", on(Container.run(image, { upperSize: "1MiB" })))
      assert.equal(small.option, "size")
      yield* noLoopsIn(home)
      const states = yield* on(Effect.map(Berth.Berth, ({ supervisor }) => supervisor.folder))
      assert.deepEqual(
        fs.readdirSync(states).filter((name) => name.endsWith(".disk")),
        []
      )
    },
    { skip: whyNoBusybox }
  )

  effect.asRoot(
    "a size limits the writable layer of a root of its own",
    function* () {
      const image = yield* makeImage(`${folder()}/sized-root`)
      const root = yield* RootFs.overlay(image, { upper: "disk", size: "8MiB" })
      assert.equal(root.upper, undefined)
      const namespaces = yield* Namespace.make(["pid", "mount"])
      const command = ["sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=30 || exit 7"]
      const child = yield* Container.spawn({ rootfs: root, namespaces, command })
      assert.equal((yield* child.exit).exitCode, 7)
    },
    { skip: whyNoBusybox || whyNoHolder }
  )

  effect.asRoot(
    "a container with a limited layer on disk is committed, and its layer is kept",
    function* () {
      yield* Image.import(makeRoot(`${folder()}/limited`), { tag: "limited:1" })
      const image = yield* Image.fromStore("limited:1")
      const command = ["sh", "-c", "echo written > /file; rm /bin/yes"]
      const box = yield* Container.start(image, { command, upper: "disk", upperSize: "8MiB" })
      yield* Container.wait(box)
      yield* Container.commit(box, { tag: "limited:2" })
      const look = ["sh", "-c", "cat /file; ls /bin/yes || true"]
      for (const made of [yield* Image.fromStore("limited:2"), yield* Container.keep(box)])
        assert.equal((yield* Container.run(made, { command: look })).stdout, "written\n")
    },
    { skip: whyNoBusybox }
  )
})
