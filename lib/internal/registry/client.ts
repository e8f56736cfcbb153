/** The HTTP of registries: authentication, redirects, retries, and the meaning of answers. */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpClient from "@effect/platform/HttpClient"
import type { HttpClientError } from "@effect/platform/HttpClientError"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type { HttpClientResponse } from "@effect/platform/HttpClientResponse"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, RegistryError } from "../../BerthError.ts"
import { concat } from "../util/bytes.ts"
import type { Auth } from "./auth.ts"
import { type Body, sendBody } from "./body.ts"
import { ProxyRefusal, fetch as proxied } from "./proxy.ts"

/** The place of a registry's repositories, if they are not at its root. */
export interface Place {
  /** The prefix of repository names at the place: `proxy`, or empty. */
  readonly path: string
  /** The prefix that it replaces: `library`, or empty. */
  readonly replaces: string
}

/** The name of a repository at the place. */
export const nameAt = ({ place: { path, replaces } }: Pick<Client, "place">, repository: string): string => {
  const isBelow = replaces !== "" && `${repository}/`.startsWith(`${replaces}/`)
  const rest = isBelow ? repository.slice(replaces.length + 1) : repository
  return [path, rest].filter((part) => part !== "").join("/") || repository
}

export interface Client {
  /** Host and port, for messages. */
  readonly name: string
  /** `https://registry-1.docker.io`. */
  readonly origin: string
  readonly http: HttpClient.HttpClient
  readonly auth: Auth
  readonly place: Place
  /** The time without any byte of a blob after which its download is resumed. */
  readonly stallTimeout: Duration.Duration
  /** Which failures are retried, and when. */
  readonly retries: Schedule.Schedule<unknown, unknown>
  /** The time until which another registry is asked instead, in milliseconds since the epoch. */
  readonly state: { passedOverUntil: number }
}

export interface Request {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "DELETE"
  /** The path after the origin, `/v2/library/alpine/manifests/3`, or a URL from the registry. */
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body?: Body
  /** The scope of a token: `repository:library/alpine:pull`. */
  readonly scope: string
  /** The subject of errors. */
  readonly subject: string
}

/** An error, and whether a retry may help. */
export class Failure {
  readonly error: RegistryError
  readonly retry: boolean
  readonly after: Duration.Duration | undefined
  constructor(error: RegistryError, retry: boolean, after?: Duration.Duration) {
    this.error = error
    this.retry = retry
    this.after = after
  }
}

/** The limit of the time until the end of the headers, including all redirects. */
const headTimeout = Duration.seconds(30)
/** The limit of the time of a whole manifest, token or page of a list. */
const documentTimeout = Duration.seconds(60)
/** After this time there are no retries. */
const retryTimeout = Duration.minutes(1)
export const defaultStallTimeout: Duration.Duration = Duration.seconds(60)
/** A request with a longer Retry-After is not retried. */
const longestRetryAfter = Duration.seconds(60)
const REDIRECTS_MAX = 5
/** A body that is slower than this on average over so many stall timeouts fails. */
const BYTES_PER_SECOND_MIN = 1024
const STALLS_PER_AVERAGE = 3

/** The number of retries, within some seconds; a longer Retry-After, up to a minute, replaces the delay. */
const retriesOf = (times: number): Schedule.Schedule<unknown, unknown> =>
  Schedule.exponential("100 millis").pipe(
    Schedule.jittered,
    Schedule.intersect(Schedule.recurs(times)),
    Schedule.upTo(retryTimeout),
    Schedule.passthrough,
    Schedule.modifyDelay((failure: unknown, delay) =>
      failure instanceof Failure && failure.after !== undefined ? Duration.max(delay, failure.after) : delay
    ),
    Schedule.whileInput(
      (failure: unknown) =>
        failure instanceof Failure &&
        failure.retry &&
        (failure.after === undefined || Duration.lessThanOrEqualTo(failure.after, longestRetryAfter))
    )
  )

export const retrySchedule: Schedule.Schedule<unknown, unknown> = retriesOf(4)

/** After a mirror there is another registry to ask, so an overloaded mirror is not waited for. */
export const mirrorSchedule: Schedule.Schedule<unknown, unknown> = retriesOf(1).pipe(
  Schedule.whileInput((failure: unknown) => failure instanceof Failure && failure.after === undefined)
)

const codeOf = (cause: unknown): string | undefined => {
  let current = cause
  for (let depth = 0; depth < 5 && typeof current === "object" && current !== null; depth++) {
    const { code, errors } = current as { code?: unknown; errors?: unknown }
    if (typeof code === "string" && code !== "") return code
    current = Array.isArray(errors) ? errors[0] : (current as { cause?: unknown }).cause
  }
  return undefined
}

const textOf = (cause: unknown): string => {
  const { message, cause: inner } = (cause ?? {}) as { message?: unknown; cause?: { message?: unknown } }
  return String(inner?.message ?? message ?? cause).slice(0, 300)
}

const permanent =
  /^(ENOTFOUND|EPROTO|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|ERR_TLS|ERR_SSL|HOSTNAME_MISMATCH)/
const unknownAuthority =
  /DEPTH_ZERO_SELF|SELF_SIGNED|UNABLE_TO_(GET_ISSUER|VERIFY)|UnknownIssuer|CaUsedAsEndEntity/
const tlsTrouble = /EPROTO|WRONG_VERSION|packet length|InvalidContentType|invalid http version/i

/** The connection failed before or within an answer. */
export const transportFailure = (name: string, subject: string, error: HttpClientError): Failure => {
  const code = codeOf(error.cause)
  const why = code ?? textOf(error.cause)
  const hint = tlsTrouble.test(why)
    ? ". It may speak HTTP without TLS: set plainHttp: true"
    : unknownAuthority.test(why)
      ? ". Its certificate is signed by an unknown authority: give the certificate of that authority as ca"
      : ""
  const detail =
    error._tag === "ResponseError"
      ? `the connection to ${name} broke: ${why}`
      : `${name} cannot be reached: ${why}${hint}`
  const failure = new RegistryError({
    reason: "Unreachable",
    registry: name,
    subject,
    status: 0,
    detail,
    cause: error
  })
  const retry = !(error.cause instanceof ProxyRefusal) && (code === undefined || !permanent.test(code))
  return new Failure(failure, retry)
}

const timedOut = (name: string, subject: string, what: string, retry = true): Failure =>
  new Failure(
    new RegistryError({
      reason: "Unreachable",
      registry: name,
      subject,
      status: 0,
      detail: `${name} ${what}`
    }),
    retry
  )

interface Exchanged {
  readonly response: HttpClientResponse
  /** Whether the answer is from the registry, and not from the target of a redirect. */
  readonly own: boolean
}

/** Sends one request and follows redirects. Credentials only go to the origin that asked for them. */
const exchange = (
  client: Client,
  request: Request,
  authorization: string | undefined
): Effect.Effect<Exchanged, Failure, Scope.Scope> => {
  const go = (url: URL, hops: number): Effect.Effect<Exchanged, Failure, Scope.Scope> => {
    const own = url.origin === new URL(client.origin).origin
    const outgoing = HttpClientRequest.make(request.method)(url.href, {
      headers: {
        "user-agent": "berth",
        // The bytes are verified as they are sent, so transparent decompression is off.
        "accept-encoding": "identity",
        ...request.headers,
        ...(own && authorization !== undefined ? { authorization } : {})
      }
    })
    return Effect.flatMap(execute(client, request.subject, outgoing, request.body), (response) => {
      const location = response.headers.location
      if (![301, 302, 303, 307, 308].includes(response.status) || location === undefined)
        return Effect.succeed({ response, own })
      const next = URL.canParse(location, url.href) ? new URL(location, url) : undefined
      const downgrade = next?.protocol !== "https:" && url.protocol === "https:"
      if (next === undefined || downgrade || !/^https?:$/.test(next.protocol) || hops === 0) {
        const why =
          hops === 0 ? "too often" : "to a place that Berth does not follow (not https, or not a URL)"
        return Effect.fail(protocolFailure(client.name, request.subject, response.status, `redirects ${why}`))
      }
      return go(next, hops - 1)
    })
  }
  const gone = go(new URL(request.path, client.origin), REDIRECTS_MAX)
  return request.body === undefined
    ? Effect.timeoutFail(gone, {
        duration: headTimeout,
        onTimeout: () => timedOut(client.name, request.subject, "does not answer")
      })
    : gone
}

/** One HTTP exchange; the body is read or cancelled before the scope closes. */
export const execute = (
  client: Pick<Client, "http" | "name">,
  subject: string,
  request: HttpClientRequest.HttpClientRequest,
  body?: Body
): Effect.Effect<HttpClientResponse, Failure, Scope.Scope> => {
  const http = HttpClient.withScope(client.http)
  const onTimeout = (what: string) => timedOut(client.name, subject, what)
  const answered =
    body === undefined
      ? Effect.timeoutFail(http.execute(request), {
          duration: headTimeout,
          onTimeout: () => onTimeout("does not answer")
        })
      : sendBody(http, request, body, onTimeout)
  return Effect.flatMap(Effect.serviceOption(FetchHttpClient.Fetch), (given) =>
    Effect.provideService(
      answered,
      FetchHttpClient.Fetch,
      Option.getOrElse(given, () => proxied)
    )
  ).pipe(
    Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" }),
    Effect.mapError((error) =>
      error instanceof Failure ? error : transportFailure(client.name, subject, error)
    ),
    Effect.tap((response) => {
      // A runtime's fetch decompresses every compressed answer, and Berth has not asked for compression.
      const encoding = response.headers["content-encoding"] ?? "identity"
      const isRefused = request.method !== "HEAD" && !/^(identity)?$/i.test(encoding)
      const detail = `answers in the encoding ${JSON.stringify(encoding.slice(0, 100))}, which was not requested`
      return isRefused
        ? Effect.fail(protocolFailure(client.name, subject, response.status, detail))
        : Effect.void
    })
  )
}

export const protocolFailure = (
  name: string,
  subject: string,
  status: number,
  detail: string,
  retry = false,
  cause?: unknown
): Failure =>
  new Failure(
    new RegistryError({ reason: "Protocol", registry: name, subject, status, detail, cause }),
    retry
  )

/** The body as a stream that fails if no bytes arrive for too long, or too few on average. */
export const body = (
  name: string,
  subject: string,
  response: HttpClientResponse,
  stallTimeout: Duration.Duration = defaultStallTimeout
): Stream.Stream<Uint8Array, Failure> =>
  response.stream.pipe(
    Stream.mapError((error) => transportFailure(name, subject, error)),
    Stream.timeoutFail(() => timedOut(name, subject, "stopped sending"), stallTimeout),
    fastEnough(Duration.toMillis(stallTimeout) * STALLS_PER_AVERAGE, (bytes, millis) =>
      timedOut(name, subject, `is too slow: it has sent ${bytes} bytes in ${Math.round(millis)} ms`, false)
    )
  )

/** Only counts the time spent waiting for the stream: its consumer may take any time. */
const fastEnough =
  <E>(millisAveraged: number, tooSlow: (bytes: number, millis: number) => E) =>
  (stream: Stream.Stream<Uint8Array, E>): Stream.Stream<Uint8Array, E> =>
    Stream.unwrapScoped(
      Effect.gen(function* () {
        const clock = yield* Effect.clock
        const pull = yield* Stream.toPull(stream)
        let waited = 0
        let bytes = 0
        const next = Effect.suspend(() => {
          const began = clock.unsafeCurrentTimeMillis()
          return Effect.flatMap(pull, (chunk) => {
            waited += clock.unsafeCurrentTimeMillis() - began
            for (const part of chunk) bytes += part.length
            if (waited < millisAveraged) return Effect.succeed(chunk)
            if (bytes < (BYTES_PER_SECOND_MIN * waited) / 1000)
              return Effect.fail(Option.some(tooSlow(bytes, waited)))
            waited = 0
            bytes = 0
            return Effect.succeed(chunk)
          })
        })
        return Stream.repeatEffectChunkOption(next)
      })
    )

/** The whole body if it has at most `limit` bytes; none if it is longer, and then the rest is not read. */
export const readBody = (
  name: string,
  subject: string,
  response: HttpClientResponse,
  limit: number
): Effect.Effect<Option.Option<Uint8Array>, Failure> =>
  Effect.suspend(() => {
    if (Number(response.headers["content-length"] ?? 0) > limit) return Effect.succeedNone
    let length = 0
    return body(name, subject, response).pipe(
      Stream.takeUntil((chunk) => {
        length += chunk.length
        return length > limit
      }),
      Stream.runCollect,
      Effect.map((chunks) => (length > limit ? Option.none() : Option.some(concat(chunks)))),
      Effect.timeoutFail({
        duration: documentTimeout,
        onTimeout: () => timedOut(name, subject, "takes too long to send a document", false)
      })
    )
  })

const ErrorBody = Schema.parseJson(
  Schema.Struct({
    errors: Schema.NonEmptyArray(
      Schema.Struct({ code: Schema.String, message: Schema.optional(Schema.String) })
    )
  })
)

/** The registry's explanation of a refusal, on one printable line. */
const explain = (client: Client, request: Request, response: HttpClientResponse): Effect.Effect<string> =>
  readBody(client.name, request.subject, response, 64 * 1024).pipe(
    Effect.map(Option.getOrElse(() => new Uint8Array())),
    Effect.flatMap((bytes) => Schema.decodeUnknown(ErrorBody)(new TextDecoder().decode(bytes))),
    Effect.map(({ errors: [first] }) =>
      `: ${first.message || first.code}`.replaceAll(/[^\x20-\x7e]+/g, " ").slice(0, 300)
    ),
    Effect.orElseSucceed(() => "")
  )

const retryAfter = (response: HttpClientResponse): Duration.Duration | undefined => {
  const value = response.headers["retry-after"]
  if (value === undefined) return undefined
  const millis = /^\d{1,9}$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now()
  return Number.isFinite(millis) ? Duration.millis(Math.max(0, millis)) : undefined
}

const statusFailure = (
  client: Client,
  request: Request,
  response: HttpClientResponse
): Effect.Effect<never, Failure> =>
  Effect.flatMap(explain(client, request, response), (said) => {
    const { status } = response
    const after = retryAfter(response)
    const wait =
      after !== undefined && Duration.greaterThan(after, longestRetryAfter)
        ? `to wait for ${Math.round(Duration.toSeconds(after))} seconds`
        : ""
    const fail = (reason: RegistryError["reason"], detail: string, retry = false) =>
      Effect.fail(
        new Failure(
          new RegistryError({
            reason,
            registry: client.name,
            subject: request.subject,
            status,
            detail: detail + said
          }),
          retry,
          after
        )
      )
    switch (status) {
      case 401:
      case 403:
        return fail("Unauthorized", `${client.auth.description} is not allowed to do this`)
      case 404:
        return fail(
          "NotFound",
          `the repository, tag or blob does not exist, or is hidden from ${client.auth.description}`
        )
      case 405:
        return fail("Unsupported", `the registry does not allow ${request.method} here`)
      case 429:
        return fail("TooManyRequests", `the registry asks for fewer requests${wait && `, and ${wait}`}`, true)
      case 408:
      case 500:
      case 502:
      case 503:
      case 504:
        return fail("Protocol", `the registry failed${wait && `, and asks ${wait}`}`, true)
      default:
        return fail("Protocol", "the registry gave an unexpected answer")
    }
  })

/** One attempt with the credentials of the last challenge, and one after a new challenge. Fails unless 2xx. */
export const attempt = (
  client: Client,
  request: Request
): Effect.Effect<HttpClientResponse, Failure, Scope.Scope> =>
  Effect.gen(function* () {
    const used = client.auth.current(request.scope)
    const first = yield* exchange(client, request, used)
    let { response } = first
    // Only the registry may choose the receiver of credentials.
    if (response.status === 401 && first.own) {
      const challenge = response.headers["www-authenticate"]
      const authorization = yield* client.auth.answer({
        challenge,
        scope: request.scope,
        subject: request.subject,
        refused: used
      })
      response = (yield* exchange(client, request, authorization)).response
    }
    return response.status >= 200 && response.status < 300
      ? response
      : yield* statusFailure(client, request, response)
  })

export const toError = (error: Failure | BerthError): BerthError =>
  error instanceof Failure ? error.error : error

/** Sends a request, with retries if they may help, and passes the answer to `use`. */
export const send = <A>(
  client: Client,
  request: Request,
  use: (response: HttpClientResponse) => Effect.Effect<A, Failure | BerthError>
): Effect.Effect<A, BerthError> =>
  Effect.scoped(Effect.flatMap(attempt(client, request), use)).pipe(
    Effect.retry(client.retries),
    Effect.mapError(toError)
  )
