/**
 * A second process for the tests: `put FOLDER TEXT MILLISECONDS`, `tag FOLDER PREFIX COUNT`, `unpack FOLDER LAYOUT`,
 * `pull FOLDER REFERENCE COUNT`, `sleep FOLDER NAME` (in a container), `churn FOLDER REFERENCE`.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import type * as Berth from "../../lib/Berth.ts"
import * as Container from "../../lib/Container.ts"
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
} else if (action === "pull") {
  const pulls = Array.from({ length: Number(number) }, () => Image.pull(text))
  await run(folder, Effect.all(pulls, { concurrency: "unbounded" }))
} else if (action === "sleep") {
  const sleeping = Effect.gen(function* () {
    yield* Container.start(yield* Image.fromStore(text), { command: ["exec sleep 60"] })
    console.log("running")
    yield* Effect.never
  })
  await run(folder, Effect.scoped(sleeping))
} else if (action === "churn") {
  let i = 0
  const some = Effect.suspend(() => {
    const content = new TextEncoder().encode(`blob ${process.pid} ${i++}`)
    return Store.put(Either.getOrThrow(parseDigest(sha256(content))), Stream.make(content))
  })
  const names = Effect.suspend(() => {
    const name = `127.0.0.1/copy:${i % 3}`
    return Effect.zipRight(
      Image.tag(text, name),
      Effect.when(Image.remove(name), () => i % 2 === 0)
    )
  })
  const forget = Effect.delay(Effect.ignore(Image.remove(text)), 50)
  const pulled = Effect.tap(Image.pull(text), () => Effect.sync(() => console.log("churning")))
  const steps: ReadonlyArray<Effect.Effect<unknown, unknown, Berth.Berth>> = [
    pulled,
    some,
    Effect.ignore(names),
    forget,
    Effect.delay(Store.gc(), 20)
  ]
  await run(
    folder,
    Effect.forEach(steps, (step) => Effect.forever(Effect.zipRight(step, Effect.sleep(1))), {
      concurrency: "unbounded"
    })
  )
} else {
  const descriptor = { mediaType: types.manifest, digest, size: bytes.length }
  const names = Array.from({ length: Number(number) }, (_, i) => `${text}-${i}`)
  await run(
    folder,
    Effect.forEach(names, (name) => Store.tag(name, descriptor))
  )
}
