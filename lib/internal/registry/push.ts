/** Writes to a registry: blobs, manifests, and whole images from a layout. */
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Listener } from "../../Progress.ts"
import type { Digest, Reference } from "../../Reference.ts"
import type { Placed, Registry } from "../../Registry.ts"
import { storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Progress from "../oci/progress.ts"
import * as references from "../oci/reference.ts"
import * as digests from "../util/digest.ts"
import { bytesBody } from "./body.ts"
import * as Client from "./client.ts"
import { addReferrer, Links } from "./listing.ts"
import { blob } from "./reads.ts"

const BLOBS_AT_ONCE = 4

const pushScope = (client: Client.Client, { repository }: references.Repository) =>
  `repository:${Client.nameAt(client, repository)}:pull,push`

const isRefusal = (error: Client.Failure | BerthError, ...reasons: ReadonlyArray<string>): boolean => {
  const refusal = Client.toError(error)
  return refusal._tag === "RegistryError" && reasons.includes(refusal.reason)
}

const hasBlob = (client: Client.Client, target: Reference): Effect.Effect<boolean, BerthError> =>
  Client.send(
    client,
    {
      method: "HEAD",
      path: `/v2/${Client.nameAt(client, target.repository)}/blobs/${target.digest}`,
      headers: {},
      scope: pushScope(client, target),
      subject: references.print(target)
    },
    () => Effect.succeed(true)
  ).pipe(
    Effect.catchIf(
      (error) => isRefusal(error, "NotFound"),
      () => Effect.succeed(false)
    )
  )

/** The upload's URL from the registry. It may be on another host, which gets no credentials. */
const uploadUrl = (
  client: Client.Client,
  subject: string,
  location: string | undefined,
  digest: Digest
): Effect.Effect<string, Client.Failure> => {
  const url =
    location !== undefined && URL.canParse(location, client.origin)
      ? new URL(location, client.origin)
      : undefined
  const allowed = client.origin.startsWith("http:") ? /^https?:$/ : /^https:$/
  if (url === undefined || !allowed.test(url.protocol) || url.username !== "" || url.password !== "") {
    const why = "wants the bytes at a place that Berth does not send to (not https, or not a URL)"
    return Effect.fail(Client.protocolFailure(client.name, subject, 202, why))
  }
  // The query is the registry's own state and stays unchanged.
  url.search += `${url.search === "" ? "?" : "&"}digest=${encodeURIComponent(digest)}`
  return Effect.succeed(url.href)
}

/** A registry may report the stored digest; with another algorithm it is another digest of the same bytes. */
const checkStored = (
  client: Client.Client,
  subject: string,
  digest: Digest,
  { status, stored }: { readonly status: number; readonly stored: string | undefined }
): Effect.Effect<void, Client.Failure> => {
  const { algorithm } = digests.parts(digest)
  return stored === undefined || stored === digest || !stored.startsWith(`${algorithm}:`)
    ? Effect.void
    : Effect.fail(
        Client.protocolFailure(
          client.name,
          subject,
          status,
          `has stored ${JSON.stringify(stored.slice(0, 200))}`
        )
      )
}

export const putBlob = <E = never, R = never>(
  self: Registry,
  repository: references.Repository,
  descriptor: Oci.Descriptor,
  content: Stream.Stream<Uint8Array, E, R>,
  from?: references.Repository
): Effect.Effect<Placed, E | BerthError, R> =>
  Effect.gen(function* () {
    const { client } = self
    const digest = yield* Oci.digestOf(descriptor)
    const target = references.atDigest(repository, digest)
    const subject = references.print(target)
    if (yield* hasBlob(client, target)) return "present"
    const context = yield* Effect.context<R>()

    const open = (query: string, scope: string) =>
      Effect.scoped(
        Effect.map(
          Client.attempt(client, {
            method: "POST",
            path: `/v2/${Client.nameAt(client, target.repository)}/blobs/uploads/${query}`,
            headers: {},
            scope,
            subject
          }),
          ({ headers, status }) => ({
            status,
            location: headers.location,
            stored: headers["docker-content-digest"]
          })
        )
      )
    const plain = open("", pushScope(client, target))
    const opened =
      from === undefined
        ? plain
        : open(
            `?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(Client.nameAt(client, from.repository))}`,
            `${pushScope(client, target)} repository:${Client.nameAt(client, from.repository)}:pull`
          ).pipe(
            // If the source cannot be read or does not exist, the blob is uploaded.
            Effect.catchIf(
              (error) => isRefusal(error, "Unauthorized", "NotFound"),
              () => plain
            )
          )

    const once = Effect.gen(function* () {
      const upload = yield* opened
      if (upload.status === 201 && from !== undefined) {
        yield* checkStored(client, subject, digest, upload)
        return "mounted" as const
      }
      const url = yield* uploadUrl(client, subject, upload.location, digest)
      let broken: { readonly error: E | ImageError } | undefined
      const request: Client.Request = {
        method: "PUT",
        path: url,
        headers: {},
        scope: pushScope(client, target),
        subject,
        body: {
          mediaType: "application/octet-stream",
          length: descriptor.size,
          content: digests.verified(content, { digest, size: descriptor.size }).pipe(
            Stream.tapError((error) =>
              Effect.sync(() => {
                broken = { error }
              })
            ),
            Stream.provideContext(context)
          )
        }
      }
      const stored = yield* Effect.scoped(
        Effect.map(Client.attempt(client, request), ({ headers, status }) => ({
          status,
          stored: headers["docker-content-digest"]
        }))
      ).pipe(
        // The upload stopped because the source could not be read.
        Effect.mapError((error) => broken?.error ?? error)
      )
      yield* checkStored(client, subject, digest, stored)
      return "uploaded" as const
    })
    return yield* once.pipe(
      Effect.retry(Client.retrySchedule),
      Effect.mapError((error) => (error instanceof Client.Failure ? error.error : error))
    )
  })

export const mount = (
  self: Registry,
  repository: references.Repository,
  descriptor: Oci.Descriptor,
  from: references.Repository
): Effect.Effect<Placed, BerthError> =>
  putBlob(self, repository, descriptor, blob(self, from, descriptor), from)

const mediaTypePattern = /^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}\/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}$/i

export const putManifest = (
  self: Registry,
  target: Reference,
  bytes: Uint8Array,
  mediaType?: string
): Effect.Effect<Oci.Descriptor, BerthError> =>
  Effect.gen(function* () {
    const { client } = self
    const subject = references.print(target)
    if (bytes.length > Oci.DOCUMENT_BYTES_MAX)
      return yield* tooLarge(subject, bytes.length, Oci.DOCUMENT_BYTES_MAX)
    const type = mediaType ?? (yield* Oci.mediaTypeOf(subject, bytes))
    const links = yield* Effect.mapError(
      Schema.decodeUnknown(Links)(new TextDecoder().decode(bytes)),
      (cause) =>
        new ImageError({ reason: "Corrupt", subject, detail: "is not a manifest or an index", cause })
    )
    if (!mediaTypePattern.test(type)) {
      const detail = `${JSON.stringify(type.slice(0, 200))} is not a media type`
      return yield* new ImageError({ reason: "Corrupt", subject, detail })
    }
    const digest = target.digest ?? digests.ofBytes(bytes)
    yield* digests.verify(digest, bytes.length, bytes)
    const request: Client.Request = {
      method: "PUT",
      path: `/v2/${Client.nameAt(client, target.repository)}/manifests/${target.digest ?? target.tag}`,
      headers: {},
      scope: pushScope(client, target),
      subject,
      body: bytesBody(type, bytes)
    }
    const linked = yield* Client.send(client, request, ({ headers, status }) =>
      Effect.as(
        checkStored(client, subject, digest, { status, stored: headers["docker-content-digest"] }),
        headers["oci-subject"] !== undefined
      )
    )
    const descriptor = { mediaType: type, digest, size: bytes.length }
    if (links.subject !== undefined && !linked) {
      const { annotations } = links
      const artifactType = links.artifactType ?? links.config?.mediaType
      const referrer = {
        ...descriptor,
        ...(artifactType === undefined ? {} : { artifactType }),
        ...(annotations === undefined ? {} : { annotations })
      }
      yield* addReferrer(self, target, links.subject, referrer, (list, index) =>
        putManifest(self, list, index, Oci.mediaTypes.index)
      )
    }
    return descriptor
  })

/** A config is small, and not a layer. */
const nobody: Listener = () => {}

/** Layers that are fetched from their owner's server: registries do not store them. */
const isForeign = (descriptor: Oci.Descriptor): boolean =>
  /nondistributable|foreign/.test(descriptor.mediaType)

/**
 * Pushes a descriptor of a layout: each blob that the registry lacks, then the manifest that names them. For an index,
 * each of its manifests, and then the index.
 */
export const pushFromLayout = (
  self: Registry,
  target: Reference,
  source: {
    readonly fileSystem: FileSystem.FileSystem
    readonly folder: string
    readonly descriptor: Oci.Descriptor
    /** Called before a blob is looked up, so that it stays in the layout. */
    readonly hold: (descriptor: Oci.Descriptor) => Effect.Effect<void, ImageError>
  },
  listener: Listener,
  mountFrom?: references.Repository
): Effect.Effect<Oci.Descriptor, BerthError> => {
  const { fileSystem, folder } = source
  // A document that an index names twice, or that is part of a cycle, is pushed once.
  const pushed = new Set<string>()

  const pushBlob = (descriptor: Oci.Descriptor, step: Progress.Steps) => {
    const content = Stream.unwrap(
      Effect.map(Layout.checkBlob(fileSystem, folder, descriptor), (path) =>
        Stream.mapError(
          fileSystem.stream(path, { chunkSize: 256 * 1024, bytesToRead: descriptor.size }),
          storageError(descriptor.digest, folder)
        )
      )
    )
    return source.hold(descriptor).pipe(
      Effect.zipRight(
        putBlob(self, target, descriptor, Progress.counted(content, step, "uploading"), mountFrom)
      ),
      Effect.tap((placed) => Effect.sync(() => step.enter(placed === "uploaded" ? "done" : "present")))
    )
  }

  const pushManifest = (
    descriptor: Oci.Descriptor,
    name: Reference,
    depth: number
  ): Effect.Effect<Oci.Descriptor, BerthError> =>
    Effect.gen(function* () {
      yield* source.hold(descriptor)
      const bytes = yield* Layout.readDocument(fileSystem, folder, descriptor)
      const document = yield* Oci.decodeManifest(descriptor.digest, bytes, descriptor.mediaType)
      const parts =
        document._tag === "Index"
          ? document.manifests
          : [document.config, ...document.layers.filter((layer) => !isForeign(layer))]
      const left = parts.filter(({ digest }) => !pushed.has(digest) && pushed.add(digest))
      if (document._tag === "Index") {
        if (depth === Layout.INDEX_DEPTH_MAX) {
          const detail = `is nested in more than ${Layout.INDEX_DEPTH_MAX} indexes`
          return yield* new ImageError({ reason: "TooLarge", subject: descriptor.digest, detail })
        }
        yield* Effect.forEach(left, (child) => pushChild(child, depth + 1), { discard: true })
      } else {
        const config = document.config.digest
        const steps = left.map((part) => Progress.stepsOf(part.digest === config ? nobody : listener, part))
        for (const step of steps) step.enter("waiting")
        yield* Effect.forEach(left, (part, i) => pushBlob(part, steps[i]!), {
          concurrency: BLOBS_AT_ONCE,
          discard: true
        })
      }
      return yield* putManifest(self, name, bytes, descriptor.mediaType || undefined)
    })
  const pushChild = (child: Oci.Descriptor, depth: number) =>
    Effect.flatMap(Oci.digestOf(child), (digest) =>
      pushManifest(child, references.atDigest(target, digest), depth)
    )
  return target.tag === undefined
    ? pushChild(source.descriptor, 0)
    : pushManifest(source.descriptor, references.atTag(target, target.tag), 0)
}
