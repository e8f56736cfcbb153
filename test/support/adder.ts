/** Builds an image of the files at addresses: `adder.ts FOLDER URL...`. Says of each address what its file has, or what failed. */
import { readFileSync } from "node:fs"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { Build, Image } from "../../lib/index.ts"
import { run } from "./images.ts"

const [folder = "", ...urls] = process.argv.slice(2)
const said = await run(
  folder,
  Effect.forEach(urls, (url) =>
    Build.from(Image.scratch).pipe(
      Build.copy({ from: Build.remote(url), to: "/file" }),
      Build.image(),
      Effect.either,
      Effect.map(
        Either.match({
          onLeft: ({ message }) => message,
          onRight: ({ layers }) => readFileSync(`${layers.at(-1)}/file`, "utf8")
        })
      )
    )
  )
)
console.log(JSON.stringify(said))
