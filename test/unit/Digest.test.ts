import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { describe, test } from "node:test"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import { concat } from "../../lib/internal/util/bytes.ts"
import * as digests from "../../lib/internal/util/digest.ts"

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)
const text = (chunks: Iterable<Uint8Array>): string => new TextDecoder().decode(concat(chunks))

/** What a consumer gets of the parts before the stream ends, and why it failed. */
const read = async (parts: ReadonlyArray<string>, expected: digests.Expected) => {
  const got: Array<Uint8Array> = []
  const ended = await digests.verified(Stream.fromIterable(parts.map(bytesOf)), expected).pipe(
    Stream.runForEach((part) => Effect.sync(() => got.push(part))),
    Effect.either,
    Effect.runPromise
  )
  return { got: text(got), error: Either.isLeft(ended) ? ended.left.message : undefined }
}

const abc = digests.ofBytes(bytesOf("abc"))

describe("digests", () => {
  for (const algorithm of digests.algorithms) {
    test(`${algorithm}: bytes, a stream of them and node:crypto give the same digest`, async () => {
      const hex = createHash(algorithm).update("abc").digest("hex")
      const expected = digests.of(algorithm, hex)
      assert.equal(digests.ofBytes(bytesOf("abc"), algorithm), expected)
      const stream = Stream.make(bytesOf("a"), bytesOf(""), bytesOf("bc"))
      assert.equal(await Effect.runPromise(digests.ofStream(stream, algorithm)), expected)
      assert.deepEqual(digests.parts(expected), { algorithm, hex })
      assert.ok(Either.isRight(digests.parse(expected)))
    })
  }

  test("right bytes pass whole, with or without a known size", async () => {
    for (const size of [3, undefined])
      assert.deepEqual(await read(["ab", "", "c"], { digest: abc, size }), { got: "abc", error: undefined })
    const nothing = { digest: digests.ofBytes(new Uint8Array()), size: 0 }
    assert.deepEqual(await read([], nothing), { got: "", error: undefined })
  })

  const wrong: ReadonlyArray<
    readonly [what: string, parts: ReadonlyArray<string>, got: string, why: RegExp]
  > = [
    ["other bytes of the same size", ["ab", "d"], "ab", /its digest should be/],
    ["bytes past the size", ["ab", "cd"], "ab", /its size should be 3 bytes, but is more/],
    ["too few bytes", ["ab"], "ab", /its size should be 3 bytes, but is 2 bytes/],
    ["no bytes", [], "", /its size should be 3 bytes, but is 0 bytes/]
  ]
  for (const [what, parts, got, why] of wrong)
    test(`the last part is withheld: ${what}`, async () => {
      const found = await read(parts, { digest: abc, size: 3 })
      assert.equal(found.got, got)
      assert.match(found.error ?? "", why)
    })

  test("an error names the subject and what should have had the digest", async () => {
    const { error } = await read(["x"], {
      digest: abc,
      size: undefined,
      subject: "base",
      what: "the diff id"
    })
    assert.match(error ?? "", /base.*the diff id should be sha256:/)
  })

  test("verify refuses another size before it hashes", () => {
    const result = Effect.runSync(Effect.either(digests.verify(abc, 4, bytesOf("abc"))))
    assert.match(
      Either.isLeft(result) ? result.left.message : "",
      /its size should be 4 bytes, but is 3 bytes/
    )
  })

  test("all of a stream can be read again", async () => {
    const stream = digests.verified(Stream.make(bytesOf("abc")), { digest: abc, size: 3 })
    for (let k = 0; k < 2; k++)
      assert.equal(text(Chunk.toReadonlyArray(await Effect.runPromise(Stream.runCollect(stream)))), "abc")
  })
})
