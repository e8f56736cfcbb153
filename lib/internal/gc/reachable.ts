/**
 * What the names of a store reach: from the entries of `index.json` through indexes, manifests and configs to layers.
 * Documents are read leniently, as other tools write them: a descriptor in any of the specification's places counts.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import { ImageError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { readBounded } from "../disk/files.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Index from "../store/index.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"

interface Child {
  readonly digest: Digest
  readonly mediaType: string
  /** Whether the store may lack it: one platform of an index is enough, and a signature does not need its subject. */
  readonly optional: boolean
}

/** The descriptors and layers in a document. */
interface Named {
  readonly children: ReadonlyArray<Child>
  /** The layers of an image, lowest first, if the document is a config. */
  readonly diffIds: ReadonlyArray<Digest>
}

/** An entry of `index.json`, or several with the same digest, and everything that they reach. */
export interface Reached {
  readonly digest: string
  readonly names: ReadonlyArray<string>
  /** The reached blobs, including missing ones. */
  readonly blobs: ReadonlySet<string>
  /** The diff ids of each image below, lowest first. */
  readonly images: ReadonlyArray<ReadonlyArray<Digest>>
}

const nothing: Named = { children: [], diffIds: [] }

const listOf = (value: unknown): ReadonlyArray<unknown> => (Array.isArray(value) ? value : [value])

const digestsIn = (value: unknown): ReadonlyArray<Digest> =>
  listOf(value).flatMap((text) => {
    const digest = typeof text === "string" ? Option.getRight(digests.parse(text)) : Option.none()
    return Option.toArray(digest)
  })

const childrenIn = (value: unknown, optional: boolean): Named["children"] =>
  listOf(value).flatMap((item) => {
    if (typeof item !== "object" || item === null) return []
    const { digest, mediaType } = item as { digest?: unknown; mediaType?: unknown }
    return digestsIn(digest).map((found) => ({
      digest: found,
      mediaType: typeof mediaType === "string" ? mediaType : "",
      optional
    }))
  })

const isDocument = (mediaType: string): boolean =>
  (Object.values(Oci.mediaTypes) as ReadonlyArray<string>).includes(mediaType)

/** The document is verified, because its references decide which blobs are kept. */
const read = (berth: Berth, { digest, optional }: Child): Effect.Effect<Named, ImageError> =>
  Effect.gen(function* () {
    const path = Layout.blobPath(Store.folder(berth), digest)
    const bytes = yield* readBounded(berth.fileSystem, path, digest, Oci.DOCUMENT_BYTES_MAX)
    if (Option.isNone(bytes)) {
      const detail = "is missing from the store"
      return optional ? nothing : yield* new ImageError({ reason: "Corrupt", subject: digest, detail })
    }
    yield* digests.verify(digest, bytes.value.length, bytes.value)
    const value = yield* Oci.parseObject(digest, bytes.value)
    const { blobs, config, layers, manifests, rootfs, subject } = value
    const diffIds = (rootfs as { diff_ids?: unknown } | null | undefined)?.diff_ids
    return {
      children: [
        ...childrenIn([config, layers, blobs].flatMap(listOf), false),
        ...childrenIn([manifests, subject].flatMap(listOf), true)
      ],
      diffIds: digestsIn(diffIds)
    }
  }).pipe(
    Effect.mapError((error) =>
      error.reason === "Storage"
        ? error
        : new ImageError({
            reason: error.reason,
            subject: error.subject,
            detail: `${error.detail}. Its references are unknown: pull its image again, or remove the name`,
            cause: error
          })
    )
  )

/** What each entry of the store reaches. Fails if a manifest, index or config exists and cannot be read. */
export const reach = (berth: Berth): Effect.Effect<ReadonlyArray<Reached>, ImageError> =>
  Effect.gen(function* () {
    const documents = new Map<string, Named>()
    const follow = (start: Oci.Descriptor) =>
      Effect.gen(function* () {
        const blobs = new Set<string>()
        const followed = new Set<string>()
        const images: Array<ReadonlyArray<Digest>> = []
        const digest = digests.parse(start.digest)
        const left: Array<Child> = Either.isRight(digest)
          ? [{ digest: digest.right, mediaType: start.mediaType, optional: false }]
          : []
        for (let next = left.pop(); next !== undefined; next = left.pop()) {
          blobs.add(next.digest)
          // A blob can be a manifest in one document and a layer in another.
          if (!isDocument(next.mediaType) || followed.has(next.digest)) continue
          followed.add(next.digest)
          const named = documents.get(next.digest) ?? (yield* read(berth, next))
          if (named !== nothing) documents.set(next.digest, named)
          left.push(...named.children)
          if (named.diffIds.length > 0) {
            images.push(named.diffIds)
          }
        }
        return { blobs, images }
      })
    yield* Index.refuseAside(berth.fileSystem, Store.folder(berth))
    const byDigest = new Map<string, Array<Oci.Descriptor>>()
    for (const entry of yield* Store.entries(berth)) {
      byDigest.set(entry.digest, [...(byDigest.get(entry.digest) ?? []), entry])
    }
    return yield* Effect.forEach(byDigest, ([digest, entries]) =>
      Effect.map(follow(entries[0]!), (found): Reached => {
        const names = new Set(entries.flatMap((entry) => Store.nameOf(entry) ?? []))
        return { digest, names: [...names].sort(), ...found }
      })
    )
  })
