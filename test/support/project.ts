/** A project of its own, in `project` of a folder. Its programs use `berth/promise/fixtures`, and the Berth in `data/berth` of the folder. */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import * as fs from "node:fs"
import { after, before } from "node:test"
import { makeTemporaryFolder, remove } from "./effect.ts"
import { leftovers, type Snapshot, snapshot } from "./leftovers.ts"
import { bundled, root } from "./program.ts"

export const runtime = "Deno" in globalThis ? "deno" : "Bun" in globalThis ? "bun" : "node"

/** The module that programs of a project import: for Node what test/run.ts has bundled, as it is loaded in a fifth of the time. */
const fixtures =
  runtime !== "node" || bundled === undefined
    ? `${root}lib/promiseFixtures.ts`
    : `${bundled}/test/support/promiseFixtures.js`

const makeProject = (folder: string): string => {
  const project = `${folder}/project`
  fs.mkdirSync(project)
  fs.symlinkSync(`${root}node_modules`, `${project}/node_modules`)
  const imports = { "berth/promise/fixtures": fixtures }
  const compilerOptions = { paths: { "berth/promise/fixtures": [fixtures] } }
  for (const [name, content] of Object.entries({
    "package.json": { type: "module" },
    "tsconfig.json": { extends: `${root}tsconfig.json`, compilerOptions, include: ["*.ts"] },
    "deno.json": { nodeModulesDir: "manual", imports }
  }))
    fs.writeFileSync(`${project}/${name}`, JSON.stringify(content))
  return project
}

export const vitest = `${root}node_modules/vitest/vitest.mjs`

/** Lets vitest run the files with these names in a project, with three workers. */
export const configureVitest = (project: string, include: string): void => {
  const alias = { "berth/promise/fixtures": fixtures }
  const test = { include: [include], testTimeout: 60_000, hookTimeout: 60_000, minWorkers: 3, maxWorkers: 3 }
  fs.writeFileSync(
    `${project}/vitest.config.mjs`,
    `export default ${JSON.stringify({ resolve: { alias }, test })}`
  )
}

interface Place {
  readonly folder: string
  readonly project: string
}

/** The project of a suite that is not skipped, which `fill` completes. After the tests nothing of what they started may be left. */
export const suiteProject = (skip: string | false, fill: (place: Place) => Promise<void>): Place => {
  const place = { folder: "", project: "" }
  let earlier: Snapshot

  before(async () => {
    if (skip !== false) return
    place.folder = makeTemporaryFolder()
    place.project = makeProject(place.folder)
    await fill(place)
    earlier = snapshot()
  })

  after(async () => {
    if (skip !== false) return
    const berth = `${place.folder}/data/berth`
    const left = await leftovers(earlier, berth)
    // Of servers that programs share.
    const gates = fs.existsSync(`${berth}/leases`) ? fs.readdirSync(`${berth}/leases`) : []
    remove(place.folder)
    assert.deepEqual([left, gates], [[], []])
  })

  return place
}

/** Starts the runtime, or another command, in the project, with a Berth's folder of its own in place of the default one. */
export const startIn = (
  folder: string,
  args: ReadonlyArray<string>,
  options: { readonly before?: string; readonly command?: string; readonly env?: NodeJS.ProcessEnv } = {}
): ChildProcess => {
  const { before = "true", command: interpreter = process.execPath, env = {} } = options
  fs.mkdirSync(`${folder}/data/berth`, { recursive: true })
  const command = [interpreter, ...args]
  const place = `${before} && mkdir -p /var/lib/berth && mount --bind "$0" /var/lib/berth && exec "$@"`
  const [program, ...rest] =
    process.getuid?.() === 0
      ? ["unshare", "--mount", "sh", "-c", place, `${folder}/data/berth`, ...command]
      : command
  const native = process.env.BERTH_NATIVE
  return spawn(program!, rest, {
    cwd: `${folder}/project`,
    env: {
      ...process.env,
      XDG_DATA_HOME: `${folder}/data`,
      BERTH_NATIVE: native?.startsWith("/") ? native : `${root}${native ?? "native/build"}`,
      ...env
    },
    stdio: ["ignore", "pipe", "pipe"]
  })
}
