import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { after, before, describe, test } from "node:test"
import { allowTime, makeTemporaryFolder, remove } from "../support/effect.ts"
import { root } from "../support/program.ts"

allowTime(120_000)

/** The public modules: each has a file of its own in lib. */
const modules = fs.readdirSync(`${root}lib`).flatMap((name) => /^([A-Z]\w*)\.ts$/.exec(name)?.[1] ?? [])

/** A library with inferred types, as `declaration: true` has to write down. */
const library = `
import { Cgroup, Container, Image, Namespace, Process, RootFs, WaitFor } from "berth"
import { Effect } from "effect"
import { images, open, start } from "berth/promise"
export const box = Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["sleep", "1"] }))
export const parts = Effect.all([RootFs.overlay(Image.scratch), Namespace.make(["uts"]), Cgroup.make({})])
export const ready = (container: Container.Container) => WaitFor.log(container, "ready")
export const ended = (process: Process.Process) => Process.wait(process)
export const inspected = Image.inspect("app:1")
export const promised = () => start("host")
export const ran = async () => (await start("host")).$\`true\`
export const opened = () => open()
export const pulled = () => images.pull("app:1")
export const names = images.list
`

const compilerOptions = {
  declaration: true,
  module: "NodeNext",
  target: "ES2022",
  lib: ["ES2023", "ESNext.Disposable", "DOM.AsyncIterable"],
  types: ["node"],
  strict: true,
  skipLibCheck: true,
  outDir: "out"
}

/** A program without Effect: a wrong use is an error, so the types are not `any`. The fields of errors alone have types of Effect. */
const withoutEffect = `
import { BerthError, compose, group, images, run, start } from "berth/promise"
export const used = async (): Promise<number> => {
  const box = await start("host", { command: ["sleep", "1"], limits: { memory: "1GiB" } })
  const text: string = await box.$\`uname\`.pipe(box.$\`cat\`).timeout("5 seconds").text()
  // @ts-expect-error a number is no command
  await box.exec(5)
  await box.waitFor.port(80, { timeout: 100 })
  // @ts-expect-error bytes are no text
  const wrong: string = await box.files.readFile("/etc/hostname")
  const beside = await start("host", { namespaces: { network: box } })
  await beside.close()
  await using app = await group({
    services: { db: { image: "db:1", ready: (db) => db.waitFor.port(1) }, api: { image: "api:1", dependsOn: { db: "healthy" } } }
  })
  // @ts-expect-error the group has no such service
  await group({ services: { db: { image: "db:1" }, api: { image: "api:1", dependsOn: { bd: "healthy" } } } })
  await app.services.api.$\`true\`
  await (await compose("compose.yaml")).close()
  const { exitCode }: { exitCode: number } = await run("host", { command: [text, wrong] })
  try {
    await images.list()
  } catch (error) {
    if (error instanceof BerthError) return 1
  }
  return exitCode
}
`

describe("the npm package", () => {
  let folder = ""
  let project = ""

  // What `npm pack` has of the sources and of what tsc makes of them; the bundle and the native part are left out.
  before(() => {
    folder = makeTemporaryFolder()
    project = `${folder}/project`
    const installed = `${project}/node_modules/berth`
    fs.mkdirSync(installed, { recursive: true })
    fs.copyFileSync(`${root}package.json`, `${installed}/package.json`)
    const tsc = `${root}node_modules/.bin/tsc`
    execFileSync(tsc, ["--project", ".tsconfig.build.json", "--outDir", `${installed}/dist`], { cwd: root })
    for (const name of ["effect", "@effect", "@types", "undici-types", "fast-check", "pure-rand"]) {
      const target = `${root}node_modules/${name}`
      if (fs.existsSync(target)) fs.symlinkSync(target, `${project}/node_modules/${name}`)
    }
    fs.writeFileSync(`${project}/package.json`, '{ "name": "project", "type": "module" }')
  })
  after(() => remove(folder))

  test("a project with declaration: true compiles against the package", () => {
    fs.writeFileSync(`${project}/library.ts`, library)
    fs.writeFileSync(`${project}/tsconfig.json`, JSON.stringify({ compilerOptions, files: ["library.ts"] }))
    const { status, stdout } = spawnSync(`${root}node_modules/.bin/tsc`, ["--project", project], {
      encoding: "utf8"
    })
    assert.equal(status, 0, stdout)
    assert.match(fs.readFileSync(`${project}/out/library.d.ts`, "utf8"), /berth\/BerthError/)
  })

  test("a project without Effect compiles against berth/promise", () => {
    const alone = `${folder}/alone`
    fs.mkdirSync(`${alone}/node_modules`, { recursive: true })
    fs.cpSync(`${project}/node_modules/berth`, `${alone}/node_modules/berth`, { recursive: true })
    for (const name of ["@types", "undici-types"])
      fs.symlinkSync(`${root}node_modules/${name}`, `${alone}/node_modules/${name}`)
    fs.writeFileSync(`${alone}/package.json`, '{ "name": "alone", "type": "module" }')
    fs.writeFileSync(`${alone}/program.ts`, withoutEffect)
    fs.writeFileSync(`${alone}/tsconfig.json`, JSON.stringify({ compilerOptions, files: ["program.ts"] }))
    const { status, stdout } = spawnSync(`${root}node_modules/.bin/tsc`, ["--project", alone], {
      encoding: "utf8"
    })
    assert.equal(status, 0, stdout)
  })

  test("the types have the docstrings of the source", () => {
    const counted = (file: string): number => fs.readFileSync(file, "utf8").split("@since").length
    for (const name of modules) {
      const types = `${project}/node_modules/berth/dist/${name}.d.ts`
      assert.equal(counted(types), counted(`${root}lib/${name}.ts`), name)
    }
  })

  test("every public module is an export of the package, and nothing internal is", () => {
    const resolved = (name: string): string | undefined => {
      const program = `process.stdout.write(import.meta.resolve("${name}"))`
      // Node's, also for a test in another runtime: it is what reads `exports`.
      const { status, stdout } = spawnSync("node", ["--input-type=module", "--eval", program], {
        cwd: project,
        encoding: "utf8"
      })
      return status === 0 ? path.basename(stdout) : undefined
    }
    assert.equal(resolved("berth"), "index.js")
    assert.equal(resolved("berth/promise"), "promise.js")
    assert.equal(resolved("berth/fixtures"), "fixtures.js")
    assert.equal(resolved("berth/promise/fixtures"), "promiseFixtures.js")
    assert.equal(resolved("berth/fleet"), "fleet.js")
    assert.equal(resolved("berth/fleet/workflow"), "fleetWorkflow.js")
    for (const name of ["Container", "WaitFor"]) assert.equal(resolved(`berth/${name}`), `${name}.js`)
    for (const name of [
      "internal/typeIds",
      "bundle/promise",
      "bin",
      "index",
      "promiseFixtures",
      "fleetWorkflow"
    ])
      assert.equal(resolved(`berth/${name}`), undefined)
  })

  test("deno.json has the same version and modules", () => {
    const { exports, imports, version } = JSON.parse(fs.readFileSync(`${root}deno.json`, "utf8"))
    assert.equal(version, JSON.parse(fs.readFileSync(`${root}package.json`, "utf8")).version)
    for (const name of modules) {
      assert.equal(exports[`./${name}`], `./lib/${name}.ts`)
      assert.equal(imports[`berth/${name}`], `./lib/${name}.ts`)
    }
    const others = [".", "./fixtures", "./fleet", "./fleet/workflow", "./promise", "./promise/fixtures"]
    assert.deepEqual(
      Object.keys(exports)
        .filter((name) => !modules.includes(name.slice(2)))
        .sort(),
      others
    )
  })
})
