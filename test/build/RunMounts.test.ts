// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { Berth, Build, Container, Image, Mount } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** A context with these files; the image `local/busybox` is in the store. */
const contextOf = (name: string, files: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    if (!fs.existsSync(`${folder}/busybox`)) makeRoot(`${folder}/busybox`)
    yield* Image.import(`${folder}/busybox`, { tag: "local/busybox" })
    const context = `${folder}/context-${name}`
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(`${context}/${file}`.replace(/[^/]*$/, ""), { recursive: true })
      fs.writeFileSync(`${context}/${file}`, text)
    }
    return context
  })

const output = (image: Image.Image, command: string) =>
  Effect.map(Container.run(image, { command: ["sh", "-c", command] }), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })

/** A server at a Unix socket that answers each connection with a word. */
const agentAt = (path: string) =>
  Effect.acquireRelease(
    Effect.promise(
      () =>
        new Promise<net.Server>((resolve) => {
          const server = net.createServer((socket) => socket.end("agent"))
          server.listen(path, () => resolve(server))
        })
    ),
    (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
  )

suite("mounts of RUN", (effect, folder) => {
  effect(
    "a bind shows files of the context, without ignored ones, and leaves nothing in the image",
    function* () {
      const context = yield* contextOf("bind", {
        "app/main.txt": "main",
        "app/skip.log": "log",
        "one.txt": "one",
        ".dockerignore": "**/*.log\n"
      })
      fs.symlinkSync("/etc/passwd", `${context}/outside`)
      const text = `FROM local/busybox
WORKDIR /place
RUN --mount=type=bind,target=. find . | sort > /found && test "$(readlink outside)" = /etc/passwd && ! touch x
RUN --mount=source=app,dst=/seen --mount=type=bind,source=one.txt,target=one.txt,rw \\
  cat /seen/main.txt one.txt > /both && stat -c %u:%g one.txt > /owner && echo changed > one.txt && cat one.txt >> /both
RUN --mount=type=bind,source=app,target=/app,readwrite echo new > /app/new && ls /app > /listed
RUN ls -d /place/* /app/* /seen/* > /left 2>/dev/null || true
`
      const image = yield* Build.dockerfile({ context, text })
      assert.equal(
        yield* output(image, "cat /found"),
        ".\n./.dockerignore\n./app\n./app/main.txt\n./one.txt\n./outside\n"
      )
      assert.equal(yield* output(image, "cat /both"), "mainonechanged\n")
      assert.equal(yield* output(image, "cat /owner"), "0:0\n")
      assert.equal(yield* output(image, "cat /listed"), "main.txt\nnew\n")
      assert.equal(yield* output(image, "cat /left"), "")
      assert.equal(fs.readFileSync(`${context}/one.txt`, "utf8"), "one")
    },
    skip
  )

  effect(
    "a step runs again if what a bind shows has changed, and not if other files have",
    function* () {
      const context = yield* contextOf("key", { "a/x": "1", "b/x": "1" })
      const text = "FROM local/busybox\nRUN --mount=source=a,target=/a cat /a/x > /made\n"
      const ran = () => {
        const done: Array<string> = []
        const onEvent = (event: Build.BuildEvent) => {
          if (event._tag === "Done" && event.text.startsWith("RUN")) done.push(event.text)
        }
        return Effect.map(Build.dockerfile({ context, text, onEvent }), (image) => ({
          image,
          count: done.length
        }))
      }
      assert.equal((yield* ran()).count, 1)
      fs.writeFileSync(`${context}/b/x`, "2")
      assert.equal((yield* ran()).count, 0)
      fs.writeFileSync(`${context}/a/x`, "3")
      const again = yield* ran()
      assert.equal(again.count, 1)
      assert.equal(yield* output(again.image, "cat /made"), "3")
    },
    skip
  )

  effect(
    "a bind shows files of a stage, of an image and of a named context, and follows links within them alone",
    function* () {
      const context = yield* contextOf("from", { note: "noted" })
      const secret = `${folder()}/secret-of-host`
      fs.writeFileSync(secret, "of the host")
      const text = `FROM local/busybox AS build
RUN mkdir -p /out/sub && echo tool > /out/sub/tool && chown 3:4 /out/sub/tool && ln -s sub/tool /out/link && ln -s ${secret} /out/away
FROM local/busybox AS good
RUN --mount=from=build,source=/out,target=/b --mount=from=build,source=/out/link,target=/t \\
  --mount=from=local/busybox,source=etc/passwd,target=/p --mount=from=notes,target=/n \\
  cat /b/sub/tool /t /n/note > /made && stat -c %u:%g /t >> /made && cmp /p /etc/passwd
FROM local/busybox
RUN --mount=from=build,source=/out/away,target=/x cat /x
`
      const given = { context, text, contexts: { notes: context } }
      const image = yield* Build.dockerfile({ ...given, target: "good" })
      assert.equal(yield* output(image, "cat /made"), "tool\ntool\nnoted3:4\n")
      const error = yield* failure("BuildFailed", Build.dockerfile(given))
      assert.equal(error.reason, "NoMatch")
      assert.match(error.message, /:8: .*\/out\/away/)
      const missing = "FROM local/busybox\nRUN --mount=source=absent,target=/x true\n"
      assert.match(
        (yield* failure("BuildFailed", Build.dockerfile({ context, text: missing }))).message,
        /:2: .*absent/
      )
    },
    skip
  )

  effect(
    "a step talks to an SSH agent, which is in no layer and in no key",
    function* () {
      const context = yield* contextOf("ssh", {})
      fs.mkdirSync(context, { recursive: true })
      const [one, other] = [`${folder()}/agent-1`, `${folder()}/agent-2`]
      yield* agentAt(one)
      yield* agentAt(other)
      const text = `FROM local/busybox
RUN --mount=type=ssh --mount=type=ssh,id=deploy,target=/agents/deploy \\
  test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /made && test -S /agents/deploy
RUN test -z "$SSH_AUTH_SOCK" && ! ls /agents/* /run/buildkit/*
`
      const events: Array<string> = []
      const build = (deploy: string) =>
        Build.dockerfile({
          context,
          text,
          ssh: { default: one, deploy },
          onEvent: ({ _tag }) => events.push(_tag)
        })
      const image = yield* build(one)
      assert.equal(yield* output(image, "cat /made"), "/run/buildkit/ssh_agent.0\n")
      events.length = 0
      yield* build(other)
      assert.deepEqual(events, ["Cached", "Cached"])
      const required = "FROM local/busybox\nRUN --mount=type=ssh,required=true true\n"
      assert.match(
        (yield* failure("BuildFailed", Build.dockerfile({ context, text: required }))).message,
        /:2: .*SSH agent default/
      )
      const script = `require("node:net").connect(process.env.SSH_AUTH_SOCK).on("data", (data) => console.log(String(data)))`
      const ofHost = ["/usr", "/lib", "/lib64"]
        .filter((path) => fs.existsSync(path))
        .map((path) => Mount.bind(path, path, { readOnly: true }) as Mount.Bind)
      const node = fs.realpathSync(
        process.versions.bun || "Deno" in globalThis ? "/usr/bin/node" : process.execPath
      )
      const said: Array<string> = []
      yield* Build.from("local/busybox").pipe(
        Build.run(["/node", "--eval", script], {
          ssh: { "/agent": one },
          mounts: [Mount.bind(node, "/node", { readOnly: true }) as Mount.Bind, ...ofHost]
        }),
        Build.image({ onEvent: (event) => event._tag === "Output" && said.push(event.line) })
      )
      assert.deepEqual(said, ["agent"])
    },
    skip
  )

  effect(
    "the network of the host and all rights need the caller's consent",
    function* () {
      const context = yield* contextOf("allow", {})
      fs.mkdirSync(context, { recursive: true })
      const insecure = "FROM local/busybox\nRUN --security=insecure grep CapEff /proc/self/status > /caps\n"
      const hosts = "FROM local/busybox\nRUN --network=host ls /sys/class/net > /nets\n"
      for (const [text, what] of [
        [insecure, "security.insecure"],
        [hosts, "network.host"]
      ] as const) {
        const error = yield* failure("BuildFailed", Build.dockerfile({ context, text }))
        assert.equal(error.reason, "Unsupported")
        assert.match(error.message, new RegExp(`:2: .*${what}`))
      }
      const all = yield* Build.dockerfile({ context, text: insecure, allow: ["security.insecure"] })
      const plain = yield* Build.dockerfile({ context, text: insecure.replace("=insecure", "=sandbox") })
      const [more, less] = [yield* output(all, "cat /caps"), yield* output(plain, "cat /caps")]
      assert.ok(BigInt(`0x${more.slice(8).trim()}`) > BigInt(`0x${less.slice(8).trim()}`), `${more} ${less}`)
      const image = yield* Build.dockerfile({ context, text: hosts, allow: ["network.host"] })
      assert.equal(
        (yield* output(image, "cat /nets")).trim().split("\n").sort().join(),
        fs.readdirSync("/sys/class/net").sort().join()
      )
    },
    skip
  )
})
