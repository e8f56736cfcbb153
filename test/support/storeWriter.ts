/**
 * A second process for the tests: `put FOLDER TEXT MILLISECONDS`, `tag FOLDER PREFIX COUNT`, `unpack FOLDER LAYOUT`.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
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
} else if (action === "unpack") {
  await run(folder, Image.fromLayout(text))
} else {
  const descriptor = { mediaType: types.manifest, digest, size: bytes.length }
  const names = Array.from({ length: Number(number) }, (_, i) => `${text}-${i}`)
  await run(
    folder,
    Effect.forEach(names, (name) => Store.tag(name, descriptor))
  )
}
