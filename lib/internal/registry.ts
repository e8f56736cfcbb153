/** The bodies of `Registry`. */
import { createHash } from "node:crypto"
import * as HttpClient from "@effect/platform/HttpClient"
import type { HttpClientResponse } from "@effect/platform/HttpClientResponse"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { Berth } from "../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../BerthError.ts"
import * as Reference from "../Reference.ts"
import type { ConnectOptions, Registry } from "../Registry.ts"
import { mismatch, verify } from "./layout.ts"
import * as Oci from "./oci.ts"
import * as Auth from "./registryAuth.ts"
import * as Client from "./registryClient.ts"

const TypeId: unique symbol = Symbol.for("berth/Registry") as never

const Proto = {
  ...Inspectable.BaseProto,
  [TypeId]: TypeId,
  toJSON(this: Registry) {
    return { _id: "berth/Registry", host: this.host, origin: this.client.origin }
  }
}

export const connect = (
  berth: Berth,
  host: string,
  options: ConnectOptions
): Effect.Effect<Registry, BerthError> =>
  Effect.gen(function* () {
    const parsed = Reference.parse(`${host}/name`)
    const isHost =
      Either.isRight(parsed) &&
      (parsed.right.registry === host || host === "index.docker.io") &&
      /^(library\/)?name$/.test(parsed.right.repository)
    if (!isHost) {
      const value = JSON.stringify(host.slice(0, 200))
      return yield* new InvalidOption({ option: "registry", value, expected: "a host, or host:port" })
    }
    const address = /^(?:index\.)?docker\.io$/.test(host) ? "registry-1.docker.io" : host
    const { hostname } = new URL(`https://${address}`)
    const scheme = (options.plainHttp ?? Client.isLoopback(hostname)) ? "http" : "https"
    const name = /:\d+$/.test(address) ? address : `${address}:${scheme === "http" ? 80 : 443}`
    // No spans of its own: URLs that registries redirect to are bearer secrets, and no registry needs trace ids.
    const http = HttpClient.withTracerDisabledWhen(berth.httpClient, () => true)
    const transport = { name, origin: `${scheme}://${address}`, http }
    const auth = yield* Auth.make(
      berth,
      host === "index.docker.io" ? "docker.io" : host,
      transport,
      options.credentials
    )
    return Object.assign(Object.create(Proto), { host, client: { ...transport, auth } })
  })

const manifestTypes = [
  Oci.mediaTypes.index,
  Oci.mediaTypes.dockerIndex,
  Oci.mediaTypes.manifest,
  Oci.mediaTypes.dockerManifest
].join(", ")

/** What is asked for, after it has been parsed: nothing else becomes part of a URL. */
const parseTarget = (
  self: Registry,
  repository: string,
  separator: ":" | "@",
  name: string
): Effect.Effect<Reference.Reference, InvalidOption> =>
  Effect.filterOrFail(
    Reference.parse(`${self.host}/${repository}${separator}${name}`),
    (parsed) => parsed.repository === repository || parsed.repository === `library/${repository}`,
    () =>
      new InvalidOption({
        option: "repository",
        value: JSON.stringify(repository.slice(0, 200)),
        expected: "the path of a repository"
      })
  )

const pullScope = (reference: Reference.Reference) => `repository:${reference.repository}:pull`

const request = (
  reference: Reference.Reference,
  method: "GET" | "HEAD",
  kind: "manifests" | "blobs",
  headers: Readonly<Record<string, string>> = {}
): Client.Request => ({
  method,
  path: `/v2/${reference.repository}/${kind}/${reference.digest ?? reference.tag}`,
  headers,
  scope: pullScope(reference),
  subject: Reference.print(reference)
})

const mediaTypeOf = (response: HttpClientResponse): string =>
  (response.headers["content-type"] ?? "").split(";")[0]!.trim()

export const resolve = (
  self: Registry,
  repository: string,
  tagOrDigest: string
): Effect.Effect<Oci.Descriptor, BerthError> =>
  Effect.gen(function* () {
    const { client } = self
    const reference = yield* parseTarget(self, repository, tagOrDigest.includes(":") ? "@" : ":", tagOrDigest)
    const accept = { accept: manifestTypes }
    // HEAD does not count against Docker Hub's limit of pulls.
    const head = yield* Client.send(client, request(reference, "HEAD", "manifests", accept), (response) =>
      Effect.succeed({
        digest: response.headers["docker-content-digest"] ?? reference.digest,
        mediaType: mediaTypeOf(response),
        size: Number(response.headers["content-length"] ?? -1)
      })
    ).pipe(
      Effect.map(Option.some),
      // Some registries take no HEAD; what else is wrong, GET will say.
      Effect.catchIf(
        (error) => error._tag === "RegistryError" && error.reason === "Protocol" && error.status < 500,
        () => Effect.succeedNone
      )
    )
    if (Option.isSome(head) && head.value.digest !== undefined && head.value.size >= 0) {
      const { mediaType, size } = head.value
      const digest = yield* Reference.parseDigest(head.value.digest)
      if (reference.digest !== undefined && digest !== reference.digest) {
        return yield* mismatch(Reference.print(reference), "the manifest's digest", reference.digest, digest)
      }
      return { mediaType, digest, size }
    }
    return yield* Client.send(client, request(reference, "GET", "manifests", accept), (response) =>
      Effect.map(readManifest(client, reference, response), (bytes) => ({
        mediaType: mediaTypeOf(response),
        digest: reference.digest ?? `sha256:${createHash("sha256").update(bytes).digest("hex")}`,
        size: bytes.length
      }))
    )
  })

const readManifest = (client: Client.Client, reference: Reference.Reference, response: HttpClientResponse) =>
  Effect.gen(function* () {
    const subject = Reference.print(reference)
    const bytes = yield* Client.readBody(client.name, subject, response, Oci.maxDocumentBytes)
    return Option.isSome(bytes)
      ? bytes.value
      : yield* new ImageError({
          reason: "TooLarge",
          subject,
          detail: `the manifest is larger than ${Oci.maxDocumentBytes} bytes`
        })
  })

export const manifest = (
  self: Registry,
  repository: string,
  descriptor: Oci.Descriptor
): Effect.Effect<Uint8Array, BerthError> =>
  Effect.gen(function* () {
    const digest = yield* Oci.digestOf(descriptor)
    if (descriptor.size > Oci.maxDocumentBytes) {
      return yield* Oci.tooLarge(digest, descriptor.size, Oci.maxDocumentBytes)
    }
    const reference = yield* parseTarget(self, repository, "@", digest)
    const accept = { accept: descriptor.mediaType === "" ? manifestTypes : descriptor.mediaType }
    const bytes = yield* Client.send(
      self.client,
      request(reference, "GET", "manifests", accept),
      (response) => readManifest(self.client, reference, response)
    )
    yield* verify(digest, descriptor.size, bytes)
    return bytes
  })

/** Connections that one blob may take: each tells where it goes on, and none is for nothing for ever. */
const maxResumes = 50

/** The bytes as they come, counted and resumed, but not hashed: `Store.put` does that. */
export const unverifiedBlob = (
  self: Registry,
  repository: string,
  descriptor: Oci.Descriptor
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const { client } = self
      const digest = yield* Oci.digestOf(descriptor)
      const reference = yield* parseTarget(self, repository, "@", digest)
      const subject = Reference.print(reference)
      let offset = 0
      let resumes = 0
      let retries = yield* Schedule.driver(Client.retrySchedule)

      const connection: Stream.Stream<Uint8Array, Client.Failure | BerthError> = Stream.unwrapScoped(
        Effect.gen(function* () {
          const start = offset
          const range: Readonly<Record<string, string>> = start === 0 ? {} : { range: `bytes=${start}-` }
          const response = yield* Client.attempt(client, request(reference, "GET", "blobs", range))
          const from = rangeStart(response)
          if (from === undefined || from > start) {
            return yield* Effect.fail(
              Client.protocolFailure(
                client.name,
                subject,
                response.status,
                "sends another range than asked for"
              )
            )
          }
          return skip(Client.body(client.name, subject, response), start - from)
        })
      ).pipe(
        Stream.mapEffect((chunk): Effect.Effect<Uint8Array, ImageError> => {
          offset += chunk.length
          return offset > descriptor.size
            ? mismatch(digest, "its size", `${descriptor.size} bytes`, "more")
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

      const resumed = (start: number): Stream.Stream<Uint8Array, Client.Failure | BerthError> =>
        Stream.catchAll(connection, (error) =>
          Stream.unwrap(
            Effect.gen(function* () {
              if (!(error instanceof Client.Failure) || !error.retry || ++resumes > maxResumes) {
                return yield* Effect.fail(error)
              }
              if (offset > start) {
                retries = yield* Schedule.driver(Client.retrySchedule)
              }
              yield* Effect.mapError(retries.next(error), () => error)
              return resumed(offset)
            })
          )
        )
      return descriptor.size === 0 ? Stream.empty : Stream.mapError(resumed(0), Client.toError)
    })
  )

const shortBody = (client: Client.Client, subject: string, offset: number, size: number): Client.Failure =>
  Client.protocolFailure(client.name, subject, 200, `sent ${offset} of ${size} bytes`, true)

/** From where the registry sends: it need not honour a range. */
const rangeStart = (response: HttpClientResponse): number | undefined => {
  if (response.status !== 206) {
    return 0
  }
  const match = /^bytes (\d{1,15})-/.exec(response.headers["content-range"] ?? "")
  return match === null ? undefined : Number(match[1])
}

const skip = <E>(stream: Stream.Stream<Uint8Array, E>, count: number): Stream.Stream<Uint8Array, E> => {
  if (count === 0) {
    return stream
  }
  let left = count
  return Stream.filterMap(stream, (chunk) => {
    const dropped = Math.min(left, chunk.length)
    left -= dropped
    return dropped === chunk.length ? Option.none() : Option.some(chunk.subarray(dropped))
  })
}

export const blob = (
  self: Registry,
  repository: string,
  descriptor: Oci.Descriptor
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrap(
    Effect.map(Oci.digestOf(descriptor), (digest) => {
      const { algorithm, hex } = Reference.digestParts(digest)
      const hash = createHash(algorithm)
      return unverifiedBlob(self, repository, descriptor).pipe(
        Stream.tap((chunk) => Effect.sync(() => hash.update(chunk))),
        Stream.concat(
          Stream.suspend(() => {
            const found = hash.digest("hex")
            return found === hex
              ? Stream.empty
              : Stream.fail(mismatch(digest, "its digest", digest, `${algorithm}:${found}`))
          })
        )
      )
    })
  )
