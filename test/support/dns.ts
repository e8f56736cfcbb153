/** Messages of the DNS, written and read without anything of the library's, and a responder for names that is driven directly. */
import * as dgram from "node:dgram"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { Berth, Plan } from "../../lib/index.ts"
import { AF_INET, candidates, portOf } from "../../lib/internal/network/address.ts"
import { scopedUnit } from "../../lib/internal/supervisor/scopedUnit.ts"
import { native } from "../../lib/internal/system/addon.ts"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { makeSocketPair } from "../../lib/internal/system/pipe.ts"

export const types = {
  A: 1,
  NS: 2,
  SOA: 6,
  PTR: 12,
  MX: 15,
  TXT: 16,
  AAAA: 28,
  OPT: 41,
  AXFR: 252,
  ANY: 255
} as const
export type Type = keyof typeof types

export const codes = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"] as const

const u16 = (value: number): ReadonlyArray<number> => [value >> 8, value & 0xff]

/** A name as its labels, each after its length. */
export const nameBytes = (name: string): ReadonlyArray<number> => [
  ...name
    .split(".")
    .filter((label) => label !== "")
    .flatMap((label) => [label.length, ...Buffer.from(label, "latin1")]),
  0
]

export interface Asked {
  readonly id?: number
  readonly flags?: number
  readonly type?: number
  readonly class?: number
  /** The bytes of an answer that the asker takes; with it there is an OPT record. */
  readonly size?: number
  readonly version?: number
}

export const question = (name: string, type: Type | number = "A", asked: Asked = {}): Buffer =>
  Buffer.from([
    ...u16(asked.id ?? 0x1234),
    ...u16(asked.flags ?? 0x0100),
    ...u16(1),
    ...u16(0),
    ...u16(0),
    ...u16(asked.size === undefined ? 0 : 1),
    ...nameBytes(name),
    ...u16(typeof type === "number" ? type : types[type]),
    ...u16(asked.class ?? 1),
    ...(asked.size === undefined
      ? []
      : [0, ...u16(types.OPT), ...u16(asked.size), 0, asked.version ?? 0, 0, 0, 0, 0])
  ])

/** An address of IPv6 as it is mostly written. */
export const shortest = (address: string): string => new URL(`http://[${address}]`).hostname.slice(1, -1)

export interface Answer {
  readonly id: number
  readonly flags: number
  readonly code: string
  readonly truncated: boolean
  /** The name in the question as it is spelled. */
  readonly name: string | undefined
  /** Addresses and names. */
  readonly answers: ReadonlyArray<string>
  readonly ttls: ReadonlyArray<number>
  readonly authority: ReadonlyArray<number>
  /** The bytes that the OPT record tells, with the version above them; without one, undefined. */
  readonly opt: number | undefined
  readonly bytes: Buffer
}

/** Reads a message from its first byte to its last; throws where anything in it is wrong. */
export const decode = (bytes: Buffer): Answer => {
  let at = 12
  const fail = (what: string): never => {
    throw new Error(`${what} at ${at} of ${bytes.toString("hex")}`)
  }
  const byte = (): number => bytes[at++] ?? fail("the message ends")
  const number = (count: number): number =>
    Array.from({ length: count }, byte).reduce((value, next) => value * 256 + next, 0)
  const readName = (): string => {
    const labels: Array<string> = []
    for (let back = -1; ; ) {
      const length = byte()
      if (length === 0) {
        if (back >= 0) at = back
        return labels.join(".")
      }
      if (length >= 0xc0) {
        const target = (length & 0x3f) * 256 + byte()
        if (back >= 0 || target >= at - 2) fail("a pointer does not lead back once")
        back = at
        at = target
        continue
      }
      if (length > 63) fail("a label is too long")
      labels.push(Buffer.from(Array.from({ length }, byte)).toString("latin1"))
    }
  }
  const counts = [4, 6, 8, 10].map((offset) => bytes.readUInt16BE(offset))
  if (bytes.length < 12 || counts[0]! > 1) fail("no header")
  let name: string | undefined
  if (counts[0] === 1) {
    name = readName()
    at += 4
  }
  const answers: Array<string> = []
  const ttls: Array<number> = []
  const authority: Array<number> = []
  let opt: number | undefined
  let extended = 0
  for (const section of [1, 2, 3])
    for (let k = 0; k < counts[section]!; k++) {
      readName()
      const type = number(2)
      const size = number(2)
      const ttl = number(4)
      const length = number(2)
      const end = at + length
      if (type === types.OPT) {
        opt = size
        extended = Math.floor(ttl / 0x1000000)
        at = end
      } else {
        ttls.push(ttl)
        if (section === 2) authority.push(type)
        if (type === types.A) answers.push(Array.from({ length: 4 }, byte).join("."))
        else if (type === types.AAAA)
          answers.push(shortest(Array.from({ length: 8 }, () => number(2).toString(16)).join(":")))
        else if (type === types.PTR) answers.push(readName())
        else at = end
      }
      if (at !== end) fail("a record has another length")
    }
  if (at !== bytes.length) fail("there are more bytes")
  const flags = bytes.readUInt16BE(2)
  return {
    id: bytes.readUInt16BE(0),
    flags,
    code: extended === 1 ? "BADVERS" : (codes[flags & 0xf] ?? String(flags & 0xf)),
    truncated: (flags & 0x0200) !== 0,
    name,
    answers,
    ttls,
    authority,
    opt,
    bytes
  }
}

/** `NOERROR 10.89.0.2`, with a hyphen where a record says that there is nothing. */
export const brief = ({ answers, authority, code }: Answer): string =>
  `${code} ${[...answers].sort().join(" ")}${authority.length > 0 ? "-" : ""}`

/** Sends a datagram and gives what comes back, or nothing after a time. */
export const exchange = (
  port: number,
  bytes: Uint8Array,
  millis = 5000,
  host = "127.0.0.1"
): Promise<Buffer | undefined> =>
  new Promise((resolve, reject) => {
    const socket = dgram.createSocket("udp4")
    const end = (answer?: Buffer): void => {
      clearTimeout(timer)
      socket.close()
      resolve(answer)
    }
    const timer = setTimeout(end, millis)
    socket.on("error", reject)
    socket.on("message", (message) => end(Buffer.from(message)))
    socket.send(bytes, port, host)
  })

export const ask = async (
  port: number,
  name: string,
  type: Type = "A",
  asked: Asked = {}
): Promise<Answer> => {
  const answer = await exchange(port, question(name, type, asked))
  if (answer === undefined) throw new Error(`no answer for ${name}`)
  return decode(answer)
}

export const prefixed = (bytes: Uint8Array): Buffer => Buffer.concat([Buffer.from(u16(bytes.length)), bytes])

/** A connection over which messages go, each after its length. */
export const connect = async (port: number) => {
  const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true })
  let came: Buffer = Buffer.alloc(0)
  let wake = (): void => {}
  let closed = false
  socket.on("data", (data) => {
    came = Buffer.concat([came, data])
    wake()
  })
  for (const name of ["end", "close", "error"])
    socket.on(name, () => {
      closed = true
      wake()
    })
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject))
  const wait = (): Promise<void> =>
    new Promise((resolve) => {
      wake = resolve
    })
  return {
    socket,
    /** The next message; undefined where the connection ends first. */
    next: async (): Promise<Buffer | undefined> => {
      while (came.length < 2 || came.length < 2 + came.readUInt16BE(0)) {
        if (closed) return undefined
        await wait()
      }
      const message = came.subarray(2, 2 + came.readUInt16BE(0))
      came = came.subarray(2 + message.length)
      return message
    }
  }
}

export const askByTcp = async (
  port: number,
  ...questions: ReadonlyArray<Buffer>
): Promise<ReadonlyArray<Answer>> => {
  const { next, socket } = await connect(port)
  socket.write(Buffer.concat(questions.map(prefixed)))
  const answers: Array<Answer> = []
  for (const _ of questions) {
    const answer = await next()
    if (answer === undefined) throw new Error("the connection was closed")
    answers.push(decode(answer))
  }
  socket.destroy()
  return answers
}

export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2

/** `[fd, port]` of a bound socket of 127.0.0.1, in this network namespace or in that of a process. */
export const bound = (pidfd: number, type: number, host: string, port: number): readonly [number, number] => {
  const fd = native().socketIn(-1, pidfd, AF_INET, type)
  const [address] = candidates({ port, host }, 0)
  const result = fd < 0 ? fd : native().bind(fd, address!.bytes)
  if (result < 0) {
    if (fd >= 0) native().close(fd)
    throw new Error(`bind ${host}:${port}: errno ${-result}`)
  }
  if (type === SOCK_STREAM) native().listen(fd)
  const name = new Uint8Array(28)
  native().socketAddress(fd, name)
  return [fd, portOf(name)]
}

/** The two sockets that a container asks on; the same port of both. */
const makeSockets = (pidfd: number, host: string, port: number) => {
  for (let attempt = 0; ; attempt++) {
    const [listener, chosen] = bound(pidfd, SOCK_STREAM, host, port)
    try {
      return [bound(pidfd, SOCK_DGRAM, host, chosen)[0], listener, chosen] as const
    } catch (error) {
      native().close(listener)
      if (attempt === 100) throw error
    }
  }
}

/** The responder, native/names/names.c, as a unit of the supervisor; it ends with the scope. */
export const makeResponder = Effect.gen(function* () {
  const berth = yield* Berth.Berth
  const [ours, theirs] = makeSocketPair()
  yield* Effect.addFinalizer(() => Effect.sync(() => native().close(ours)))
  const plan = Plan.make([
    { op: "process", namespaces: 0 },
    { op: "stdio", stdin: "control", stdout: null, stderr: null },
    { op: "session" },
    { op: "bounding", capabilities: 0 },
    { op: "capabilities", effective: 0, permitted: 0, inheritable: 0, ambient: 0 },
    { op: "no-new-privileges" },
    {
      op: "exec",
      program: null,
      paths: [programPath("berth-names")],
      arguments: ["berth-names"],
      environment: []
    }
  ])
  const unit = yield* Effect.ensuring(
    scopedUnit(berth, berth.supervisor.nextId(), "names", plan, { control: theirs }),
    Effect.sync(() => native().close(theirs))
  )
  const tell = (message: string | Uint8Array, descriptors: ReadonlyArray<number> = []): void => {
    const bytes = typeof message === "string" ? new TextEncoder().encode(message) : message
    const sent = native().send(ours, bytes, descriptors)
    if (sent < 0) throw new Error(`send: errno ${-sent}`)
  }
  return {
    unit,
    tell,
    /** Has a container of these networks ask at a port, a free one by default; returns the port. */
    serve: (id: number, { pidfd = -1, host = "127.0.0.1", port = 0, networks = [1] } = {}): number => {
      const [udp, listener, chosen] = makeSockets(pidfd, host, port)
      tell(["serve", id, ...networks].join(" "), [udp, listener])
      native().close(udp)
      native().close(listener)
      return chosen
    },
    /** Ends it as the end of its Berth does. */
    hangUp: (): void => {
      native().close(ours)
    }
  }
})
