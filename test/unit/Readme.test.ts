/** README.md's programs: each type-checks and runs as it stands, in the runtime that runs this test. */
import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import { Image } from "../../lib/index.ts"
import { allowTime, whyNoContainers, whyNotRoot } from "../support/effect.ts"
import { makeTemporaryFolder, remove, run } from "../support/images.ts"
import { bundled, type Ended, ended, root } from "../support/program.ts"
import { type RunningRegistry, startRegistry, whyNoServer, withoutDockerConfig } from "../support/registry.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { service } from "../support/services.ts"

interface Program {
  /** The heading above it. */
  readonly name: string
  readonly file: string
  readonly source: string
}

/** The registry of the programs, in whose place they get one of a test. */
const REGISTRY = "127.0.0.1:5000"

const programs: ReadonlyArray<Program> = [
  ...fs
    .readFileSync(`${root}README.md`, "utf8")
    .matchAll(/^#+ ([^\n]+)\n(?:(?!^#)[^\n]*\n)*?```ts\n(.*?)^```$/gms)
].map(([, name, source], index) => ({
  name: name!,
  file: `program-${index}${source!.includes("node:test") ? ".test" : ""}.ts`,
  source: source!
}))

const runtime = "Deno" in globalThis ? "deno" : "Bun" in globalThis ? "bun" : "node"

/** Where test/run.ts has bundled the tests, the programs are bundled as well, as README.md does, but for one in `tsx`. */
const isBundled = runtime === "node" && bundled !== undefined

const argumentsFor = (file: string): ReadonlyArray<string> => {
  const isTest = file.endsWith(".test.ts")
  if (runtime === "deno") return [isTest ? "test" : "run", "--allow-all", "--no-check", file]
  if (runtime === "bun") return [isTest ? "test" : "run", `./${file}`]
  return isBundled && file !== programs[0]!.file
    ? [`bundle/${file.replace(/ts$/, "js")}`]
    : ["--import", "tsx", file]
}

const bundlePrograms = (project: string): void => {
  const requireOf = "import { createRequire as $createRequire } from 'node:module'"
  const options = [
    "--bundle",
    "--splitting",
    "--format=esm",
    "--platform=node",
    "--target=node20",
    "--outdir=bundle"
  ]
  const banner = `--banner:js=${requireOf}; const require = $createRequire(import.meta.url);`
  const files = programs.map(({ file }) => file)
  const esbuild = `${root}node_modules/.bin/esbuild`
  const made = spawnSync(esbuild, [...files, ...options, banner, "--log-level=error"], {
    cwd: project,
    encoding: "utf8"
  })
  assert.equal(made.status, 0, made.stderr)
}

/** Makes a project in which `berth` is this checkout, with its packages, for all three runtimes. */
const makeProject = (folder: string): string => {
  const imports = {
    berth: `${root}lib/index.ts`,
    "berth/fixtures": `${root}lib/fixtures.ts`,
    "berth/fleet": `${root}lib/fleet.ts`,
    "berth/fleet/workflow": `${root}lib/fleetWorkflow.ts`,
    "berth/promise": `${root}lib/promise.ts`,
    "berth/promise/fixtures": `${root}lib/promiseFixtures.ts`
  }
  const files = {
    "package.json": { type: "module" },
    "tsconfig.json": { extends: `${root}tsconfig.json`, include: ["*.ts"] },
    "deno.json": { nodeModulesDir: "manual", imports }
  }
  fs.mkdirSync(folder)
  fs.symlinkSync(`${root}node_modules`, `${folder}/node_modules`)
  for (const [name, content] of Object.entries(files))
    fs.writeFileSync(`${folder}/${name}`, JSON.stringify(content))
  return folder
}

/** Runs a command in `cwd` on an empty folder in place of Berth's own, in a mount namespace of its own. */
const inEmptyFolder = (folder: string, cwd: string, command: ReadonlyArray<string>): Promise<Ended> => {
  const script = 'mkdir -p /var/lib/berth && mount --bind "$0" /var/lib/berth && exec "$@"'
  // A relative path is relative to the checkout.
  const env = { ...process.env, BERTH_NATIVE: path.resolve(root, process.env.BERTH_NATIVE ?? "native/build") }
  const options = { cwd, env, timeout: 100_000 }
  return ended(spawn("unshare", ["--mount", "sh", "-c", script, folder, ...command], options))
}

const database = await service("postgres")

allowTime(120_000)

describe("README.md", { skip: whyNoContainers || whyNotRoot, concurrency: 2 }, () => {
  withoutDockerConfig()
  let folder = ""
  let project = ""
  let registry: RunningRegistry | undefined

  before(async () => {
    if (whyNoContainers !== false || whyNotRoot !== false) return
    folder = makeTemporaryFolder()
    project = makeProject(`${folder}/project`)
    if (whyNoServer === false && whyNoBusybox === false) {
      registry = await startRegistry()
      const image = Image.import(makeRoot(`${folder}/root`))
      await run(`${folder}/berth`, Effect.flatMap(image, Image.push(`${registry.host}/library/alpine:3`)))
      const postgres = Effect.flatMap(database.image, Image.push(`${registry.host}/library/postgres:15`))
      if (database.missing === false) await run(`${folder}/berth`, postgres)
    }
    for (const { file, source } of programs)
      fs.writeFileSync(`${project}/${file}`, source.replaceAll(REGISTRY, registry?.host ?? REGISTRY))
    if (isBundled) bundlePrograms(project)
  })

  after(async () => {
    if (whyNoContainers !== false || whyNotRoot !== false) return
    await registry?.stop()
    remove(folder)
  })

  test("every TypeScript block is found", () => {
    const blocks = fs.readFileSync(`${root}README.md`, "utf8").match(/^```ts$/gm) ?? []
    assert.equal(programs.length, blocks.length)
  })

  test("the programs type-check", { skip: runtime !== "node" && "once, in Node" }, () => {
    const tsc = `${root}node_modules/.bin/tsc`
    const { status, stdout } = spawnSync(tsc, ["--noEmit", "--project", project], { encoding: "utf8" })
    assert.equal(status, 0, stdout)
  })

  for (const { file, name, source } of programs) {
    const whyNot =
      (source.includes("busybox") && whyNoBusybox) ||
      (source.includes(REGISTRY) && (whyNoServer || whyNoBusybox)) ||
      (source.includes("library/postgres") && database.missing)
    test(`the program of "${name}" runs`, { skip: whyNot }, async () => {
      const own = fs.mkdtempSync(`${folder}/own-`)
      const command = [process.execPath, ...argumentsFor(file)]
      const { code, signal, stderr, stdout } = await inEmptyFolder(own, project, command)
      assert.equal(code, 0, `${signal}\n${stdout}\n${stderr}`)
      assert.notEqual(stdout + stderr, "")
    })
  }
})
