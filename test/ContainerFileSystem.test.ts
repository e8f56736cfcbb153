import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as nodeFs from "node:fs"
import * as FileSystem from "@effect/platform/FileSystem"
import { NodeFileSystem } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Container } from "../lib/index.ts"
import { makeTemporaryFolder, remove, suite } from "./support/effect.ts"
import { outcome, outcomes, plain, runtime, table } from "./support/fileSystemCases.ts"
import { makeImage, whyNoBusybox } from "./support/rootfs.ts"

// Bun keeps what it opens for the first child that it waits for.
execFileSync("true")

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
      () =>
        Effect.gen(function* () {
          const box = yield* start()
          const fs = Container.fileSystem(box)
          yield* fs.makeDirectory("/there")
          const here = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (path) =>
            Effect.sync(() => remove(path))
          )
          const at = (base: string) => (path: string) => (path === "" ? base : `${base}/${path}`)
          const ours = plain(yield* Effect.either(Effect.scoped(body(fs, at("/there")))), "/there")
          if (exception !== undefined) assert.deepEqual(ours, exception.gives)
          if (exception?.on.includes(runtime) === true) return
          const theirs = yield* Effect.either(Effect.scoped(body(host, at(here))))
          assert.deepEqual(ours, plain(theirs, here))
        }),
      { skip: whyNoBusybox }
    )

  const secret = (name: string) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const path = makeTemporaryFolder()
        nodeFs.writeFileSync(`${path}/${name}`, "of the host")
        return path
      }),
      (path) => Effect.sync(() => remove(path))
    )

  const inside = (options?: Container.StartOptions) =>
    Effect.map(start(options), (box) => ({ box, fs: Container.fileSystem(box) }))

  effect(
    "leads no link, no .. and no magic link out of the root",
    () =>
      Effect.gen(function* () {
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
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "makes folders on the way inside the root where a link says otherwise",
    () =>
      Effect.gen(function* () {
        const { fs } = yield* inside()
        const out = yield* secret("secret")
        yield* fs.symlink(out, "/l")
        const results = yield* outcomes([
          fs.makeDirectory("/l/new/folder", { recursive: true }),
          fs.copy("/etc/passwd", "/l/copied/passwd")
        ])
        for (const result of results) assert.match(String(result), /^SystemError|null/)
        assert.deepEqual(nodeFs.readdirSync(out), ["secret"])
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "stays inside while the container swaps folders and links",
    () =>
      Effect.gen(function* () {
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
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "opens no fifo and no device by looking at it",
    () =>
      Effect.gen(function* () {
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
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "sees what the container sees, and its root when it has ended",
    () =>
      Effect.gen(function* () {
        const { box, fs } = yield* inside({ mounts: [{ type: "tmpfs", target: "/data" }] })
        yield* Container.exec(box, ["sh", "-c", "echo mounted > /data/f; echo root > /f"])
        assert.equal(yield* fs.readFileString("/data/f"), "mounted\n")
        yield* Container.signal(box, "SIGKILL")
        yield* box.exit
        assert.equal(yield* fs.readFileString("/f"), "root\n")
        yield* fs.writeFileString("/g", "after")
        assert.equal(yield* fs.readFileString("/g"), "after")
        assert.equal(yield* fs.realPath("/bin/sh"), "/bin/busybox")
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "says so for a process that has no files of its own",
    () =>
      Effect.gen(function* () {
        const { box } = yield* inside()
        const fs = Container.fileSystem(yield* Container.execStream(box, ["sleep", "10"]))
        const error = yield* Effect.flip(fs.stat("/"))
        assert.equal(error._tag, "SystemError")
        assert.match(error.message, /another's root/)
        const results = yield* outcomes([fs.open("/x"), fs.readDirectory("/"), fs.makeTempDirectory()])
        for (const result of results) assert.match(String(result), /^SystemError BadResource/)
      }),
    { skip: whyNoBusybox }
  )

  effect(
    "gives the events of a folder",
    () =>
      Effect.gen(function* () {
        const { box, fs } = yield* inside()
        yield* fs.makeDirectory("/w")
        const events = yield* Effect.fork(Stream.runHead(fs.watch("/w")))
        const made = yield* Effect.fork(
          Effect.forever(Effect.zipRight(Effect.sleep(200), Container.exec(box, ["touch", "/w/f"])))
        )
        const event = Option.getOrThrow(yield* Fiber.join(events))
        yield* Fiber.interrupt(made)
        assert.equal(event.path, "f")
        const results = yield* outcomes([Stream.runDrain(fs.watch("/w", { recursive: true }))])
        assert.deepEqual(results, ["SystemError Unknown FileSystem watch /w"])
      }),
    { skip: whyNoBusybox }
  )
})
