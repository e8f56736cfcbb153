/**
 * The sockets of a fleet: TCP, TLS or a Unix socket. Before the first message, a client says its token in one line, and the runner
 * answers in one: bytes of a stranger reach no decoder.
 */
import { createHash, createPrivateKey, timingSafeEqual, X509Certificate } from "node:crypto"
import * as fs from "node:fs"
import * as net from "node:net"
import * as tls from "node:tls"
import type * as Socket from "@effect/platform/Socket"
import { SocketServer } from "@effect/platform/SocketServer"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { InvalidOption } from "../../BerthError.ts"
import { FleetError } from "../../FleetError.ts"
import type { Identity } from "../../fleet.ts"
import { isLeftover } from "../network/hostPath.ts"
import { gathering } from "./frames.ts"

export type Address =
  | { readonly path: string }
  | { readonly host: string; readonly port: number; readonly secure: boolean }

/** `tcp://host:port`, `tls://host:port` or `unix:/path`. */
export const parseAddress = (text: string): Effect.Effect<Address, InvalidOption> =>
  Effect.suspend(() => {
    if (text.startsWith("unix:/")) return Effect.succeed<Address>({ path: text.slice("unix:".length) })
    const url = URL.canParse(text) ? new URL(text) : undefined
    const port = Number(url?.port)
    if (
      url !== undefined &&
      ["tcp:", "tls:"].includes(url.protocol) &&
      url.hostname !== "" &&
      url.port !== ""
    )
      return Effect.succeed<Address>({
        host: url.hostname.replace(/^\[(.*)\]$/, "$1"),
        port,
        secure: url.protocol === "tls:"
      })
    return new InvalidOption({
      option: "address",
      value: JSON.stringify(text),
      expected: "tcp://host:port, tls://host:port or unix:/path"
    })
  })

export const print = (address: Address): string =>
  "path" in address
    ? `unix:${address.path}`
    : `${address.secure ? "tls" : "tcp"}://${address.host.includes(":") ? `[${address.host}]` : address.host}:${address.port}`

const socketOf = (socket: net.Socket): Effect.Effect<Socket.Socket> =>
  NodeSocket.fromDuplex(Effect.succeed(gathering(socket)))

/** The longest first line, and the time for it. */
const LINE_BYTES_MAX = 4096
const LINE_MILLIS = 5000

const GREETING = "BERTH-FLEET"
const WELCOME = "WELCOME"
const NO_CERTIFICATE = "REFUSED certificate"
const NO_TOKEN = "REFUSED token"

/** How long a client waits for a connection. */
const CONNECT_MILLIS = 10_000

/**
 * How many connections may not have said their token yet; one more ends the oldest of them. A client says it at once, and more than are
 * accepted in one turn of the event loop (511, the usual backlog) do not come before it is heard.
 */
const STRANGERS_MAX = 1024

/** The first line that comes; what follows it stays in the socket. */
const firstLine = (socket: net.Socket): Effect.Effect<string, Error> =>
  Effect.async<string, Error>((resume) => {
    let got: Buffer = Buffer.alloc(0)
    const done = (result: Effect.Effect<string, Error>): void => {
      socket.off("readable", read).off("error", failed).off("close", closed)
      resume(result)
    }
    const failed = (error: Error): void => done(Effect.fail(error))
    const closed = (): void => done(Effect.fail(new Error("the connection was closed")))
    const read = (): void => {
      for (;;) {
        const part: Buffer | null = socket.read()
        if (part === null) return
        got = Buffer.concat([got, part])
        const end = got.indexOf(10)
        if (end >= 0) {
          if (end + 1 < got.length) socket.unshift(got.subarray(end + 1))
          return done(Effect.succeed(got.subarray(0, end).toString("utf8")))
        }
        if (got.length > LINE_BYTES_MAX) return failed(new Error("its first line is too long"))
      }
    }
    socket.on("readable", read).on("error", failed).on("close", closed)
    read()
    return Effect.sync(() => socket.off("readable", read).off("error", failed).off("close", closed))
  }).pipe(
    Effect.timeoutFail({
      duration: LINE_MILLIS,
      onTimeout: () => new Error(`no first line came within ${LINE_MILLIS / 1000} seconds`)
    })
  )

const tlsOptions = ({ tls: given = {} }: Identity): tls.SecureContextOptions => ({
  ...(given.certificate === undefined ? {} : { cert: given.certificate }),
  ...(given.key === undefined ? {} : { key: Redacted.value(given.key) }),
  ...(given.authority === undefined ? {} : { ca: given.authority })
})

/** Fails for certificates and keys that cannot be used: some runtimes tell it only when a connection begins. */
const checkTls = ({
  tls: { authority, certificate, key } = {}
}: Identity): Effect.Effect<void, InvalidOption> =>
  Effect.try({
    try: () => {
      if (authority !== undefined) new X509Certificate(authority)
      if (certificate === undefined && key === undefined) return
      const isPair = new X509Certificate(certificate ?? "").checkPrivateKey(
        createPrivateKey(key === undefined ? "" : Redacted.value(key))
      )
      if (!isPair) throw new Error("the key belongs to another certificate")
    },
    catch: (cause) =>
      new InvalidOption({
        option: "tls",
        value: "what it is set to",
        expected: `a certificate and the key that belongs to it, and an authority, in the PEM format (${cause instanceof Error ? cause.message : cause})`,
        cause
      })
  })

const TOKEN_CHARACTERS_MAX = 1024

/** The first line of a client. */
const greetingOf = ({ token }: Identity): Effect.Effect<string, InvalidOption> =>
  Effect.suspend(() => {
    if (token === undefined) return Effect.succeed(GREETING)
    const text = Redacted.value(token)
    return text !== "" && text.length <= TOKEN_CHARACTERS_MAX && !/[\r\n]/.test(text)
      ? Effect.succeed(`${GREETING} ${text}`)
      : new InvalidOption({
          option: "token",
          value: "what it is set to",
          expected: `a text of one line, of 1 to ${TOKEN_CHARACTERS_MAX} characters: a file may end with a line break, which is no part of it`
        })
  })

const digestOf = (text: string): Buffer => createHash("sha256").update(text).digest()

/** Compares in a time that does not depend on the texts. */
const equal = (a: string, b: string): boolean => timingSafeEqual(digestOf(a), digestOf(b))

// A runner

const listening = (server: net.Server, address: Address): Effect.Effect<Address, FleetError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<Address, FleetError>((resume) => {
      server.once("error", (cause: NodeJS.ErrnoException) =>
        resume(
          new FleetError({
            reason: "Listen",
            subject: print(address),
            detail: `the runner cannot listen there: ${cause.message}`,
            cause
          })
        )
      )
      // Of a runner that was killed.
      if ("path" in address && isLeftover(address.path)) fs.unlinkSync(address.path)
      server.listen(
        "path" in address ? { path: address.path } : { host: address.host, port: address.port },
        () => {
          if ("path" in address) {
            fs.chmodSync(address.path, 0o600)
            resume(Effect.succeed(address))
          } else resume(Effect.succeed({ ...address, port: (server.address() as net.AddressInfo).port }))
        }
      )
    }),
    () => Effect.sync(() => server.close())
  )

/** Whether a client is one that the runner knows; it is told. */
const accepted = (
  socket: net.Socket,
  greeting: string,
  asksForCertificates: boolean
): Effect.Effect<boolean> =>
  firstLine(socket).pipe(
    Effect.map((line) => {
      const answer =
        asksForCertificates && (socket as tls.TLSSocket).authorized !== true
          ? NO_CERTIFICATE
          : equal(line, greeting)
            ? WELCOME
            : NO_TOKEN
      socket.write(`${answer}\n`)
      return answer === WELCOME
    }),
    Effect.orElseSucceed(() => false)
  )

/** The connections that have not said their token: strangers cannot have so many that a client finds no place. */
class Strangers {
  private readonly all = new Map<unknown, net.Socket>()

  add(key: unknown, socket: net.Socket): void {
    if (this.all.size >= STRANGERS_MAX) {
      const [[oldest, its]] = this.all as Iterable<[unknown, net.Socket]> as [[unknown, net.Socket]]
      this.all.delete(oldest)
      its.destroy()
    }
    this.all.set(key, socket)
    socket.once("close", () => this.remove(key))
  }

  remove(key: unknown): void {
    this.all.delete(key)
  }
}

/** The server of a runner's clients. */
export const server = (
  address: Address,
  identity: Identity
): Effect.Effect<
  { readonly address: Address; readonly layer: Layer.Layer<SocketServer> },
  FleetError | InvalidOption,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const secure = !("path" in address) && address.secure
    if (secure && (identity.tls?.certificate === undefined || identity.tls.key === undefined))
      return yield* new InvalidOption({
        option: "tls",
        value: "undefined",
        expected: "a certificate and its key for tls://"
      })
    const asksForCertificates = secure && identity.tls?.authority !== undefined
    if (!("path" in address) && identity.token === undefined && !asksForCertificates)
      return yield* new InvalidOption({
        option: "token",
        value: "undefined",
        expected:
          "a token, or tls:// with the authority of the clients' certificates: without, everybody who reaches the port could start containers"
      })
    const greeting = yield* greetingOf(identity)
    if (secure) yield* checkTls(identity)
    const made = secure
      ? tls.createServer({
          ...tlsOptions(identity),
          requestCert: asksForCertificates,
          // A client without a certificate is told so, in answer to its first line.
          rejectUnauthorized: false,
          handshakeTimeout: LINE_MILLIS,
          minVersion: "TLSv1.2"
        })
      : net.createServer()
    const strangers = new Strangers()
    // A connection and the one of TLS over it are two objects of one peer.
    const keyOf = (socket: net.Socket): unknown =>
      secure ? `${socket.remoteAddress} ${socket.remotePort}` : socket
    made.on("connection", (socket: net.Socket) => {
      socket.on("error", () => {})
      strangers.add(keyOf(socket), socket)
    })
    const sockets = new Set<net.Socket>()
    const waiting: Array<net.Socket> = []
    let take = (socket: net.Socket): void => void waiting.push(socket)
    made.on(secure ? "secureConnection" : "connection", (socket: net.Socket) => {
      socket.setNoDelay(true)
      sockets.add(socket)
      socket.on("error", () => {}).on("close", () => sockets.delete(socket))
      take(socket)
    })
    yield* Effect.addFinalizer(() => Effect.sync(() => sockets.forEach((socket) => socket.destroy())))
    const bound = yield* listening(made, address)
    const service = SocketServer.of({
      address:
        "path" in bound
          ? { _tag: "UnixAddress", path: bound.path }
          : { _tag: "TcpAddress", hostname: bound.host, port: bound.port },
      run: (handler) =>
        Effect.scoped(
          Effect.gen(function* () {
            const fork = yield* FiberSet.makeRuntime<never>()
            const context = yield* Effect.context<never>()
            const serve = (socket: net.Socket) =>
              accepted(socket, greeting, asksForCertificates).pipe(
                Effect.tap(() => Effect.sync(() => strangers.remove(keyOf(socket)))),
                Effect.flatMap((ok) => (ok ? Effect.flatMap(socketOf(socket), handler) : Effect.void)),
                Effect.ensuring(Effect.sync(() => socket.destroySoon())),
                Effect.ignore,
                Effect.provide(context)
              ) as Effect.Effect<void>
            take = (socket) => void fork(serve(socket))
            waiting.splice(0).forEach(take)
            return yield* Effect.never
          })
        ) as never
    })
    return { address: bound, layer: Layer.succeed(SocketServer, service) }
  })

// A client

const unreachable = (address: Address, cause: Error): FleetError =>
  new FleetError({
    reason: "Unreachable",
    subject: print(address),
    detail: `the runner does not answer: ${cause.message}`,
    cause
  })

const unauthorized = (address: Address, detail: string, cause?: Error): FleetError =>
  new FleetError({ reason: "Unauthorized", subject: print(address), detail, cause })

/** Why a connection failed. The names of errors about certificates differ between runtimes. */
const failedWith = (address: Address, cause: NodeJS.ErrnoException): FleetError =>
  /cert|signature|issuer|self.signed/i.test(`${cause.code} ${cause.message}`)
    ? unauthorized(
        address,
        `this program does not trust the certificate of the runner (${cause.message}): give the authority that signed it as tls.authority, and address the runner by a name that is in it`,
        cause
      )
    : unreachable(address, cause)

/** What a runner refuses, and what to do about it. */
const refusalOf = (address: Address, { tls: given, token }: Identity, line: string): FleetError => {
  if (line === NO_CERTIFICATE)
    return unauthorized(
      address,
      given?.certificate === undefined
        ? "the runner asks for a certificate: give one that its authority has signed, as tls.certificate and tls.key"
        : "the runner refuses the certificate of this program: give one that the authority of the runner has signed, and that is valid now"
    )
  if (line === NO_TOKEN)
    return unauthorized(
      address,
      token === undefined
        ? "the runner asks for a token: give the one that it was started with"
        : "the runner refuses the token: give the one that it was started with, or none if it was started with none"
    )
  return unreachable(address, new Error("what answers there is no runner of Berth"))
}

const dial = (address: Address, identity: Identity): net.Socket => {
  if ("path" in address) return net.connect({ path: address.path })
  const { host, port } = address
  if (!address.secure) return net.connect({ host, port })
  return tls.connect({ host, port, servername: net.isIP(host) === 0 ? host : "", ...tlsOptions(identity) })
}

/** Waits until a socket is connected. */
const established = (socket: net.Socket, address: Address): Effect.Effect<void, FleetError> =>
  Effect.async<void, FleetError>((resume) => {
    const secure = !("path" in address) && address.secure
    socket.once(secure ? "secureConnect" : "connect", () => {
      socket.setNoDelay(true)
      resume(Effect.void)
    })
    socket.on("error", (error) => resume(failedWith(address, error)))
    socket.once("close", () => resume(unreachable(address, new Error("it closes the connection"))))
  }).pipe(
    Effect.timeoutFail({
      duration: CONNECT_MILLIS,
      onTimeout: () =>
        unreachable(address, new Error(`no connection within ${CONNECT_MILLIS / 1000} seconds`))
    })
  )

const connected = (
  address: Address,
  identity: Identity
): Effect.Effect<net.Socket, FleetError | InvalidOption, Scope.Scope> =>
  Effect.gen(function* () {
    const greeting = yield* greetingOf(identity)
    if (!("path" in address) && address.secure) yield* checkTls(identity)
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => dial(address, identity)),
      (made) => Effect.sync(() => made.destroy())
    )
    yield* established(socket, address)
    socket.write(`${greeting}\n`)
    const line = yield* Effect.mapError(firstLine(socket), (error) => failedWith(address, error))
    return line === WELCOME ? socket : yield* refusalOf(address, identity, line)
  })

/** A connection to a runner, which has taken the token. */
export const client = (
  address: Address,
  identity: Identity
): Effect.Effect<Socket.Socket, FleetError | InvalidOption, Scope.Scope> =>
  Effect.flatMap(connected(address, identity), socketOf)
