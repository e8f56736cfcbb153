/** Certificates for registries besides the runtime's, and an HTTP client that uses them. */
import { createPrivateKey, X509Certificate } from "node:crypto"
import * as http from "node:http"
import * as https from "node:https"
import * as os from "node:os"
import { pipeline, Readable } from "node:stream"
import * as tls from "node:tls"
import * as HttpClient from "@effect/platform/HttpClient"
import { type HttpClientError, RequestError } from "@effect/platform/HttpClientError"
import type { HttpClientRequest } from "@effect/platform/HttpClientRequest"
import * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { InvalidOption } from "../../BerthError.ts"
import type { ConnectOptions } from "../../Registry.ts"
import { readBounded } from "../disk/files.ts"
import { makeAgent, proxyFor, refuseAnswersOf } from "./proxy.ts"

/** The additional authorities, and the client certificate. */
export interface Trust {
  readonly ca: ReadonlyArray<string>
  readonly client: { readonly certificate: string; readonly key: Redacted.Redacted<string> } | undefined
  readonly verify: boolean
}

/** The limit of 1xx answers before the final one. */
const INFORMATIONAL_ANSWERS_MAX = 16

const PEM_BYTES_MAX = 1024 * 1024
const pemBlock = /-----BEGIN (?:TRUSTED )?CERTIFICATE-----[\s\S]+?-----END (?:TRUSTED )?CERTIFICATE-----/g

/** PEM text, given directly or as the path of a file. The error never shows the text: it may be a key. */
const readPem = (
  berth: Berth,
  option: string,
  value: string,
  check: (pem: string) => unknown,
  expected: string
): Effect.Effect<string, InvalidOption> =>
  Effect.gen(function* () {
    const isText = value.includes("-----BEGIN ")
    const shown = isText ? "the given text" : JSON.stringify(value.slice(0, 300))
    const refuse = (why: string, cause?: unknown) =>
      new InvalidOption({
        option,
        value: `${shown} (${why})`,
        expected: `${expected}: text or a file's path`,
        cause
      })
    const bytes = isText
      ? Option.some(new TextEncoder().encode(value))
      : yield* Effect.mapError(readBounded(berth.fileSystem, value, value, PEM_BYTES_MAX), (error) =>
          refuse(error.detail, error)
        )
    if (Option.isNone(bytes)) return yield* refuse("there is no such file")
    const pem = new TextDecoder().decode(bytes.value)
    // Without its cause, which could quote the text.
    yield* Effect.try({ try: () => check(pem), catch: () => refuse("cannot be parsed") })
    return pem
  })

const checkCertificates = (pem: string) => {
  const blocks = pem.match(pemBlock) ?? []
  if (blocks.length === 0) throw new Error("no certificate")
  return blocks.map((block) => new X509Certificate(block))
}

const readCertificate = (berth: Berth, option: string, value: string) =>
  readPem(berth, option, value, checkCertificates, "certificates in PEM")

const readKey = (berth: Berth, option: string, value: string) =>
  Effect.map(
    readPem(berth, option, value, createPrivateKey, "a private key in PEM without a passphrase"),
    Redacted.make
  )

/** As in containers-certs.d(5): the first existing one of these folders. */
const certificateFolders = (host: string): ReadonlyArray<string> => [
  `${process.env.XDG_CONFIG_HOME || `${os.homedir()}/.config`}/containers/certs.d/${host}`,
  `/etc/containers/certs.d/${host}`,
  `/etc/docker/certs.d/${host}`
]

const fromFolders = (berth: Berth, host: string): Effect.Effect<Trust, InvalidOption> =>
  Effect.gen(function* () {
    for (const folder of certificateFolders(host)) {
      const names = yield* Effect.option(berth.fileSystem.readDirectory(folder))
      if (Option.isNone(names)) continue
      const paths = (suffix: string) =>
        names.value.filter((name) => name.endsWith(suffix)).map((name) => `${folder}/${name}`)
      const ca = yield* Effect.forEach(paths(".crt"), (path) => readCertificate(berth, "ca", path))
      const [certificate] = paths(".cert").sort()
      if (certificate === undefined) return { ca, client: undefined, verify: true }
      const key = certificate.replace(/\.cert$/, ".key")
      return {
        ca,
        client: {
          certificate: yield* readCertificate(berth, "clientCertificate.certificate", certificate),
          key: yield* readKey(berth, "clientCertificate.key", key)
        },
        verify: true
      }
    }
    return { ca: [], client: undefined, verify: true }
  })

/** The TLS options and the folders for this host; none if the runtime's defaults are enough. */
export const load = (
  berth: Berth,
  host: string,
  options: ConnectOptions
): Effect.Effect<Option.Option<Trust>, InvalidOption> =>
  Effect.gen(function* () {
    const found = yield* fromFolders(berth, host)
    const given = options.ca === undefined ? [] : typeof options.ca === "string" ? [options.ca] : options.ca
    const ca = yield* Effect.forEach(given, (value) => readCertificate(berth, "ca", value))
    const { clientCertificate } = options
    const client =
      clientCertificate === undefined
        ? found.client
        : {
            certificate: yield* readCertificate(
              berth,
              "clientCertificate.certificate",
              clientCertificate.certificate
            ),
            key: yield* readKey(
              berth,
              "clientCertificate.key",
              Redacted.isRedacted(clientCertificate.key)
                ? Redacted.value(clientCertificate.key)
                : clientCertificate.key
            )
          }
    const trust = { ca: [...ca, ...found.ca], client, verify: options.tlsVerify !== false }
    return trust.ca.length > 0 || client !== undefined || !trust.verify ? Option.some(trust) : Option.none()
  })

/** Given authorities replace the usual ones, so these must be listed as well: the system's, if they are requested. */
const usualAuthorities = (): ReadonlyArray<string> =>
  (tls as { readonly getCACertificates?: () => ReadonlyArray<string> }).getCACertificates?.() ??
  tls.rootCertificates

/**
 * A client over node:https, because the fetch of each runtime takes certificates in another way. The authorities apply
 * to every host. `verify: false` only applies to the registry's own host, which may also have its token service. The
 * client certificate is only sent to the registry, also through a proxy.
 */
export const httpClient = (trust: Trust, origin: string): HttpClient.HttpClient => {
  const own = new URL(origin)
  const ca = [...usualAuthorities(), ...trust.ca]
  const agents = new Map<string, Promise<http.Agent>>()
  const agentFor = (proxy: string): Promise<http.Agent> => {
    const agent = agents.get(proxy) ?? makeAgent(proxy, ca)
    agents.set(proxy, agent)
    return agent
  }
  return HttpClient.make((request, url, signal) => {
    const failed = (cause: unknown) => new RequestError({ request, reason: "Transport", cause })
    const exchange = (proxy: string, agent: http.Agent | undefined) =>
      Effect.async<HttpClientResponse.HttpClientResponse, HttpClientError>((resume) => {
        const fail = (cause: unknown) => resume(Effect.fail(failed(cause)))
        const isOwn = url.origin === own.origin
        const settings: https.RequestOptions = {
          method: request.method,
          headers: request.headers,
          ca,
          rejectUnauthorized: trust.verify || url.hostname !== own.hostname,
          ...(agent === undefined ? {} : { agent }),
          ...(isOwn && trust.client !== undefined
            ? { cert: trust.client.certificate, key: Redacted.value(trust.client.key) }
            : {})
        }
        const outgoing =
          url.protocol === "https:"
            ? https.request(url, settings)
            : http.request(url, { method: request.method, headers: request.headers })
        outgoing.on("error", fail)
        let informed = 0
        outgoing.on("information", () => {
          if (++informed > INFORMATIONAL_ANSWERS_MAX)
            outgoing.destroy(new Error(`more than ${INFORMATIONAL_ANSWERS_MAX} answers of 1xx`))
        })
        if (agent !== undefined) {
          refuseAnswersOf(proxy, outgoing, fail)
        }
        outgoing.on("response", (incoming) => {
          signal.addEventListener("abort", () => incoming.destroy(), { once: true })
          try {
            resume(Effect.succeed(toResponse(request, incoming)))
          } catch (cause) {
            incoming.destroy()
            fail(cause)
          }
        })
        signal.addEventListener("abort", () => outgoing.destroy(), { once: true })
        sendBody(request, outgoing, fail)
      })
    // Without TLS, only token services on this machine are allowed.
    const proxy = url.protocol === "https:" ? proxyFor(url) : ""
    return proxy === ""
      ? exchange(proxy, undefined)
      : Effect.flatMap(Effect.tryPromise({ try: () => agentFor(proxy), catch: failed }), (agent) =>
          exchange(proxy, agent)
        )
  })
}

const toResponse = (
  request: HttpClientRequest,
  incoming: http.IncomingMessage
): HttpClientResponse.HttpClientResponse => {
  const headers = new Headers()
  for (let i = 0; i + 1 < incoming.rawHeaders.length; i += 2) {
    headers.append(incoming.rawHeaders[i]!, incoming.rawHeaders[i + 1]!)
  }
  const status = incoming.statusCode!
  const empty = request.method === "HEAD" || [204, 205, 304].includes(status)
  if (empty) {
    incoming.resume()
  }
  const body = empty ? null : (Readable.toWeb(incoming) as unknown as ReadableStream<Uint8Array>)
  return HttpClientResponse.fromWeb(request, new Response(body, { status, headers }))
}

const sendBody = (
  { body }: HttpClientRequest,
  outgoing: http.ClientRequest,
  fail: (cause: unknown) => void
): void => {
  switch (body._tag) {
    case "Empty":
      outgoing.end()
      return
    case "Raw":
    case "Uint8Array":
      outgoing.end(body.body as string | Uint8Array)
      return
    case "Stream":
      pipeline(Readable.from(Stream.toAsyncIterable(body.stream)), outgoing, (cause) => cause && fail(cause))
      return
    default:
      outgoing.destroy()
      fail(new Error(`a body of the kind ${body._tag} is not sent to registries`))
  }
}
