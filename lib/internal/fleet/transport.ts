/**
 * The sockets of a fleet: TCP, TLS or a Unix socket. Before the first message, a client says its token in one line, and the runner
 * answers in one: bytes of a stranger reach no decoder.
 */
import { createHash, timingSafeEqual } from "node:crypto"
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

/** The longest first line, and the time for it. */
const LINE_BYTES_MAX = 4096
const LINE_MILLIS = 5000

const GREETING = "BERTH-FLEET"
const WELCOME = "WELCOME"

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

const tokenOf = ({ token }: Identity): string => (token === undefined ? "-" : Redacted.value(token))

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

const accepted = (socket: net.Socket, identity: Identity): Effect.Effect<boolean> =>
  firstLine(socket).pipe(
    Effect.map((line) => {
      const ok = equal(line, `${GREETING} ${tokenOf(identity)}`)
      socket.write(ok ? `${WELCOME}\n` : "REFUSED\n")
      return ok
    }),
    Effect.orElseSucceed(() => false)
  )

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
    const made = secure
      ? tls.createServer({
          ...tlsOptions(identity),
          requestCert: identity.tls?.authority !== undefined,
          rejectUnauthorized: identity.tls?.authority !== undefined,
          minVersion: "TLSv1.2"
        })
      : net.createServer()
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
              Effect.flatMap(accepted(socket, identity), (ok) =>
                ok ? Effect.flatMap(NodeSocket.fromDuplex(Effect.succeed(socket)), handler) : Effect.void
              ).pipe(
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

const connected = (
  address: Address,
  identity: Identity
): Effect.Effect<net.Socket, FleetError, Scope.Scope> => {
  const failed = (cause: Error): FleetError =>
    new FleetError({
      reason: "Unreachable",
      subject: print(address),
      detail: `the runner does not answer: ${cause.message}`,
      cause
    })
  return Effect.acquireRelease(
    Effect.async<net.Socket, FleetError>((resume) => {
      const secure = !("path" in address) && address.secure
      const socket = secure
        ? tls.connect({
            host: address.host,
            port: address.port,
            servername: net.isIP(address.host) === 0 ? address.host : "",
            ...tlsOptions(identity)
          })
        : net.connect("path" in address ? { path: address.path } : { host: address.host, port: address.port })
      socket.once(secure ? "secureConnect" : "connect", () => {
        socket.setNoDelay(true)
        resume(Effect.succeed(socket))
      })
      socket.once("error", (error) => resume(Effect.fail(failed(error))))
      return Effect.sync(() => socket.destroy())
    }),
    (socket) => Effect.sync(() => socket.destroy())
  ).pipe(
    Effect.tap((socket) => Effect.sync(() => socket.on("error", () => {}))),
    Effect.tap((socket) => {
      socket.write(`${GREETING} ${tokenOf(identity)}\n`)
      return Effect.flatMap(Effect.mapError(firstLine(socket), failed), (line) =>
        line === WELCOME
          ? Effect.void
          : new FleetError({
              reason: "Unauthorized",
              subject: print(address),
              detail: "the runner refuses the token: give the one that it was started with"
            })
      )
    })
  )
}

/** A connection to a runner, which has taken the token. */
export const client = (
  address: Address,
  identity: Identity
): Effect.Effect<Socket.Socket, FleetError, Scope.Scope> =>
  Effect.flatMap(connected(address, identity), (socket) => NodeSocket.fromDuplex(Effect.succeed(socket)))
