import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { after, before, describe, test } from "node:test"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { allowTime, makeTemporaryFolder, remove, whyNoContainers, whyNotRoot } from "../support/effect.ts"
import { root } from "../support/program.ts"

allowTime(60_000)

const musl = fs.readFileSync(process.execPath).subarray(0, 4096).includes("/ld-musl-")
const target = `linux-${process.arch}-${musl ? "musl" : "gnu"}`

/** Prints the output of a container, or the error. */
const program = `
import { run } from "berth/promise"
try {
  const { stdout } = await run("host", { command: ["echo", "it runs"] })
  console.log(stdout.trim())
} catch (error) {
  console.log(String(error))
}
`

/** Has Node believe that it is another one, or on another machine. */
const pretend = (what: string): ReadonlyArray<string> => [
  "--import",
  `data:text/javascript,${encodeURIComponent(what)}`
]

describe("the native part of an npm package", { skip: whyNoContainers }, () => {
  let folder = ""
  let project = ""
  let native = ""

  // The bundle as `npm run build` makes it, and the native part as a package of this machine.
  before(() => {
    folder = makeTemporaryFolder()
    fs.chmodSync(folder, 0o755)
    project = `${folder}/project`
    native = `${project}/node_modules/@berth/${target}`
    const { version } = JSON.parse(fs.readFileSync(`${root}package.json`, "utf8"))
    const installed = `${project}/node_modules/berth`
    execFileSync(`${root}node_modules/.bin/tsx`, [".bundle.ts", `${installed}/dist`], { cwd: root })
    fs.copyFileSync(`${root}package.json`, `${installed}/package.json`)
    for (const name of ["undici", "https-proxy-agent", "agent-base", "proxy-from-env", "smol-toml"])
      if (fs.existsSync(`${root}node_modules/${name}`))
        fs.symlinkSync(`${root}node_modules/${name}`, `${project}/node_modules/${name}`)
    fs.mkdirSync(native, { recursive: true })
    fs.writeFileSync(`${native}/package.json`, JSON.stringify({ name: `@berth/${target}`, version }))
    for (const name of ["berth.node", "berth-supervisor"])
      fs.copyFileSync(programPath(name), `${native}/${name}`)
    fs.writeFileSync(`${project}/program.mjs`, program)
  })
  after(() => remove(folder))

  const env = (more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv => {
    const { BERTH_NATIVE: _, NODE_OPTIONS: __, ...rest } = process.env
    return { ...rest, XDG_DATA_HOME: `${folder}/data`, ...more }
  }

  test("what a program loads with its first container is one file, in berth/promise without Effect's Schema", () => {
    const installed = `${project}/node_modules/berth/dist`
    for (const name of ["bundle/promise", "Berth", "Container", "Image"]) {
      const text = fs.readFileSync(`${installed}/${name}.js`, "utf8")
      const files = [...text.matchAll(/"(\.|#bundle)(\/[^"]+\.js)"/g)].map(([, , file]) => `.${file}`)
      const large = files.filter(
        (file) => fs.statSync(path.resolve(`${installed}/${name}.js`, "..", file)).size > 1000
      )
      assert.equal(large.length, 1, `${name}: ${files}`)
      if (name !== "bundle/promise") continue
      const whole = fs.readFileSync(`${installed}/bundle/${large[0]}`, "utf8")
      assert.ok(whole.includes("SystemError"))
      assert.ok(!whole.includes("effect/Schema"), "Schema is in it")
      assert.ok(whole.split("=>").length < 1000, "V8 parses arrow functions more slowly")
    }
  })

  /** What the program prints in Node, also for a test in another runtime. */
  const printed = (options: ReadonlyArray<string> = [], more: NodeJS.ProcessEnv = {}): string => {
    const done = spawnSync("node", [...options, `${project}/program.mjs`], {
      encoding: "utf8",
      env: env(more)
    })
    assert.equal(done.status, 0, done.stderr)
    return done.stdout.trim()
  }

  /** Moves the native part away while `body` runs. */
  const without = (body: () => void): void => {
    fs.renameSync(native, `${folder}/moved`)
    try {
      body()
    } finally {
      fs.renameSync(`${folder}/moved`, native)
    }
  }

  test("is found in the package for this machine", () => assert.equal(printed(), "it runs"))

  test("what a program has compiled is kept for the next one", () => {
    const cache = `${folder}/cache`
    fs.mkdirSync(cache, { mode: 0o700 })
    const inodes = [1, 2].map(() => {
      const more = { NODE_DISABLE_COMPILE_CACHE: "", XDG_CACHE_HOME: cache }
      assert.equal(printed([], more), "it runs")
      return fs.readdirSync(`${cache}/berth`).map((name) => fs.statSync(`${cache}/berth/${name}`).ino)
    })
    assert.equal(inodes[0]!.length, 1)
    assert.deepEqual(inodes[1], inodes[0])
  })

  test("is found from CommonJS in a Node that can require ES modules", {
    skip: spawnSync("node", ["--print", "process.features.require_module === true"])
      .stdout.toString()
      .startsWith("true")
      ? false
      : "this Node cannot require ES modules"
  }, () => {
    const source = program
      .replace(/import (.*) from (.*)/, "const $1 = require($2);")
      .replace("try {", "(async () => { try {")
    fs.writeFileSync(`${project}/program.cjs`, `${source}})()`)
    const done = spawnSync("node", [`${project}/program.cjs`], { encoding: "utf8", env: env() })
    assert.equal(done.stdout.trim(), "it runs", done.stderr)
  })

  test("that npm has left out is named, with the command that installs it", () =>
    without(() => {
      const expected = new RegExp(
        `^Unsupported: the native part: @berth/${target}/berth\\.node is missing\\. Install it: npm install @berth/${target}@\\d+\\.\\d+\\.\\d+\\. npm leaves it out with --omit=optional or --no-optional`
      )
      assert.match(printed(), expected)
    }))

  test("on a machine that has no package of it is made by npm pack", () => {
    const expected =
      /^Unsupported: the native part: @berth\/linux-riscv64-(gnu|musl)\/berth\.node is missing\. Install a berth that was built for this processor and C library: run npm pack in a clone/
    const otherProcessor = 'Object.defineProperty(process, "arch", { value: "riscv64" })'
    assert.match(printed(pretend(otherProcessor)), expected)
  })

  test("for another processor is named, with both processors", () => {
    const other = `${folder}/other`
    fs.mkdirSync(other)
    const bytes = fs.readFileSync(`${native}/berth.node`)
    // e_machine of elf(5): EM_AARCH64 or EM_X86_64.
    const [name, machine] = process.arch === "x64" ? ["arm64", 183] : ["x64", 62]
    bytes.writeUInt16LE(machine, 18)
    fs.writeFileSync(`${other}/berth.node`, bytes)
    const said = printed([], { BERTH_NATIVE: other })
    const why = `the native part: ${other}/berth.node is for ${name}, and this program runs on ${process.arch}. Set BERTH_NATIVE`
    assert.ok(said.includes(why), said)
  })

  test("that is no library is named", () => {
    const other = `${folder}/text`
    fs.mkdirSync(other)
    fs.writeFileSync(`${other}/berth.node`, "a page of an error")
    assert.match(
      printed([], { BERTH_NATIVE: other }),
      /\/text\/berth\.node is no library of Linux\. Set BERTH_NATIVE/
    )
  })

  test("below a mount with noexec is named with the mount", { skip: whyNotRoot }, () => {
    const mounted = `${folder}/noexec`
    fs.mkdirSync(mounted)
    const script =
      'mount -t tmpfs -o noexec none "$0" && mkdir "$0/native" && cp "$1"/berth* "$0/native" && BERTH_NATIVE="$0/native" exec node "$2"'
    const args = ["--mount", "sh", "-c", script, mounted, native, `${project}/program.mjs`]
    const done = spawnSync("unshare", args, { encoding: "utf8", env: env() })
    const expected = `berth.node may not be executed, because the file system at ${mounted} is mounted with noexec. Remount it (mount -o remount,exec ${mounted})`
    assert.ok(done.stdout.includes(expected), `${done.stdout}${done.stderr}`)
  })

  test("is not looked for by a Node below 20.17", () => {
    const older =
      'Object.defineProperty(process, "versions", { value: { ...process.versions, node: "20.16.0" } })'
    const expected =
      "Unsupported: Node 20.16.0: Berth needs Node 20.17 or later. Run the program with a newer Node, with Deno or with Bun"
    assert.equal(printed(pretend(older)), expected)
  })

  test("needs a home that can be written to, or another folder", { skip: whyNotRoot }, () => {
    const home = `${folder}/home`
    fs.mkdirSync(home)
    const script =
      'mount -t tmpfs -o ro none "$HOME" && exec setpriv --reuid 65534 --regid 65534 --clear-groups node "$0"'
    const options = { encoding: "utf8", env: env({ HOME: home, XDG_DATA_HOME: "" }) } as const
    const done = spawnSync("unshare", ["--mount", "sh", "-c", script, `${project}/program.mjs`], options)
    const expected = /^OperationFailed: state folder .*\/home\/.*: mkdir: EROFS .*XDG_DATA_HOME/
    assert.match(done.stdout, expected, done.stderr)
  })
})
