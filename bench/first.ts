/** The first second: from the start of a runtime to the end of a program that ran `true` in a container. */
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { type Berth, Container, Image } from "berth"
import { run } from "berth/promise"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { podmanStarts } from "./rivals.ts"
import {
  type Contender,
  capture,
  findProgram,
  interleave,
  machine,
  median,
  milliseconds,
  onBerth,
  onThisBerth,
  ratio,
  type Summaries,
  table,
  temporaryFolder,
  timed,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

const PROMISE_OVER_BARE_MILLIS = 130
const EFFECT_OVER_IMPORTS_MILLIS = 100
const SECOND_RUN_RATIO = 1.2
const UNPACKED_MEGABYTES = 8.8

/** The modules of Effect that the programs of both Effect contenders import. */
const effectImports = `
const NodeFileSystem = await import("@effect/platform-node/NodeFileSystem")
const Effect = await import("effect/Effect")
const Layer = await import("effect/Layer")`

/**
 * Each prints the processor time of its process, and the milliseconds since its start at which it has begun, has loaded, and
 * has run.
 */
const scripts: Readonly<Record<string, string>> = {
  bare: `
console.log(JSON.stringify({ cpu: process.cpuUsage() }))`,
  promise: `
const begun = performance.now()
const { open } = await import("berth/promise")
const loaded = performance.now()
const berth = await open({ folder: process.argv[2] })
const { exitCode } = await berth.run("host", { command: ["true"] })
const ran = performance.now()
await berth.close()
console.log(JSON.stringify({ begun, loaded, ran, ended: performance.now(), cpu: process.cpuUsage() }))
process.exitCode = exitCode`,
  "effect's imports": `${effectImports}
await Effect.runPromise(Effect.provide(Effect.void, NodeFileSystem.layer))
console.log(JSON.stringify({ cpu: process.cpuUsage() }))`,
  effect: `
const begun = performance.now()${effectImports}
const Berth = await import("berth/Berth")
const Container = await import("berth/Container")
const Image = await import("berth/Image")
const loaded = performance.now()
let ran
const program = Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"] }))
const { exitCode } = await Effect.runPromise(
  Effect.tap(program, () => Effect.sync(() => { ran = performance.now() })).pipe(
    Effect.provide(Layer.provide(Berth.layerWith({ folder: process.argv[2] }), NodeFileSystem.layer))
  )
)
console.log(JSON.stringify({ begun, loaded, ran, ended: performance.now(), cpu: process.cpuUsage() }))
process.exitCode = exitCode`
}

interface Phases {
  readonly cpu: { readonly user: number; readonly system: number }
  readonly begun?: number
  readonly loaded?: number
  readonly ran?: number
  readonly ended?: number
}

/** Removes the package's files from the page cache, where no running program maps them. */
const evict = (): void => {
  const files = ["dist", "native/build"].map((folder) => `${root}${folder}`)
  execFileSync("sh", [
    "-c",
    'find "$@" -type f -size +0 -exec dd if={} iflag=nocache count=0 status=none \\;',
    "sh",
    ...files
  ])
}

const runtimes: Readonly<Record<string, ReadonlyArray<string>>> = {
  node: [process.execPath],
  deno: [`${root}node_modules/.bin/deno`, "run", "--allow-all", "--no-lock", "--node-modules-dir=manual"],
  bun: [`${root}node_modules/.bin/bun`]
}

/** A folder with the scripts, and with Berth and Effect installed as a program has them. */
const prepare: Effect.Effect<string, Unmeasured, Scope.Scope> = Effect.flatMap(temporaryFolder, (folder) =>
  Effect.try({
    try: () => {
      fs.mkdirSync(`${folder}/node_modules`)
      for (const name of fs.readdirSync(`${root}node_modules`).filter((name) => !name.startsWith(".")))
        fs.symlinkSync(`${root}node_modules/${name}`, `${folder}/node_modules/${name}`)
      fs.symlinkSync(root.replace(/\/$/, ""), `${folder}/node_modules/berth`)
      const dependencies = { berth: "*", effect: "*", "@effect/platform-node": "*" }
      fs.writeFileSync(`${folder}/package.json`, JSON.stringify({ type: "module", dependencies }))
      for (const [name, text] of Object.entries(scripts)) fs.writeFileSync(`${folder}/${name}.mjs`, text)
      return folder
    },
    catch: unmeasured
  })
)

/** Runs a program, with its own folder of caches, to its end; gives what it printed, and the milliseconds that it took. */
const whole = (command: ReadonlyArray<string>, cwd: string, cache: string) =>
  Effect.async<{ readonly elapsed: number; readonly text: string }, Unmeasured>((resume) => {
    const started = performance.now()
    const env = { ...process.env, XDG_CACHE_HOME: cache }
    const child = spawn(command[0]!, command.slice(1), { cwd, env, stdio: ["ignore", "pipe", "pipe"] })
    let elapsed = 0
    let text = ""
    let errors = ""
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      text += part
    })
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      errors += part
    })
    child.on("error", (cause) => resume(Effect.fail(unmeasured(cause))))
    child.on("exit", () => {
      elapsed = performance.now() - started
    })
    child.on("close", (code) =>
      resume(
        code === 0
          ? Effect.succeed({ elapsed, text })
          : Effect.fail(unmeasured(errors.trim() || `exit ${code}`))
      )
    )
  })

/** A script in a runtime: warm, in one Berth folder, or cold, in a new one, without caches and with the package's files read from the disk. */
const contender = (
  runtime: string,
  script: string,
  folder: string,
  phases: Map<string, Array<Phases>>,
  cold = false
): Contender => {
  const name = `${runtime} ${script}${cold ? " cold" : ""}`
  let count = 0
  return {
    name,
    run: Effect.suspend(() => {
      const berth = `${folder}/${runtime}-${script}${cold ? `-${count++}` : ""}`
      if (cold) evict()
      const command = [...runtimes[runtime]!, `${script}.mjs`, berth]
      const cache = cold ? `${berth}-cache` : `${folder}/cache`
      return Effect.map(whole(command, folder, cache), ({ elapsed, text }) => {
        if (cold) for (const made of [berth, cache]) fs.rmSync(made, { recursive: true, force: true })
        if (text !== "") phases.set(name, [...(phases.get(name) ?? []), JSON.parse(text) as Phases])
        return elapsed
      })
    })
  }
}

/** `docker run` of a busybox, if docker has a daemon here. */
const docker = (folder: string): Effect.Effect<Contender, never, Scope.Scope> =>
  Effect.gen(function* () {
    const image = `berth-bench-${process.pid}`
    const name = "docker run"
    const archive = `${folder}/busybox.tar`
    const make = Effect.gen(function* () {
      const program = findProgram("docker")
      const busybox = findProgram("busybox")
      if (program === undefined) return yield* Effect.fail(unmeasured("docker is not installed"))
      if (busybox === undefined) return yield* Effect.fail(unmeasured("busybox is not installed"))
      yield* capture("tar", ["-cf", archive, "-C", busybox.replace(/\/busybox$/, ""), "busybox"])
      yield* capture(program, ["import", archive, image])
      return program
    })
    const made = yield* Effect.either(
      Effect.acquireRelease(make, (program) => Effect.ignore(capture(program, ["rmi", image])))
    )
    if (made._tag === "Left") return { name, run: Effect.fail(made.left) }
    const words = ["run", "--rm", "--network=none", image, "/busybox", "true"]
    return { name, run: timed(capture(made.right, words)) }
  })

interface Profile {
  readonly nodes: ReadonlyArray<{
    readonly id: number
    readonly callFrame: { readonly functionName: string; readonly url: string }
  }>
  readonly samples: ReadonlyArray<number>
  readonly timeDeltas: ReadonlyArray<number>
}

/** What a function of a profile does. */
const taskOf = ({ functionName, url }: Profile["nodes"][number]["callFrame"]): string => {
  if (functionName === "compileSourceTextModule") return "compiling modules"
  if (url.includes("/dist/") || url.includes("/node_modules/"))
    return functionName === "" ? "evaluating modules, and callbacks" : "functions of Berth and Effect"
  if (url.startsWith("node:")) return "Node's own modules"
  return functionName.startsWith("(") ? functionName.slice(1, -1) : "the rest"
}

/** Where the time of a program in Node goes, by its profile. */
const profileTable = (script: string, folder: string): Effect.Effect<string, Unmeasured> =>
  Effect.gen(function* () {
    const profiles = `${folder}/profile-${script}`
    const options = ["--cpu-prof", "--cpu-prof-interval=200", `--cpu-prof-dir=${profiles}`]
    yield* whole(
      [process.execPath, ...options, `${script}.mjs`, `${folder}/node-${script}`],
      folder,
      `${folder}/cache`
    )
    const [file] = fs.readdirSync(profiles)
    const { nodes, samples, timeDeltas }: Profile = JSON.parse(fs.readFileSync(`${profiles}/${file}`, "utf8"))
    const tasks = new Map(nodes.map(({ id, callFrame }) => [id, taskOf(callFrame)]))
    const times = new Map<string, number>()
    for (const [index, id] of samples.entries()) {
      const task = tasks.get(id)!
      times.set(task, (times.get(task) ?? 0) + timeDeltas[index]! / 1000)
    }
    const rows = [...times].sort(([, a], [, b]) => b - a)
    return table([
      [`profile of node ${script}`, "milliseconds"],
      ...rows.map(([task, millis]) => [task, milliseconds(millis)])
    ])
  })

/** The bytes of the files of `npm pack`, by their folders. */
const packed: Effect.Effect<ReadonlyMap<string, number>, Unmeasured> = Effect.map(
  capture("npm", ["pack", root, "--dry-run", "--json", "--ignore-scripts"]),
  (text) => {
    const { files } = JSON.parse(text)[0] as {
      readonly files: ReadonlyArray<{ readonly path: string; readonly size: number }>
    }
    const sizes = new Map<string, number>()
    for (const { path, size } of files) {
      const folder = /^(?:dist\/[^/]+|native\/build|[^/]+)(?=\/)/.exec(path)?.[0] ?? "."
      sizes.set(folder, (sizes.get(folder) ?? 0) + size)
    }
    return sizes
  }
)

/** npm has it in packages of its own, one for each machine. */
const NATIVE = "native/build"

const packageBytes = (sizes: ReadonlyMap<string, number>): number =>
  [...sizes].reduce((sum, [folder, size]) => sum + (folder === NATIVE ? 0 : size), 0)

const packedTable = (sizes: ReadonlyMap<string, number>): string => {
  const rows = [...sizes].sort(([, a], [, b]) => b - a)
  return table([
    ["npm pack, unpacked", "MB"],
    ...[...rows, [`all but ${NATIVE}`, packageBytes(sizes)] as const].map(([folder, size]) => [
      folder,
      (size / 1e6).toFixed(2)
    ])
  ])
}

const phasesTable = (phases: ReadonlyMap<string, ReadonlyArray<Phases>>): string => {
  const between = (all: ReadonlyArray<Phases>, to: keyof Phases, from?: keyof Phases): string => {
    const millis = median(all.map((one) => Number(one[to]) - (from === undefined ? 0 : Number(one[from]))))
    return Number.isNaN(millis) ? "-" : milliseconds(millis)
  }
  return table([
    ["p50 in ms", "runtime", "load", "supervisor and container", "close", "processor time in all"],
    ...[...phases]
      .sort()
      .map(([name, all]) => [
        name,
        between(all, "begun"),
        between(all, "loaded", "begun"),
        between(all, "ran", "loaded"),
        between(all, "ended", "ran"),
        milliseconds(median(all.map(({ cpu }) => (cpu.user + cpu.system) / 1000)))
      ])
  ])
}

/** A module's own room, or its package. */
const roomOf = (module: string): string =>
  /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(module)?.[0].replace("node_modules/", "") ??
  /^lib\/internal\/[^/]+/.exec(module)?.[0] ??
  "lib"

/** What the import of an entry loads, and what is left for later, by package and room. */
const loadsTable = (entry: string): Effect.Effect<string, Unmeasured> =>
  Effect.map(
    Effect.tryPromise({
      try: async () => {
        // The other benchmarks also run in a machine that has no packages of npm.
        const { build } = await import("esbuild")
        const { withoutSchemas } = await import("../.bundle.ts")
        return build({
          absWorkingDir: root,
          entryPoints: [entry],
          bundle: true,
          splitting: true,
          format: "esm",
          platform: "node",
          outdir: "unwritten",
          write: false,
          plugins: entry === "lib/promise.ts" ? [withoutSchemas] : [],
          metafile: true,
          logLevel: "silent",
          external: ["undici", "https-proxy-agent", "dbus-native", "cli-progress", "yaml"]
        })
      },
      catch: unmeasured
    }),
    ({ metafile: { outputs } }) => {
      const first = Object.keys(outputs).find((path) => outputs[path]!.entryPoint === entry)!
      const atImport = new Set([first])
      for (const path of atImport)
        for (const { kind, path: to } of outputs[path]?.imports ?? [])
          if (kind === "import-statement" && to in outputs) atImport.add(to)
      const sizes = new Map<string, { now: number; later: number }>()
      for (const [path, { inputs }] of Object.entries(outputs))
        for (const [module, { bytesInOutput }] of Object.entries(inputs)) {
          const size = sizes.get(roomOf(module)) ?? { now: 0, later: 0 }
          size[atImport.has(path) ? "now" : "later"] += bytesInOutput / 1024
          sizes.set(roomOf(module), size)
        }
      const rows = [...sizes].sort(([, a], [, b]) => b.now - a.now || b.later - a.later)
      const sum = (of: "now" | "later") => rows.reduce((total, [, size]) => total + size[of], 0)
      return table([
        [`KiB of ${entry}`, "at import", "when needed"],
        ...rows.map(([room, { now, later }]) => [room, now.toFixed(0), later.toFixed(0)]),
        ["all", sum("now").toFixed(0), sum("later").toFixed(0)]
      ])
    }
  )

const RUN = "run of berth/promise"
const IN_LAYER = "Container.run in one layer"

/** A second `run`, beside `Container.run` in one layer: both have their supervisor already. */
const second = (rounds: number): Effect.Effect<Summaries, Unmeasured, Berth.Berth> =>
  Effect.gen(function* () {
    const command = { command: ["true"] }
    const inLayer = Effect.flatMap(Image.host, (image) => Container.run(image, command))
    const contenders = [
      yield* onThisBerth(IN_LAYER, Effect.mapError(inLayer, unmeasured)),
      { name: RUN, run: timed(Effect.tryPromise({ try: () => run("host", command), catch: unmeasured })) }
    ]
    return (yield* interleave(contenders, { rounds, warmups: 10 })).summaries
  })

const verdict = (what: string, value: number, most: number, unit: string): string =>
  `${what}: ${value.toFixed(unit === " ms" ? 0 : 2)}${unit}, target <= ${most}${unit}: ${value <= most ? "met" : "not met"}`

const measure = (
  rounds: number,
  names: ReadonlyArray<string>
): Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const folder = yield* prepare
    const phases = new Map<string, Array<Phases>>()
    const scriptsIn = names.flatMap((runtime) => [
      ...Object.keys(scripts).map((script) => contender(runtime, script, folder, phases)),
      ...["promise", "effect"].map((script) => contender(runtime, script, folder, phases, true))
    ])
    const others = [...(yield* podmanStarts(yield* temporaryFolder, ["none"])), yield* docker(folder)]
    const { summaries, skipped } = yield* interleave([...scriptsIn, ...others], { rounds, warmups: 1 })
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    yield* Console.log(`${timesTable(summaries, "node bare")}\n\n${phasesTable(phases)}\n`)
    const seconds = yield* second(rounds * 10)
    yield* Console.log(`${timesTable(seconds, IN_LAYER)}\n`)
    if (names.includes("node"))
      for (const script of ["promise", "effect"])
        yield* Console.log(`${yield* profileTable(script, folder)}\n`)
    for (const entry of ["lib/promise.ts", "lib/Container.ts"])
      yield* Console.log(`${yield* loadsTable(entry)}\n`)
    const pack = yield* packed
    yield* Console.log(`${packedTable(pack)}\n`)
    const over = (runtime: string, a: string, b: string): number =>
      (summaries[`${runtime} ${a}`]?.median ?? Number.NaN) -
      (summaries[`${runtime} ${b}`]?.median ?? Number.NaN)
    for (const runtime of names) {
      const promise = over(runtime, "promise", "bare")
      const effect = over(runtime, "effect", "effect's imports")
      yield* Console.log(verdict(`${runtime}: promise over bare`, promise, PROMISE_OVER_BARE_MILLIS, " ms"))
      yield* Console.log(
        verdict(`${runtime}: effect over its imports`, effect, EFFECT_OVER_IMPORTS_MILLIS, " ms")
      )
    }
    yield* Console.log(verdict("run / Container.run", ratio(seconds, RUN, IN_LAYER), SECOND_RUN_RATIO, ""))
    yield* Console.log(verdict("npm pack, unpacked", packageBytes(pack) / 1e6, UNPACKED_MEGABYTES, " MB"))
    const results = { machine: machine(), rounds, summaries, phases: Object.fromEntries(phases), seconds }
    yield* Console.log(`written: ${writeResults("first", results)}`)
  })

export const first = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: "string", default: "15" },
      runtimes: { type: "string", default: Object.keys(runtimes).join() }
    }
  })
  const names = values.runtimes.split(",").filter((name) => Object.hasOwn(runtimes, name))
  return onBerth(
    Effect.catchAll(measure(Number(values.rounds), names), ({ message }) =>
      Effect.sync(() => {
        console.error(message)
        process.exitCode = 1
      })
    )
  )
}
