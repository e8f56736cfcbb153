/**
 * Image references, as people write them (`alpine`, `127.0.0.1:5000/team/app:1.2@sha256:...`), and digests.
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
 * A content digest that has been parsed: `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits.
 * Only such a digest ever becomes part of a path.
 *
 * @since 0.1.0
 * @category models
 */
export type Digest = string & Brand.Brand<"berth/Digest">

/**
 * Where an image is: which registry, which repository there, which tag or digest.
 *
 * @since 0.1.0
 * @category models
 */
export interface Reference extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** Host and, where it was given, port: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`. */
  readonly registry: string
  /** The path of the repository: `library/alpine`. */
  readonly repository: string
  /** `latest` where neither a tag nor a digest was given. */
  readonly tag: string | undefined
  /** Where it is given, it wins over the tag. */
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
 * Parses a digest strictly. Fails with an `ImageError`: `Unsupported` for an algorithm other than sha256 and
 * sha512, `Corrupt` for anything else that is not a digest.
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
 * The two halves of a digest.
 *
 * @since 0.1.0
 * @category getters
 */
export const digestParts: (digest: Digest) => {
  readonly algorithm: "sha256" | "sha512"
  readonly hex: string
} = digests.parts

/**
 * Parses `[host[:port]/]path[:tag][@digest]` by the grammar that docker and podman use: a first part with a dot, a
 * colon or an upper-case letter, or `localhost`, is a registry; without one it is `docker.io`, where a name of one
 * part is in `library/`. Fails with `InvalidData`.
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
 * The whole reference, nothing left out: `docker.io/library/alpine:latest`. `parse` gives the same reference back.
 *
 * @since 0.1.0
 * @category printing
 */
export const print: (self: Pick<Reference, "registry" | "repository" | "tag" | "digest">) => string =
  internal.print
