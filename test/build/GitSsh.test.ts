/** Files of git repositories by SSH: a real sshd has them, and a real agent the key. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import { Berth, Build } from "../../lib/index.ts"
import { importBusybox, output } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { commit, git, whyNoGit } from "../support/gitServer.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { environment } from "../support/scoped.ts"
import { sshAgent, sshServer, whyNoSshd } from "../support/ssh.ts"

const skip = { skip: whyNoBusybox || whyNoGit || whyNoSshd }

const user = os.userInfo().username

/** A repository, and a server that has it; the image `local/busybox` is in the store. */
const served = (name: string) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    yield* importBusybox
    const at = `${folder}/${name} of the test`
    fs.mkdirSync(`${at}/empty`, { recursive: true })
    const first = commit(`${at}/app.git`, {
      Dockerfile: "FROM local/busybox\nCOPY . /all\nRUN ls -A /all > /list\n",
      ".dockerignore": "*.log\n",
      "a.log": "log",
      "sub/file": "in sub\n"
    })
    const agent = yield* sshAgent(`${folder}/${name}-agent`)
    const server = yield* sshServer(`${folder}/${name}-sshd`, agent)
    const encoded = `${at}/app.git`.replaceAll(" ", "%20")
    return { at, agent, server, first, url: `ssh://${user}@127.0.0.1:${server.port}${encoded}` }
  })

suite("git repositories by SSH", (effect, folder) => {
  effect(
    "are a context, a source of ADD and files of a typed build, by the key of the agent",
    function* () {
      const { agent, at, first, server, url } = yield* served("good")
      git(`${at}/app.git`, "tag", "v1")
      const second = commit(`${at}/app.git`, { "sub/file": "changed\n" })
      const options = { ssh: { default: agent.socket }, knownHosts: server.knownHost }
      const image = yield* Build.dockerfile({ context: `${url}#v1`, ...options })
      assert.equal(
        yield* output(image, "cat /list /all/sub/file"),
        ".dockerignore\nDockerfile\nsub\nin sub\n"
      )
      const text = `FROM local/busybox
ADD ${url}#main:sub /sub
ADD --checksum=${first} ${url}#v1:sub /tag
COPY --from=other sub/file /other
`
      const events: Array<string> = []
      const add = Build.dockerfile({
        context: `${at}/empty`,
        contexts: { other: url },
        text,
        ...options,
        onEvent: ({ _tag }) => events.push(_tag)
      })
      assert.equal(yield* output(yield* add, "cat /sub/file /tag/file /other"), "changed\nin sub\nchanged\n")
      events.length = 0
      yield* add
      assert.deepEqual([...new Set(events)], ["Cached"])
      const typed = Build.git(url, { ssh: agent.socket, knownHosts: server.knownHost, keepGitDir: true })
      const { layers } = yield* Build.image(typed)
      assert.equal(fs.readFileSync(`${layers.at(-1)}/.git/HEAD`, "utf8"), `${second}\n`)
    },
    skip
  )

  effect(
    "come from a server whose key is known alone, and with no key but the agent's",
    function* () {
      const { agent, server, url } = yield* served("strict")
      const other = yield* sshAgent(`${folder()}/other-agent`)
      const build = (options: Build.GitOptions, address = url) => Build.image(Build.git(address, options))
      const home = `${folder()}/home`
      fs.mkdirSync(`${home}/.ssh`, { recursive: true })
      yield* environment({ HOME: home })
      const ssh = agent.socket
      const wrongKey = server.knownHost.replace(/ \S+$/, ` ${other.publicKey.split(" ")[1]}`)
      for (const [options, mention] of [
        [{ knownHosts: server.knownHost }, "needs an SSH agent"],
        [{ ssh }, "Host key verification failed"],
        [{ ssh, knownHosts: "" }, "Host key verification failed"],
        [{ ssh, knownHosts: wrongKey }, "Host key verification failed"],
        [{ ssh: other.socket, knownHosts: server.knownHost }, "Permission denied"],
        [{ ssh, knownHosts: server.knownHost, token: "words" }, "https:// alone"]
      ] as const) {
        const error = yield* failure("BuildFailed", build(options))
        assert.equal(error.reason, "Unavailable", error.message)
        assert.match(error.message, new RegExp(mention))
      }
      const text = `FROM local/busybox\nADD ${url} /\n`
      const without = yield* failure("BuildFailed", Build.dockerfile({ context: folder(), text }))
      assert.match(without.message, /:2: ADD .*needs an SSH agent/)
      // The form of scp(1) has no port.
      const unknown = yield* failure("BuildFailed", build({ ssh }, "git@host.invalid:team/app.git#main:sub"))
      assert.match(unknown.message, /git@host\.invalid:team\/app\.git: .*host\.invalid/s)
      assert.ok(!server.log().includes("Accepted"))
      // The servers that the user knows.
      fs.writeFileSync(`${home}/.ssh/known_hosts`, `${server.knownHost}\n`)
      yield* build({ ssh })
      assert.match(server.log(), /Accepted publickey/)
      // The user's servers do not count beside those that are given.
      assert.match(
        (yield* failure("BuildFailed", build({ ssh, knownHosts: "# none" }, `${url}#v0`))).message,
        /Host key/
      )
    },
    skip
  )
})
