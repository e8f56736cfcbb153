/** `codeLoader.ts FILE`: prints what the function in FILE returns, as a module of npm's package is loaded. */
import * as fs from "node:fs"
import { pathToFileURL } from "node:url"
import { load } from "../../lib/internal/system/codeCache.ts"

const [file] = process.argv.slice(2) as [string]
const text = fs.readFileSync(file, "latin1")
const begin = text.indexOf("\n") + 1
const code = { url: pathToFileURL(file).href, begin, end: text.length, head: "(function(word){", tail: "})" }
console.log(load({ ...code, digest: "0".repeat(32) })("given").said)
