/**
 * The SSH agents of steps. A step gets a socket of this program, with an owner and a mode of its own, which passes on the requests for
 * the list of keys and for signatures. Others, which change the keys of the agent or lock it, are answered with a failure, as BuildKit
 * does (draft-miller-ssh-agent).
 */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import { failedAs } from "../files/fileFailure.ts"
import { metadataOf, setMetadata } from "../files/metadata.ts"
import * as inRoot from "../files/rooted.ts"
import { outside, own } from "../ids/idMaps.ts"
import { AF_UNIX, unix } from "../network/address.ts"
import { SOCK_STREAM } from "../network/socket.ts"
import { native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import type { Agent, Run } from "./node.ts"

const MODE = 0o600

const REQUEST_IDENTITIES = 11
const SIGN_REQUEST = 13
const FAILURE = Uint8Array.of(0, 0, 0, 1, 5)

/** What OpenSSH's agent takes. */
const MESSAGE_BYTES_MAX = 256 * 1024

/** Connections of a step at a time; others are closed. */
const CONNECTIONS_MAX = 256

/** What a key has of a step's agents: everything but which agents they are. */
export const placesOf = ({ agents }: Run) =>
  agents.map(({ gid = 0, mode = MODE, target, uid = 0 }) => [target, uid, gid, mode])

/** The messages of one side, each with its length at the front; ends with one that is no message. */
async function* messages(socket: net.Socket): AsyncGenerator<Buffer, undefined> {
  let bytes = Buffer.alloc(0)
  for await (const part of socket) {
    bytes = Buffer.concat([bytes, part as Buffer])
    while (bytes.length >= 5) {
      const end = 4 + bytes.readUInt32BE(0)
      if (end < 5 || end > MESSAGE_BYTES_MAX) return
      if (bytes.length < end) break
      yield bytes.subarray(0, end)
      bytes = bytes.subarray(end)
    }
  }
}

/** Answers a client, one request after the other. */
const serve = async (client: net.Socket, socket: string): Promise<void> => {
  let agent: net.Socket | undefined
  let answers: AsyncGenerator<Buffer, undefined> | undefined
  try {
    for await (const message of messages(client)) {
      const type = message[4]
      if (type !== REQUEST_IDENTITIES && type !== SIGN_REQUEST) {
        client.write(FAILURE)
        continue
      }
      agent ??= net.connect(socket).on("error", () => {})
      answers ??= messages(agent)
      agent.write(message)
      const { value } = await answers.next()
      if (value === undefined) return
      client.write(value)
    }
  } catch {
    // One side has gone.
  } finally {
    client.destroy()
    agent?.destroy()
  }
}

/** A socket in a folder, of any length of its path, with the owner and the mode; throws. */
const listening = (folder: string, { gid = 0, mode = MODE, uid = 0 }: Agent): number =>
  inRoot.using(inRoot.openHost(folder, inRoot.O_FOLDER), (at) => {
    const fd = native().socketIn(-1, -1, AF_UNIX, SOCK_STREAM)
    if (fd < 0) return inRoot.fail(-fd, "socket", folder)
    try {
      const bound = native().bind(fd, unix(`${inRoot.via(at)}/agent`).bytes)
      if (bound < 0) inRoot.fail(-bound, "bind", folder)
      const { gids, uids } = own()
      inRoot.using(inRoot.open(at, "agent", O_PATH | O_NOFOLLOW), (file) => {
        const now = metadataOf(file, fs.statSync(inRoot.via(file)), folder)
        setMetadata(file, { ...now, mode, uid: outside(uids, uid), gid: outside(gids, gid) }, folder, true)
      })
      const result = native().listen(fd)
      if (result < 0) inRoot.fail(-result, "listen", folder)
      return fd
    } catch (error) {
      native().close(fd)
      throw error
    }
  })

const checked = ({ gid, mode, socket, target, uid }: Agent): string => {
  check.id(`ssh.${target}.uid`, uid)
  check.id(`ssh.${target}.gid`, gid)
  check.mode(`ssh.${target}.mode`, mode, 0o777)
  const file = socket === undefined ? undefined : path.resolve(socket)
  return file !== undefined && fs.statSync(file, { throwIfNoEntry: false })?.isSocket() === true
    ? file
    : check.invalid(`ssh.${target}`, socket, "the socket of an SSH agent, as in SSH_AUTH_SOCK")
}

/** The path of a socket that leads to an agent, until the scope closes. */
export const opened = (
  berth: Berth,
  node: Run,
  agent: Agent
): Effect.Effect<string, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = yield* attempt(() => checked(agent))
    // In the state folder: a sweep removes it after a killed program.
    const folder = `${berth.supervisor.folder}/agent-${randomBytes(8).toString("hex")}`
    const failed = failedAs(node.text)
    yield* Effect.acquireRelease(
      Effect.try({ try: () => fs.mkdirSync(folder, { mode: 0o700 }), catch: failed }),
      () => Effect.sync(() => fs.rmSync(folder, { recursive: true, force: true }))
    )
    const clients = new Set<net.Socket>()
    yield* Effect.acquireRelease(
      Effect.try({
        try: () => {
          const server = net.createServer((client) => {
            clients.add(client)
            client.on("error", () => {}).on("close", () => clients.delete(client))
            void serve(client, socket)
          })
          server.maxConnections = CONNECTIONS_MAX
          const fd = listening(folder, agent)
          native().disown(fd)
          return server.listen({ fd })
        },
        catch: failed
      }),
      (server) =>
        Effect.async<void>((resume) => {
          server.close(() => resume(Effect.void))
          for (const client of clients) client.destroy()
        })
    )
    return `${folder}/agent`
  })
