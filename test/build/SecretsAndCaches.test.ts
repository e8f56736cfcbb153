/** Mounts of RUN with owners and modes: where secrets are and are not, and who uses a cache at the same time. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Berth, Build, Image, Volume } from "../../lib/index.ts"
import { importBusybox, output } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** An empty context; the image `local/busybox` is in the store. */
const emptyContext = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  yield* importBusybox
  fs.mkdirSync(`${folder}/empty`, { recursive: true })
  return `${folder}/empty`
})

const removeCaches = Effect.flatMap(Volume.list, (volumes) =>
  Effect.forEach(volumes, ({ name }) => Volume.remove(name), { discard: true })
)

suite("secrets and caches of RUN", (effect, folder) => {
  effect(
    "a secret is a variable or a file with an owner and a mode, and is nowhere else",
    function* () {
      const context = yield* emptyContext
      const words = "xyzzy-plugh"
      const text = `FROM local/busybox
RUN --mount=type=secret,id=token --mount=type=secret,id=token,target=own,uid=7,gid=8,mode=0440 \\
    --mount=type=secret,id=token,env=TOKEN --mount=type=secret,id=token,env=BOTH,target=/both \\
    --mount=type=secret,id=absent,env=ABSENT \\
    stat -c %u:%g:%a /run/secrets/token /run/secrets/own /both > /made && ls /run/secrets >> /made && \\
    test "$TOKEN" = "$BOTH" && test -z "$ABSENT" && cmp /run/secrets/own /both && echo -n "$TOKEN" | wc -c >> /made
USER 7:9
RUN --mount=type=secret,id=token --mount=type=secret,id=token,target=own,uid=7,mode=0400 \\
    ! cat /run/secrets/token && test -s /run/secrets/own && test -z "$TOKEN" && ! ls /both
`
      const told: Array<unknown> = []
      const build = (value: string, more: Partial<Build.DockerfileOptions> = {}) =>
        Build.dockerfile({
          context,
          text,
          secrets: { token: Redacted.make(value) },
          onEvent: (event) => told.push(event),
          ...more
        })
      const image = yield* build(words, { tag: "test/secrets:1", provenance: true })
      assert.equal(yield* output(image, "cat /made"), "0:0:400\n7:8:440\n0:0:400\nown\ntoken\n11\n")
      assert.equal(
        yield* output(image, "ls /run /run/secrets /both 2>/dev/null; env | grep -c TOKEN || true"),
        "0\n"
      )
      // Another value changes nothing, another place does.
      told.length = 0
      yield* build("another")
      assert.deepEqual(
        told.map((event) => (event as Build.BuildEvent)._tag),
        ["Cached", "Cached"]
      )
      const moved = yield* Build.fromDockerfile({
        context,
        text: text.replace("mode=0440", "mode=0444"),
        secrets: { token: words }
      })
      assert.ok(!inspect(moved, { depth: 9 }).includes(words))
      const explained = yield* Build.explain(moved)
      assert.equal(explained[0]!.isMade, false)
      const typed = (mode: number) =>
        Build.from("local/busybox").pipe(
          Build.run(["sh", "-c", "stat -c %a /run/secrets/a"], { secret: { a: { value: words, mode } } })
        )
      yield* Build.image(typed(0o400))
      const reasons = yield* Build.explain(typed(0o440))
      assert.deepEqual(reasons[0]!.reasons, ["the list of secrets has changed"])
      // A command that cannot be executed, and one that fails.
      for (const command of ["/etc/passwd", "/bin/false"]) {
        const failing = Build.from("local/busybox").pipe(
          Build.run([command], { secret: { a: { value: words, env: "A" }, b: words } })
        )
        const error = yield* Effect.flip(Build.image(failing, { onEvent: (event) => told.push(event) }))
        told.push(inspect(error, { depth: 9 }), String(error), JSON.stringify(error))
      }
      told.push(image, explained, reasons, yield* Image.history(image.reference))
      assert.ok(!inspect(told, { depth: 9 }).includes(words))
      // Neither in the store nor in the state of this program.
      assert.throws(() => execFileSync("grep", ["-raq", words, folder()]), { status: 1 })
    },
    skip
  )

  effect(
    "a wrong place or value of a secret is an error without the value",
    function* () {
      yield* emptyContext
      for (const [secret, option] of [
        [{ a: { value: "hidden\0" } }, "secret.a"],
        [{ a: { value: "hidden\0", env: "A" } }, "secret.a"],
        [{ a: { value: "hidden", env: "A=B" } }, "env"],
        [{ a: { value: "hidden", mode: 0o1777 } }, "secret.a.mode"],
        [{ a: { value: "hidden", uid: -1 } }, "secret.a.uid"],
        [{ "a/b": "hidden" }, "secret"]
      ] as const) {
        const build = Build.from("local/busybox").pipe(Build.run("true", { secret }))
        const error = yield* failure("InvalidOption", Build.image(build))
        assert.equal(error.option, option)
        assert.ok(!inspect(error, { depth: 9 }).includes("hidden"), error.message)
      }
    },
    skip
  )

  effect(
    "steps with a private cache at the same time have a folder each, and a later one has what they left",
    function* () {
      const context = yield* emptyContext
      const mounts =
        "--mount=type=cache,id=own,target=/own,sharing=private --mount=type=cache,id=meeting,target=/meeting"
      // Each waits for the other one.
      const meet = (mine: string, other: string) =>
        `touch /own/${mine} /meeting/${mine}; until [ -e /meeting/${other} ]; do sleep 0.01; done; ls /own > /${mine}`
      const text = `FROM local/busybox AS a
RUN ${mounts} ${meet("a", "b")}
FROM local/busybox AS b
RUN ${mounts} ${meet("b", "a")}
FROM local/busybox
COPY --from=a /a /
COPY --from=b /b /
RUN ${mounts} ls /own > /later
`
      const image = yield* Build.dockerfile({ context, text, concurrency: 2 })
      assert.equal(yield* output(image, "cat /a /b"), "a\nb\n")
      assert.match(yield* output(image, "cat /later"), /^[ab]\n$/)
      yield* removeCaches
    },
    skip
  )

  effect(
    "a cache has an owner and a mode, and is another one for another owner; a read-only one cannot be written",
    function* () {
      const context = yield* emptyContext
      const text = `FROM local/busybox
RUN --mount=type=cache,target=/c stat -c %u:%g:%a /c > /made && touch /c/of-root
RUN --mount=type=cache,target=/c,uid=5,gid=6,mode=0770 stat -c %u:%g:%a /c >> /made && ls /c >> /made && touch /c/of-5
RUN --mount=type=cache,target=/c,ro ls /c >> /made && ! touch /c/x
USER 5:6
RUN --mount=type=cache,target=/c,uid=5,gid=6,mode=0770 touch /c/more && ls /c | xargs echo > /tmp/seen
`
      const image = yield* Build.dockerfile({ context, text })
      assert.equal(yield* output(image, "cat /made /tmp/seen"), "0:0:755\n5:6:770\nof-root\nmore of-5\n")
      yield* removeCaches
    },
    skip
  )

  effect(
    "a cache begins with the files of a stage, of an image and of a folder, as they are, and keeps what steps write",
    function* () {
      const context = yield* emptyContext
      fs.mkdirSync(`${folder()}/notes/sub`, { recursive: true })
      fs.writeFileSync(`${folder()}/notes/sub/note`, "noted")
      const text = `FROM local/busybox AS base
ARG WORD=one
RUN mkdir -p /c/deep && echo $WORD > /c/deep/file && chown -R 3:4 /c && chmod 4750 /c/deep/file && chmod 700 /c && \\
  ln -s deep /c/link && ln /c/deep/file /c/hard && ln -s /c /away
FROM local/busybox AS good
ARG STEP=1
RUN --mount=type=cache,target=/w,id=w,from=base,source=/c stat -c %u:%g:%a:%h /w /w/deep/file /w/link > /made && \\
  cat /w/link/file /w/hard >> /made && ls /w >> /made && touch /w/written-$STEP
RUN --mount=type=cache,target=/w,id=w,from=base,src=away,uid=5,mode=0711 stat -c %u:%g:%a /w >> /made && ls /w >> /made
RUN --mount=type=cache,target=/w,id=w ls -A /w >> /made
RUN --mount=type=cache,target=/i,id=w,from=local/busybox,source=etc cmp /i/passwd /etc/passwd
RUN --mount=type=cache,target=/n,from=notes,source=sub,sharing=locked cat /n/note >> /made
FROM local/busybox AS missing
RUN --mount=type=cache,target=/w,from=base,source=/absent true
FROM local/busybox AS file
RUN --mount=type=cache,target=/w,from=base,source=/c/hard true
FROM local/busybox AS outside
RUN --mount=type=cache,target=/w,source=/c true
`
      const ran: Array<string> = []
      const build = (target: string, args: Readonly<Record<string, string>> = {}) =>
        Build.dockerfile({
          context,
          text,
          target,
          args,
          contexts: { notes: `${folder()}/notes` },
          onEvent: ({ _tag, text }) => _tag === "Started" && ran.push(text.slice(0, 36))
        })
      const first = `3:4:700:3
3:4:4750:2
0:0:777:1
one
one
deep
hard
link
`
      const others = "5:4:711\ndeep\nhard\nlink\nnoted"
      assert.equal(yield* output(yield* build("good"), "cat /made"), `${first}${others}`)
      // The second step of this cache sees what the first one has written, and no other cache does.
      assert.equal(
        yield* output(yield* build("good", { STEP: "2" }), "cat /made"),
        `${first}written-1\n${others}`
      )
      ran.length = 0
      yield* build("good", { STEP: "2" })
      assert.deepEqual(ran, [])
      // Other files are another cache, and the step runs again.
      assert.match(
        yield* output(yield* build("good", { WORD: "two" }), "cat /made"),
        /two\ntwo\ndeep\nhard\nlink\n5:4/
      )
      for (const [target, line, mention] of [
        ["missing", 14, "no file /absent"],
        ["file", 16, "/c/hard.* is no folder"],
        ["outside", 18, "source needs from"]
      ] as const) {
        const error = yield* failure("BuildFailed", build(target))
        assert.match(error.message, new RegExp(`:${line}: .*${mention}`))
      }
      const typed = (word: string) => {
        const base = Build.from("local/busybox").pipe(Build.run(`mkdir /c && echo ${word} > /c/file`))
        return Build.from("local/busybox").pipe(
          Build.run("cat /w/file > /made", { cache: { "/w": { name: "typed", from: base, path: "c" } } })
        )
      }
      assert.equal(yield* output(yield* Build.image(typed("a")), "cat /made"), "a\n")
      assert.deepEqual(
        (yield* Build.explain(typed("a"))).map(({ isMade }) => isMade),
        [true, true]
      )
      assert.equal(yield* output(yield* Build.image(typed("b")), "cat /made"), "b\n")
      assert.deepEqual(
        fs
          .readdirSync(`${folder()}/run`)
          .flatMap((name) => fs.readdirSync(`${folder()}/run/${name}`))
          .filter((name) => name.startsWith("made-")),
        []
      )
      yield* removeCaches
    },
    skip
  )

  effect(
    "steps that begin a cache at the same time fill it once, and an end meanwhile leaves no half of it",
    function* () {
      const context = yield* emptyContext
      const count = 400
      const text = `FROM local/busybox AS base
RUN mkdir /c && for k in $(seq ${count}); do echo $k > /c/$k; done
FROM local/busybox AS a
RUN --mount=type=cache,target=/w,id=both,from=base,source=c ls /w | grep -vc mine > /a && touch /w/mine-a
FROM local/busybox AS b
RUN --mount=type=cache,target=/w,id=both,from=base,source=c ls /w | grep -vc mine > /b && touch /w/mine-b
FROM local/busybox
COPY --from=a /a /
COPY --from=b /b /
`
      const build = Build.dockerfile({ context, text, concurrency: 2 })
      const whole = (yield* Volume.list).length
      yield* Build.dockerfile({ context, text, target: "base" })
      for (const millis of [15, 30, 60]) {
        yield* Effect.timeoutOption(build, millis)
        for (const { name } of yield* Volume.list)
          assert.ok(fs.readdirSync(`${folder()}/volumes/${name}/files/data`).length >= count, name)
      }
      const image = yield* build
      assert.equal(yield* output(image, "cat /a /b"), `${count}\n${count}\n`)
      assert.equal((yield* Volume.list).length, whole + 1)
      yield* removeCaches
    },
    skip
  )

  effect(
    "a tmpfs has its size",
    function* () {
      const context = yield* emptyContext
      const df = "df -k /t | tail -1 | awk '{print $2}'"
      const text = `FROM local/busybox
RUN --mount=type=tmpfs,target=/t,size=1048576 ${df} > /made
RUN --mount=type=tmpfs,target=/t,size=2m ${df} >> /made
`
      assert.equal(yield* output(yield* Build.dockerfile({ context, text }), "cat /made"), "1024\n2048\n")
    },
    skip
  )

  for (const [what, mount, mention] of [
    ["a variable", "type=secret,id=a,env=1A", "env is the name"],
    ["a mode", "type=secret,id=a,mode=999", "mode is a mode in octal digits"],
    ["a user", "type=cache,target=/c,uid=root", "uid is the number"],
    ["a sharing", "type=cache,target=/c,sharing=all", "shared, private or locked"],
    ["a field", "type=cache,target=/c,size=1", "size of type=cache"]
  ] as const)
    effect(
      `${what} that cannot be one is an error with its line`,
      function* () {
        const context = yield* emptyContext
        const text = `FROM local/busybox\nRUN --mount=${mount} true\n`
        const error = yield* failure("BuildFailed", Build.dockerfile({ context, text, secrets: { a: "b" } }))
        assert.match(error.message, /:2: /)
        assert.ok(error.message.includes(mention), error.message)
      },
      skip
    )
})
