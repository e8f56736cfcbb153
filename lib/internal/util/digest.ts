/** Content digests: parsing, computing and checking them. */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import { ImageError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { quote } from "./text.ts"

export type Algorithm = "sha256" | "sha512"

/** The number of hexadecimal digits of a digest. */
const lengths: Readonly<Record<Algorithm, number>> = { sha256: 64, sha512: 128 }

export const algorithms: ReadonlyArray<Algorithm> = ["sha256", "sha512"]

const isAlgorithm = (name: string): name is Algorithm => Object.hasOwn(lengths, name)

/** Whether a text can be the hexadecimal half of a digest. */
export const isHex = (text: string, algorithm: Algorithm = "sha256"): boolean =>
  text.length === lengths[algorithm] && /^[0-9a-f]*$/.test(text)

export const parse = (input: string): Either.Either<Digest, ImageError> => {
  const refuse = (reason: "Corrupt" | "Unsupported", detail: string) =>
    Either.left(new ImageError({ reason, subject: quote(input), detail }))
  const match = /^([a-z0-9]+(?:[+._-][a-z0-9]+)*):([A-Za-z0-9=_-]+)$/.exec(input.slice(0, 300))
  if (match === null || input.length > 299) return refuse("Corrupt", "is not a digest")
  const [, algorithm, hex] = match as unknown as readonly [string, string, string]
  if (!isAlgorithm(algorithm))
    return refuse("Unsupported", `digest algorithm ${algorithm} is not supported: only sha256 and sha512 are`)
  return isHex(hex, algorithm)
    ? Either.right(input as Digest)
    : refuse(
        "Corrupt",
        `is not a digest: ${algorithm} has ${lengths[algorithm]} lower-case hexadecimal digits`
      )
}

export const parts = (digest: Digest): { readonly algorithm: Algorithm; readonly hex: string } => {
  const colon = digest.indexOf(":")
  return { algorithm: digest.slice(0, colon) as Algorithm, hex: digest.slice(colon + 1) }
}

/** `sha256:0123456789ab`: short enough for messages. */
export const shortened = (digest: string): string => digest.slice(0, digest.indexOf(":") + 1 + 12)

/** Makes a digest of its two halves; the second must satisfy `isHex`. */
export const of = (algorithm: Algorithm, hex: string): Digest => `${algorithm}:${hex}` as Digest

/** Hashes bytes in parts. */
export class Hasher {
  private readonly algorithm: Algorithm
  private readonly hash: ReturnType<typeof createHash>

  constructor(algorithm: Algorithm = "sha256") {
    this.algorithm = algorithm
    this.hash = createHash(algorithm)
  }

  update(bytes: Uint8Array): void {
    this.hash.update(bytes)
  }

  get digest(): Digest {
    return of(this.algorithm, this.hash.copy().digest("hex"))
  }
}

/** The digest of bytes. */
export const ofBytes = (bytes: Uint8Array, algorithm: Algorithm = "sha256"): Digest => {
  const hasher = new Hasher(algorithm)
  hasher.update(bytes)
  return hasher.digest
}

/** The digest of all bytes of a stream. */
export const ofStream = <E, R>(
  content: Stream.Stream<Uint8Array, E, R>,
  algorithm: Algorithm = "sha256"
): Effect.Effect<Digest, E, R> =>
  Effect.suspend(() => {
    const hasher = new Hasher(algorithm)
    return Effect.map(
      Stream.runForEach(content, (chunk) => Effect.sync(() => hasher.update(chunk))),
      () => hasher.digest
    )
  })

export const mismatch = (subject: string, what: string, wanted: string, found: string): ImageError =>
  new ImageError({
    reason: "DigestMismatch",
    subject,
    detail: `${what} should be ${wanted}, but is ${found}`
  })

/** The expected size and digest of bytes, and their names in errors. */
export interface Expected {
  readonly digest: Digest
  /** The size in bytes, undefined if only the digest is known. */
  readonly size: number | undefined
  /** The name of the bytes in errors. Default: the digest. */
  readonly subject?: string
  /** The name of the digest in errors. Default: `its digest`. */
  readonly what?: string
}

/** Checks bytes as they come. */
export class Verifier {
  private readonly expected: Expected
  private readonly hasher: Hasher
  private length = 0

  constructor(expected: Expected) {
    this.expected = expected
    this.hasher = new Hasher(parts(expected.digest).algorithm)
  }

  /** Hashes a part. Fails if the bytes exceed the size, and for the last bytes if the digest is wrong. */
  take(bytes: Uint8Array): Effect.Effect<void, ImageError> {
    const { size } = this.expected
    this.length += bytes.length
    if (size !== undefined && this.length > size) return this.wrongSize("more")
    this.hasher.update(bytes)
    return bytes.length > 0 && this.length === size ? this.check() : Effect.void
  }

  /** Call after the last bytes: fails if bytes are missing. */
  end(): Effect.Effect<void, ImageError> {
    const { size } = this.expected
    if (size !== undefined && this.length < size) return this.wrongSize(`${this.length} bytes`)
    // For any other size, `take` has seen the last bytes.
    return size === undefined || size === 0 ? this.check() : Effect.void
  }

  private wrongSize(found: string): ImageError {
    const { digest, size, subject = digest } = this.expected
    return mismatch(subject, "its size", `${size} bytes`, found)
  }

  private check(): Effect.Effect<void, ImageError> {
    const { digest, subject = digest, what = "its digest" } = this.expected
    const found = this.hasher.digest
    return found === digest ? Effect.void : mismatch(subject, what, digest, found)
  }
}

/** Fails unless the bytes have this digest and size. */
export const verify = (digest: Digest, size: number, bytes: Uint8Array): Effect.Effect<void, ImageError> =>
  Effect.suspend(() => {
    if (bytes.length !== size) return mismatch(digest, "its size", `${size} bytes`, `${bytes.length} bytes`)
    const found = ofBytes(bytes, parts(digest).algorithm)
    return found === digest ? Effect.void : mismatch(digest, "its digest", digest, found)
  })

/**
 * The bytes of a stream, checked. If the size is known, the last bytes are withheld on a wrong digest, so that a reader
 * with all bytes has the right ones.
 */
export const verified = <E, R>(
  content: Stream.Stream<Uint8Array, E, R>,
  expected: Expected
): Stream.Stream<Uint8Array, E | ImageError, R> =>
  Stream.suspend(() => {
    const verifier = new Verifier(expected)
    return content.pipe(
      Stream.filter((chunk) => chunk.length > 0),
      Stream.mapEffect((chunk) => Effect.as(verifier.take(chunk), chunk)),
      Stream.concat(Stream.execute(Effect.suspend(() => verifier.end())))
    )
  })
