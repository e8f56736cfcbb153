// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Build, Mount } from "../../lib/index.ts"
import { importBusybox, output } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { sshAgent, whyNoAgent } from "../support/ssh.ts"

const skip = { skip: whyNoBusybox }

/** A context with these files; the image `local/busybox` is in the store. */
const contextOf = (name: string, files: Readonly<Record<string, string>>) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    yield* importBusybox
    const context = `${folder}/context-${name}`
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(`${context}/${file}`.replace(/[^/]*$/, ""), { recursive: true })
      fs.writeFileSync(`${context}/${file}`, text)
    }
    return context
  })

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
    "a step asks an SSH agent for its keys and for signatures, and for nothing else",
    function* () {
      yield* contextOf("agent", { file: "" })
      const { list, socket } = yield* sshAgent(`${folder()}/agent`)
      const before = list()
      const ofHost = ["/usr", "/lib", "/lib64"]
        .filter((path) => fs.existsSync(path))
        .map((path) => Mount.bind(path, path, { readOnly: true }) as Mount.Bind)
      const said: Array<string> = []
      // The agent answers the third request after it has refused the second one.
      const script = `ssh-add -l; ssh-add -D; ssh-add -l
        echo text > /tmp/text; ssh-add -L > /tmp/key; ssh-keygen -q -Y sign -n file -f /tmp/key /tmp/text && head -n 1 /tmp/text.sig`
      yield* Build.from("local/busybox").pipe(
        Build.run(script, { ssh: { "/agent": socket }, mounts: ofHost }),
        Build.image({ onEvent: (event) => event._tag === "Output" && said.push(event.line) })
      )
      const key = before.trim()
      assert.deepEqual(
        said.toSorted(),
        [key, key, "-----BEGIN SSH SIGNATURE-----", "Failed to remove all identities."].toSorted()
      )
      assert.equal(list(), before)
      // Anything but a request ends the connection, and no other one.
      const strange = Build.from("local/busybox").pipe(
        Build.run("head -c 9 /dev/zero | nc local:/agent; ssh-add -l", {
          ssh: { "/agent": { socket, mode: 0o666, uid: 7 } },
          user: "9",
          mounts: ofHost
        })
      )
      yield* Build.image(strange)
    },
    { skip: whyNoBusybox || whyNoAgent }
  )

  effect(
    "the socket of an SSH agent has an owner and a mode; the agent is in no layer and in no key",
    function* () {
      const context = yield* contextOf("ssh", { file: "" })
      const [one, other] = [yield* sshAgent(`${folder()}/one`), yield* sshAgent(`${folder()}/other`)]
      const text = `FROM local/busybox
RUN --mount=type=ssh --mount=type=ssh,id=deploy,target=/agents/deploy,uid=7,gid=8,mode=0640 --mount=type=ssh,id=absent \\
  test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /made && stat -c %u:%g:%a $SSH_AUTH_SOCK /agents/deploy >> /made && ls /run/buildkit >> /made
RUN test -z "$SSH_AUTH_SOCK" && ! ls /agents/* /run/buildkit/*
`
      const events: Array<string> = []
      const build = (deploy: string, given = text) =>
        Build.dockerfile({
          context,
          text: given,
          ssh: { default: one.socket, deploy, absent: undefined },
          onEvent: ({ _tag }) => events.push(_tag)
        })
      const image = yield* build(one.socket)
      const made = "/run/buildkit/ssh_agent.0\n0:0:600\n7:8:640\nssh_agent.0\n"
      assert.equal(yield* output(image, "cat /made"), made)
      events.length = 0
      yield* build(other.socket)
      assert.deepEqual(events, ["Cached", "Cached"])
      yield* build(other.socket, text.replace("mode=0640", "mode=0600"))
      assert.ok(events.includes("Started"))
      const { ino } = fs.statSync(one.socket)
      yield* build(other.socket, "FROM local/busybox\nRUN --mount=type=ssh chmod 777 $SSH_AUTH_SOCK\n")
      assert.deepEqual([fs.statSync(one.socket).mode & 0o777, fs.statSync(one.socket).ino], [0o600, ino])
      for (const [mount, mention] of [
        ["id=absent,required=true", "SSH agent absent"],
        ["required=maybe", "required is true or false"],
        ["mode=999", "mode is a mode in octal digits"]
      ] as const) {
        const error = yield* failure(
          "BuildFailed",
          build(one.socket, `FROM local/busybox\nRUN --mount=type=ssh,${mount} true\n`)
        )
        assert.match(error.message, new RegExp(`:2: .*${mention}`))
      }
      const typed = (ssh: NonNullable<Build.RunOptions["ssh"]>) =>
        Build.image(Build.from("local/busybox").pipe(Build.run('test -z "$SSH_AUTH_SOCK"', { ssh })))
      yield* typed({ "/agent": undefined, "/other": { socket: undefined } })
      for (const ssh of [
        { "/agent": { socket: undefined, required: true } },
        { "/agent": "/etc/passwd" },
        { "/agent": `${folder()}/none` },
        { "/agent": { socket: one.socket, mode: 0o1777 } },
        { "/agent": { socket: one.socket, uid: -1 } }
      ])
        assert.match((yield* failure("InvalidOption", typed(ssh))).option, /^ssh\.\/agent/)
    },
    { skip: whyNoBusybox || whyNoAgent }
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
