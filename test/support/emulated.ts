/**
 * Builds with a program for another processor, on a machine that has an emulator. Its arguments are an empty folder, the program, and the
 * platform. Prints the lines that the program has said, and what it has written into the image.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Build } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder = "", program = "", platform] = process.argv.slice(2)
const context = `${folder}/context`
fs.mkdirSync(context)
fs.copyFileSync(program, `${context}/machine`)
fs.chmodSync(`${context}/machine`, 0o755)

const text = `FROM scratch
COPY machine /
RUN ["/machine"]
`
const lines: Array<string> = []
const onEvent = (event: Build.BuildEvent) => event._tag === "Output" && lines.push(event.line)
const built = Effect.map(Build.dockerfile({ context, text, platform, onEvent }), ({ config, layers }) => ({
  architecture: config.architecture,
  lines,
  made: fs.readFileSync(`${layers.at(-1)}/made`, "utf8")
}))
console.log(JSON.stringify(await Effect.runPromise(Effect.provide(built, berthIn(folder)))))
