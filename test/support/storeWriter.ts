/** A second process for the tests of `Store`: `put FOLDER TEXT MILLISECONDS`, or `tag FOLDER PREFIX COUNT`. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import { parseDigest } from "../../lib/Reference.ts"
import * as Store from "../../lib/Store.ts"
import { run, sha256, types } from "./images.ts"

const [, , action, folder = "", text = "", number = "0"] = process.argv
const bytes = new TextEncoder().encode(text)
const digest = Either.getOrThrow(parseDigest(sha256(bytes)))

if (action === "put") {
  const slow = Stream.make(bytes.subarray(0, 1)).pipe(
    Stream.tap(() => Effect.sync(() => console.log("writing"))),
    Stream.concat(Stream.fromEffect(Effect.delay(Effect.succeed(bytes.subarray(1)), Number(number))))
  )
  await run(folder, Store.put(digest, slow))
} else {
  const descriptor = { mediaType: types.manifest, digest, size: bytes.length }
  const names = Array.from({ length: Number(number) }, (_, i) => `${text}-${i}`)
  await run(
    folder,
    Effect.forEach(names, (name) => Store.tag(name, descriptor))
  )
}
