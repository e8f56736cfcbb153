/**
 * Files of git repositories, by the program `git` of this machine. It is told nothing by the configuration of the user or of the machine,
 * runs no hook and no filter, and speaks HTTP, or SSH with the keys of one agent to servers that are known: a repository, and what its
 * server answers, are an attacker's.
 */
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs/promises"
import { homedir } from "node:os"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import * as inRoot from "../files/rooted.ts"
import { isLoopback } from "../registry/proxy.ts"
import { COMMIT, serverOf } from "../util/gitAddress.ts"
import type { Git } from "./node.ts"
import { Unavailable } from "./remote.ts"

/** What a server may answer, and what is shown of an error. */
const ANSWER_BYTES_MAX = 1024 * 1024
const SHOWN_BYTES_MAX = 2000

/** The time without a byte after which a transfer ends. */
const SILENCE_SECONDS = 60

const KNOWN_HOSTS = "known_hosts"

const CONFIG: Readonly<Record<string, string>> = {
  "core.hooksPath": "/dev/null",
  "core.attributesFile": "/dev/null",
  "core.fsmonitor": "false",
  "core.autocrlf": "false",
  "credential.helper": "",
  "gc.auto": "0",
  "init.templateDir": "",
  "maintenance.auto": "false",
  "protocol.version": "2",
  "submodule.recurse": "false",
  "transfer.fsckObjects": "true"
}

/** Variables of this program that say how the network is reached. */
const NETWORK = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]
const TAKEN = [
  "PATH",
  ...NETWORK,
  ...NETWORK.map((name) => name.toLowerCase()),
  "GIT_SSL_CAINFO",
  "GIT_SSL_CAPATH"
]

/**
 * ssh with the agent as its only key, and without a question: a server whose key is not known is refused. Without `-F none` it would read
 * the configuration of the user. The path of the folder cannot be one of its options, in which `%` and spaces mean something.
 */
const SSH = [
  'cd "$HOME" && exec ssh -F none',
  ...[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    `UserKnownHostsFile=${KNOWN_HOSTS}`,
    "UpdateHostKeys=no",
    "IdentityFile=none",
    "PreferredAuthentications=publickey",
    `ConnectTimeout=${SILENCE_SECONDS}`,
    `ServerAliveInterval=${SILENCE_SECONDS / 4}`
  ].map((option) => `-o ${option}`)
].join(" ")

/** What git speaks SSH with: the agent's socket, and the servers that are known. With those that are given, the machine's do not count. */
const sshOf = async ({ agent, knownHosts }: Git, home: string): Promise<Readonly<Record<string, string>>> => {
  if (agent === undefined)
    throw new Unavailable(
      "an address of SSH needs an SSH agent: give its socket, as in SSH_AUTH_SOCK, as ssh"
    )
  const known = knownHosts ?? (await fs.readFile(`${homedir()}/.ssh/known_hosts`, "utf8").catch(() => ""))
  await fs.writeFile(`${home}/${KNOWN_HOSTS}`, known, { mode: 0o600 })
  const global = knownHosts === undefined ? "" : " -o GlobalKnownHostsFile=/dev/null"
  return { SSH_AUTH_SOCK: path.resolve(agent), GIT_SSH_COMMAND: `${SSH}${global}`, GIT_SSH_VARIANT: "ssh" }
}

/** What git may speak: a server with TLS or SSH cannot lead to one without, nor to a key of the agent. */
const PROTOCOLS = { "http:": "http:https", "https:": "https", "ssh:": "ssh:https" }

const environmentOf = async (git: Git, home: string): Promise<Record<string, string>> => {
  const { token, url } = git
  const { protocol } = serverOf(url)
  const value = Redacted.isRedacted(token) ? Redacted.value(token) : token
  const header = value === undefined ? undefined : Buffer.from(`x-access-token:${value}`).toString("base64")
  // Given as variables, since other users of the machine see the arguments of a program. A redirect would take the token along.
  const config = Object.entries({
    ...CONFIG,
    ...(header === undefined
      ? {}
      : {
          [`http.${new URL(url).origin}/.extraHeader`]: `Authorization: Basic ${header}`,
          "http.followRedirects": "false"
        })
  })
  return {
    ...Object.fromEntries(TAKEN.flatMap((name) => (process.env[name] ? [[name, process.env[name]!]] : []))),
    HOME: home,
    LC_ALL: "C",
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_TERMINAL_PROMPT: "0",
    GIT_HTTP_LOW_SPEED_LIMIT: "1",
    GIT_HTTP_LOW_SPEED_TIME: String(SILENCE_SECONDS),
    GIT_ASKPASS: "",
    ...(protocol === "ssh:" ? await sshOf(git, home) : {}),
    GIT_ALLOW_PROTOCOL: PROTOCOLS[protocol],
    GIT_CONFIG_COUNT: String(config.length),
    ...Object.fromEntries(
      config.flatMap(([key, value], k) => [
        [`GIT_CONFIG_KEY_${k}`, key],
        [`GIT_CONFIG_VALUE_${k}`, value]
      ])
    )
  }
}

/** What a server has sent may not steer a terminal. */
const shown = (text: string): string =>
  text
    .replace(/[^\P{Cc}\n]/gu, "")
    .trim()
    .slice(-SHOWN_BYTES_MAX)

/** Runs git, and gives what it writes. With the signal it is killed, with the programs that it has started. */
const run = (
  args: ReadonlyArray<string>,
  {
    cwd,
    env,
    signal
  }: { readonly cwd: string; readonly env: Record<string, string>; readonly signal: AbortSignal }
): Promise<string> =>
  new Promise((resolve, reject) => {
    // Files are to have the same modes, whatever the umask of this program is.
    const child = spawn("/bin/sh", ["-c", 'umask 022; exec git "$@"', "git", ...args], {
      cwd,
      env,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"]
    })
    let [out, error] = ["", ""]
    const kill = (): void => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL")
      } catch {
        // It has ended.
      }
    }
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      out += part
      if (out.length > ANSWER_BYTES_MAX) kill()
    })
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      error = `${error}${part}`.slice(-ANSWER_BYTES_MAX)
    })
    if (signal.aborted) kill()
    signal.addEventListener("abort", kill)
    child.on("error", (cause) =>
      reject(new Unavailable(`git cannot be started: ${cause.message}`, { cause }))
    )
    child.on("close", (code) => {
      signal.removeEventListener("abort", kill)
      if (code === 0) return resolve(out)
      if (code === 127) return reject(new Unavailable("this machine has no git: install the package git"))
      const said = shown(error)
      if (/\bexec: ssh: not found$/m.test(said))
        return reject(new Unavailable("this machine has no ssh: install the package openssh-client"))
      if (/No space left on device|Disk quota exceeded/.test(said))
        return reject(Object.assign(new Error(said), { code: "ENOSPC" }))
      const why = out.length > ANSWER_BYTES_MAX ? "the server answers too much" : said
      reject(new Unavailable(why === "" ? "git was ended" : why))
    })
  })

/** The commit of a name, from the answer of `git ls-remote`: a tag, else a branch, as in gitrevisions(7). */
const chosen = (answer: string, ref: string | undefined): { commit: string; name: string } | undefined => {
  const refs = new Map(answer.split("\n").map((line) => line.split("\t").toReversed() as [string, string]))
  const names = ref === undefined ? ["HEAD"] : [ref, `refs/tags/${ref}`, `refs/heads/${ref}`]
  for (const name of names) {
    const commit = refs.get(`${name}^{}`) ?? refs.get(name)
    if (commit !== undefined && COMMIT.test(commit)) return { commit, name }
  }
}

type Resolved = NonNullable<Git["resolved"]>

const inFolder = (berth: Berth): Effect.Effect<string, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    // A sweep removes it with the state of a killed program.
    const folder = `${berth.supervisor.folder}/git-${randomBytes(8).toString("hex")}`
    return yield* Effect.acquireRelease(
      Effect.tryPromise({ try: () => fs.mkdir(folder, { mode: 0o700 }), catch: (error) => error }).pipe(
        Effect.as(folder)
      ),
      () => Effect.promise(() => fs.rm(folder, { recursive: true, force: true }))
    )
  })

/** The commit of the repository. It is asked for, unless the address has it. */
export const resolved = (berth: Berth, git: Git): Effect.Effect<Resolved, unknown> =>
  Effect.gen(function* () {
    const { checksum, ref, token, url } = git
    if (git.resolved !== undefined) return git.resolved
    const { hostname, protocol } = serverOf(url)
    if (token !== undefined && protocol !== "https:" && !(protocol === "http:" && isLoopback(hostname)))
      return yield* Effect.fail(new Unavailable("a token is sent to addresses with https:// alone"))
    const same = (commit: string) =>
      checksum === undefined || checksum === commit
        ? Effect.void
        : Effect.fail(new Unavailable(`its commit is ${commit}, and not ${checksum}`))
    if (ref !== undefined && COMMIT.test(ref)) return yield* Effect.as(same(ref), { commit: ref, name: ref })
    const cwd = yield* inFolder(berth)
    const env = yield* inRoot.promised(() => environmentOf(git, cwd))
    const names =
      ref === undefined ? ["HEAD"] : [ref, `refs/tags/${ref}`, `refs/tags/${ref}^{}`, `refs/heads/${ref}`]
    const answer = yield* inRoot.promised((signal) =>
      run(["ls-remote", "--quiet", "--", url, ...names], { cwd, env, signal })
    )
    const found = chosen(answer, ref)
    if (found === undefined)
      return yield* Effect.fail(new Unavailable(`it has no branch, tag or commit ${ref ?? "HEAD"}`))
    yield* same(found.commit)
    return found
  }).pipe(Effect.scoped)

/** Checks out a commit; gives the folder of its files, until the scope closes. */
export const checkedOut = (
  berth: Berth,
  git: Git,
  { commit, name }: Resolved
): Effect.Effect<string, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const home = yield* inFolder(berth)
    const cwd = `${home}/files`
    yield* inRoot.promised(async (signal) => {
      const env = await environmentOf(git, home)
      const how = { cwd, env, signal }
      await fs.mkdir(cwd, { mode: 0o755 })
      await run(["init", "--quiet"], how)
      await run(
        ["fetch", "--quiet", "--depth", "1", "--no-tags", "--no-recurse-submodules", "--", git.url, name],
        how
      )
      const has = (await run(["rev-parse", "--verify", "FETCH_HEAD^{commit}"], how)).trim()
      if (has !== commit) throw new Unavailable(`${name} has changed from ${commit} to ${has}: build again`)
      await run(["checkout", "--quiet", "--detach", commit], how)
      const submodules = (await run(["ls-files", "--", ".gitmodules"], how)) !== ""
      if (submodules && git.submodules === undefined)
        throw new Unavailable(
          "it has submodules, whose addresses are the repository's choice: say with submodules whether they are fetched"
        )
      if (submodules && git.submodules === true)
        await run(["submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1"], how)
      if (!git.keepGitDir) await fs.rm(`${cwd}/.git`, { recursive: true, force: true })
    })
    return cwd
  })
