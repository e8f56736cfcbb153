/**
 * `npm test [-- [--test-OPTION ...] [FILE ...]]`: the test files, or these of them, under Node, one after the other. They
 * and the programs that they start are bundled first; `tsx --test FILE` does without.
 */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { stop } from "esbuild"
import { bundle } from "./bundle.ts"
import { root } from "./support/program.ts"

const listed = (folder: string, ending: string): ReadonlyArray<string> =>
  fs
    .readdirSync(`${root}${folder}`)
    .filter((name) => name.endsWith(ending))
    .map((name) => `${folder}/${name}`)

const options = process.argv.slice(2).filter((argument) => argument.startsWith("-"))
const named = process.argv.slice(2).filter((argument) => !argument.startsWith("-"))
const rooms = fs.readdirSync(`${root}test`, { withFileTypes: true }).filter((entry) => entry.isDirectory())
const files = named.length > 0 ? named : rooms.flatMap(({ name }) => listed(`test/${name}`, ".test.ts"))

const out = fs.mkdtempSync(`${os.tmpdir()}/berth-tests-`)
// Some of them are run as nobody.
fs.chmodSync(out, 0o755)
process.on("exit", () => fs.rmSync(out, { recursive: true, force: true }))
// Ctrl-C reaches the tests as well, which end then.
process.on("SIGINT", () => {})

await bundle(root, [...files, ...listed("test/support", ".ts")], root, out)
await stop()
const programs = files.map((file) => `${out}/${file.replace(/ts$/, "js")}`)
const node = ["--enable-source-maps", "--test", "--test-concurrency=1", ...options, ...programs]
const env = { ...process.env, BERTH_BUNDLED: out }
const child = spawn(process.execPath, node, { cwd: root, stdio: "inherit", env })
process.on("SIGTERM", () => child.kill())
child.on("exit", (code) => {
  process.exitCode = code ?? 1
})
