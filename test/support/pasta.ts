/**
 * Containers that reach outside by pasta: a program in network and mount namespaces of its own, which are its machine, with a link to
 * the machines of `outside.ts`. Its arguments are an empty folder, and `host`, `auto` or `nobody`: whose ids the containers have, and
 * who runs them. It prints what happened as one line of JSON.
 */
import { execFileSync, spawn } from "node:child_process"
import * as dgram from "node:dgram"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Berth, Container, Image, Network } from "../../lib/index.ts"
import { asNobody } from "./asNobody.ts"
import { compile } from "./attack.ts"
import { berthIn } from "./effect.ts"
import { machine6, machines, own, startOutside } from "./outside.ts"
import { confinementOf, pastasOf } from "./pastas.ts"
import { commandOf, ended } from "./program.ts"
import { makeRoot } from "./rootfs.ts"

const [folder, ids, part] = process.argv.slice(2) as [string, string, string | undefined]
const options: Container.StartOptions = ids === "auto" ? { userns: "auto" } : {}
const HIDDEN_PORT = 7777

// The machine

/** The way from this machine to others leads over the first of the machines outside. */
const leadOutside = Effect.sync(() => {
  execFileSync("ip", ["route", "add", "default", "via", machines[0]!])
  execFileSync("ip", ["-6", "route", "add", "default", "via", machine6])
  // Who may send ICMP echo requests: pasta does so by a socket of icmp(7).
  fs.writeFileSync("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
})

/** The device as udev makes it, which every user may open. */
const openDevice = Effect.sync(() => {
  const script = `mkdir "$1" && mount -t tmpfs none "$1" && mknod -m 666 "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun`
  execFileSync("sh", ["-c", `umask 0; ${script}`, "sh", `${folder}/device`])
})

/** A server of this machine on all of its addresses, for connections and for datagrams, and what has come to it. */
const hidden = Effect.acquireRelease(
  Effect.promise(async () => {
    const heard: Array<string> = []
    const server = net.createServer(
      (socket) => heard.push(`${socket.remoteAddress} by TCP`) && socket.destroy()
    )
    const datagrams = dgram.createSocket("udp6")
    datagrams.on("message", (_, { address }) => heard.push(`${address} by UDP`))
    await new Promise<void>((resolve) => server.listen(HIDDEN_PORT, "::", resolve))
    await new Promise<void>((resolve) => datagrams.bind(HIDDEN_PORT, () => resolve()))
    return { server, datagrams, heard }
  }),
  ({ datagrams, server }) =>
    Effect.sync(() => {
      server.close()
      datagrams.close()
    })
)

const machine = Effect.gen(function* () {
  yield* startOutside(() => {})
  yield* leadOutside
  const { heard } = yield* hidden
  if (ids === "nobody") yield* openDevice
  const inside = commandOf("pasta.ts", [ids === "nobody" ? `${folder}/home` : folder, ids, "containers"])
  const { code, stderr, stdout } = yield* Effect.promise(() =>
    ids === "nobody"
      ? asNobody(`${folder}/home`, "", inside)
      : ended(spawn(inside.command, inside.args, { stdio: ["ignore", "pipe", "pipe"] }))
  )
  return { ...JSON.parse(stdout || "{}"), code, stderr, heard }
})

// Its containers

const idle = (network: Network.Network, more: Container.StartOptions = {}) =>
  Effect.flatMap(Image.fromRootfs(`${folder}/root`), (image) =>
    Container.start(image, { ...options, ...more, network, command: ["sleep", "1000"] })
  )

const shell = (box: Container.Container, script: string) =>
  Effect.map(Container.exec(box, ["sh", "-c", script]), ({ stderr, stdout }) =>
    /bad address/.test(stderr) ? "no such name" : stdout.trim().replaceAll("\n", ", ")
  )

const connect = (box: Container.Container, host: string, port: number, seconds = 15) =>
  shell(box, `echo hello | timeout ${seconds} nc -w ${seconds} ${host} ${port}`)

const send = (box: Container.Container, host: string, port: number, seconds = 15) =>
  shell(box, `datagram ${host} ${port} ${seconds}`)

const ping = (box: Container.Container, host: string) =>
  Effect.map(shell(box, `ping -c 1 -W 15 ${host}`), (text) => /1 packets received/.test(text))

type Places = ReadonlyArray<readonly [host: string, port: number]>

const answers = <E, R>(places: Places, ask: (host: string, port: number) => Effect.Effect<string, E, R>) =>
  Effect.map(
    Effect.forEach(
      places,
      ([host, port]) => Effect.map(ask(host, port), (text) => [`${host} ${port}`, text] as const),
      { concurrency: 32 }
    ),
    Object.fromEntries
  )

/** Addresses at which the machine, the uplink of networks, and their routers could be. */
const here: Places = [
  ...own,
  ...["127.0.0.1", "169.254.169.254", "169.254.1.1"],
  ...["240.0.0.1", "240.0.0.2", "240.0.0.3", "240.0.0.4", "240.1.0.1", "240.1.0.2"],
  ...["fd62:6572:7468:1::1", "fd62:6572:7468:1::3", "fd62:6572:7468:1::4"],
  ...["fd62:6572:7468:2::1", "fd62:6572:7468:2::2"]
].map((address) => [address, HIDDEN_PORT])

const warned: Array<string> = []
const logging = Logger.replace(
  Logger.defaultLogger,
  Logger.make(({ message }) => warned.push(String(message)))
)

const containers = Effect.gen(function* () {
  compile(`${makeRoot(`${folder}/root`)}/bin/datagram`, "datagram.c")
  const make = Network.make({ outbound: "pasta", dns: [machines[0]!] })
  const network = yield* make
  const box = yield* idle(network, { capabilities: { add: ["NET_RAW"] } })
  const neighbour = yield* idle(network)
  const other = yield* make
  const stranger = yield* idle(other, { name: "stranger" })
  yield* Container.execStream(stranger, ["sh", "-c", "while true; do nc -l -p 80 -e echo stranger; done"])
  const there = [machines[0]!, machine6]
  const strange: Places = stranger.state.addresses.map((address) => [address, 80])
  const reached: Places = [...there.map((host) => [host, 80] as const), ["mirror.test", 81], ["no.test", 80]]
  const { supervisor } = yield* Berth.Berth
  const confined = confinementOf(pastasOf(supervisor.pid)[0]!)
  const before = yield* send(box, there[0]!, 80)
  pastasOf(supervisor.pid).forEach((pid) => process.kill(pid, "SIGKILL"))
  // A datagram is lost as long as no pasta is there.
  const later = yield* Effect.repeat(send(box, there[0]!, 80, 1), {
    until: (answer) => answer === before,
    times: 30
  })
  return {
    confined,
    again: [before, later],
    warned,
    connected: yield* answers(reached, (host, port) => connect(box, host, port)),
    sent: yield* Effect.forEach([box, neighbour, stranger], (one) =>
      Effect.forEach(there, (host) => send(one, host, 80))
    ),
    large: yield* Effect.forEach(there, (host) => shell(box, `datagram ${host} 80 15 60000`)),
    pinged: yield* Effect.forEach(there, (host) => ping(box, host)),
    stranger: yield* connect(stranger, "stranger", 80),
    refused: [
      ...Object.values(yield* answers([...here, ...strange], (host, port) => connect(box, host, port, 3))),
      ...Object.values(yield* answers([...here, ...strange], (host, port) => send(box, host, port, 1)))
    ].filter((text) => /hello|stranger/.test(text as string)),
    pastas: pastasOf(supervisor.pid).length
  }
}).pipe(Effect.provide(Layer.merge(berthIn(`${folder}/berth`), logging)))

console.log(JSON.stringify(await Effect.runPromise(Effect.scoped(part === undefined ? machine : containers))))
