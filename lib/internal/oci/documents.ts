/**
 * The documents of the OCI image specification and of docker's schema 2, which an attacker may have written: their size
 * is limited, a schema decodes them, and media type and fields are checked against each other.
 */

import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { ImageError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import * as digests from "../util/digest.ts"

/** The limit in bytes of a manifest, index or config, as in registries. */
export const DOCUMENT_BYTES_MAX: number = 4 * 1024 * 1024

/** The limit of layers of one image: overlayfs stacks 500. */
export const LAYERS_MAX = 500

export const mediaTypes = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  dockerIndex: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json"
} as const

export const refNameAnnotation = "org.opencontainers.image.ref.name"

const isIndexType = (mediaType: string) =>
  mediaType === mediaTypes.index || mediaType === mediaTypes.dockerIndex

const isManifestType = (mediaType: string) =>
  mediaType === mediaTypes.manifest || mediaType === mediaTypes.dockerManifest

/** A text that a C string can hold. */
const Text = Schema.String.pipe(
  Schema.filter((text) => !text.includes("\0"), { message: () => "a string without NUL" })
)

/** Go writes `null` for a nil map or slice. */
const orNull = <A, I>(schema: Schema.Schema<A, I>) => Schema.optionalWith(schema, { nullable: true })

const Annotations = Schema.Record({ key: Schema.String, value: Schema.String })

export interface Platform {
  readonly os: string
  readonly architecture: string
  readonly variant?: string | undefined
}

const PlatformSchema: Schema.Schema<Platform> = Schema.Struct({
  os: Schema.String,
  architecture: Schema.String,
  variant: Schema.optional(Schema.String)
})

/** A descriptor in a document. Its digest has not been parsed: `digestOf` does that. */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  readonly platform?: Platform | undefined
  readonly annotations?: Readonly<Record<string, string>> | undefined
}

const Size = Schema.Int.pipe(Schema.nonNegative())

/** The same in JSON, where Go writes `null` for an unset field. */
export interface DescriptorJson extends Omit<Descriptor, "platform" | "annotations"> {
  readonly platform?: Platform | null | undefined
  readonly annotations?: Readonly<Record<string, string>> | null | undefined
}

export const Descriptor: Schema.Schema<Descriptor, DescriptorJson> = Schema.Struct({
  mediaType: Schema.String.pipe(Schema.maxLength(255)),
  digest: Schema.String.pipe(Schema.maxLength(299)),
  size: Size,
  platform: orNull(PlatformSchema),
  annotations: orNull(Annotations)
})

export interface Index {
  readonly _tag: "Index"
  readonly manifests: ReadonlyArray<Descriptor>
}

const IndexDocument = Schema.Struct({
  schemaVersion: Schema.Literal(2),
  manifests: Schema.optionalWith(Schema.Array(Descriptor), { nullable: true, default: () => [] })
})

export interface Manifest {
  readonly _tag: "Manifest"
  readonly config: Descriptor
  readonly layers: ReadonlyArray<Descriptor>
  readonly annotations?: Readonly<Record<string, string>> | undefined
}

const ManifestDocument = Schema.Struct({
  schemaVersion: Schema.Literal(2),
  config: Descriptor,
  layers: Schema.optionalWith(Schema.Array(Descriptor), { nullable: true, default: () => [] }),
  annotations: orNull(Annotations)
})

const KeySet = Schema.Record({ key: Text, value: Schema.Unknown })

const Healthcheck = Schema.Struct({
  Test: orNull(Schema.Array(Text)),
  Interval: orNull(Size),
  Timeout: orNull(Size),
  StartPeriod: orNull(Size),
  StartInterval: orNull(Size),
  Retries: orNull(Size)
})

const ConfigDocument = Schema.Struct({
  architecture: Schema.String,
  os: Schema.String,
  variant: orNull(Schema.String),
  config: orNull(
    Schema.Struct({
      User: orNull(Text),
      ExposedPorts: orNull(KeySet),
      Env: orNull(Schema.Array(Text)),
      Entrypoint: orNull(Schema.Array(Text)),
      Cmd: orNull(Schema.Array(Text)),
      Volumes: orNull(KeySet),
      WorkingDir: orNull(Text),
      Labels: orNull(Annotations),
      StopSignal: orNull(Text),
      Healthcheck: orNull(Healthcheck)
    })
  ),
  rootfs: Schema.Struct({
    type: Schema.Literal("layers"),
    diff_ids: Schema.optionalWith(Schema.Array(Schema.String), { nullable: true, default: () => [] })
  }),
  created: orNull(Schema.String),
  author: orNull(Schema.String),
  history: orNull(
    Schema.Array(
      Schema.Struct({
        created: orNull(Schema.String),
        created_by: orNull(Schema.String),
        author: orNull(Schema.String),
        comment: orNull(Schema.String),
        empty_layer: orNull(Schema.Boolean)
      })
    )
  )
})

export type Config = typeof ConfigDocument.Type

const LayoutDocument = Schema.Struct({ imageLayoutVersion: Schema.Literal("1.0.0") })

const corrupt = (subject: string, detail: string, cause?: unknown) =>
  new ImageError({ reason: "Corrupt", subject, detail, cause })

/** The parsed digest of a descriptor, which can be part of a path. */
export const digestOf = (descriptor: Descriptor): Effect.Effect<Digest, ImageError> =>
  digests.parse(descriptor.digest)

export const parseObject = (
  subject: string,
  bytes: Uint8Array
): Effect.Effect<Record<string, unknown>, ImageError> =>
  Effect.suspend(() => {
    if (bytes.length > DOCUMENT_BYTES_MAX) return tooLarge(subject, bytes.length, DOCUMENT_BYTES_MAX)
    try {
      const value: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
      return typeof value === "object" && value !== null && !Array.isArray(value)
        ? Effect.succeed(value as Record<string, unknown>)
        : corrupt(subject, "is JSON, but not an object")
    } catch (cause) {
      return corrupt(subject, "is not JSON", cause)
    }
  })

const decode = <A, I>(
  schema: Schema.Schema<A, I>,
  subject: string,
  value: unknown
): Effect.Effect<A, ImageError> => {
  const decoded = Schema.decodeUnknownEither(schema)(value)
  if (Either.isRight(decoded)) return Effect.succeed(decoded.right)
  const issue = ParseResult.ArrayFormatter.formatErrorSync(decoded.left)[0]
  const path = issue === undefined || issue.path.length === 0 ? "the document" : issue.path.join(".")
  return corrupt(subject, `${path}: ${(issue?.message ?? "is not as specified").slice(0, 300)}`, decoded.left)
}

/**
 * Decodes an index or a manifest. `mediaType` is the media type from the descriptor or the HTTP header, if there is
 * one. An ambiguous document is refused (CVE-2021-41190).
 */
export const decodeManifest = (
  subject: string,
  bytes: Uint8Array,
  mediaType?: string
): Effect.Effect<Index | Manifest, ImageError> =>
  Effect.gen(function* () {
    const value = yield* parseObject(subject, bytes)
    const stated = value.mediaType
    if (stated !== undefined && typeof stated !== "string")
      return yield* corrupt(subject, "mediaType is not a string")
    if (stated !== undefined && mediaType !== undefined && stated !== mediaType) {
      const detail = `states the media type ${JSON.stringify(stated.slice(0, 200))}; its descriptor states ${mediaType}`
      return yield* corrupt(subject, detail)
    }
    const asIndex = "manifests" in value
    const asManifest = "layers" in value || "config" in value
    if (asIndex && (asManifest || "fsLayers" in value))
      return yield* corrupt(subject, "has the fields of an index and of a manifest")
    const type = mediaType ?? stated ?? (asIndex ? mediaTypes.index : mediaTypes.manifest)
    if (value.schemaVersion === 1) {
      const detail =
        "is a docker schema 1 manifest, which is obsolete: push the image again with a current client"
      return yield* new ImageError({ reason: "Unsupported", subject, detail })
    }
    if (isIndexType(type)) {
      if (!asIndex) return yield* corrupt(subject, "should be an index, but has no manifests")
      const index = yield* decode(IndexDocument, subject, value)
      return { _tag: "Index", manifests: index.manifests }
    }
    if (!isManifestType(type)) {
      const detail = `media type ${JSON.stringify(type.slice(0, 200))} is neither an image manifest nor an index`
      return yield* new ImageError({ reason: "Unsupported", subject, detail })
    }
    if (asIndex) return yield* corrupt(subject, "should be a manifest, but is an index")
    const manifest = yield* decode(ManifestDocument, subject, value)
    if (manifest.layers.length > LAYERS_MAX) {
      const detail = `has ${manifest.layers.length} layers; the limit is ${LAYERS_MAX}`
      return yield* new ImageError({ reason: "TooLarge", subject, detail })
    }
    const { annotations, config, layers } = manifest
    return { _tag: "Manifest", config, layers, annotations }
  })

/** The media type of a document without a descriptor, from its own fields. */
export const mediaTypeOf = (subject: string, bytes: Uint8Array): Effect.Effect<string, ImageError> =>
  Effect.map(parseObject(subject, bytes), (value) =>
    typeof value.mediaType === "string"
      ? value.mediaType
      : "manifests" in value
        ? mediaTypes.index
        : mediaTypes.manifest
  )

/** Decodes the config of a manifest. The caller has checked that its descriptor has a config's media type. */
export const decodeConfig = (subject: string, bytes: Uint8Array): Effect.Effect<Config, ImageError> =>
  Effect.flatMap(parseObject(subject, bytes), (value) => decode(ConfigDocument, subject, value))

/** Whether a config's media type is that of an image; a chart, a signature or a WebAssembly module has another. */
export const isImageConfig = (descriptor: Descriptor): boolean =>
  descriptor.mediaType === mediaTypes.config || descriptor.mediaType === mediaTypes.dockerConfig

export const decodeLayout = (subject: string, bytes: Uint8Array): Effect.Effect<void, ImageError> =>
  Effect.flatMap(parseObject(subject, bytes), (value) => decode(LayoutDocument, subject, value)).pipe(
    Effect.asVoid
  )

/**
 * The decoded `index.json` of a layout, and its JSON object: unknown fields stay in the file when it is written again.
 */
export const decodeLayoutIndex = (
  subject: string,
  bytes: Uint8Array
): Effect.Effect<{ readonly index: Index; readonly raw: Record<string, unknown> }, ImageError> =>
  Effect.gen(function* () {
    const document = yield* decodeManifest(subject, bytes)
    if (document._tag !== "Index") return yield* corrupt(subject, "should be an index")
    return { index: document, raw: yield* parseObject(subject, bytes) }
  })

/** The compression of a layer, by its media type. */
export const compressionOf = (
  descriptor: Descriptor
): Effect.Effect<"gzip" | "zstd" | "none", ImageError> => {
  switch (descriptor.mediaType) {
    case "application/vnd.oci.image.layer.v1.tar":
    case "application/vnd.docker.image.rootfs.diff.tar":
      return Effect.succeed("none")
    case "application/vnd.oci.image.layer.v1.tar+gzip":
    case "application/vnd.docker.image.rootfs.diff.tar.gzip":
      return Effect.succeed("gzip")
    case "application/vnd.oci.image.layer.v1.tar+zstd":
    case "application/vnd.docker.image.rootfs.diff.tar.zstd":
      return Effect.succeed("zstd")
    default: {
      const foreign = /nondistributable|foreign/.test(descriptor.mediaType)
      return new ImageError({
        reason: "Unsupported",
        subject: descriptor.digest.slice(0, 300),
        detail: foreign
          ? `is a layer that may not be distributed (${descriptor.mediaType}): it is not in the image`
          : `has the layer media type ${JSON.stringify(descriptor.mediaType)}, which is not supported`
      })
    }
  }
}
