/**
 * Image references, as people write them (`alpine`, `127.0.0.1:5000/team/app:1.2@sha256:...`), and digests.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import * as Either from "effect/Either"
import * as Inspectable from "effect/Inspectable"
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import { ImageError, InvalidData } from "./BerthError.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Reference")

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
export const isReference = (u: unknown): u is Reference => Predicate.hasProperty(u, TypeId)

const digestLengths: Readonly<Record<string, number>> = { sha256: 64, sha512: 128 }

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
export const parseDigest = (input: string): Either.Either<Digest, ImageError> => {
  const subject = quote(input)
  const match = /^([a-z0-9]+(?:[+._-][a-z0-9]+)*):([A-Za-z0-9=_-]+)$/.exec(input.slice(0, 300))
  if (match === null || input.length > 299) {
    return Either.left(new ImageError({ reason: "Corrupt", subject, detail: "is not a digest" }))
  }
  const length = Object.hasOwn(digestLengths, match[1]!) ? digestLengths[match[1]!]! : undefined
  if (length === undefined) {
    const detail = `digest algorithm ${match[1]} is not supported: only sha256 and sha512 are`
    return Either.left(new ImageError({ reason: "Unsupported", subject, detail }))
  }
  if (match[2]!.length !== length || !/^[0-9a-f]*$/.test(match[2]!)) {
    const detail = `is not a digest: ${match[1]} has ${length} lower-case hexadecimal digits`
    return Either.left(new ImageError({ reason: "Corrupt", subject, detail }))
  }
  return Either.right(input as Digest)
}

/**
 * The two halves of a digest.
 *
 * @since 0.1.0
 * @category getters
 */
export const digestParts = (
  digest: Digest
): { readonly algorithm: "sha256" | "sha512"; readonly hex: string } => {
  const colon = digest.indexOf(":")
  return { algorithm: digest.slice(0, colon) as "sha256" | "sha512", hex: digest.slice(colon + 1) }
}

const label = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
const registryPattern = new RegExp(`^(?:${label}(?:\\.${label})*|\\[[0-9A-Fa-f:]{2,45}\\])(?::[0-9]{1,5})?$`)
const componentPattern = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/
const maxRepository = 255
const maxReference = 1024

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
export const parse = (input: string): Either.Either<Reference, InvalidData> => {
  const refuse = (expected: string, cause?: unknown) =>
    Either.left(new InvalidData({ format: "reference", value: quote(input), expected, cause }))
  if (input.length > maxReference) {
    return refuse(`at most ${maxReference} characters`)
  }
  let rest = input
  let digest: Digest | undefined
  const at = rest.indexOf("@")
  if (at !== -1) {
    const parsed = parseDigest(rest.slice(at + 1))
    if (Either.isLeft(parsed)) {
      return refuse(
        "one digest after @: sha256: and 64, or sha512: and 128, lower-case hexadecimal digits",
        parsed.left
      )
    }
    digest = parsed.right
    rest = rest.slice(0, at)
  }
  let registry = "docker.io"
  const slash = rest.indexOf("/")
  const first = slash === -1 ? "" : rest.slice(0, slash)
  if (first === "localhost" || /[.:A-Z[]/.test(first)) {
    const port = /:([0-9]+)$/.exec(first)?.[1]
    if (!registryPattern.test(first) || (port !== undefined && (Number(port) < 1 || Number(port) > 65535))) {
      return refuse("a host name or address, and a port between 1 and 65535, before the first slash")
    }
    registry = first === "index.docker.io" ? "docker.io" : first
    rest = rest.slice(slash + 1)
  }
  let tag: string | undefined
  const colon = rest.indexOf(":")
  if (colon !== -1) {
    tag = rest.slice(colon + 1)
    rest = rest.slice(0, colon)
    if (!tagPattern.test(tag)) {
      return refuse(
        "one tag after the colon: up to 128 letters, digits, _, . and -, not starting with . or -"
      )
    }
  }
  if (/[A-Z]/.test(rest)) {
    return refuse("a repository name in lower case")
  }
  if (!rest.split("/").every((component) => componentPattern.test(component))) {
    return refuse("[host[:port]/]path[:tag][@digest]")
  }
  if (registry === "docker.io") {
    if (rest.length === 64 && /^[0-9a-f]*$/.test(rest)) {
      return refuse("a name: 64 hexadecimal digits are an image id, which no registry knows")
    }
    rest = rest.includes("/") ? rest : `library/${rest}`
  }
  if (rest.length > maxRepository) {
    return refuse(`a repository name of at most ${maxRepository} characters`)
  }
  return Either.right(
    make({ registry, repository: rest, tag: tag ?? (digest === undefined ? "latest" : undefined), digest })
  )
}

/**
 * The whole reference, nothing left out: `docker.io/library/alpine:latest`. `parse` gives the same reference back.
 *
 * @since 0.1.0
 * @category printing
 */
export const print = (self: Pick<Reference, "registry" | "repository" | "tag" | "digest">): string => {
  const tag = self.tag === undefined ? "" : `:${self.tag}`
  const digest = self.digest === undefined ? "" : `@${self.digest}`
  return `${self.registry}/${self.repository}${tag}${digest}`
}

const Proto = {
  ...Inspectable.BaseProto,
  [TypeId]: TypeId,
  toJSON(this: Reference) {
    return { _id: "berth/Reference", reference: print(this) }
  },
  toString(this: Reference) {
    return print(this)
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

const make = (fields: Pick<Reference, "registry" | "repository" | "tag" | "digest">): Reference =>
  Object.assign(Object.create(Proto), fields)

/** At most 200 characters of what somebody else wrote, on one line. */
const quote = (input: string): string =>
  JSON.stringify(input.length > 200 ? `${input.slice(0, 200)}...` : input)
