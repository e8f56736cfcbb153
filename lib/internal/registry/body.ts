/** Sends a body to a registry: streamed, with its length in advance, and cancelled when it makes no progress. */
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

/** A blob that is read while it is sent: Deno's fetch sends the length of no other stream. */
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

/** Effect's fetch client leaves Content-Length to fetch, which sends none for a stream; registries need it. */
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
          // With any other setting Node's fetch keeps a copy of the sent bytes, to send them again.
          window: null,
          redirect: "error",
          headers: { ...(init?.headers as object), "content-length": String(length) }
        })
  }

const stallTimeout = Duration.seconds(60)

/** The registry hashes the complete content, and may copy it to another disk or bucket, before it answers. */
const answerTimeout = Duration.minutes(5)

/** Sends the request with the body. Fails with `onStall` if the registry takes no bytes for a minute. */
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
    // An aborted fetch does not cancel a body that has no bytes at that moment.
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
