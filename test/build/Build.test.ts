import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Berth, Build, Container, Image, Store, Volume } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** An image of busybox with a manifest, made once. */
const busybox = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  const root = `${folder}/busybox`
  if (!fs.existsSync(root)) makeRoot(root)
  return yield* Image.import(root)
})

/** An empty folder of files for a build, with these texts. */
const contextOf = (name: string, files: Readonly<Record<string, string>>) =>
  Effect.map(Berth.Berth, ({ folder }) => {
    const path = `${folder}/context-${name}`
    fs.rmSync(path, { recursive: true, force: true })
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(`${path}/${file}`.replace(/[^/]*$/, ""), { recursive: true })
      fs.writeFileSync(`${path}/${file}`, text)
    }
    return path
  })

/** The image, and the steps that ran and that came from the store. */
const built = (build: Build.Build, options: Build.ImageOptions = {}) =>
  Effect.gen(function* () {
    const events: Array<Build.BuildEvent> = []
    const image = yield* Build.image(build, { ...options, onEvent: (event) => events.push(event) })
    const of = (tag: Build.BuildEvent["_tag"]) =>
      events.filter(({ _tag }) => _tag === tag).map(({ text }) => text)
    return { image, events, ran: of("Done"), cached: of("Cached") }
  })

const output = (image: Image.Image, ...command: ReadonlyArray<string>) =>
  Effect.map(Container.run(image, { command }), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })

suite("Build", (effect, folder) => {
  effect(
    "an image has what its steps wrote and set, and an equal build runs none of them",
    function* () {
      const context = yield* contextOf("app", { "package.json": "{}", "src/main.txt": "main\n" })
      const app = Build.from(yield* busybox).pipe(
        Build.workdir("/app"),
        Build.copy({ from: Build.local(context), paths: ["package.json"] }),
        Build.run("wc -c < package.json > size && echo said"),
        Build.copy({ from: Build.local(context), paths: ["."] }),
        Build.config({ command: ["cat", "size", "src/main.txt"], environment: { A: "1" }, expose: [8080] })
      )
      const first = yield* built(app)
      assert.equal(first.ran.length, 4)
      assert.deepEqual(
        first.events.flatMap((event) => (event._tag === "Output" ? [event.line] : [])),
        ["said"]
      )
      const { config } = first.image
      assert.equal(config.workingDirectory, "/app")
      assert.deepEqual(config.exposedPorts, ["8080/tcp"])
      assert.equal((yield* Container.run(first.image)).stdout, "2\nmain\n")
      assert.equal(
        yield* output(first.image, "stat", "-c", "%u:%g %a", "/app", "/app/src", "/app/size"),
        "0:0 755\n0:0 755\n0:0 644\n"
      )
      const second = yield* built(app)
      assert.deepEqual(second.ran, [])
      assert.equal(second.cached.length, 4)
      assert.deepEqual(second.image.layers, first.image.layers)
      const third = yield* built(app, { cache: false })
      assert.equal(third.ran.length, 4)
      assert.equal((yield* Container.run(third.image)).stdout, "2\nmain\n")
      assert.ok(third.image.layers.every((layer) => !first.image.layers.slice(1).includes(layer)))
    },
    skip
  )

  effect(
    "equal steps with an equal time make an equal image, with gzip and with zstd, and its layers are not unpacked again",
    function* () {
      const app = Build.from(yield* busybox).pipe(Build.run("echo made > /made"), Build.workdir("/app"))
      const created = new Date("2020-01-02T03:04:05Z")
      for (const compression of ["gzip", "zstd"] as const) {
        const [one, other] = [
          yield* Build.image(app, { tag: "team/one:1", created, compression, cache: false }),
          yield* Build.image(app, { tag: "team/other:1", created, compression })
        ]
        assert.equal(other.digest, one.digest)
        assert.ok(one.layers.slice(1).every((layer) => layer.includes("/kept/")))
        assert.equal(yield* output(one, "cat", "/made"), "made\n")
        const read = (digest: string) =>
          JSON.parse(fs.readFileSync(`${folder()}/store/blobs/${digest.replace(":", "/")}`, "utf8"))
        const { layers } = read(one.digest!)
        assert.match(layers.at(-1).mediaType, compression === "gzip" ? /tar\+gzip$/ : /tar\+zstd$/)
        const again = yield* Image.fromStore("team/one:1")
        assert.deepEqual(
          again.layers.filter((layer) => layer.includes("/kept/")),
          []
        )
        assert.equal(yield* output(again, "stat", "-c", "%Y", "/made"), `${created.getTime() / 1000}\n`)
      }
      const wrong = { tag: "team/one:1", compression: "xz" as "gzip" }
      assert.equal((yield* failure("InvalidOption", Build.image(app, wrong))).option, "compression")
    },
    skip
  )

  effect(
    "a change of a copied file runs the copy and what is after it, a new time of change runs nothing",
    function* () {
      const context = yield* contextOf("changed", { a: "1", b: "1" })
      const local = Build.local(context)
      const app = Build.from(yield* busybox).pipe(
        Build.copy({ from: local, paths: ["a"], to: "/" }),
        Build.run("cat /a > /from-a"),
        Build.copy({ from: local, paths: ["b"], to: "/" }),
        Build.run("cat /a /b > /both")
      )
      assert.equal((yield* built(app)).ran.length, 4)
      fs.utimesSync(`${context}/a`, 1000, 1000)
      assert.deepEqual((yield* built(app)).ran, [])
      fs.writeFileSync(`${context}/b`, "2")
      const { image, ran } = yield* built(app)
      assert.deepEqual(ran, ["COPY b /", "RUN cat /a /b > /both"])
      assert.equal(yield* output(image, "cat", "/both"), "12")
      fs.chmodSync(`${context}/a`, 0o600)
      assert.equal((yield* built(app)).ran.length, 4)
    },
    skip
  )

  effect(
    "files of another build are copied with their owners, and only what the target needs runs",
    function* () {
      const base = Build.from(yield* busybox)
      const made = base.pipe(
        Build.run(
          "mkdir -p /out/sub && echo tool > /out/tool && echo deep > /out/sub/deep && chown 1000:1001 /out/tool && chmod 751 /out/tool"
        )
      )
      const app = base.pipe(Build.copy({ from: made, paths: ["/out"], to: "/opt/" }))
      const { image, ran } = yield* built(app)
      assert.equal(ran.length, 2)
      assert.equal(yield* output(image, "cat", "/opt/tool", "/opt/sub/deep"), "tool\ndeep\n")
      assert.equal(yield* output(image, "stat", "-c", "%a %u:%g", "/opt/tool"), "751 1000:1001\n")
      const unneeded = base.pipe(Build.run("exit 1"))
      assert.ok(Build.isBuild(unneeded))
      assert.deepEqual((yield* built(app)).ran, [])
    },
    skip
  )

  effect(
    "patterns select files as filepath.Match does, and ignored files are left out",
    function* () {
      const context = yield* contextOf("patterns", {
        "a.txt": "a",
        "b.txt": "b",
        "c.md": "c",
        "node_modules/x/index.js": "x",
        "node_modules/keep.js": "keep",
        ".git/config": "git",
        "src/.env": "secret"
      })
      fs.symlinkSync("a.txt", `${context}/link.txt`)
      fs.symlinkSync("/etc/passwd", `${context}/outside`)
      const ignore = [".git", "node_modules", "!node_modules/keep.js", "**/.env"]
      const local = Build.local(context, { ignore })
      const app = Build.from(yield* busybox).pipe(
        Build.copy({ from: local, paths: ["[ab].txt", "link.txt"], to: "/texts" }),
        Build.copy({ from: local, paths: ["."], to: "/all" }),
        Build.copy({ from: local, paths: ["c.md"], to: "/name", owner: "app:staff", mode: 0o4750 })
      )
      const { image } = yield* built(app)
      assert.equal(
        yield* output(image, "sh", "-c", "cd /texts && cat *; ls"),
        "aba" + "a.txt\nb.txt\nlink.txt\n"
      )
      assert.equal(
        yield* output(image, "sh", "-c", "cd /all && find . | sort && readlink outside"),
        [
          ".",
          "./a.txt",
          "./b.txt",
          "./c.md",
          "./link.txt",
          "./node_modules",
          "./node_modules/keep.js",
          "./outside",
          "./src",
          "/etc/passwd",
          ""
        ].join("\n")
      )
      assert.equal(yield* output(image, "cat", "/name"), "c")
      assert.equal(yield* output(image, "stat", "-c", "%a %U:%G", "/name"), "4750 app:staff\n")
    },
    skip
  )

  effect(
    "a link that is named is followed within the context alone",
    function* () {
      const context = yield* contextOf("escape", { "etc/passwd": "of the context\n" })
      fs.symlinkSync("/etc/passwd", `${context}/absolute`)
      fs.symlinkSync("../../../../../../etc/passwd", `${context}/relative`)
      const app = Build.from(yield* busybox).pipe(
        Build.copy({
          from: Build.local(context),
          paths: ["absolute", "relative", "../../etc/passwd"],
          to: "/copied/"
        })
      )
      const { image } = yield* built(app)
      assert.equal(yield* output(image, "sh", "-c", "cat /copied/*"), "of the context\n".repeat(3))
    },
    skip
  )

  effect(
    "a path without a file is an error that names it",
    function* () {
      const context = yield* contextOf("missing", { a: "1" })
      const base = Build.from(yield* busybox)
      for (const path of ["absent", "*.none", "ignored/**"]) {
        const app = base.pipe(Build.copy({ from: Build.local(context), paths: ["a", path] }))
        const error = yield* failure("BuildFailed", Build.image(app))
        assert.equal(error.reason, "NoMatch")
        assert.ok(error.message.includes(path), error.message)
      }
    },
    skip
  )

  effect(
    "a command that fails leaves no layer, and the error has its output and exit code",
    function* () {
      const base = Build.from(yield* busybox).pipe(Build.run("echo first > /first"))
      const app = base.pipe(Build.run("echo some words; echo worse >&2; exit 7"))
      const kept = () =>
        fs.readdirSync(`${folder()}/layers/kept`).filter((name) => /^[0-9a-f]{64}$/.test(name))
      yield* Build.image(base)
      const before = kept()
      const error = yield* failure("BuildFailed", Build.image(app))
      assert.equal(error.reason, "Command")
      assert.equal(error.exitCode, 7)
      assert.deepEqual([...error.log].sort(), ["some words", "worse"])
      assert.match(error.message, /^RUN echo some words/)
      assert.deepEqual(kept(), before)
      const slow = base.pipe(Build.run("sleep 1000", { timeout: "50 millis" }))
      assert.equal((yield* failure("BuildFailed", Build.image(slow))).reason, "TimedOut")
    },
    skip
  )

  effect(
    "a copy writes into folders that another user owns, and gives files and folders to that user",
    function* () {
      yield* busybox
      const context = `${folder()}/owned`
      fs.mkdirSync(`${context}/sub/deep`, { recursive: true })
      fs.writeFileSync(`${context}/sub/deep/file`, "x")
      fs.linkSync(`${context}/sub/deep/file`, `${context}/sub/same`)
      fs.symlinkSync("file", `${context}/sub/deep/link`)
      const from = Build.local(context)
      const { image } = yield* built(
        Build.from(Image.import(`${folder()}/busybox`)).pipe(
          Build.run(
            "mkdir -p /own/sub/deep && echo old > /own/sub/deep/file && chown -R 7:8 /own && chmod -R go-rwx /own"
          ),
          Build.copy({ from, to: "/own/", owner: "7:8" }),
          Build.copy({ from, to: "/new/folder", owner: "7:8" }),
          Build.copy({ from, to: "/own/of-root" })
        )
      )
      const paths =
        "own/sub/deep own/sub/deep/file own/sub/same new new/folder/sub/deep new/folder/sub/deep/file"
      assert.equal(
        yield* output(
          image,
          "sh",
          "-c",
          `cd / && stat -c %u:%g ${paths} own/of-root/sub/same | xargs && cat own/sub/deep/link`
        ),
        "7:8 7:8 7:8 7:8 7:8 7:8 0:0\nx"
      )
    },
    skip
  )

  effect(
    "a secret is in no layer, history, event or error, and a new one runs nothing again",
    function* () {
      const words = "xyzzy-plugh"
      const app = (value: string) =>
        Build.from(Image.import(`${folder()}/busybox`)).pipe(
          Build.run("test -s /run/secrets/token && wc -c < /run/secrets/token > /length", {
            secret: { token: Redacted.make(value) }
          })
        )
      yield* busybox
      const { events, image } = yield* built(app(words), { tag: "test/secret:1", provenance: true })
      assert.equal(
        yield* output(image, "sh", "-c", "cat /length; ls /run /run/secrets 2>/dev/null; true"),
        "11\n"
      )
      assert.ok(!JSON.stringify(events).includes(words))
      const { layers } = image
      assert.throws(() => execFileSync("grep", ["-raq", words, `${folder()}/store`, ...layers]), {
        status: 1
      })
      assert.deepEqual((yield* built(app("another"))).ran, [])
    },
    skip
  )

  effect(
    "a cache is shared by steps and is in no layer",
    function* () {
      const base = Build.from(yield* busybox)
      const cache = { "/cache": "things" }
      const one = base.pipe(Build.run("echo one >> /cache/list", { cache }))
      const two = one.pipe(Build.run("echo two >> /cache/list && cp /cache/list /list", { cache }))
      const { image } = yield* built(two)
      assert.equal(yield* output(image, "cat", "/list"), "one\ntwo\n")
      assert.equal(yield* output(image, "sh", "-c", "ls /cache | wc -l"), "0\n")
      yield* Volume.remove("build-cache.things")
    },
    skip
  )

  effect(
    "steps that do not depend on each other run at the same time",
    function* () {
      const base = Build.from(yield* busybox)
      const cache = { "/meeting": "meeting" }
      // Each waits for the other one.
      const meet = (mine: string, other: string) =>
        base.pipe(
          Build.run(
            `touch /meeting/${mine}; until [ -e /meeting/${other} ]; do sleep 0.01; done; echo ${mine} > /${mine}`,
            { cache }
          )
        )
      const app = base.pipe(
        Build.copy({ from: meet("a", "b"), paths: ["/a"], to: "/" }),
        Build.copy({ from: meet("b", "a"), paths: ["/b"], to: "/" })
      )
      const { image } = yield* built(app, { concurrency: 2 })
      assert.equal(yield* output(image, "cat", "/a", "/b"), "a\nb\n")
      yield* Volume.remove("build-cache.meeting")
    },
    skip
  )

  effect(
    "a tagged image is in the store with its configuration and history, and is the same when it is built again",
    function* () {
      const app = Build.from(yield* busybox).pipe(
        Build.run("echo words > /file && rm /bin/wget"),
        Build.config({ entrypoint: ["cat"], command: ["/file"], labels: { team: "app" }, user: "app" })
      )
      const created = new Date("2026-01-02T03:04:05Z")
      const image = yield* Build.image(app, { tag: "team/app:1", created })
      assert.equal((yield* Container.run(image)).stdout, "words\n")
      const found = yield* Image.fromStore("team/app:1")
      assert.equal(found.digest, image.digest)
      assert.deepEqual(found.config.labels, { team: "app" })
      const history = yield* Image.history("team/app:1")
      assert.deepEqual(
        history.slice(-2).map(({ createdBy }) => createdBy),
        ["RUN echo words > /file && rm /bin/wget", "CONFIG entrypoint command labels user"]
      )
      const again = yield* Build.image(app, { tag: "team/app:1", created, cache: true })
      assert.equal(again.digest, image.digest)
      assert.match(
        yield* failure("CommandFailed", Container.run(found, { entrypoint: ["wget"] })).pipe(
          Effect.map(String)
        ),
        /wget/
      )
    },
    skip
  )

  effect(
    "an interrupted build leaves nothing half-done, and the next one goes on with the steps that were finished",
    function* () {
      const base = Build.from(yield* busybox).pipe(Build.run("echo done > /done"))
      const app = base.pipe(Build.run("sleep 1000; true"))
      const started = yield* Effect.makeLatch()
      const onEvent = ({ _tag, text }: Build.BuildEvent) => {
        if (_tag === "Started" && text.includes("sleep")) started.unsafeOpen()
      }
      yield* Effect.raceFirst(Build.image(app, { onEvent }), started.await)
      assert.deepEqual((yield* built(base)).cached.length, 1)
      yield* Store.gc()
      assert.deepEqual((yield* built(base)).cached.length, 1)
    },
    skip
  )
})
