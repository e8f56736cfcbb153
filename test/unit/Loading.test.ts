import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { makeTemporaryFolder, whyNoContainers } from "../support/effect.ts"
import { commandOf, ended, program, root } from "../support/program.ts"

interface Metafile {
  readonly inputs: Readonly<
    Record<string, { readonly imports: ReadonlyArray<{ readonly kind: string; readonly path: string }> }>
  >
}

/** What only some programs need: it loads when it is first needed. */
const rooms = /^lib\/internal\/(registry|gc)\/|^lib\/internal\/berth\/doctor\.ts$/
const images = /^lib\/internal\/(image\/(?!image\.ts)|layer\/(?!sweep\.ts)|oci\/documents\.ts)/
const packages =
  /^(undici|https-proxy-agent|proxy-from-env|dbus-native|cli-progress|smol-toml|@effect\/platform\/(Fetch)?HttpClient.*|node:(http|https|http2|tls|dns))$/
/** A fleet: `berth/fleet` has it, and two commands. */
const fleet =
  /^(lib\/(fleet\w*\.ts|internal\/fleet\/.*|cli\/(fleet|runner)\.ts)|@effect\/(rpc|cluster|workflow)\/.*)$/
/** The modules of the program \`berth\` that load for every command. */
const ofProgram = ["lib/bin.ts", "lib/cli/main.ts"]
/** All of a package, where a program needs some modules of it. */
const barrels = /^(effect|@effect\/platform|@effect\/platform-node)$/

describe("what an import loads", () => {
  let folder = ""
  const loaded = new Map<string, ReadonlyArray<string>>()

  /** The modules that the import of one loads; packages are not looked into. */
  const closure = ({ inputs }: Metafile, entry: string): ReadonlyArray<string> => {
    const all = new Set([entry])
    for (const module of all)
      for (const { kind, path } of inputs[module]?.imports ?? [])
        if (kind === "import-statement") all.add(path)
    return [...all]
  }

  before(() => {
    folder = makeTemporaryFolder()
    const modules = ["promise", "Container", "Image", "index", "fleet", "fleetWorkflow"]
    const entries = [...modules.map((name) => `lib/${name}.ts`), ...ofProgram]
    const flags = ["--bundle", "--splitting", "--format=esm", "--platform=node", "--packages=external"]
    const output = [`--outdir=${folder}/out`, `--metafile=${folder}/meta.json`, "--log-level=error"]
    execFileSync(`${root}node_modules/.bin/esbuild`, [...entries, ...flags, ...output], { cwd: root })
    const metafile = JSON.parse(fs.readFileSync(`${folder}/meta.json`, "utf8")) as Metafile
    for (const entry of entries) loaded.set(entry, closure(metafile, entry))
  })

  after(() => fs.rmSync(folder, { recursive: true, force: true }))

  const found = (entry: string, pattern: RegExp): ReadonlyArray<string> => {
    const all = loaded.get(entry)!
    assert.ok(all.includes("lib/internal/container/launch.ts") || entry === "lib/Image.ts", entry)
    return all.filter((module) => pattern.test(module))
  }

  for (const entry of ["lib/promise.ts", "lib/Container.ts", "lib/Image.ts", "lib/index.ts"]) {
    test(`${entry} loads no registry, doctor, HTTP, TLS, proxy or D-Bus, and no package as a whole`, () => {
      for (const pattern of [rooms, packages, barrels]) assert.deepEqual(found(entry, pattern), [])
    })
  }

  for (const entry of ["lib/promise.ts", "lib/Container.ts", "lib/Image.ts"]) {
    test(`${entry} loads neither the decoders of documents nor what moves, unpacks or makes images`, () =>
      assert.deepEqual(found(entry, images), []))
  }

  test("nothing of a fleet loads without it", () => {
    for (const [entry, all] of loaded) {
      if (entry.startsWith("lib/fleet")) continue
      assert.deepEqual(
        all.filter((module) => fleet.test(module)),
        [],
        entry
      )
    }
    assert.ok(loaded.get("lib/cli/main.ts")!.includes("lib/cli/commands.ts"))
    assert.match("lib/internal/fleet/fleet.ts", fleet)
  })

  const ofWorkflows = /^@effect\/(cluster|experimental|workflow)(\/.*)?$/
  const ofDatabases = /^(@effect\/sql.*|pg)$/

  test("a fleet loads neither workflows nor a client of databases, and steps of workflows no cluster", () => {
    for (const entry of ["lib/promise.ts", "lib/index.ts", "lib/fleet.ts"])
      for (const pattern of [ofWorkflows, ofDatabases]) assert.deepEqual(found(entry, pattern), [])
    assert.deepEqual(found("lib/fleetWorkflow.ts", ofDatabases), [])
    assert.deepEqual(found("lib/fleetWorkflow.ts", ofWorkflows), ["@effect/workflow/Activity"])
  })

  test("a part of Berth that cannot be loaded is named by a tagged error", {
    skip: "Deno" in globalThis || "Bun" in globalThis ? "only Node reports the limit" : whyNoContainers
  }, async () => {
    const { args, command } = commandOf("exhausted.ts", [])
    const child = spawn("sh", ["-c", 'ulimit -n 256 && exec "$@"', "sh", command, ...args], { cwd: root })
    const { code, stderr, stdout } = await ended(child)
    assert.equal(code, 0, stderr)
    assert.match(stdout, /^OperationFailed .*\.(js|ts): open: EMFILE \(/)
  })

  test("a program that runs a container loads no HTTP and no TLS", {
    skip: "Deno" in globalThis || "Bun" in globalThis ? "only Node lists its own modules" : whyNoContainers
  }, async () => {
    const { code, stdout } = await ended(program("loaded.ts", []))
    assert.equal(code, 0)
    const modules = stdout.trim().split("\n")
    assert.ok(modules.includes("NativeModule fs"), stdout)
    const heavy = /^NativeModule (_http_.*|http|https|http2|_tls_.*|tls|internal\/deps\/undici\/undici)$/
    assert.deepEqual(
      modules.filter((module) => heavy.test(module)),
      []
    )
  })
})
