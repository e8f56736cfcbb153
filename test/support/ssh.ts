/** A real SSH agent with a key, and a real sshd on loopback that runs git for whoever has the key (sshd(8), ssh-agent(1)). */
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { waitUntil } from "./until.ts"

export const whyNoAgent: string | false = fs.existsSync("/usr/bin/ssh-agent")
  ? false
  : "openssh-client is missing: apt-get install openssh-client"

export const whyNoSshd: string | false = fs.existsSync("/usr/sbin/sshd")
  ? whyNoAgent
  : "openssh-server is missing: apt-get install openssh-server"

/** Starts a program, which is killed at the end. */
const program = (command: string, args: ReadonlyArray<string>, log: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const out = fs.openSync(log, "a")
      const child = spawn(command, args, { stdio: ["ignore", out, out] })
      fs.closeSync(out)
      return child
    }),
    (child) =>
      Effect.async<void>((resume) => {
        if (child.exitCode !== null) return resume(Effect.void)
        child.on("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )

export interface Agent {
  readonly socket: string
  /** The key that it has. */
  readonly publicKey: string
  readonly list: () => string
}

/** An agent with a key of its own. Files are made in the folder. */
export const sshAgent = (folder: string) =>
  Effect.gen(function* () {
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
    const [socket, key] = [`${folder}/socket`, `${folder}/key`]
    yield* program("/usr/bin/ssh-agent", ["-D", "-a", socket], `${folder}/log`)
    yield* waitUntil("the socket of ssh-agent", () => fs.existsSync(socket))
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "key-of-the-test", "-f", key])
    const env = { ...process.env, SSH_AUTH_SOCK: socket }
    execFileSync("ssh-add", ["-q", key], { env, stdio: "pipe" })
    // The agent alone has the secret key.
    fs.rmSync(key)
    const list = () => execFileSync("ssh-add", ["-l"], { env, encoding: "utf8" })
    return { socket, publicKey: fs.readFileSync(`${key}.pub`, "utf8").trim(), list } satisfies Agent
  })

const freePort = Effect.promise(
  () =>
    new Promise<number>((resolve) => {
      const server = net.createServer()
      server.listen(0, "127.0.0.1", () => {
        const { port } = server.address() as net.AddressInfo
        server.close(() => resolve(port))
      })
    })
)

export interface SshServer {
  readonly port: number
  /** Its line of a known_hosts. */
  readonly knownHost: string
  /** The lines that it has logged. */
  readonly log: () => string
}

/** Serves whoever has the key of the agent, as the user of this program. */
export const sshServer = (folder: string, { publicKey }: Agent) =>
  Effect.gen(function* () {
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
    const [hostKey, config, log] = [`${folder}/host_key`, `${folder}/config`, `${folder}/log`]
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", hostKey])
    fs.writeFileSync(`${folder}/authorized_keys`, `${publicKey}\n`, { mode: 0o600 })
    const port = yield* freePort
    fs.writeFileSync(
      config,
      `ListenAddress 127.0.0.1\nPort ${port}\nHostKey ${hostKey}\nAuthorizedKeysFile ${folder}/authorized_keys\n` +
        `PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nAuthenticationMethods publickey\nLogLevel VERBOSE\n`
    )
    // Root's sshd wants it, which a service would make.
    if (process.getuid?.() === 0 && !fs.existsSync("/run/sshd"))
      yield* Effect.acquireRelease(
        Effect.sync(() => fs.mkdirSync("/run/sshd", { mode: 0o755 })),
        () => Effect.sync(() => fs.rmdirSync("/run/sshd"))
      )
    const child = yield* program("/usr/sbin/sshd", ["-D", "-e", "-f", config], log)
    yield* waitUntil("sshd", () => {
      if (child.exitCode !== null) throw new Error(fs.readFileSync(log, "utf8"))
      return /Server listening/.test(fs.readFileSync(log, "utf8"))
    })
    const [type, key] = fs.readFileSync(`${hostKey}.pub`, "utf8").split(" ")
    return {
      port,
      knownHost: `[127.0.0.1]:${port} ${type} ${key}`,
      log: () => fs.readFileSync(log, "utf8")
    } satisfies SshServer
  })
