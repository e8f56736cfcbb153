/**
 * `npm test [-- [--test-OPTION ...] [FILE ...]]`: the test files, or these of them, under Node. They and the programs that
 * they start are bundled first; `tsx --test FILE` does without.
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
const env = { ...process.env, BERTH_BUNDLED: out }

let isStopped = false

/** Runs files, `concurrency` of them at a time, and gives the exit code of the runner. */
const runFiles = (programs: ReadonlyArray<string>, concurrency: number): Promise<number> =>
  new Promise((resolve) => {
    if (programs.length === 0 || isStopped) return resolve(0)
    const node = [
      "--enable-source-maps",
      "--test",
      `--test-concurrency=${concurrency}`,
      ...options,
      ...programs
    ]
    const child = spawn(process.execPath, node, { cwd: root, stdio: "inherit", env })
    process.once("SIGTERM", () => {
      isStopped = true
      child.kill()
    })
    child.on("exit", (code) => resolve(code ?? 1))
  })

/** Rooms whose files look at how long others keep them waiting, or fill the machine. */
const ALONE = ["cve", "hostile", "lifecycle"]
const isAlone = (program: string): boolean => ALONE.some((room) => program.includes(`/test/${room}/`))

const codes = [
  await runFiles(
    programs.filter((program) => !isAlone(program)),
    2
  ),
  await runFiles(programs.filter(isAlone), 1)
]
process.exitCode = Math.max(...codes)
