/** The bodies of `Registry`. */
import { randomBytes } from "node:crypto"
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpClient from "@effect/platform/HttpClient"
import type { HttpClientResponse } from "@effect/platform/HttpClientResponse"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { Scope } from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { Reference } from "../../Reference.ts"
import type { ConnectOptions, Mirror, Registry } from "../../Registry.ts"
import { append, io, storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as Oci from "../oci/documents.ts"
import * as references from "../oci/reference.ts"
import { RegistryTypeId } from "../typeIds.ts"
import * as digests from "../util/digest.ts"
import { prints } from "../util/prints.ts"
import { quote } from "../util/text.ts"
import * as Auth from "./auth.ts"
import * as Client from "./client.ts"
import * as Mirrors from "./mirrors.ts"
import { isLoopback } from "./proxy.ts"
import * as Tls from "./tls.ts"

const namesOf = ({ mirrors }: Registry): ReadonlyArray<string> => mirrors.map(({ name }) => name)

const Proto = {
  ...prints<Registry>({
    id: "berth/Registry",
    json: (self) => ({ host: self.host, origin: self.client.origin, mirrors: namesOf(self) }),
    line: (self) =>
      [self.host, self.client.origin, ...namesOf(self).map((name) => `mirror ${name}`)].join(", ")
  }),
  [RegistryTypeId]: RegistryTypeId
}

export const connect = (
  berth: Berth,
  host: string,
  options: ConnectOptions
): Effect.Effect<Registry, BerthError> =>
  Either.match(references.parseRegistry(host), {
    onLeft: () =>
      new InvalidOption({ option: "registry", value: quote(host), expected: "a host, or host:port" }),
    onRight: (registry) => connectTo(berth, registry, options)
  })

/** Connects to the registry of a reference, `host`. */
export const connectTo = (
  berth: Berth,
  host: string,
  options: ConnectOptions
): Effect.Effect<Registry, BerthError> =>
  Effect.gen(function* () {
    const own =
      options.location === undefined
        ? { host, place: { path: "", replaces: "" } }
        : yield* Mirrors.parseLocation("location", options.location, options.replaces ?? "")
    const client = yield* open(berth, own.host, options, own.place, Client.retrySchedule)
    const mirrors = yield* Effect.forEach(options.mirrors ?? [], (given) => {
      const mirror: Mirror = typeof given === "string" ? { location: given } : given
      return Effect.flatMap(
        Mirrors.parseLocation("mirrors", mirror.location, mirror.replaces ?? ""),
        (parsed) => open(berth, parsed.host, mirror, parsed.place, Client.mirrorSchedule)
      )
    })
    return Object.assign(Object.create(Proto), { host, client, mirrors, berth })
  })

const fetching = Effect.provide(HttpClient.HttpClient, FetchHttpClient.layer)

const open = (
  berth: Berth,
  host: string,
  options: ConnectOptions,
  place: Client.Place,
  retries: Client.Client["retries"]
): Effect.Effect<Client.Client, BerthError> =>
  Effect.gen(function* () {
    const address = host === "docker.io" ? "registry-1.docker.io" : host
    const { hostname } = new URL(`https://${address}`)
    const trust = options.plainHttp === true ? Option.none() : yield* Tls.load(berth, host, options)
    const plain = options.plainHttp ?? (Option.isNone(trust) && isLoopback(hostname))
    const scheme = plain ? "http" : "https"
    const name = /:\d+$/.test(address) ? address : `${address}:${plain ? 80 : 443}`
    const origin = `${scheme}://${address}`
    const base = Option.isSome(trust) ? Tls.httpClient(trust.value, origin) : yield* fetching
    // Without spans: URLs of redirects are bearer secrets, and registries do not need trace ids.
    const http = HttpClient.withTracerDisabledWhen(base, () => true)
    const transport = { name, origin, http }
    const auth = yield* Auth.make(berth, host, transport, options.credentials)
    const stallTimeout = yield* stallTimeoutOf(options)
    return { ...transport, auth, place, retries, stallTimeout, state: { passedOverUntil: 0 } }
  })

const stallTimeoutOf = ({
  stallTimeout = Client.defaultStallTimeout
}: ConnectOptions): Effect.Effect<Duration.Duration, InvalidOption> =>
  Option.match(Duration.decodeUnknown(stallTimeout), {
    onNone: () => refuseStallTimeout(stallTimeout),
    onSome: (duration) =>
      Duration.toMillis(duration) > 0 ? Effect.succeed(duration) : refuseStallTimeout(stallTimeout)
  })

const refuseStallTimeout = (value: unknown) =>
  new InvalidOption({
    option: "stallTimeout",
    value: JSON.stringify(value),
    expected: 'a duration longer than 0: 10_000, or "10 seconds"'
  })

const manifestTypes = [
  Oci.mediaTypes.index,
  Oci.mediaTypes.dockerIndex,
  Oci.mediaTypes.manifest,
  Oci.mediaTypes.dockerManifest
].join(", ")

const request = (
  client: Client.Client,
  reference: Reference,
  method: "GET" | "HEAD",
  kind: "manifests" | "blobs",
  headers: Readonly<Record<string, string>> = {}
): Client.Request => {
  const repository = Client.nameAt(client, reference.repository)
  return {
    method,
    path: `/v2/${repository}/${kind}/${reference.digest ?? reference.tag}`,
    headers,
    scope: `repository:${repository}:pull`,
    subject: references.print(reference)
  }
}

const mediaTypeOf = (response: HttpClientResponse): string =>
  (response.headers["content-type"] ?? "").split(";")[0]!.trim()

export const resolve = (self: Registry, reference: Reference): Effect.Effect<Oci.Descriptor, BerthError> =>
  Mirrors.first(self, (client) => resolveAt(client, reference))

const resolveAt = (client: Client.Client, reference: Reference): Effect.Effect<Oci.Descriptor, BerthError> =>
  Effect.gen(function* () {
    const accept = { accept: manifestTypes }
    // HEAD does not count against Docker Hub's pull limit.
    const head = yield* Client.send(
      client,
      request(client, reference, "HEAD", "manifests", accept),
      (response) =>
        Effect.succeed({
          digest: response.headers["docker-content-digest"] ?? reference.digest,
          mediaType: mediaTypeOf(response),
          size: Number(response.headers["content-length"] ?? -1)
        })
    ).pipe(
      Effect.map(Option.some),
      // Some registries do not support HEAD; GET reports all other errors.
      Effect.catchIf(
        (error) =>
          error._tag === "RegistryError" &&
          (error.reason === "Protocol" || error.reason === "Unsupported") &&
          error.status < 500,
        () => Effect.succeedNone
      )
    )
    if (Option.isSome(head) && head.value.digest !== undefined && head.value.size >= 0) {
      const { mediaType, size } = head.value
      const digest = yield* digests.parse(head.value.digest)
      if (reference.digest !== undefined && digest !== reference.digest)
        return yield* digests.mismatch(
          references.print(reference),
          "the manifest's digest",
          reference.digest,
          digest
        )
      return { mediaType, digest, size }
    }
    return yield* Client.send(client, request(client, reference, "GET", "manifests", accept), (response) =>
      Effect.map(readManifest(client, reference, response), (bytes) => ({
        mediaType: mediaTypeOf(response),
        digest: reference.digest ?? digests.ofBytes(bytes),
        size: bytes.length
      }))
    )
  })

const readManifest = (client: Client.Client, reference: Reference, response: HttpClientResponse) =>
  Effect.gen(function* () {
    const subject = references.print(reference)
    const bytes = yield* Client.readBody(client.name, subject, response, Oci.DOCUMENT_BYTES_MAX)
    return Option.isSome(bytes)
      ? bytes.value
      : yield* new ImageError({
          reason: "TooLarge",
          subject,
          detail: `the manifest is larger than ${Oci.DOCUMENT_BYTES_MAX} bytes`
        })
  })

export const manifest = (
  self: Registry,
  repository: references.Repository,
  descriptor: Oci.Descriptor
): Effect.Effect<Uint8Array, BerthError> =>
  Effect.gen(function* () {
    const digest = yield* Oci.digestOf(descriptor)
    if (descriptor.size > Oci.DOCUMENT_BYTES_MAX)
      return yield* tooLarge(digest, descriptor.size, Oci.DOCUMENT_BYTES_MAX)
    const reference = references.atDigest(repository, digest)
    const accept = { accept: descriptor.mediaType === "" ? manifestTypes : descriptor.mediaType }
    return yield* Mirrors.first(self, (client) =>
      Client.send(client, request(client, reference, "GET", "manifests", accept), (response) =>
        Effect.tap(readManifest(client, reference, response), (bytes) =>
          digests.verify(digest, descriptor.size, bytes)
        )
      )
    )
  })

/** The number of connections for one blob: each must make progress, so that no download lasts for ever. */
const RESUMES_MAX = 50
/** The number of bytes after which the attempts are counted anew. */
const PROGRESS_BYTES = 64 * 1024

/**
 * The bytes as they arrive, counted and resumed, but not hashed: `Store.put` does that. If a mirror fails, the next one
 * continues, because the blob is the same.
 */
export const unverifiedBlob = (
  self: Registry,
  repository: references.Repository,
  descriptor: Oci.Descriptor
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const digest = yield* Oci.digestOf(descriptor)
      const reference = references.atDigest(repository, digest)
      const subject = references.print(reference)
      let offset = 0

      const connection = (client: Client.Client): Stream.Stream<Uint8Array, Client.Failure | BerthError> =>
        Stream.unwrapScoped(
          Effect.gen(function* () {
            const start = offset
            const range: Readonly<Record<string, string>> = start === 0 ? {} : { range: `bytes=${start}-` }
            const response = yield* Client.attempt(client, request(client, reference, "GET", "blobs", range))
            const from = rangeStart(response)
            if (from === undefined || from > start) {
              const detail = "sent another range than the requested one"
              return yield* Effect.fail(Client.protocolFailure(client.name, subject, response.status, detail))
            }
            return skip(Client.body(client.name, subject, response, client.stallTimeout), start - from)
          })
        ).pipe(
          Stream.mapEffect((chunk): Effect.Effect<Uint8Array, ImageError> => {
            offset += chunk.length
            return offset > descriptor.size
              ? digests.mismatch(digest, "its size", `${descriptor.size} bytes`, "more")
              : Effect.succeed(chunk)
          }),
          Stream.concat(
            Stream.suspend(() =>
              offset < descriptor.size
                ? Stream.fail(shortBody(client, subject, offset, descriptor.size))
                : Stream.empty
            )
          )
        )

      const from = (client: Client.Client): Stream.Stream<Uint8Array, BerthError> =>
        Stream.unwrap(
          Effect.gen(function* () {
            let resumes = 0
            let retries = yield* Schedule.driver(client.retries)
            const resumed = (start: number): Stream.Stream<Uint8Array, Client.Failure | BerthError> =>
              Stream.catchAll(connection(client), (error) =>
                Stream.unwrap(
                  Effect.gen(function* () {
                    if (!(error instanceof Client.Failure) || !error.retry || ++resumes > RESUMES_MAX)
                      return yield* Effect.fail(error)
                    if (offset - start >= PROGRESS_BYTES) {
                      retries = yield* Schedule.driver(client.retries)
                    }
                    yield* Effect.mapError(retries.next(error), () => error)
                    return resumed(offset)
                  })
                )
              )
            return Stream.mapError(resumed(offset), Client.toError)
          })
        )

      return descriptor.size === 0
        ? Stream.empty
        : Mirrors.usable(self).reduceRight(
            (next, mirror) =>
              Stream.catchAll(from(mirror), (error) =>
                error._tag === "RegistryError"
                  ? Stream.unwrap(Effect.as(Mirrors.passOver(mirror, error), next))
                  : Stream.fail(error)
              ),
            from(self.client)
          )
    })
  )

const shortBody = (client: Client.Client, subject: string, offset: number, size: number): Client.Failure =>
  Client.protocolFailure(client.name, subject, 200, `sent ${offset} of ${size} bytes`, true)

/** The offset at which the registry begins: it may ignore a range. */
const rangeStart = (response: HttpClientResponse): number | undefined => {
  if (response.status !== 206) return 0
  const match = /^bytes (\d{1,15})-/.exec(response.headers["content-range"] ?? "")
  return match === null ? undefined : Number(match[1])
}

const skip = <E>(stream: Stream.Stream<Uint8Array, E>, count: number): Stream.Stream<Uint8Array, E> => {
  if (count === 0) return stream
  let left = count
  return Stream.filterMap(stream, (chunk) => {
    const dropped = Math.min(left, chunk.length)
    left -= dropped
    return dropped === chunk.length ? Option.none() : Option.some(chunk.subarray(dropped))
  })
}

const PIECE_BYTES = 1024 * 1024

/** A file that is removed when the scope closes; a sweep removes the files of a killed supervisor. */
const temporaryFile = (berth: Berth): Effect.Effect<string, never, Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => `${berth.supervisor.folder}/blob-${randomBytes(8).toString("hex")}`),
    (path) => Effect.ignore(berth.fileSystem.remove(path, { force: true }))
  )

/** Content that must be verified before its first byte is delivered is stored on the disk. */
const spooled = (
  berth: Berth,
  subject: string,
  path: string,
  content: Stream.Stream<Uint8Array, BerthError>
): Effect.Effect<Stream.Stream<Uint8Array, BerthError>, BerthError> => {
  const disk = io(subject, berth.folder)
  return Effect.gen(function* () {
    const file = yield* disk(berth.fileSystem.open(path, { flag: "w", mode: 0o600 }))
    yield* Stream.runForEach(content, (chunk) => disk(append(file, chunk)))
    return Stream.mapError(
      berth.fileSystem.stream(path, { chunkSize: PIECE_BYTES }),
      storageError(subject, berth.folder)
    )
  }).pipe(Effect.scoped)
}

export const blob = (
  self: Registry,
  repository: references.Repository,
  descriptor: Oci.Descriptor
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const digest = yield* Oci.digestOf(descriptor)
      const from = (source: Registry) =>
        digests.verified(unverifiedBlob(source, repository, descriptor), { digest, size: descriptor.size })
      if (Mirrors.usable(self).length === 0) return from(self)
      const file = yield* temporaryFile(self.berth)
      return yield* Mirrors.orFromNext(self, (source) =>
        // After the registry itself there is nobody to ask, so its content need not wait.
        source.mirrors.length === 0
          ? Effect.succeed(from(source))
          : spooled(self.berth, digest, file, from(source))
      )
    })
  )
