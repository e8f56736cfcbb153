/** Reads an OCI image layout folder: the store, or one of another tool. */
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { ImageError, InvalidOption } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { isNotFound, readBounded, storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as digests from "../util/digest.ts"
import * as Oci from "./documents.ts"
import { hostPlatform } from "./platform.ts"

export const blobPath = (folder: string, digest: Digest): string => {
  const { algorithm, hex } = digests.parts(digest)
  return `${folder}/blobs/${algorithm}/${hex}`
}

/** The digest of a file, by the algorithm of the expected one. */
export const hashFile = (
  fs: FileSystem.FileSystem,
  path: string,
  digest: Digest
): Effect.Effect<Digest, ImageError> =>
  Effect.mapError(
    digests.ofStream(fs.stream(path, { chunkSize: 1024 * 1024 }), digests.parts(digest).algorithm),
    storageError(digest, path)
  )

const missing = (digest: Digest, folder: string, cause?: unknown) =>
  new ImageError({
    reason: "NotFound",
    subject: digest,
    detail: `the blob is not in ${folder}: get the image again`,
    cause
  })

/** The path of the blob. Fails with `NotFound`, or `DigestMismatch` if its size differs from the descriptor's. */
export const checkBlob = (
  fs: FileSystem.FileSystem,
  folder: string,
  descriptor: Oci.Descriptor
): Effect.Effect<string, ImageError> =>
  Effect.gen(function* () {
    const digest = yield* Oci.digestOf(descriptor)
    const path = blobPath(folder, digest)
    const info = yield* Effect.mapError(fs.stat(path), (error) =>
      isNotFound(error) ? missing(digest, folder, error) : storageError(digest, folder)(error)
    )
    if (info.type !== "File") {
      const detail = `${path} is not a file: move it away, and pull or load the image again`
      return yield* new ImageError({ reason: "Corrupt", subject: digest, detail })
    }
    if (Number(info.size) !== descriptor.size)
      return yield* digests.mismatch(digest, "its size", `${descriptor.size} bytes`, `${info.size} bytes`)
    return path
  })

/** Reads and verifies a manifest, index or config. */
export const readDocument = (
  fs: FileSystem.FileSystem,
  folder: string,
  descriptor: Oci.Descriptor
): Effect.Effect<Uint8Array, ImageError> =>
  Effect.gen(function* () {
    const digest = yield* Oci.digestOf(descriptor)
    if (descriptor.size > Oci.DOCUMENT_BYTES_MAX)
      return yield* tooLarge(digest, descriptor.size, Oci.DOCUMENT_BYTES_MAX)
    const bytes = yield* readBounded(fs, blobPath(folder, digest), digest, Oci.DOCUMENT_BYTES_MAX)
    if (Option.isNone(bytes)) return yield* missing(digest, folder)
    yield* digests.verify(digest, descriptor.size, bytes.value)
    return bytes.value
  })

/** The descriptor of a manifest or index of which only the digest is known. Fails as `readDocument` does. */
export const descriptorOf = (
  fs: FileSystem.FileSystem,
  folder: string,
  digest: Digest
): Effect.Effect<Oci.Descriptor, ImageError> =>
  Effect.gen(function* () {
    const bytes = yield* readBounded(fs, blobPath(folder, digest), digest, Oci.DOCUMENT_BYTES_MAX)
    if (Option.isNone(bytes)) return yield* missing(digest, folder)
    yield* digests.verify(digest, bytes.value.length, bytes.value)
    return { mediaType: yield* Oci.mediaTypeOf(digest, bytes.value), digest, size: bytes.value.length }
  })

/** The `index.json` of a folder in the OCI image layout; none if the folder is not a layout. */
export const readIndex = (
  fs: FileSystem.FileSystem,
  folder: string
): Effect.Effect<
  Option.Option<{ readonly index: Oci.Index; readonly raw: Record<string, unknown> }>,
  ImageError
> =>
  Effect.gen(function* () {
    const read = (name: string) =>
      readBounded(fs, `${folder}/${name}`, `${folder}/${name}`, Oci.DOCUMENT_BYTES_MAX)
    const version = yield* read("oci-layout")
    const index = yield* read("index.json")
    if (Option.isNone(version) || Option.isNone(index)) return Option.none()
    yield* Oci.decodeLayout(`${folder}/oci-layout`, version.value)
    return Option.some(yield* Oci.decodeLayoutIndex(`${folder}/index.json`, index.value))
  })

export const printPlatform = (platform: Oci.Platform): string =>
  [platform.os, platform.architecture, ...(platform.variant ? [platform.variant] : [])].join("/")

/** Parses `os/architecture[/variant]`. */
export const parsePlatform = (input: string | undefined): Effect.Effect<Oci.Platform, InvalidOption> => {
  if (input === undefined) return Effect.sync(hostPlatform)
  const match = /^([a-z0-9]{1,32})\/([a-z0-9_]{1,32})(?:\/([a-z0-9.]{1,32}))?$/.exec(input)
  if (match === null) {
    const expected = "os/architecture[/variant], as in linux/arm64 or linux/arm/v7"
    return new InvalidOption({ option: "platform", value: JSON.stringify(input.slice(0, 200)), expected })
  }
  return Effect.succeed({
    os: match[1]!,
    architecture: match[2]!,
    ...(match[3] === undefined ? {} : { variant: match[3] })
  })
}

const variantNumber = (platform: Oci.Platform): number => {
  const match = /^v([0-9]{1,2})$/.exec(platform.variant ?? "")
  return match === null ? -1 : Number(match[1])
}

/** How well an image fits: it cannot run below 0; otherwise the highest value is the best. */
const score = (wanted: Oci.Platform, offered: Oci.Platform): number => {
  if (wanted.os !== offered.os || wanted.architecture !== offered.architecture) return -1
  // A processor runs code for its own variant or an older one; v8 is the only arm64, v1 the first amd64.
  const base = wanted.architecture === "arm64" ? 8 : wanted.architecture === "arm" ? 7 : 1
  const most = wanted.variant ? variantNumber(wanted) : base
  const has = offered.variant ? variantNumber(offered) : Math.min(base, most)
  if (most === -1 || has === -1) return wanted.variant === offered.variant ? 0 : -1
  return has <= most ? has : -1
}

export const runsOn = (wanted: Oci.Platform, offered: Oci.Platform): boolean => score(wanted, offered) >= 0

export const platformError = (
  subject: string,
  wanted: Oci.Platform,
  offered: ReadonlyArray<Oci.Platform>
): ImageError => {
  const names = [...new Set(offered.map(printPlatform))].slice(0, 30).join(", ")
  const detail = `is for ${names === "" ? "no platform" : names}, not for ${printPlatform(wanted)}`
  return new ImageError({ reason: "Platform", subject, detail })
}

/** The entry for the platform, or a single entry without a platform: its config has the platform. */
export const selectPlatform = (
  subject: string,
  entries: ReadonlyArray<Oci.Descriptor>,
  wanted: Oci.Platform
): Effect.Effect<Oci.Descriptor, ImageError> => {
  let best: Oci.Descriptor | undefined
  let bestScore = -1
  const unnamed: Array<Oci.Descriptor> = []
  for (const entry of entries) {
    if (entry.platform === undefined) {
      unnamed.push(entry)
      continue
    }
    const s = score(wanted, entry.platform)
    if (s > bestScore) {
      best = entry
      bestScore = s
    }
  }
  if (best !== undefined) return Effect.succeed(best)
  if (unnamed.length > 0) return Effect.succeed(unnamed[0]!)
  const offered = entries.flatMap((entry) => (entry.platform === undefined ? [] : [entry.platform]))
  return platformError(
    subject,
    wanted,
    offered.filter((platform) => platform.os !== "unknown")
  )
}

/** A manifest with its config: all documents of an image. */
export interface Resolved {
  readonly descriptor: Oci.Descriptor
  readonly manifest: Oci.Manifest
  readonly config: Oci.Config
  readonly diffIds: ReadonlyArray<string>
}

/** The limit of nested indexes: no builder makes more than two levels. */
export const INDEX_DEPTH_MAX = 4

/**
 * Follows a descriptor through any indexes to the manifest and config for the platform. `fetch` returns a document's
 * verified bytes: from a folder, or from a registry.
 */
export const resolveImage = <E, R>(
  start: Oci.Descriptor,
  wanted: Oci.Platform,
  fetch: (descriptor: Oci.Descriptor, kind: "manifest" | "config") => Effect.Effect<Uint8Array, E, R>
): Effect.Effect<Resolved, E | ImageError, R> =>
  Effect.gen(function* () {
    let descriptor = start
    for (let depth = 0; ; depth++) {
      const bytes = yield* fetch(descriptor, "manifest")
      const document = yield* Oci.decodeManifest(descriptor.digest, bytes, descriptor.mediaType)
      if (document._tag === "Index") {
        if (depth === INDEX_DEPTH_MAX) {
          const detail = `is nested in more than ${INDEX_DEPTH_MAX} indexes`
          return yield* new ImageError({ reason: "TooLarge", subject: descriptor.digest, detail })
        }
        descriptor = yield* selectPlatform(descriptor.digest, document.manifests, wanted)
        continue
      }
      if (!Oci.isImageConfig(document.config)) {
        const detail = `is not a container image: its config is ${JSON.stringify(document.config.mediaType)}`
        return yield* new ImageError({ reason: "Unsupported", subject: descriptor.digest, detail })
      }
      const config = yield* Effect.flatMap(fetch(document.config, "config"), (bytes) =>
        Oci.decodeConfig(document.config.digest, bytes)
      )
      if (!runsOn(wanted, config)) return yield* platformError(descriptor.digest, wanted, [config])
      const diffIds = config.rootfs.diff_ids
      if (diffIds.length !== document.layers.length) {
        const detail = `has ${document.layers.length} layers, but its config ${diffIds.length} diff ids`
        return yield* new ImageError({ reason: "Corrupt", subject: descriptor.digest, detail })
      }
      return { descriptor, manifest: document, config, diffIds }
    }
  })
