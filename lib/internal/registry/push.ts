/** Writing to a registry: blobs, manifests, and whole images out of a layout. */
import { createHash } from "node:crypto"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { Listener } from "../../Progress.ts"
import * as Reference from "../../Reference.ts"
import type { Placed, Registry } from "../../Registry.ts"
import { storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Progress from "../oci/progress.ts"
import { bytesBody } from "./body.ts"
import * as Client from "./client.ts"
import { addReferrer, Links } from "./listing.ts"
import { blob, parseTarget } from "./reads.ts"

const blobConcurrency = 4

const pushScope = (client: Client.Client, { repository }: Reference.Reference) =>
  `repository:${Client.nameAt(client, repository)}:pull,push`

const isRefusal = (error: Client.Failure | BerthError, ...reasons: ReadonlyArray<string>): boolean => {
  const refusal = Client.toError(error)
  return refusal._tag === "RegistryError" && reasons.includes(refusal.reason)
}

const hasBlob = (
  client: Client.Client,
  target: Reference.Reference,
  digest: Reference.Digest
): Effect.Effect<boolean, BerthError> =>
  Client.send(
    client,
    {
      method: "HEAD",
      path: `/v2/${Client.nameAt(client, target.repository)}/blobs/${digest}`,
      headers: {},
      scope: pushScope(client, target),
      subject: Reference.print(target)
    },
    () => Effect.succeed(true)
  ).pipe(
    Effect.catchIf(
      (error) => isRefusal(error, "NotFound"),
      () => Effect.succeed(false)
    )
  )

/** Where the registry wants the bytes. It may be another host, which then gets no credentials. */
const uploadUrl = (
  client: Client.Client,
  subject: string,
  location: string | undefined,
  digest: Reference.Digest
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
  // The query is the registry's own state, as it has written it.
  url.search += `${url.search === "" ? "?" : "&"}digest=${encodeURIComponent(digest)}`
  return Effect.succeed(url.href)
}

/** A registry may say what it has stored; it is another digest of the same bytes where the algorithm is another. */
const checkStored = (
  client: Client.Client,
  subject: string,
  digest: Reference.Digest,
  { status, stored }: { readonly status: number; readonly stored: string | undefined }
): Effect.Effect<void, Client.Failure> => {
  const { algorithm } = Reference.digestParts(digest)
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
  repository: string,
  descriptor: Oci.Descriptor,
  content: Stream.Stream<Uint8Array, E, R>,
  from?: string
): Effect.Effect<Placed, E | BerthError, R> =>
  Effect.gen(function* () {
    const { client } = self
    const digest = yield* Oci.digestOf(descriptor)
    const target = yield* parseTarget(self, repository, "@", digest)
    const subject = Reference.print(target)
    const source = from === undefined ? undefined : yield* parseTarget(self, from, "@", digest)
    if (yield* hasBlob(client, target, digest)) {
      return "present"
    }
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
      source === undefined
        ? plain
        : open(
            `?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(Client.nameAt(client, source.repository))}`,
            `${pushScope(client, target)} repository:${Client.nameAt(client, source.repository)}:pull`
          ).pipe(
            // Whoever may not read there, or where nothing is there, uploads.
            Effect.catchIf(
              (error) => isRefusal(error, "Unauthorized", "NotFound"),
              () => plain
            )
          )

    const once = Effect.gen(function* () {
      const upload = yield* opened
      if (upload.status === 201 && source !== undefined) {
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
          content: Layout.verifiedBlob(digest, descriptor.size, content).pipe(
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
        // What could not be read is why nothing more was sent.
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
  repository: string,
  descriptor: Oci.Descriptor,
  from: string
): Effect.Effect<Placed, BerthError> =>
  putBlob(self, repository, descriptor, blob(self, from, descriptor), from)

const mediaTypePattern = /^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}\/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}$/i

export const putManifest = (
  self: Registry,
  repository: string,
  tagOrDigest: string,
  bytes: Uint8Array,
  mediaType?: string
): Effect.Effect<Oci.Descriptor, BerthError> =>
  Effect.gen(function* () {
    const { client } = self
    const target = yield* parseTarget(self, repository, tagOrDigest.includes(":") ? "@" : ":", tagOrDigest)
    const subject = Reference.print(target)
    if (bytes.length > Oci.maxDocumentBytes) {
      return yield* tooLarge(subject, bytes.length, Oci.maxDocumentBytes)
    }
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
    const sha256 = () => `sha256:${createHash("sha256").update(bytes).digest("hex")}`
    const digest = target.digest ?? (yield* Reference.parseDigest(sha256()))
    yield* Layout.verify(digest, bytes.length, bytes)
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
      yield* addReferrer(self, repository, links.subject, referrer, (tag, index) =>
        putManifest(self, repository, tag, index, Oci.mediaTypes.index)
      )
    }
    return descriptor
  })

/** A config is no layer, and small. */
const nobody: Listener = () => {}

/** Layers that their owner wants to be fetched from elsewhere: no registry has them. */
const isForeign = (descriptor: Oci.Descriptor): boolean =>
  /nondistributable|foreign/.test(descriptor.mediaType)

/**
 * Pushes what a layout has under a descriptor: each blob that the registry has not, then the manifest that names them.
 * Of an index, each of its manifests, and then the index.
 */
export const pushFromLayout = (
  self: Registry,
  target: Reference.Reference,
  source: {
    readonly fileSystem: FileSystem.FileSystem
    readonly folder: string
    readonly descriptor: Oci.Descriptor
    /** Called before a blob is looked for, so that it stays there. */
    readonly hold: (descriptor: Oci.Descriptor) => Effect.Effect<void, ImageError>
  },
  listener: Listener,
  mountFrom?: string
): Effect.Effect<Oci.Descriptor, BerthError> => {
  const { fileSystem, folder } = source
  // Whatever an index names twice, or goes round in circles, is pushed once.
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
        putBlob(self, target.repository, descriptor, Progress.counted(content, step, "uploading"), mountFrom)
      ),
      Effect.tap((placed) => Effect.sync(() => step.enter(placed === "uploaded" ? "done" : "present")))
    )
  }

  const pushManifest = (
    descriptor: Oci.Descriptor,
    name: string,
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
        if (depth === Layout.maxDepth) {
          const detail = `is nested in more than ${Layout.maxDepth} indexes`
          return yield* new ImageError({ reason: "TooLarge", subject: descriptor.digest, detail })
        }
        yield* Effect.forEach(left, (child) => pushManifest(child, child.digest, depth + 1), {
          discard: true
        })
      } else {
        const config = document.config.digest
        const steps = left.map((part) => Progress.stepsOf(part.digest === config ? nobody : listener, part))
        for (const step of steps) step.enter("waiting")
        yield* Effect.forEach(left, (part, i) => pushBlob(part, steps[i]!), {
          concurrency: blobConcurrency,
          discard: true
        })
      }
      return yield* putManifest(self, target.repository, name, bytes, descriptor.mediaType || undefined)
    })
  return pushManifest(source.descriptor, target.tag ?? source.descriptor.digest, 0)
}
