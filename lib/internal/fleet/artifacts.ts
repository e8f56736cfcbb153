/** Where the files that steps make are kept: a folder, or a repository of a registry. */
import { createHash, randomBytes } from "node:crypto"
import { resolve as absolute } from "node:path"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { CachePlace } from "../../Build.ts"
import type { Artifact, Artifacts } from "../../fleetWorkflow.ts"
import * as Reference from "../../Reference.ts"
import { io, storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Layout from "../oci/layout.ts"
import * as references from "../oci/reference.ts"
import { putBlob, putManifest } from "../registry/push.ts"
import { blob, connectTo } from "../registry/reads.ts"
import * as digests from "../util/digest.ts"

export const tag: Context.Tag<Artifacts, Artifacts> = Context.GenericTag("berth/fleetWorkflow/Artifacts")

const MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"

/** The config of a manifest that needs none (OCI image specification, "Guidance for an Empty Descriptor"). */
const emptyConfig = Descriptors.of("application/vnd.oci.empty.v1+json", new TextEncoder().encode("{}"))

const DAY_MILLIS = 24 * 60 * 60 * 1000

const artifactOf = ({
  digest,
  size
}: Artifact): Effect.Effect<{ digest: Reference.Digest; size: number }, BerthError> =>
  Effect.map(digests.parse(digest), (parsed) => ({ digest: parsed, size }))

/** Writes a stream to a file; gives its digest. */
const spool = (
  files: FileSystem.FileSystem,
  path: string,
  content: Stream.Stream<Uint8Array, BerthError>,
  maxBytes: number
): Effect.Effect<{ digest: Reference.Digest; size: number }, BerthError> => {
  const hash = createHash("sha256")
  let size = 0
  const counted = Stream.mapEffect(content, (bytes) => {
    size += bytes.length
    if (size > maxBytes) return tooLarge("the output of a step", size, maxBytes)
    hash.update(bytes)
    return Effect.succeed(bytes)
  })
  return Effect.map(
    Stream.run(counted, files.sink(path, { flag: "wx", mode: 0o600 })).pipe(
      Effect.mapError((error) =>
        error._tag === "SystemError" || error._tag === "BadArgument" ? storageError(path)(error) : error
      )
    ),
    () => ({ digest: digests.of("sha256", hash.digest("hex")), size })
  )
}

/** A file that is removed when the scope closes, unless it has another name by then. */
const scratch = (files: FileSystem.FileSystem, folder: string): Effect.Effect<string, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => `${folder}/partial-${randomBytes(8).toString("hex")}`),
    (path) => Effect.ignore(files.remove(path, { force: true }))
  )

/** Removes what a killed program has left. */
const sweep = (files: FileSystem.FileSystem, folder: string): Effect.Effect<void> =>
  Effect.flatMap(files.readDirectory(folder), (names) =>
    Effect.forEach(
      names.filter((name) => name.startsWith("partial-")),
      (name) =>
        Effect.flatMap(files.stat(`${folder}/${name}`), ({ mtime }) =>
          Option.exists(mtime, (time) => time.getTime() < Date.now() - DAY_MILLIS)
            ? files.remove(`${folder}/${name}`, { force: true })
            : Effect.void
        ).pipe(Effect.ignore),
      { discard: true }
    )
  ).pipe(Effect.ignore)

/** The blobs of an OCI layout, so that its other tools read them. */
const inFolder = (files: FileSystem.FileSystem, folder: string): Effect.Effect<Artifacts, BerthError> => {
  const disk = io(folder)
  const blobs = `${folder}/blobs/sha256`
  return Effect.as(
    Effect.zipRight(disk(files.makeDirectory(blobs, { recursive: true })), sweep(files, blobs)),
    {
      put: (content, maxBytes) =>
        Effect.scoped(
          Effect.gen(function* () {
            const partial = yield* scratch(files, blobs)
            const artifact = yield* spool(files, partial, content, maxBytes)
            yield* disk(files.rename(partial, Layout.blobPath(folder, artifact.digest)))
            return artifact
          })
        ),
      get: (artifact) =>
        Stream.unwrap(
          Effect.gen(function* () {
            const expected = yield* artifactOf(artifact)
            const path = Layout.blobPath(folder, expected.digest)
            if (!(yield* disk(files.exists(path))))
              return yield* new ImageError({
                reason: "NotFound",
                subject: artifact.digest,
                detail: `is not in ${folder}: give this program the folder that the step before has written to`
              })
            return digests.verified(Stream.mapError(files.stream(path), storageError(path)), expected)
          })
        )
    } satisfies Artifacts
  )
}

/** An artifact for each output: a manifest without a config, so that the registry keeps the blob. */
const inRegistry = (files: FileSystem.FileSystem, name: string): Effect.Effect<Artifacts, BerthError> =>
  Effect.gen(function* () {
    const reference = yield* Reference.parse(name)
    // A client without mirrors needs the files of credentials and certificates, and nothing else of a Berth.
    const registry = yield* connectTo({ fileSystem: files } as Berth, reference.registry, {})
    const describe = ({ digest, size }: Artifact) => ({ mediaType: MEDIA_TYPE, digest, size })
    return {
      put: (content, maxBytes) =>
        Effect.scoped(
          Effect.gen(function* () {
            const folder = yield* io("the folder of temporary files")(
              files.makeTempDirectoryScoped({ prefix: "berth-step-" })
            )
            const partial = yield* scratch(files, folder)
            const artifact = yield* spool(files, partial, content, maxBytes)
            const layer = describe(artifact)
            const bytes = Stream.mapError(files.stream(partial), storageError(partial))
            yield* putBlob(registry, reference, layer, bytes)
            yield* putBlob(registry, reference, emptyConfig, Stream.succeed(new TextEncoder().encode("{}")))
            const tag = `berth-${digests.parts(artifact.digest).hex}`
            const manifest = Descriptors.manifestOf(emptyConfig, [layer])
            yield* putManifest(registry, references.atTag(reference, tag), manifest)
            return artifact
          })
        ),
      get: (artifact) =>
        Stream.unwrap(
          Effect.map(artifactOf(artifact), (checked) => blob(registry, reference, describe(checked)))
        )
    } satisfies Artifacts
  })

export const make = (place: CachePlace): Effect.Effect<Artifacts, BerthError, FileSystem.FileSystem> =>
  Effect.flatMap(FileSystem.FileSystem, (files) => {
    if (typeof place === "string") return inRegistry(files, place)
    const { folder } = place
    return typeof folder === "string" && folder !== "" && !folder.includes("\0")
      ? inFolder(files, absolute(folder))
      : new InvalidOption({
          option: "folder",
          value: JSON.stringify(folder) ?? "undefined",
          expected: "the path of a folder"
        })
  })
