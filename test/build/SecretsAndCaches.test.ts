/** Mounts of RUN with owners and modes: where secrets are and are not, and who uses a cache at the same time. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Berth, Build, Container, Image, Volume } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** An empty context; the image `local/busybox` is in the store. */
const emptyContext = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  if (!fs.existsSync(`${folder}/busybox`)) makeRoot(`${folder}/busybox`)
  yield* Image.import(`${folder}/busybox`, { tag: "local/busybox" })
  fs.mkdirSync(`${folder}/empty`, { recursive: true })
  return `${folder}/empty`
})

const output = (image: Image.Image, command: string) =>
  Effect.map(Container.run(image, { command: ["sh", "-c", command] }), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
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
