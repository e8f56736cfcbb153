import assert from "node:assert/strict"
import { describe, test } from "node:test"
import * as Either from "effect/Either"
import fc from "fast-check"
import * as Reference from "../../lib/Reference.ts"

const sha256 = `sha256:${"0123456789abcdef".repeat(4)}`
const sha512 = `sha512:${"0123456789abcdef".repeat(8)}`

const printed = (input: string) => Reference.print(Either.getOrThrow(Reference.parse(input)))

const text = (pattern: RegExp, maxLength: number) =>
  fc.stringMatching(pattern).filter((value) => value.length <= maxLength)

const registry = fc.oneof(
  fc.constant("docker.io"),
  fc.constant("localhost"),
  text(/^[a-z0-9]{1,10}(-[a-z0-9]{1,5})?\.[a-z]{2,6}$/, 40),
  fc
    .tuple(
      fc.oneof(fc.constant("localhost"), fc.ipV4(), fc.constant("[::1]"), fc.constant("Host")),
      fc.integer({ min: 1, max: 65535 })
    )
    .map(([host, port]) => `${host}:${port}`)
)

const repository = fc
  .array(text(/^[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8})?$/, 20), { minLength: 1, maxLength: 5 })
  .map((parts) => parts.join("/"))

const tag = text(/^\w[\w.-]{0,127}$/, 128)

describe("Reference", () => {
  test("a printed reference parses into the same reference", () => {
    fc.assert(
      fc.property(
        registry,
        repository,
        fc.option(tag, { nil: undefined }),
        fc.option(fc.constantFrom(sha256, sha512), { nil: undefined }),
        (registry, repository, tag, digest) => {
          const input =
            `${registry}/${repository}` +
            (tag === undefined ? "" : `:${tag}`) +
            (digest === undefined ? "" : `@${digest}`)
          const reference = Either.getOrThrow(Reference.parse(input))
          const again = Either.getOrThrow(Reference.parse(Reference.print(reference)))
          assert.deepEqual({ ...again }, { ...reference })
          assert.equal(reference.registry, registry)
          assert.equal(reference.digest, digest)
        }
      )
    )
  })

  test("Reference.parse never throws, whatever its input", () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.string({ unit: "binary" }), fc.stringMatching(/^[a-zA-Z0-9:/@._-]*$/)),
        (input) => {
          const parsed = Reference.parse(input)
          if (Either.isRight(parsed)) {
            assert.equal(printed(Reference.print(parsed.right)), Reference.print(parsed.right))
          } else {
            assert.equal(parsed.left._tag, "InvalidData")
          }
        }
      ),
      { numRuns: 1000 }
    )
  })

  test("a short name is a repository of Docker Hub", () => {
    assert.equal(printed("alpine"), "docker.io/library/alpine:latest")
    assert.equal(printed("alpine:3"), "docker.io/library/alpine:3")
    assert.equal(printed("team/app"), "docker.io/team/app:latest")
    assert.equal(printed("docker.io/alpine"), "docker.io/library/alpine:latest")
    assert.equal(printed("index.docker.io/alpine"), "docker.io/library/alpine:latest")
  })

  test("a name's first part is a registry if it is localhost or has a dot, a colon or an upper-case letter", () => {
    assert.equal(printed("quay.io/app"), "quay.io/app:latest")
    assert.equal(printed("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000/a/b:1")
    assert.equal(printed("[::1]:5000/a"), "[::1]:5000/a:latest")
    assert.equal(printed("localhost/a"), "localhost/a:latest")
    assert.equal(printed("Registry/a"), "Registry/a:latest")
  })

  test("a reference with a digest parses with and without a tag", () => {
    assert.equal(printed(`alpine@${sha256}`), `docker.io/library/alpine@${sha256}`)
    assert.equal(printed(`alpine:3@${sha256}`), `docker.io/library/alpine:3@${sha256}`)
  })

  const bad: ReadonlyArray<readonly [why: string, input: string]> = [
    ["an empty string", ""],
    ["upper case", "Alpine"],
    ["upper case after the registry", "quay.io/Team/app"],
    ["two tags", "alpine:3:4"],
    ["an empty tag", "alpine:"],
    ["a tag that starts with a dot", "alpine:.3"],
    ["a tag of 129 characters", `alpine:${"a".repeat(129)}`],
    ["two digests", `alpine@${sha256}@${sha256}`],
    ["a short digest", "alpine@sha256:0123"],
    ["a digest in upper case", `alpine@${sha256.replaceAll("a", "A")}`],
    ["a digest of another algorithm", "alpine@md5:d41d8cd98f00b204e9800998ecf8427e"],
    ["a digest that is a path", "alpine@sha256:../../x"],
    ["a parent folder", "quay.io/../etc"],
    ["a parent folder alone", "../etc"],
    ["a doubled slash", "quay.io//app"],
    ["a slash at the end", "quay.io/app/"],
    ["a scheme", "https://quay.io/app"],
    ["a user", "user:password@quay.io/app"],
    ["port 0", "localhost:0/app"],
    ["a port beyond 65535", "localhost:65536/app"],
    ["a space", "alp ine"],
    ["a line feed at the end", "alpine\n"],
    ["NUL", "alpine\0"],
    ["a query", "quay.io/app?x=1"],
    ["three underscores", "a___b"],
    ["an image id", "0123456789abcdef".repeat(4)],
    ["a repository of 256 characters", `quay.io/${"a".repeat(256)}`],
    ["a name of a megabyte", "a".repeat(1024 * 1024)]
  ]
  for (const [why, input] of bad) {
    test(`Reference.parse refuses ${why}`, () => {
      const parsed = Reference.parse(input)
      assert.ok(Either.isLeft(parsed))
      assert.equal(parsed.left._tag, "InvalidData")
      assert.ok(parsed.left.message.length < 500)
    })
  }
})

describe("Reference.parseDigest", () => {
  test("parseDigest accepts sha256 and sha512 in lower case", () => {
    assert.equal(Either.getOrThrow(Reference.parseDigest(sha256)), sha256)
    assert.equal(Either.getOrThrow(Reference.parseDigest(sha512)), sha512)
  })

  const bad: ReadonlyArray<readonly [reason: string, input: string]> = [
    ["Unsupported", "md5:d41d8cd98f00b204e9800998ecf8427e"],
    ["Unsupported", `blake3:${"0".repeat(64)}`],
    ["Unsupported", `constructor:${"0".repeat(64)}`],
    ["Corrupt", "sha256:../../x"],
    ["Corrupt", `sha256:${"0".repeat(63)}`],
    ["Corrupt", `sha256:${"0".repeat(65)}`],
    ["Corrupt", `sha256:${"A".repeat(64)}`],
    ["Corrupt", `sha512:${"0".repeat(64)}`],
    ["Corrupt", `sha256:${"0".repeat(64)}\n`],
    ["Corrupt", `SHA256:${"0".repeat(64)}`],
    ["Corrupt", "0".repeat(64)],
    ["Corrupt", ""],
    ["Corrupt", `sha256:${"0".repeat(100000)}`]
  ]
  for (const [reason, input] of bad) {
    test(`parseDigest refuses ${JSON.stringify(input.slice(0, 80))} as ${reason}`, () => {
      const parsed = Reference.parseDigest(input)
      assert.ok(Either.isLeft(parsed))
      assert.equal(parsed.left.reason, reason)
    })
  }
})
