/** Builds a step of an image of the store in another process: `FOLDER IMAGE COMMAND`. Says `begun`, and then the layers and the events. */
import * as Build from "../../lib/Build.ts"
import { run } from "./images.ts"

const [, , folder = "", image = "", command = ""] = process.argv
const events: Array<string> = []
console.log("begun")
const build = Build.run(Build.from(image), command, { cache: { "/meeting": "meeting" } })
const made = await run(
  folder,
  Build.image(build, { pull: "never", onEvent: ({ _tag }) => events.push(_tag) })
)
console.log(JSON.stringify({ layers: made.layers, events }))
