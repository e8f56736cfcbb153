/**
 * Run by test/unit/Loading.test.ts, with few descriptors: keeps a supervisor, opens files until there is no descriptor left, and
 * prints the error of the first call that has to load a part of Berth.
 */
import * as fs from "node:fs"
import { type BerthError, images, run } from "../../lib/promise.ts"

await run("host", { command: ["true"], linger: "1 hour" })
const opened: Array<number> = []
try {
  for (;;) opened.push(fs.openSync("/dev/null", "r"))
} catch {
  // The limit has been reached.
}
const error: unknown = await images.list({ linger: "1 hour" }).catch((error: unknown) => error)
for (const fd of opened) fs.closeSync(fd)
const { _tag, message } = error as BerthError
console.log(_tag, message)
