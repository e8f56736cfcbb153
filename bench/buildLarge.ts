/** Builds that move many bytes: a context of 1 GB of which one file has changed, and a layer of 500 MB that is pushed. */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { Build, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { registry } from "./registry.ts"
import { type Contender, onThisBerth, unmeasured } from "./support.ts"

const MEGABYTE = 1_000_000

/** Files of which half can be compressed. */
const makeFiles = (folder: string, count: number, bytes: number) => {
  fs.mkdirSync(folder)
  for (let k = 0; k < count; k++)
    fs.writeFileSync(
      `${folder}/${k}`,
      Buffer.concat([randomBytes(bytes / 2), Buffer.alloc(bytes / 2, `${k} `)])
    )
}

let changes = 0

const contexts = (folder: string) =>
  Effect.gen(function* () {
    const context = `${folder}/large`
    makeFiles(context, 10_000, MEGABYTE / 10)
    const build = (paths: ReadonlyArray<string>) =>
      Build.image(Build.copy(Build.from("bench/base"), { from: Build.local(context), paths, to: "/" })).pipe(
        Effect.mapError(unmeasured)
      )
    const change = Effect.sync(() => fs.writeFileSync(`${context}/0`, String(changes++)))
    yield* build(["."])
    return yield* Effect.all([
      onThisBerth("1 GB context, nothing changed", build(["."])),
      onThisBerth("1 GB context, one file changed, all copied", Effect.zipRight(change, build(["."]))),
      onThisBerth("1 GB context, one file changed, it copied", Effect.zipRight(change, build(["0"])))
    ])
  })

const pushes = (folder: string) =>
  Effect.gen(function* () {
    const host = yield* registry(folder)
    const files = `${folder}/layer`
    makeFiles(files, 500, MEGABYTE)
    const push = (compression: "gzip" | "zstd") =>
      Effect.gen(function* () {
        // A change makes the layer, and so the blob, a new one.
        fs.writeFileSync(`${files}/change`, String(changes++))
        const copied = Build.copy(Build.from("bench/base"), {
          from: Build.local(files),
          paths: ["."],
          to: "/"
        })
        const image = yield* Build.image(copied, { tag: "bench/pushed", compression })
        yield* Image.push(image, `${host}/bench/pushed:${compression}`)
      }).pipe(Effect.mapError(unmeasured))
    return yield* Effect.all([
      onThisBerth(
        "500 MB layer, built and pushed, gzip",
        Effect.suspend(() => push("gzip"))
      ),
      onThisBerth(
        "500 MB layer, built and pushed, zstd",
        Effect.suspend(() => push("zstd"))
      )
    ])
  }).pipe(
    Effect.catchTag("Unmeasured", ({ message }) =>
      Effect.as(Console.log(`pushes are not measured: ${message}`), [] as ReadonlyArray<Contender>)
    )
  )

export const largeBuilds = (folder: string) =>
  Effect.map(Effect.all([Effect.orDie(contexts(folder)), pushes(folder)]), (all) => all.flat())
