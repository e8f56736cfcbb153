/**
 * Image references in the usual notation (`alpine`, `127.0.0.1:5000/team/app:1.2@sha256:...`), and digests.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import type * as Either from "effect/Either"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type { ImageError, InvalidData } from "./BerthError.ts"
import * as internal from "./internal/oci/reference.ts"
import * as digests from "./internal/util/digest.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A parsed content digest: `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits. No other text becomes
 * part of a path.
 *
 * @since 0.1.0
 * @category models
 */
export type Digest = string & Brand.Brand<"berth/Digest">

/**
 * The location of an image: registry, repository, and tag or digest.
 *
 * @since 0.1.0
 * @category models
 */
export interface Reference extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The host and, if given, the port: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`. */
  readonly registry: string
  /** The path of the repository: `library/alpine`. */
  readonly repository: string
  /** `latest` if neither a tag nor a digest was given. */
  readonly tag: string | undefined
  /** The digest, which takes precedence over the tag. */
  readonly digest: Digest | undefined
}

/**
 * Whether a value is a `Reference`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isReference: (u: unknown) => u is Reference = internal.isReference

/**
 * Parses a digest strictly. Fails with an `ImageError`: `Unsupported` for an algorithm other than sha256 and sha512,
 * `Corrupt` for any other invalid digest.
 *
 * @since 0.1.0
 * @category parsing
 * @example
 * import * as Reference from "berth/Reference"
 *
 * Reference.parseDigest("sha256:../../etc/passwd") // Left: Corrupt
 */
export const parseDigest: (input: string) => Either.Either<Digest, ImageError> = digests.parse

/**
 * The algorithm and the hexadecimal half of a digest.
 *
 * @since 0.1.0
 * @category getters
 */
export const digestParts: (digest: Digest) => {
  readonly algorithm: "sha256" | "sha512"
  readonly hex: string
} = digests.parts

/**
 * Parses `[host[:port]/]path[:tag][@digest]` by the grammar of docker and podman: a first part with a dot, a colon or
 * an upper-case letter, or `localhost`, is a registry. Otherwise the registry is `docker.io`, where a name of one part
 * is in `library/`. Fails with `InvalidData`.
 *
 * @since 0.1.0
 * @category parsing
 * @example
 * import * as Reference from "berth/Reference"
 *
 * const program = Reference.parse("alpine:3") // docker.io/library/alpine:3
 */
export const parse: (input: string) => Either.Either<Reference, InvalidData> = internal.parse

/**
 * The complete reference: `docker.io/library/alpine:latest`. `parse` returns the same reference for it.
 *
 * @since 0.1.0
 * @category printing
 */
export const print: (self: Pick<Reference, "registry" | "repository" | "tag" | "digest">) => string =
  internal.print
