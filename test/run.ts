/**
 * `npm test [-- [--all] [--deno] [--again] [OPTION ...] [FILE ...]]`: the test files, or these of them, each in a process of its own, under
 * Node or Deno, with the other options of `node` or `deno test`. For Node they and the programs that they start are bundled first;
 * `tsx --test FILE` does without. The files of `LONG` take as long as all others: they run with `--all`, or when they are named.
 *
 * With `--again` a file that fails runs a second time, when the others have ended. A file that fails twice fails the run; one that
 * passes only the second time is named at the end: it has a fault to look for.
 */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { stop } from "esbuild"
import { bundle, withSources } from "./bundle.ts"
import { root } from "./support/program.ts"

const listed = (folder: string, ending: string): ReadonlyArray<string> =>
  fs
    .readdirSync(`${root}${folder}`)
    .filter((name) => name.endsWith(ending))
    .map((name) => `${folder}/${name}`)

const OWN_OPTIONS = ["--deno", "--again", "--all"]
const given = process.argv.slice(2).filter((argument) => argument.startsWith("-"))
const [isDeno, runsAgain, runsAll] = OWN_OPTIONS.map((option) => given.includes(option))
const options = given.filter((option) => !OWN_OPTIONS.includes(option))
const named = process.argv.slice(2).filter((argument) => !argument.startsWith("-"))
const rooms = fs.readdirSync(`${root}test`, { withFileTypes: true }).filter((entry) => entry.isDirectory())
const all = rooms.flatMap(({ name }) => listed(`test/${name}`, ".test.ts"))

/** Attackers and faults in many rounds, whole servers and machines, and comparisons with other tools. */
const LONG = RegExp(
  `^test/(${[
    "build/(BuildCacheTravels|Corpus|DiskFull|Git|GitSsh)",
    "cli/(Fleet|Images)",
    "container/Snapshot",
    "fixtures/(DenoPermissions|PromiseFixtures|Servers|SharedKilled|SharedRunners|Vitest)",
    "fleet/(Faults|FleetDurable|Identity|Members)",
    "hostile/\\w+",
    "image/(LayerDiff|StoreGc)",
    "lifecycle/Soak",
    "network/(Clients|Pasta)",
    "registry/RegistryFaults",
    "unit/(fuzz|PackageNative)"
  ].join("|")})\\.test`
)
const files = named.length > 0 ? named : runsAll ? all : all.filter((file) => !LONG.test(file))

/** The time after which a file is taken to hang. */
const FILE_LIMIT_MS = 10 * 60_000

/** Files that look at how long others keep them waiting, or fill the machine: each has the machine to itself. */
const ALONE = /^test\/(lifecycle\/Soak|hostile\/(Files|Joining|Locks|Logs|LoopDelay|Registry|Trees))\./
const isAlone = (file: string): boolean => ALONE.test(file)

/** Puts the files as JavaScript in a folder that is removed at the end. */
const bundled = async (): Promise<string> => {
  const out = fs.mkdtempSync(`${os.tmpdir()}/berth-tests-`)
  // Some of them are run as nobody.
  fs.chmodSync(out, 0o755)
  // Else Node looks into each file for what it is, and tsx takes it for CommonJS.
  fs.writeFileSync(`${out}/package.json`, '{"type":"module"}')
  process.on("exit", () => fs.rmSync(out, { recursive: true, force: true }))
  await bundle(root, [...files, ...listed("test/support", ".ts")], root, out)
  await stop()
  return out
}

const out = isDeno ? undefined : await bundled()
const reporter = process.stdout.isTTY ? "spec" : "tap"
const commandOf = (file: string): readonly [string, ReadonlyArray<string>] =>
  isDeno
    ? ["deno", ["test", "--allow-all", "--no-check", ...options, file]]
    : [process.execPath, [`--test-reporter=${reporter}`, ...options, `${out}/${file.replace(/ts$/, "js")}`]]

/** What the last lines of Node and Deno count. */
const COUNTED = isDeno
  ? /(\d+) (passed|steps|failed|ignored)/g
  : /^\W*(tests|suites|pass|fail|cancelled|skipped|todo) (\d+)$/gm
const totals = new Map<string, number>()
const count = (output: string): void => {
  const lines = output
    .trimEnd()
    .split("\n")
    .slice(isDeno ? -6 : -15)
    .join("\n")
  for (const [, first, second] of lines.matchAll(COUNTED)) {
    const [name, number] = isDeno ? [second, first] : [first, second]
    totals.set(name!, (totals.get(name!) ?? 0) + Number(number))
  }
}

const stopping = new AbortController()
// Ctrl-C reaches the tests as well, which end then.
process.on("SIGINT", () => stopping.abort())
process.on("SIGTERM", () => stopping.abort())

/** The time for the end of what a file has started and has not ended, once it has ended itself: it has its output open. */
const REST_LIMIT_MS = 30_000

/** Runs a file, prints what it says when it has ended, and gives whether it passed. */
const runFile = (file: string): Promise<boolean> =>
  new Promise((resolve) => {
    const [command, args] = commandOf(file)
    // Tests leave nothing in the folder of this user's caches.
    const env = { ...process.env, NODE_DISABLE_COMPILE_CACHE: "1", ...(out && { BERTH_BUNDLED: out }) }
    const began = performance.now()
    const child = spawn(command, args, { cwd: root, stdio: ["inherit", "pipe", "pipe"], env })
    const said: Array<Buffer> = []
    let isLate = false
    const end = () => child.kill()
    const endLate = (what: string, ms: number) =>
      setTimeout(() => {
        isLate = true
        said.push(Buffer.from(`\n${what} after ${ms / 1000} s\n`))
        child.kill("SIGKILL")
        for (const stream of [child.stdout, child.stderr]) stream.destroy()
      }, ms)
    let limit = endLate(`${file} has not ended`, FILE_LIMIT_MS)
    stopping.signal.addEventListener("abort", end)
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data: Buffer) => said.push(data))
    child.on("error", ({ message }) => said.push(Buffer.from(`${message}\n`)))
    child.on("exit", () => {
      clearTimeout(limit)
      limit = endLate(`${file} has ended, and a process that it has started has not`, REST_LIMIT_MS)
    })
    child.on("close", (code) => {
      clearTimeout(limit)
      stopping.signal.removeEventListener("abort", end)
      const raw = `${Buffer.concat(said)}`
      const output = out === undefined ? raw : withSources(out, raw)
      console.log(`\n# ${file}, ${Math.round((performance.now() - began) / 1000)} s\n${output}`)
      count(output)
      resolve(code === 0 && !isLate)
    })
  })

/** Runs files, so many at a time, and gives those that failed. */
const runFiles = async (files: ReadonlyArray<string>, concurrency: number): Promise<Array<string>> => {
  const queue = [...files]
  const failed: Array<string> = []
  const work = async () => {
    for (let file = queue.shift(); file !== undefined && !stopping.signal.aborted; file = queue.shift())
      if (!(await runFile(file))) failed.push(file)
  }
  await Promise.all(Array.from({ length: concurrency }, work))
  return failed
}

const failed = [
  ...(await runFiles(
    files.filter((file) => !isAlone(file)),
    2
  )),
  ...(await runFiles(files.filter(isAlone), 1))
]
const failedTwice = runsAgain ? await runFiles(failed, 1) : failed

console.log()
if (named.length === 0 && files.length < all.length)
  console.log(`# left out: ${all.length - files.length} files, which run with --all`)
for (const [name, number] of totals) console.log(`# ${name} ${number}`)
for (const file of failed)
  console.log(failedTwice.includes(file) ? `# failed: ${file}` : `# passed only the second time: ${file}`)
process.exitCode = failedTwice.length > 0 || stopping.signal.aborted ? 1 : 0
