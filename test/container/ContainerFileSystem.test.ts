import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as nodeFs from "node:fs"
import * as FileSystem from "@effect/platform/FileSystem"
import { NodeFileSystem } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Container, WaitFor } from "../../lib/index.ts"
import { ranges } from "../../lib/internal/ids/idMaps.ts"
import { suite } from "../support/effect.ts"
import { outcome, outcomes, plain, runtime, table } from "../support/fileSystemCases.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { temporaryFolder } from "../support/scoped.ts"

// Bun opens descriptors for the first child that it waits for, and keeps them.
execFileSync("true")

const isRoot = process.getuid?.() === 0
const ids = isRoot ? undefined : ranges()

const host = Effect.runSync(Effect.provide(FileSystem.FileSystem, NodeFileSystem.layer))

suite(`Container.fileSystem (${runtime})`, (effect, folder) => {
  const start = (options: Container.StartOptions = {}) =>
    Effect.flatMap(
      Effect.suspend(() => makeImage(`${folder()}-root`)),
      (image) => Container.start(image, { command: ["/bin/sleep", "1000"], ...options })
    )

  for (const [name, body, exception] of table)
    effect(
      name,
      function* () {
        const box = yield* start()
        const fs = Container.fileSystem(box)
        yield* fs.makeDirectory("/there")
        const here = yield* temporaryFolder
        const at = (base: string) => (path: string) => (path === "" ? base : `${base}/${path}`)
        const ours = plain(yield* Effect.either(Effect.scoped(body(fs, at("/there")))), "/there")
        if (exception !== undefined) assert.deepEqual(ours, exception.gives)
        if (exception?.on.includes(runtime) === true) return
        const theirs = yield* Effect.either(Effect.scoped(body(host, at(here))))
        assert.deepEqual(ours, plain(theirs, here))
      },
      { skip: whyNoBusybox }
    )

  /** A folder on the host with one file, which the container must not reach. */
  const secret = (name: string) =>
    Effect.tap(temporaryFolder, (path) => nodeFs.writeFileSync(`${path}/${name}`, "of the host"))

  /** The first event of a watch. It does not tell when it has begun, so the change is made again and again. */
  const firstEvent = <E>(
    events: Stream.Stream<FileSystem.WatchEvent, E>,
    change: Effect.Effect<unknown, unknown>
  ) =>
    Effect.raceFirst(Stream.runHead(events), Effect.forever(Effect.delay(change, 100))).pipe(
      Effect.timeout("30 seconds"),
      Effect.map(Option.getOrThrow)
    )

  const inside = (options?: Container.StartOptions) =>
    Effect.map(start(options), (box) => ({ box, fs: Container.fileSystem(box) }))

  effect(
    "no link, .. or magic link leads out of the container's root",
    function* () {
      const { fs } = yield* inside()
      const out = yield* secret("secret")
      const up = "../".repeat(30)
      yield* fs.symlink(out, "/absolute")
      yield* fs.symlink(`${up}${out.slice(1)}`, "/relative")
      yield* fs.symlink(`${out}/new`, "/dangling")
      yield* fs.makeDirectory("/d/e", { recursive: true })
      const ways = ["/absolute", "/relative", `/${up}${out}`, `${up}${out}`, `/d/e/${up}${out}`]
      for (const way of ways) {
        for (const result of yield* outcomes([
          fs.readFile(`${way}/secret`),
          fs.stat(`${way}/secret`),
          fs.readDirectory(way),
          fs.access(`${way}/secret`),
          fs.writeFileString(`${way}/secret`, "of the container"),
          fs.writeFileString(`${way}/new`, "of the container"),
          fs.truncate(`${way}/secret`),
          fs.chmod(`${way}/secret`, 0o777),
          fs.chown(`${way}/secret`, 1, 1),
          fs.utimes(`${way}/secret`, 1, 1),
          fs.remove(`${way}/secret`),
          fs.rename(`${way}/secret`, "/got"),
          fs.link(`${way}/secret`, "/got"),
          fs.copyFile(`${way}/secret`, "/got"),
          fs.copy(`${way}/secret`, "/got"),
          fs.symlink("x", `${way}/new`),
          fs.makeDirectory(`${way}/new`),
          fs.makeTempDirectory({ directory: way }),
          Stream.runDrain(fs.watch(way))
        ]))
          assert.match(String(result), /^SystemError NotFound/)
      }
      yield* outcomes([fs.writeFileString("/dangling", "x"), fs.remove("/absolute", { recursive: true })])
      assert.deepEqual(nodeFs.readdirSync(out), ["secret"])
      assert.equal(nodeFs.readFileSync(`${out}/secret`, "utf8"), "of the host")
      assert.equal(nodeFs.statSync(`${out}/secret`).uid, process.getuid?.())
      for (const result of yield* outcomes([
        fs.readDirectory("/proc/1/root"),
        fs.readFile("/proc/1/root/etc/passwd"),
        fs.readDirectory("/proc/1/cwd"),
        fs.readFile("/proc/1/exe"),
        fs.writeFileString("/proc/1/fd/1", "x")
      ]))
        assert.match(String(result), /^SystemError BadResource/)
      assert.equal(yield* fs.realPath(`/d/e/${up}bin/sh`), "/bin/busybox")
      assert.equal((yield* fs.readDirectory("/..")).includes("relative"), true)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "folders are made inside the root although a link points out of it",
    function* () {
      const { fs } = yield* inside()
      const out = yield* secret("secret")
      yield* fs.symlink(out, "/l")
      const results = yield* outcomes([
        fs.makeDirectory("/l/new/folder", { recursive: true }),
        fs.copy("/etc/passwd", "/l/copied/passwd")
      ])
      for (const result of results) assert.match(String(result), /^SystemError|null/)
      assert.deepEqual(nodeFs.readdirSync(out), ["secret"])
    },
    { skip: whyNoBusybox }
  )

  effect(
    "every call stays inside the root while the container swaps folders and links",
    function* () {
      const out = yield* secret("f")
      const script = `mkdir /a; echo inside > /a/f; ln -s ${out} /b
          while :; do mv /a /c; mv /b /a; mv /a /b; mv /c /a; done`
      const { fs } = yield* inside({ command: ["/bin/sh", "-c", script] })
      const seen = new Set<unknown>()
      for (const end = Date.now() + 1500; Date.now() < end; ) {
        seen.add(yield* outcome(fs.readFileString("/a/f")))
        yield* outcomes([
          fs.writeFileString("/a/f", "inside\n"),
          fs.writeFileString("/a/g", "inside"),
          fs.chmod("/a/f", 0o600),
          fs.remove("/a/g"),
          fs.readDirectory("/a", { recursive: true }),
          fs.copy("/a", "/copy", { overwrite: true }),
          fs.remove("/copy", { recursive: true })
        ])
      }
      assert.ok(seen.has("inside\n"))
      assert.ok(![...seen].some((result) => String(result).includes("host")))
      assert.deepEqual(nodeFs.readdirSync(out), ["f"])
      assert.equal(nodeFs.readFileSync(`${out}/f`, "utf8"), "of the host")
      assert.equal(nodeFs.statSync(`${out}/f`).mode & 0o777, 0o644)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a FIFO or a device is inspected without being opened",
    function* () {
      const { box, fs } = yield* inside()
      yield* Container.exec(box, ["mkfifo", "/fifo"])
      assert.equal((yield* fs.stat("/fifo")).type, "FIFO")
      yield* fs.chmod("/fifo", 0o600)
      yield* fs.utimes("/fifo", 1, 1)
      yield* fs.access("/fifo", { readable: true })
      assert.equal(yield* fs.realPath("/fifo"), "/fifo")
      const results = yield* outcomes([fs.copyFile("/fifo", "/x"), fs.copy("/fifo", "/x")])
      for (const result of results) assert.match(String(result), /^SystemError Unknown/)
      assert.equal((yield* fs.stat("/dev/null")).type, "CharacterDevice")
      yield* fs.remove("/fifo")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "the file system has the container's mounts, and its root once it has ended",
    function* () {
      const { box, fs } = yield* inside({ mounts: [{ type: "tmpfs", target: "/data" }] })
      yield* Container.exec(box, ["sh", "-c", "echo mounted > /data/f; echo root > /f"])
      assert.equal(yield* fs.readFileString("/data/f"), "mounted\n")
      yield* Container.signal(box, "SIGKILL")
      yield* box.exit
      assert.equal(yield* fs.readFileString("/f"), "root\n")
      yield* fs.writeFileString("/g", "after")
      assert.equal(yield* fs.readFileString("/g"), "after")
      assert.equal(yield* fs.realPath("/bin/sh"), "/bin/busybox")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "FileSystem.watch gives the events of a folder",
    function* () {
      const { box, fs } = yield* inside()
      yield* fs.makeDirectory("/w")
      const event = yield* firstEvent(fs.watch("/w"), Container.exec(box, ["touch", "/w/f"]))
      assert.equal(event.path, "f")
      const results = yield* outcomes([Stream.runDrain(fs.watch("/w", { recursive: true }))])
      assert.deepEqual(results, ["SystemError Unknown FileSystem watch /w"])
    },
    { skip: whyNoBusybox }
  )

  const whyNoOthers = typeof ids === "string" ? `there are no other users: ${ids}` : false

  effect(
    "private files of other users can be read and changed as the container's root may",
    function* () {
      const script = `
        mkdir -p /others/deep/er && cd /others && echo secret >secret && echo text >deep/er/file
        ln -s secret link && mkfifo fifo && mkdir open && chmod 777 open && echo his >open/his
        chown -hR 1000:1001 /others && chmod 600 fifo secret deep/er/file open/his && chmod 700 deep deep/er /others
        chmod +t open; echo ready; exec sleep 1000`
      const { box, fs } = yield* inside({ command: ["/bin/sh", "-c", script] })
      yield* WaitFor.log(box, "ready")
      const run = (command: string) =>
        Effect.map(Container.exec(box, ["sh", "-c", `cd /others && ${command}`]), ({ stderr, stdout }) => {
          assert.equal(stderr, "")
          return stdout.trim()
        })
      assert.deepEqual((yield* fs.readDirectory("/others", { recursive: true })).toSorted(), [
        ...["deep", "deep/er", "deep/er/file", "fifo", "link", "open", "open/his", "secret"]
      ])
      assert.deepEqual((yield* fs.readDirectory("/others/deep")).toSorted(), ["er"])
      const info = yield* fs.stat("/others/secret")
      assert.deepEqual([info.uid, info.gid, info.type], [Option.some(1000), Option.some(1001), "File"])
      assert.equal(yield* fs.readFileString("/others/link"), "secret\n")
      assert.equal(yield* fs.readLink("/others/link"), "secret")
      assert.equal(yield* fs.realPath("/others/link"), "/others/secret")
      yield* fs.access("/others/secret", { readable: true, writable: true })

      yield* fs.writeFileString("/others/secret", "more", { flag: "a" })
      assert.equal(yield* run("cat secret; stat -c %u:%g:%a secret"), "secret\nmore1000:1001:600")
      yield* fs.writeFileString("/others/secret", "less")
      yield* fs.truncate("/others/secret", 2)
      assert.equal(yield* run("cat secret"), "le")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const file = yield* fs.open("/others/secret", { flag: "r+" })
          yield* file.seek(2, "start")
          yield* file.writeAll(new TextEncoder().encode("tter"))
          yield* file.seek(0, "start")
          assert.equal(new TextDecoder().decode(Option.getOrThrow(yield* file.readAlloc(20))), "letter")
          yield* file.truncate(3)
          assert.deepEqual((yield* file.stat).uid, Option.some(1000))
        })
      )
      assert.equal(yield* run("cat secret"), "let")

      yield* fs.writeFileString("/others/made", "mine", { mode: 0o640 })
      yield* fs.makeDirectory("/others/deep/er/a/b", { recursive: true })
      yield* fs.symlink("made", "/others/deep/er/a/l")
      yield* fs.link("/others/made", "/others/deep/er/hard")
      yield* fs.rename("/others/deep/er/file", "/others/deep/er/a/moved")
      assert.equal(
        yield* run(
          "stat -c '%n %u %a' made deep/er/a deep/er/a/b; cat deep/er/a/moved; readlink deep/er/a/l"
        ),
        "made 0 640\ndeep/er/a 0 755\ndeep/er/a/b 0 755\ntext\nmade"
      )
      yield* fs.copyFile("/others/secret", "/others/deep/copied")
      yield* fs.copyFile("/others/made", "/others/secret")
      yield* fs.copy("/others/deep", "/others/second", { preserveTimestamps: true })
      assert.equal(yield* run("cat deep/copied second/copied second/er/a/moved secret"), "letlettext\nmine")
      const temporary = yield* fs.makeTempFile({ directory: "/others/deep" })
      yield* fs.writeFileString(temporary, "x")

      yield* fs.chmod("/others/secret", 0o4711)
      yield* fs.utimes("/others/secret", 1000, new Date(2_000_500))
      assert.equal(yield* run("stat -c '%a %X %Y' secret"), "4711 1000 2000")
      yield* fs.chown("/others/secret", 7, 8)
      yield* fs.chown("/others/made", -1, 8)
      assert.equal(yield* run("stat -c %u:%g secret made"), "7:8\n0:8")

      const event = yield* firstEvent(fs.watch("/others/deep"), run("touch deep/seen; rm deep/seen"))
      assert.equal(event.path, "seen")

      // A FIFO could block the whole program, so it is not opened in this way.
      if (!isRoot)
        assert.match(String((yield* outcomes([fs.readFile("/others/fifo")]))[0]), /PermissionDenied/)
      yield* fs.remove("/others/open/his")
      for (const name of ["link", "fifo", "made", "secret"]) yield* fs.remove(`/others/${name}`)
      for (const name of ["open", "deep", "second"]) yield* fs.remove(`/others/${name}`, { recursive: true })
      assert.equal(yield* run("ls -A"), "")
    },
    { skip: whyNoBusybox || whyNoOthers }
  )
})
