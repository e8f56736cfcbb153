/** Sending a body to a registry: streamed, its length said before, given up where nothing moves. */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import type * as HttpClient from "@effect/platform/HttpClient"
import type { HttpClientError } from "@effect/platform/HttpClientError"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type { HttpClientResponse } from "@effect/platform/HttpClientResponse"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"

export interface Body {
  readonly mediaType: string
  readonly length: number
  /** Run anew for each request that sends it. */
  readonly content: Stream.Stream<Uint8Array, unknown>
}

export const bytesBody = (mediaType: string, bytes: Uint8Array): Body => ({
  mediaType,
  length: bytes.length,
  content: Stream.make(bytes)
})

/** A blob that is read as it is sent: Deno's fetch says no length of any other stream. */
class StreamedBlob extends Blob {
  readonly #content: ReadableStream<Uint8Array<ArrayBuffer>>
  override readonly size: number
  constructor(content: ReadableStream<Uint8Array<ArrayBuffer>>, length: number) {
    super([])
    this.#content = content
    this.size = length
  }
  override stream(): ReadableStream<Uint8Array<ArrayBuffer>> {
    return this.#content
  }
}

/** Effect's client by fetch leaves Content-Length to fetch, which has none for a stream; registries want it. */
const withLength =
  (inner: typeof globalThis.fetch, length: number): typeof globalThis.fetch =>
  (input, init) => {
    const { body } = init ?? {}
    return body instanceof ReadableStream && "Deno" in globalThis
      ? inner(input, {
          ...init,
          body: new StreamedBlob(body as ReadableStream<Uint8Array<ArrayBuffer>>, length)
        })
      : inner(input, {
          ...init,
          // Any other setting makes Node's fetch keep a copy of what it sends, for where it has to send it again.
          window: null,
          redirect: "error",
          headers: { ...(init?.headers as object), "content-length": String(length) }
        })
  }

const stallTimeout = Duration.seconds(60)

/** What has come in whole is hashed, and may be copied to another disk or bucket, before there is an answer. */
const answerTimeout = Duration.minutes(5)

/** The request with the body. Fails with `onStall` where the registry takes nothing for a minute. */
export const sendBody = <E>(
  http: HttpClient.HttpClient.With<HttpClientError, Scope.Scope>,
  request: HttpClientRequest.HttpClientRequest,
  { content, length, mediaType }: Body,
  onStall: (what: string) => E
): Effect.Effect<HttpClientResponse, HttpClientError | E, Scope.Scope> =>
  Effect.gen(function* () {
    const clock = yield* Effect.clock
    const fetch = Option.getOrElse(yield* Effect.serviceOption(FetchHttpClient.Fetch), () => globalThis.fetch)
    let sent = 0
    let moved = clock.unsafeCurrentTimeMillis()
    // A fetch that is given up does not give up a body that has nothing to give just then.
    const over = yield* Effect.acquireRelease(Deferred.make<never, "over">(), Deferred.fail("over"))
    const counted = content.pipe(
      Stream.tap((chunk) =>
        Effect.sync(() => {
          sent += chunk.length
          moved = clock.unsafeCurrentTimeMillis()
        })
      ),
      Stream.interruptWhenDeferred(over)
    )
    const stalled = Effect.gen(function* () {
      while (true) {
        yield* Effect.sleep("1 second")
        const still = (yield* Clock.currentTimeMillis) - moved
        if (still > Duration.toMillis(sent < length ? stallTimeout : answerTimeout)) {
          const what = sent < length ? `stopped reading after ${sent} of ${length} bytes` : "does not answer"
          return yield* Effect.fail(onStall(what))
        }
      }
    })
    const streamed = HttpClientRequest.bodyStream(request, counted, {
      contentType: mediaType,
      contentLength: length
    })
    return yield* Effect.raceFirst(
      http.execute(streamed).pipe(Effect.provideService(FetchHttpClient.Fetch, withLength(fetch, length))),
      stalled
    )
  })
