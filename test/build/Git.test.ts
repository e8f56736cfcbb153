/** Files of git repositories, which a real server of git has. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { Berth, Build, Image } from "../../lib/index.ts"
import { importBusybox, output } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { commit, git, gitServer, whyNoGit } from "../support/gitServer.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { environment } from "../support/scoped.ts"
import { waitUntil } from "../support/until.ts"

const skip = { skip: whyNoBusybox || whyNoGit }

/** A folder of repositories; the image `local/busybox` is in the store. */
const repositories = (name: string) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    yield* importBusybox
    const at = `${folder}/repositories-${name}`
    fs.mkdirSync(`${at}/empty`, { recursive: true })
    return at
  })

suite("git repositories of a build", (effect, folder) => {
  effect(
    "ADD has the files of a branch, a tag, a commit and a folder, and again only for another commit",
    function* () {
      const at = yield* repositories("add")
      const first = commit(`${at}/app`, { README: "one", "sub/deep/file": "deep\n" })
      fs.chmodSync(`${at}/app/README`, 0o755)
      fs.symlinkSync("sub/deep/file", `${at}/app/link`)
      const second = commit(`${at}/app`, {})
      git(`${at}/app`, "tag", "--annotate", "--message=x", "v1", first)
      git(`${at}/app`, "tag", "light", second)
      git(`${at}/app`, "branch", "feature/main", first)
      const server = yield* gitServer(at)
      const events: Array<string> = []
      const build = (instructions: string) =>
        Build.dockerfile({
          context: `${at}/empty`,
          text: `FROM local/busybox\n${instructions}\n`,
          onEvent: ({ _tag, text }) => events.push(`${_tag} ${text.split(" ")[0]}`)
        })
      const repository = `${server.url}/app.git`
      const image = yield* build(`ADD ${repository} /all
ADD ${repository}#v1 /tag/
ADD ${repository}#feature/main:sub /part
ADD --checksum=${second} ${repository}#light /light
ADD ${repository}#${first}:sub/deep/ /by-commit
ADD --keep-git-dir=true --chown=7:8 ${repository}#main /kept`)
      assert.equal(
        yield* output(
          image,
          "cd /; ls -A all tag part by-commit; readlink all/link; stat -c %u:%g:%a all/README tag/README kept/README; cat light/link; ls -d kept/.git; cat kept/.git/HEAD"
        ),
        `all:\nREADME\nlink\nsub\n\nby-commit:\nfile\n\npart:\ndeep\n\ntag:\nREADME\nsub\nsub/deep/file\n0:0:755\n0:0:644\n7:8:755\ndeep\nkept/.git\n${second}\n`
      )
      events.length = 0
      yield* build(`ADD ${repository} /all`)
      assert.deepEqual(events, ["Cached ADD"])
      const asked = server.asked.length
      yield* build(`ADD ${repository} /all\nADD ${repository}#${first} /x`)
      events.length = 0
      const before = server.asked.length
      assert.ok(before > asked)
      yield* build(`ADD ${repository}#${first} /by`)
      const once = server.asked.length
      yield* build(`ADD ${repository}#${first} /by`)
      assert.equal(server.asked.length, once, "a whole commit is not asked for")
      const third = commit(`${at}/app`, { README: "three" })
      const explained = yield* Build.explain(
        yield* Build.fromDockerfile({
          context: `${at}/empty`,
          text: `FROM local/busybox\nADD ${repository} /all\n`
        })
      )
      assert.deepEqual(explained[0]!.reasons, [`the file ${repository}# has changed`])
      assert.equal(yield* output(yield* build(`ADD ${repository} /all`), "cat /all/README"), "three")
      const wrong = yield* failure("BuildFailed", build(`ADD --checksum=${first} ${repository} /all`))
      assert.equal(wrong.reason, "Unavailable")
      assert.match(wrong.message, new RegExp(`:2: ADD .*its commit is ${third}, and not ${first}`))
    },
    skip
  )

  effect(
    "a repository is the context of a build, without what its .dockerignore leaves out",
    function* () {
      const at = yield* repositories("context")
      commit(`${at}/app`, {
        "docker/Dockerfile": `FROM local/busybox
COPY . /all
COPY --from=other note /note
RUN --mount=target=/seen ls -A /seen /all > /list
`,
        "docker/.dockerignore": "*.log\n!kept.log\n",
        "docker/a.log": "",
        "docker/kept.log": "",
        "docker/sub/file": "x",
        outside: "not in the folder",
        Dockerfile: "FROM scratch\nCOPY outside /\n"
      })
      commit(`${at}/other`, { note: "noted\n" })
      fs.symlinkSync("/etc/passwd", `${at}/other/Dockerfile`)
      commit(`${at}/other`, {})
      const server = yield* gitServer(at)
      const image = yield* Build.dockerfile({
        context: `${server.url}/app.git#main:docker`,
        contexts: { other: `${server.url}/other.git` }
      })
      const names = ".dockerignore\nDockerfile\nkept.log\nsub\n"
      assert.equal(yield* output(image, "cat /list /note"), `/all:\n${names}\n/seen:\n${names}noted\n`)
      const whole = yield* Build.dockerfile({ context: `${server.url}/app.git` })
      assert.equal(fs.readFileSync(`${whole.layers.at(-1)}/outside`, "utf8"), "not in the folder")
      // A link to a file of the host leads nowhere.
      const error = yield* failure("InvalidOption", Build.dockerfile({ context: `${server.url}/other.git` }))
      assert.match(error.message, /Dockerfile of the repository: there is no such file/)
      const typed = Build.from("local/busybox").pipe(
        Build.copy({ from: Build.git(`${server.url}/other.git`), paths: ["note"], to: "/typed" }),
        Build.run("cat /typed /seen > /both", {
          bind: [{ from: Build.git(`${server.url}/other.git`), path: "note", target: "/seen" }]
        })
      )
      assert.equal(yield* output(yield* Build.image(typed), "cat /both"), "noted\nnoted\n")
    },
    skip
  )

  effect(
    "a token is sent to the host that it is for, and is nowhere else",
    function* () {
      const at = yield* repositories("token")
      commit(`${at}/app`, { file: "private\n", Dockerfile: "FROM local/busybox\nCOPY file /\n" })
      const words = "xyzzy-token"
      const header = `Basic ${Buffer.from(`x-access-token:${words}`).toString("base64")}`
      const server = yield* gitServer(at, ({ headers }, response) => {
        if (headers.authorization === header) return false
        response.writeHead(401, { "www-authenticate": "Basic" }).end()
        return true
      })
      const leading = yield* gitServer(at, ({ url = "" }, response) => {
        response.writeHead(302, { location: `${server.url}${url}` }).end()
        return true
      })
      const told: Array<unknown> = []
      const onEvent = (event: Build.BuildEvent) => told.push(event)
      const secrets = {
        "GIT_AUTH_TOKEN.127.0.0.1": Redacted.make(words),
        "GIT_AUTH_TOKEN.example.test": "other"
      }
      const context = `${server.url}/app.git`
      const image = yield* Build.dockerfile({
        context,
        secrets,
        onEvent,
        tag: "test/git:1",
        provenance: true
      })
      const text = `FROM local/busybox\nADD ${context} /\n`
      const added = yield* Build.dockerfile({ context: `${at}/empty`, text, secrets, onEvent })
      for (const one of [image, added]) assert.equal(yield* output(one, "cat /file"), "private\n")
      const redirected = Build.image(Build.git(`${leading.url}/app.git`, { token: words }), { onEvent })
      told.push(yield* failure("BuildFailed", redirected))
      told.push(yield* failure("BuildFailed", Build.image(Build.git(context), { onEvent })))
      const typed = Build.git(context, { token: words })
      told.push(typed, yield* Build.explain(typed), yield* Image.history(image.reference))
      const other = Build.image(Build.git(`http://git.example.test/app.git`, { token: words }))
      assert.match((yield* failure("BuildFailed", other)).message, /https:\/\/ alone/)
      const inAddress = Build.image(Build.git(`https://jane:${words}@git.example.test/app.git`))
      const refused = yield* failure("InvalidOption", inAddress)
      assert.match(refused.message, /has no password/)
      told.push(refused)
      assert.ok(!inspect(told, { depth: 9 }).includes(words))
      const there = (word: string) =>
        execFileSync("sh", ["-c", 'grep -ral "$1" "$2" || true', "sh", word, folder()], { encoding: "utf8" })
      assert.equal(there(words), "")
      assert.equal(there(header.slice("Basic ".length)), "")
    },
    skip
  )

  effect(
    "what a repository asks git to do, or a server says, is not done",
    function* () {
      const at = yield* repositories("hostile")
      const ran = `${at}/ran`
      commit(`${at}/sub`, { file: "of the submodule" })
      commit(`${at}/app`, {
        ".gitattributes": "* filter=evil\n",
        ".lfsconfig": "[lfs]\n",
        file: "file\n"
      })
      const server = yield* gitServer(at, ({ url = "" }, response) => {
        if (!url.startsWith("/evil.git")) return false
        response.writeHead(302, { location: `ext::sh -c touch% ${ran}` }).end()
        return true
      })
      // The configuration of the user is not read.
      const home = `${at}/home`
      fs.mkdirSync(home)
      fs.writeFileSync(
        `${home}/.gitconfig`,
        `[core]\n\thooksPath = ${home}/hooks\n[filter "evil"]\n\tsmudge = touch ${ran}; cat\n[url "file://${at}/"]\n\tinsteadOf = ${server.url}/\n`
      )
      fs.mkdirSync(`${home}/hooks`)
      fs.writeFileSync(`${home}/hooks/post-checkout`, `#!/bin/sh\ntouch ${ran}\n`, { mode: 0o755 })
      yield* environment({ HOME: home })
      const build = (address: string, options?: Build.GitOptions) => Build.image(Build.git(address, options))
      const image = yield* build(`${server.url}/app.git`)
      assert.equal(fs.readFileSync(`${image.layers.at(-1)}/file`, "utf8"), "file\n")
      for (const [address, mention] of [
        [`${server.url}/evil.git`, ""],
        [`${server.url}/absent.git`, "not found"],
        [`${server.url}/app.git#none`, "no branch, tag or commit none"],
        [`${server.url}/app.git#${"0".repeat(40)}`, ""],
        ["http://127.0.0.1:1/app.git", "Failed to connect"]
      ] as const) {
        const error = yield* failure("BuildFailed", build(address))
        assert.equal(error.reason, "Unavailable", error.message)
        assert.match(error.message, new RegExp(mention))
      }
      assert.equal((yield* failure("BuildFailed", build(`${server.url}/app.git#:absent`))).reason, "NoMatch")
      for (const address of [
        `file://${at}/app`,
        `${at}/app`,
        `ext::sh -c 'touch ${ran}'`,
        "git://git.example.test/app.git",
        "ssh://git:words@git.example.test/app.git",
        "ssh://-oProxyCommand=touch/app.git",
        "ssh://git@%2doProxyCommand=touch/app.git",
        "ssh://-l@git.example.test/app.git",
        "git@-oProxyCommand=touch:app.git",
        "git@git.example.test:-app.git",
        "git@git.example.test:app.git\nx",
        `${server.url}/app.git#--upload-pack=touch ${ran}`,
        `${server.url}/app.git#-x`,
        `${server.url}/app.git#a..b`
      ])
        yield* failure("InvalidOption", build(address))
      // A submodule is an address that the repository has chosen: of this machine, or by another protocol.
      for (const url of [`${server.url}/sub.git`, `file://${at}/sub`, `ext::sh -c touch% ${ran}`]) {
        fs.rmSync(`${at}/outer`, { recursive: true, force: true })
        commit(`${at}/outer`, { ".gitmodules": `[submodule "m"]\n\tpath = m\n\turl = ${url}\n` })
        const its = git(`${at}/sub`, "rev-parse", "HEAD")
        git(`${at}/outer`, "update-index", "--add", "--cacheinfo", `160000,${its},m`)
        git(`${at}/outer`, "commit", "--quiet", "--message=m")
        const address = `${server.url}/outer.git`
        assert.match((yield* failure("BuildFailed", build(address))).message, /has submodules/)
        const without = yield* build(address, { submodules: false })
        assert.deepEqual(fs.readdirSync(`${without.layers.at(-1)}/m`), [])
        const fetched = yield* Effect.either(build(address, { submodules: true }))
        assert.equal(fetched._tag, url.startsWith("http") ? "Right" : "Left", url)
        if (fetched._tag === "Right")
          assert.equal(fs.readFileSync(`${fetched.right.layers.at(-1)}/m/file`, "utf8"), "of the submodule")
      }
      assert.ok(!fs.existsSync(ran))
    },
    skip
  )

  effect(
    "an interrupted build ends git, and leaves nothing",
    function* () {
      const { supervisor } = yield* Berth.Berth
      const at = yield* repositories("silent")
      // It never answers.
      const server = yield* gitServer(at, () => true)
      const before = fs.readdirSync(supervisor.folder)
      const fiber = yield* Effect.fork(Build.image(Build.git(`${server.url}/app.git`)))
      yield* waitUntil("a question of git", () => server.asked.length > 0)
      const made = fs.readdirSync(supervisor.folder).find((name) => name.startsWith("git-"))
      assert.ok(made !== undefined)
      const running = () =>
        fs.readdirSync("/proc").filter((pid) => {
          try {
            return fs.readlinkSync(`/proc/${pid}/cwd`).startsWith(`${supervisor.folder}/${made}`)
          } catch {
            return false
          }
        })
      assert.ok(running().length > 0)
      yield* Fiber.interrupt(fiber)
      assert.deepEqual(fs.readdirSync(supervisor.folder), before)
      yield* waitUntil("the end of git", () => running().length === 0)
    },
    skip
  )
})
