/** Pushes an image, and says how many bytes of memory that took at its peak: `pusher.ts FOLDER LAYOUT REFERENCE`. */
import * as fs from "node:fs"
import * as process from "node:process"
import * as Effect from "effect/Effect"
import { Image } from "../../lib/index.ts"
import { run } from "./images.ts"

const [folder, layout, reference] = process.argv.slice(2) as [string, string, string]

const bytesOf = (key: string): number => {
  const status = fs.readFileSync("/proc/self/status", "utf8")
  return Number(new RegExp(`^${key}:\\s*(\\d+) kB$`, "m").exec(status)?.[1]) * 1024
}

await run(
  folder,
  Effect.gen(function* () {
    const image = yield* Image.fromLayout(layout)
    // proc_pid_clear_refs(5): from here on there is a new peak.
    fs.writeFileSync("/proc/self/clear_refs", "5")
    const before = bytesOf("VmRSS")
    yield* Image.push(image, reference)
    process.stdout.write(`${bytesOf("VmHWM") - before}\n`)
  })
)
