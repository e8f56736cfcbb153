/** HTTP by sockets of a container or a network, by the runtime's own `fetch` or, where that takes no sockets, by undici's. */
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import type * as HttpClient from "@effect/platform/HttpClient"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Dispatcher } from "undici"
import { type BerthError, InvalidOption, isBerthError, NetworkError } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import { isContainer } from "../typeIds.ts"
import { ECONNRESET } from "../util/errno.ts"
import { netSocket } from "./netSocket.ts"

export type Fetch = typeof globalThis.fetch

/** Opens a connection to a port of a host. What fails comes as the socket's event `error`. */
export type Dial = (host: string, port: number) => net.Socket

/** A host of a URL, without the brackets of IPv6. */
const hostOf = (hostname: string): string => hostname.replace(/^\[(.*)\]$/, "$1")

const portOf = (url: URL): number => Number(url.port || (url.protocol === "https:" ? 443 : 80))

// A `fetch` of Bun's takes no socket, and its `undici` is that `fetch` again, but both take the path of a Unix socket.
const overUnixSocket = (dial: Dial) =>
  Effect.gen(function* () {
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => fs.mkdtempSync(`${os.tmpdir()}/berth-fetch-`)),
      (path) => Effect.sync(() => fs.rmSync(path, { recursive: true, force: true }))
    )
    const relays = new Map<string, string>()
    const relay = (host: string, port: number): Promise<string> =>
      new Promise((resolve, reject) => {
        const key = `${host} ${port}`
        // A name of a host may be longer than the path of a socket.
        const unix = relays.get(key) ?? `${folder}/${relays.size}`
        relays.set(key, unix)
        if (fs.existsSync(unix)) return resolve(unix)
        const server = net.createServer({ allowHalfOpen: true }, (near) => {
          const far = dial(host, port)
          near.on("error", () => far.destroy())
          far.on("error", (error) => {
            failure = error
            near.destroy()
          })
          near.pipe(far).pipe(near)
        })
        servers.push(server)
        server.on("error", reject).listen(unix, () => resolve(unix))
        server.unref()
      })
    const servers: Array<net.Server> = []
    let failure: Error | undefined
    yield* Effect.addFinalizer(() => Effect.sync(() => servers.forEach((server) => server.close())))
    return (async (input, init) => {
      const url = new URL(new Request(input).url)
      const unix = await relay(hostOf(url.hostname), portOf(url))
      failure = undefined
      return globalThis.fetch(input, { ...init, unix } as unknown as RequestInit).catch((error) => {
        throw failure ?? error
      })
    }) as Fetch
  })

/** A dispatcher of undici's whose connections `dial` opens, until the scope closes. */
export const dispatcher = (dial: Dial): Effect.Effect<Dispatcher, never, Scope.Scope> =>
  Effect.gen(function* () {
    const [{ default: undici }, tls] = yield* Effect.promise(() =>
      Promise.all([import("undici"), import("node:tls")])
    )
    const agent = new undici.Agent({
      pipelining: 0, // no connection outlives its request
      connect: ({ hostname, port, protocol, servername }, callback) => {
        const secure = protocol === "https:"
        const plain = dial(hostOf(hostname), Number(port || (secure ? 443 : 80)))
        const socket = secure ? tls.connect({ socket: plain, servername: servername ?? hostname }) : plain
        plain.once("error", (error) => callback(error, null))
        if (secure) socket.once("error", (error) => callback(error, null))
        socket.once(secure ? "secureConnect" : "connect", () => callback(null, socket))
      }
    })
    yield* Effect.addFinalizer(() => Effect.promise(() => agent.destroy()))
    return agent
  })

const overSockets = (dial: Dial) =>
  Effect.gen(function* () {
    const { default: undici } = yield* Effect.promise(() => import("undici"))
    const agent = yield* dispatcher(dial)
    return (async (input, init) => {
      const { body, headers, status, statusText } = await undici.fetch(
        input as never,
        { ...init, dispatcher: agent } as never
      )
      return new Response(body as ReadableStream | null, {
        status,
        statusText,
        headers: [...headers]
      })
    }) as Fetch
  })

/** A `fetch` whose connections `dial` opens, until the scope closes. */
export const fetchOver = (dial: Dial): Effect.Effect<Fetch, never, Scope.Scope> =>
  Effect.suspend(() => ("Bun" in globalThis ? overUnixSocket(dial) : overSockets(dial)))

/** A `fetch` to the servers of a container, whatever the host. */
export const fetcher = (container: Container): Effect.Effect<Fetch, never, Scope.Scope> =>
  fetchOver((_, port) => netSocket(container, port))

const causeOf = (error: unknown): unknown =>
  error instanceof Error && error.cause !== undefined ? causeOf(error.cause) : error

const failed = (subject: string, url: URL, error: unknown): BerthError => {
  const cause = causeOf(error)
  if (isBerthError(cause)) return cause
  return new NetworkError({
    reason: "Reset",
    subject,
    address: url.host,
    errno: ECONNRESET,
    detail: `${url.href} gave no response: ${cause instanceof Error ? cause.message : String(cause)}`
  })
}

export const parseUrl = (url: string | URL): Effect.Effect<URL, InvalidOption> =>
  Effect.try({
    try: () => new URL(url),
    catch: () => {
      const expected = "an absolute URL of http or https"
      return new InvalidOption({ option: "url", value: JSON.stringify(String(url)), expected })
    }
  })

/** A request; `subject` is what has the server, for errors. */
export const fetchBy = (
  subject: string,
  request: Fetch,
  url: URL,
  init: RequestInit
): Effect.Effect<Response, BerthError> =>
  Effect.tryPromise({
    try: (interrupted) => {
      const signal = init.signal == null ? interrupted : AbortSignal.any([interrupted, init.signal])
      return request(url, { ...init, signal })
    },
    catch: (error) => failed(subject, url, error)
  })

export const subjectOf = ({ id }: Container): string => `container ${id}`

/** See `Container.fetch`. */
export const fetch: {
  (
    url: string | URL,
    init?: RequestInit
  ): (container: Container) => Effect.Effect<Response, BerthError, Scope.Scope>
  (
    container: Container,
    url: string | URL,
    init?: RequestInit
  ): Effect.Effect<Response, BerthError, Scope.Scope>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, given: string | URL, init: RequestInit = {}) =>
    Effect.gen(function* () {
      const url = yield* parseUrl(given)
      const request = yield* fetcher(container)
      return yield* fetchBy(subjectOf(container), request, url, init)
    }).pipe(Effect.withSpan("berth.Container.fetch", { attributes: { "container.id": container.id } }))
)

/** An HttpClient of a `fetch`, which lives as long as the layer. */
export const clientOf = (
  fetch: Effect.Effect<Fetch, never, Scope.Scope>
): Layer.Layer<HttpClient.HttpClient> =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const client = yield* Effect.promise(() => import("@effect/platform/FetchHttpClient"))
      return Layer.provide(client.layer, Layer.succeed(client.Fetch, yield* fetch))
    })
  )

/** See `Container.httpClient`. */
export const httpClient = (container: Container): Layer.Layer<HttpClient.HttpClient> =>
  clientOf(fetcher(container))
