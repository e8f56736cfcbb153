/** Pulling and unpacking a large image from a registry on loopback, against the tools that do the same. */
import { type ChildProcess, spawn } from "node:child_process"
import * as fs from "node:fs"
import { dirname } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { makeDebianImage } from "./debianImage.ts"
import { registry } from "./registry.ts"
import {
  type Contender,
  capture,
  interleave,
  machine,
  table,
  temporaryFolder,
  timed,
  Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const BERTH = "Berth"
const BYTES_MIN = 400e6
const FILES_MIN = 10_000

const onceArguments = (folder: string, reference: string): ReadonlyArray<string> => [
  fileURLToPath(new URL("pullOnce.mjs", import.meta.url)),
  folder,
  reference
]

const kilobytes = (pid: string): number => {
  try {
    return Number(/^Pss:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0)
  } catch {
    return 0
  }
}

type Usage = ReadonlyMap<string, number>

/** What a process and all below it use, in bytes, by the name of the program. */
const treeUsage = (root: number): Usage => {
  const found = new Map<string, { readonly parent: string; readonly name: string }>()
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8")
      const [open, close] = [stat.indexOf("("), stat.lastIndexOf(")")]
      found.set(pid, { name: stat.slice(open + 1, close), parent: stat.slice(close).split(" ")[2]! })
    } catch {
      // It has ended meanwhile.
    }
  }
  const below = (pid: string): boolean =>
    pid === String(root) || (found.has(pid) && below(found.get(pid)!.parent))
  const usage = new Map<string, number>()
  for (const [pid, { name }] of found)
    if (below(pid)) usage.set(name, (usage.get(name) ?? 0) + kilobytes(pid) * 1024)
  return usage
}

const total = (usage: Usage): number => [...usage.values()].reduce((sum, bytes) => sum + bytes, 0)

/** Looked at every 20 ms, in a run that is not timed. */
const peakUsage = (folder: string, reference: string): Effect.Effect<Usage, Unmeasured> =>
  Effect.async((resume) => {
    let peak: Usage = new Map()
    const child: ChildProcess = spawn(process.execPath, onceArguments(folder, reference), { stdio: "ignore" })
    const timer = setInterval(() => {
      const now = treeUsage(child.pid!)
      if (total(now) > total(peak)) peak = now
    }, 20)
    child.on("exit", (code) => {
      clearInterval(timer)
      resume(code === 0 ? Effect.succeed(peak) : new Unmeasured({ message: `the pull ended with ${code}` }))
    })
  })

/**
 * The same memory for each: what the last one has written is on disk and no longer cached, and what they read is. Else
 * the later ones would get pages that a virtual machine has never used, and its host would have to find them.
 */
const settle = (folder: string): Effect.Effect<void, Unmeasured> =>
  Effect.gen(function* () {
    yield* capture("sync", [])
    yield* Effect.try({ try: () => fs.writeFileSync("/proc/sys/vm/drop_caches", "3"), catch: unmeasured })
    for (const name of fs.readdirSync(`${folder}/registry`, { recursive: true, encoding: "utf8" })) {
      const path = `${folder}/registry/${name}`
      if (fs.statSync(path).isFile()) fs.readFileSync(path)
    }
    yield* capture(process.execPath, ["--input-type=module", "--eval", 'await import("berth/promise")'])
    for (const tool of ["podman", "skopeo", "umoci"]) yield* Effect.ignore(capture(tool, ["--version"]))
  })

/**
 * Each into an empty folder. Nothing is removed before the end: for minutes ext4 looks at each inode that was freed
 * whenever it makes one, which would cost all of them the same, and most of their time.
 */
const contender = (
  name: string,
  folder: string,
  commands: (folder: string) => ReadonlyArray<ReadonlyArray<string>>
): Contender => {
  let round = 0
  return {
    name,
    run: Effect.gen(function* () {
      const own = `${folder}/${round++}`
      fs.mkdirSync(own, { recursive: true })
      yield* settle(dirname(folder))
      return yield* timed(
        Effect.forEach(commands(own), ([command = "", ...args]) => capture(command, args), { discard: true })
      )
    })
  }
}

const podman = (folder: string): ReadonlyArray<string> => [
  ...["--root", `${folder}/root`, "--runroot", `${folder}/run`],
  ...["--storage-driver", "overlay"]
]

/** Podman's folders are podman's to remove. */
const podmanFolder = (folder: string): Effect.Effect<string, never, Scope.Scope> =>
  Effect.acquireRelease(Effect.succeed(folder), () =>
    Effect.forEach(fs.existsSync(folder) ? fs.readdirSync(folder) : [], (round) =>
      Effect.ignore(capture("podman", [...podman(`${folder}/${round}`), "system", "reset", "--force"]))
    )
  )

// Debian's umoci knows gzip only, so it has the same image in gzip throughout.
const others = (folder: string, reference: string): ReadonlyArray<Contender> => [
  contender("podman pull", `${folder}/podman`, (own) => [
    ["podman", ...podman(own), "pull", "-q", "--tls-verify=false", reference]
  ]),
  contender("skopeo copy + umoci unpack, all gzip", `${folder}/umoci`, (own) => [
    [
      ...["skopeo", "copy", "-q", "--src-tls-verify=false"],
      ...[`docker://${reference}-gzip`, `oci:${own}/layout:image`]
    ],
    ["umoci", "unpack", "--image", `${own}/layout:image`, `${own}/bundle`]
  ])
]

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const folder = yield* temporaryFolder
    yield* Console.log("making an image of Debian packages ...")
    const made = yield* Effect.try({ try: () => makeDebianImage(folder), catch: unmeasured })
    if (made.bytes < BYTES_MIN || made.files < FILES_MIN)
      return yield* new Unmeasured({ message: `the image has ${made.bytes} bytes in ${made.files} files` })
    const compressed = made.layers.map(({ size }) => (size / 1e6).toFixed(1))
    yield* Console.log(
      `${(made.bytes / 1e6).toFixed(0)} MB in ${made.files} files; layers of ${compressed.join(", ")} MB, compressed\n`
    )
    const host = yield* registry(folder)
    for (const tag of ["image", "image-gzip", "other"])
      yield* capture("skopeo", [
        ...["copy", "-q", "--dest-tls-verify=false"],
        ...[`oci:${folder}/layout:${tag}`, `docker://${host}/bench:${tag}`]
      ])
    const reference = `${host}/bench:image`
    yield* podmanFolder(`${folder}/podman`)
    const { summaries, skipped } = yield* interleave(
      [
        contender(BERTH, `${folder}/berth`, (own) => [[process.execPath, ...onceArguments(own, reference)]]),
        ...others(folder, reference)
      ],
      { rounds, warmups: 1 }
    )
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    const ours = summaries[BERTH]!.median
    yield* Console.log(
      table([
        ["seconds", "p50", "min", "Berth to it"],
        ...Object.entries(summaries).map(([name, { median, min }]) => [
          name,
          ...[median, min].map((value) => (value / 1000).toFixed(2)),
          (ours / median).toFixed(2)
        ])
      ])
    )
    const own = `${folder}/berth/last`
    const peak = yield* peakUsage(own, reference)
    const parts = [...peak].map(([name, bytes]) => `${name} ${(bytes / 1e6).toFixed(0)}`)
    const moved = Number(yield* capture(process.execPath, onceArguments(own, `${host}/bench:other`)))
    const fastest = Math.min(
      ...Object.entries(summaries).flatMap(([name, s]) => (name === BERTH ? [] : [s.median]))
    )
    yield* Console.log(
      [
        `\nBerth / the fastest of the others: ${(ours / fastest).toFixed(2)}, target <= 0.5`,
        `peak memory: ${(total(peak) / 1e6).toFixed(0)} MB, target < 200 MB (${parts.join(", ")})`,
        `a second image with all layers but one: ${moved} bytes of layers moved`
      ].join("\n")
    )
    const results = {
      machine: machine(),
      rounds,
      image: made,
      summaries,
      peakBytes: Object.fromEntries(peak),
      secondPullBytes: moved
    }
    yield* Console.log(`written: ${writeResults("pull", results)}`)
  })

export const pull = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "5" } } })
  return Effect.orDie(Effect.scoped(measure(Number(values.rounds))))
}
