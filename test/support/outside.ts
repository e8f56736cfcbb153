/**
 * The machines outside, for tests of what leaves a network: a program in a network namespace of its own, which `outbound.ts` starts. It
 * has the addresses of `machines`. Each connection to a port of `ports` gets a line with the address and the port that it reached, and
 * then the bytes that it sends. A datagram to port 80 comes back behind the address and the port that sent it. A name server on port 53 knows `names`; its questions are written to standard output, one a line. It
 * ends with its standard input.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import * as dgram from "node:dgram"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { decode, nameBytes, prefixed, types } from "./dns.ts"
import { commandOf } from "./program.ts"

export const machines = ["10.99.0.2", "10.99.0.3", "10.99.0.4"]
export const machine6 = "fd99::2"
export const ports = [80, 81]

/** The addresses of this machine, as those outside see it: the third is the second one of its interface. */
export const own = ["10.99.0.1", "fd99::1", "10.99.0.9"]

const names: Readonly<Record<string, ReadonlyArray<string>>> = {
  "mirror.test": [machines[0]!, machine6],
  "sub.pool.test": [machines[1]!],
  "pool.test": [machines[1]!],
  "other.test": [machines[2]!],
  "alias.test": ["real.test", machines[2]!],
  "loop.test": ["127.0.0.1"],
  "any.test": ["0.0.0.0"],
  "meta.test": ["169.254.169.254"],
  "self.test": [own[0]!]
}

const u16 = (value: number): ReadonlyArray<number> => [value >> 8, value & 0xff]

const record = (name: string, type: number, data: ReadonlyArray<number>): ReadonlyArray<number> => [
  ...nameBytes(name),
  ...u16(type),
  ...u16(1),
  ...[0, 0, 0, 60],
  ...u16(data.length),
  ...data
]

const bytes6 = (address: string): ReadonlyArray<number> => {
  const [head = "", tail = ""] = address.split("::")
  const part = (text: string) => text.split(":").flatMap((group) => u16(Number.parseInt(group, 16)))
  const [a, b] = [part(head), part(tail)]
  return [...a, ...new Array(16 - a.length - b.length).fill(0), ...b]
}

const answerTo = (message: Buffer): Buffer => {
  const { name = "" } = decode(message)
  const asked = name.toLowerCase()
  console.log(asked)
  const end = 12 + nameBytes(name).length
  const type = message.readUInt16BE(end)
  const known = names[asked]
  let owner = asked
  const records = (known ?? []).flatMap((value): ReadonlyArray<ReadonlyArray<number>> => {
    if (net.isIP(value) === 0) {
      const alias = record(owner, 5, nameBytes(value))
      owner = value
      return [alias]
    }
    if (net.isIPv4(value)) return type === types.A ? [record(owner, type, value.split(".").map(Number))] : []
    return type === types.AAAA ? [record(owner, type, bytes6(value))] : []
  })
  const head = [...u16(known === undefined ? 0x8183 : 0x8180), ...u16(1), ...u16(records.length), 0, 0, 0, 0]
  return Buffer.from([
    ...message.subarray(0, 2),
    ...head,
    ...message.subarray(12, end + 4),
    ...records.flat()
  ])
}

const ip = (...words: ReadonlyArray<string>) => execFileSync("ip", words)

/** Waits for a line of the program's output; the others are questions for names. */
const line = (child: ChildProcess, wanted: string, asked: (name: string) => void): Promise<void> =>
  new Promise((resolve, reject) => {
    child.on("exit", (code) => reject(new Error(`the outside ended with ${code}`)))
    child.stdout!.on("data", (data) => {
      for (const one of String(data).split("\n").filter(Boolean)) {
        if (one === wanted) resolve()
        else asked(one)
      }
    })
  })

/** Gives this network namespace a link to the machines, until the scope closes; `asked` gets the names that they are asked for. */
export const startOutside = (asked: (name: string) => void) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const { args, command } = commandOf("outside.ts", ["outside"])
      const child = spawn("unshare", ["--net", command, ...args], { stdio: ["pipe", "pipe", "inherit"] })
      const ready = line(child, "ready for a link", asked)
      ip("link", "set", "lo", "up")
      await ready
      ip("link", "add", "veth0", "type", "veth", "peer", "name", "outside", "netns", String(child.pid))
      for (const address of own)
        ip(
          "address",
          "add",
          address.includes(":") ? `${address}/64` : `${address}/24`,
          "dev",
          "veth0",
          ...(address.includes(":") ? ["nodad"] : [])
        )
      ip("link", "set", "veth0", "up")
      const listening = line(child, "listening", asked)
      child.stdin!.write("go\n")
      await listening
      return child
    }),
    (child) =>
      Effect.promise(
        () =>
          new Promise(
            (resolve) => child.removeAllListeners("exit").once("exit", resolve) && child.stdin!.end()
          )
      )
  )

const listen = (server: net.Server, port: number): Promise<void> =>
  new Promise((resolve, reject) => server.once("error", reject).listen(port, "::", resolve))

const main = async (): Promise<void> => {
  ip("link", "set", "lo", "up")
  console.log("ready for a link")
  await new Promise((resolve) => process.stdin.once("data", resolve))
  for (const address of machines) ip("address", "add", `${address}/24`, "dev", "outside")
  ip("address", "add", `${machine6}/64`, "dev", "outside", "nodad")
  ip("link", "set", "outside", "up")
  for (const port of ports) {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => {})
      socket.write(`${socket.localAddress?.replace("::ffff:", "")} ${socket.localPort}\n`)
      socket.pipe(socket)
    })
    await listen(server, port)
  }
  await listen(
    net.createServer((socket) => {
      socket.on("error", () => {})
      socket.on("data", (data) => socket.end(prefixed(answerTo(data.subarray(2)))))
    }),
    53
  )
  const echo = dgram.createSocket("udp6")
  echo.on("message", (message, { address, port }) =>
    echo.send(`${address.replace("::ffff:", "")}, ${message}`, port, address)
  )
  await new Promise<void>((resolve) => echo.bind(ports[0], () => resolve()))
  const udp = dgram.createSocket("udp4")
  udp.on("message", (message, from) => udp.send(answerTo(message), from.port, from.address))
  udp.bind(53, () => console.log("listening"))
  process.stdin.on("end", () => process.exit()).resume()
}

if (process.argv[2] === "outside") await main()
