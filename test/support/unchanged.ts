/** Checks that an effect leaves the store as it was. */
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { type Berth, Image, Store } from "../../lib/index.ts"

/** Every file below a folder, with its size and hash. */
const filesIn = (folder: string): ReadonlyArray<string> =>
  fs
    .readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => !fs.statSync(`${folder}/${name}`).isDirectory())
    .map((name) => {
      const bytes = fs.readFileSync(`${folder}/${name}`)
      return `${name} ${bytes.length} ${createHash("sha256").update(bytes).digest("hex")}`
    })
    .sort()

/** Runs an effect, after which the store has the files that it had before, byte for byte. */
export const unchanged = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Berth.Berth> =>
  Effect.gen(function* () {
    const folder = yield* Store.folder
    // The first change makes the store, even one that does nothing.
    yield* Effect.ignore(Image.remove("nothing"))
    const before = filesIn(folder)
    assert.ok(before.some((line) => line.startsWith("index.json ")))
    const exit = yield* Effect.exit(effect)
    assert.deepEqual(filesIn(folder), before)
    return yield* exit
  })
