/** Lists of a registry, page by page, and deletion. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { type BerthError, ImageError, RegistryError } from "../../BerthError.ts"
import type { Digest, Reference } from "../../Reference.ts"
import type { Referrer, Registry } from "../../Registry.ts"
import * as Oci from "../oci/documents.ts"
import * as references from "../oci/reference.ts"
import * as digests from "../util/digest.ts"
import * as Client from "./client.ts"
import { manifest, resolve } from "./reads.ts"

/** Far above the size of any real repository. */
const PAGES_MAX = 1000
const LIST_BYTES_MAX = 64 * 1024 * 1024
const PAGE_TAGS = 1000
/** The limit of time for all pages of a list. */
const listTimeout = Duration.minutes(5)

/** The URL of the next page: `</v2/team/app/tags/list?last=1.2&n=1000>; rel="next"`. */
const nextOf = (link: string | undefined): string | undefined => {
  for (const [, address, parameters] of (link ?? "").matchAll(/<([^<>]*)>([^<]*)/g)) {
    if (/;\s*rel="?next"?/i.test(parameters!)) return address
  }
  return undefined
}

/** All entries of a list: `decode` reads one page. */
const pages = <A>(
  self: Registry,
  reference: Reference,
  first: string,
  accept: string,
  decode: (page: string) => Effect.Effect<ReadonlyArray<A>, unknown>
): Effect.Effect<ReadonlyArray<A>, BerthError> =>
  Effect.gen(function* () {
    const { client } = self
    const subject = references.print(reference)
    const seen = new Set<string>()
    const all: Array<A> = []
    let bytes = 0
    let path: string | undefined = first
    const tooLong = () =>
      new ImageError({
        reason: "TooLarge",
        subject,
        detail: `the list is longer than ${PAGES_MAX} pages or ${LIST_BYTES_MAX} bytes`
      })
    while (path !== undefined) {
      if (seen.has(path) || seen.size === PAGES_MAX) return yield* tooLong()
      seen.add(path)
      const url: URL = new URL(path, client.origin)
      const request: Client.Request = {
        method: "GET",
        path: `${url.pathname}${url.search}`,
        headers: { accept },
        scope: `repository:${Client.nameAt(client, reference.repository)}:pull`,
        subject
      }
      const page = yield* Client.send(client, request, (response) =>
        Effect.gen(function* () {
          const content = yield* Client.readBody(client.name, subject, response, Oci.DOCUMENT_BYTES_MAX)
          if (Option.isNone(content)) return yield* tooLong()
          const items = yield* Effect.mapError(decode(new TextDecoder().decode(content.value)), (cause) => {
            const detail = "the answer is not a list"
            return Client.protocolFailure(client.name, subject, response.status, detail, false, cause)
          })
          return { items, length: content.value.length, next: nextOf(response.headers.link) }
        })
      )
      bytes += page.length
      if (bytes > LIST_BYTES_MAX) return yield* tooLong()
      all.push(...page.items)
      path = page.next
      const next: URL | undefined =
        path !== undefined && URL.canParse(path, url.href) ? new URL(path, url) : undefined
      if (path !== undefined && next?.origin !== url.origin) {
        const shown = JSON.stringify(path.slice(0, 200))
        const why = `continues the list on another host, at ${shown}`
        return yield* Effect.fail(Client.toError(Client.protocolFailure(client.name, subject, 200, why)))
      }
      path = next === undefined ? undefined : `${next.pathname}${next.search}`
    }
    return all
  }).pipe(
    Effect.timeoutFail({
      duration: listTimeout,
      onTimeout: () => {
        const detail = `${self.client.name} did not finish a list within ${Duration.format(listTimeout)}`
        const subject = references.print(reference)
        return new RegistryError({
          reason: "Unreachable",
          registry: self.client.name,
          subject,
          status: 0,
          detail
        })
      }
    })
  )

const TagList = Schema.parseJson(
  Schema.Struct({
    tags: Schema.optionalWith(
      Schema.Array(Schema.String.pipe(Schema.pattern(/^[A-Za-z0-9_][\w.-]{0,127}$/))),
      {
        nullable: true,
        default: () => []
      }
    )
  })
)

export const tags = (
  self: Registry,
  repository: references.Repository
): Effect.Effect<ReadonlyArray<string>, BerthError> =>
  pages(
    self,
    references.atTag(repository, "latest"),
    `/v2/${Client.nameAt(self.client, repository.repository)}/tags/list?n=${PAGE_TAGS}`,
    "application/json",
    (page) => Effect.map(Schema.decodeUnknown(TagList)(page), (list) => list.tags)
  )

const Entry = Schema.extend(
  Oci.Descriptor,
  Schema.Struct({ artifactType: Schema.optionalWith(Schema.String, { nullable: true }) })
)

const ReferrerList = Schema.parseJson(
  Schema.Struct({
    schemaVersion: Schema.Literal(2),
    manifests: Schema.optionalWith(Schema.Array(Entry), { nullable: true, default: () => [] })
  })
)

/** The entries with all their fields, because a list may be written again. */
const decodeReferrers = (text: string): Effect.Effect<ReadonlyArray<Referrer>, unknown> =>
  Effect.flatMap(Schema.decodeUnknown(ReferrerList, { onExcessProperty: "preserve" })(text), (list) =>
    Effect.as(Effect.forEach(list.manifests, Oci.digestOf, { discard: true }), list.manifests)
  )

/** The entry of a manifest in a list of referrers. */
export const Links = Schema.parseJson(
  Schema.Struct({
    subject: Schema.optionalWith(Oci.Descriptor, { nullable: true }),
    artifactType: Schema.optionalWith(Schema.String, { nullable: true }),
    annotations: Schema.optionalWith(Schema.Record({ key: Schema.String, value: Schema.String }), {
      nullable: true
    }),
    config: Schema.optionalWith(Schema.Struct({ mediaType: Schema.String }), { nullable: true })
  })
)

/** The tag in which clients keep the list for a registry that does not: truncated as in the specification. */
const referrersOf = (repository: references.Repository, digest: Digest): Reference => {
  const { algorithm, hex } = digests.parts(digest)
  return references.atTag(repository, `${algorithm.slice(0, 32)}-${hex.slice(0, 64)}`)
}

const noneIfNotFound = <A, E extends BerthError>(effect: Effect.Effect<A, E>) =>
  Effect.map(effect, Option.some).pipe(
    Effect.catchIf(
      (error) => error._tag === "RegistryError" && error.reason === "NotFound",
      () => Effect.succeedNone
    )
  )

const taggedReferrers = (
  self: Registry,
  list: Reference
): Effect.Effect<ReadonlyArray<Referrer>, BerthError> =>
  Effect.gen(function* () {
    const descriptor = yield* noneIfNotFound(resolve(self, list))
    if (Option.isNone(descriptor)) return []
    const bytes = yield* manifest(self, list, descriptor.value)
    return yield* Effect.mapError(
      decodeReferrers(new TextDecoder().decode(bytes)),
      (cause) =>
        new ImageError({
          reason: "Corrupt",
          subject: list.tag!,
          detail: "is not an index of referrers",
          cause
        })
    )
  })

export const referrers = (
  self: Registry,
  repository: references.Repository,
  digest: string,
  artifactType: string | undefined
): Effect.Effect<ReadonlyArray<Referrer>, BerthError> =>
  Effect.gen(function* () {
    const parsed = yield* digests.parse(digest)
    const reference = references.atDigest(repository, parsed)
    const query = artifactType === undefined ? "" : `?artifactType=${encodeURIComponent(artifactType)}`
    const path = `/v2/${Client.nameAt(self.client, reference.repository)}/referrers/${parsed}${query}`
    const listed = yield* noneIfNotFound(pages(self, reference, path, Oci.mediaTypes.index, decodeReferrers))
    const all = Option.isSome(listed)
      ? listed.value
      : yield* taggedReferrers(self, referrersOf(repository, parsed))
    // Registries need not filter.
    return artifactType === undefined ? all : all.filter((entry) => entry.artifactType === artifactType)
  })

/** Adds a manifest to the list of referrers of another, for a registry that has not done so itself. */
export const addReferrer = (
  self: Registry,
  repository: references.Repository,
  subject: Oci.Descriptor,
  referrer: Referrer,
  put: (list: Reference, index: Uint8Array) => Effect.Effect<unknown, BerthError>
): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const list = referrersOf(repository, yield* Oci.digestOf(subject))
    // A mirror's list may be older than the one that is replaced here.
    const own: Registry = Object.create(self, { mirrors: { value: [] } })
    const before = yield* taggedReferrers(own, list)
    if (before.some(({ digest }) => digest === referrer.digest)) return
    const manifests = [...before, referrer]
    const index = { schemaVersion: 2, mediaType: Oci.mediaTypes.index, manifests }
    yield* put(list, new TextEncoder().encode(JSON.stringify(index)))
  })

export const deleteManifest = (self: Registry, reference: Reference): Effect.Effect<void, BerthError> => {
  const repository = Client.nameAt(self.client, reference.repository)
  const request: Client.Request = {
    method: "DELETE",
    path: `/v2/${repository}/manifests/${reference.digest ?? reference.tag}`,
    headers: {},
    scope: `repository:${repository}:delete`,
    subject: references.print(reference)
  }
  return Client.send(self.client, request, () => Effect.void)
}
