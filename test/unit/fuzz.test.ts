import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { allowTime, makeTemporaryFolder, remove } from "../support/effect.ts"
import { parsers } from "../support/fuzzParser.ts"
import { type Ended, ended, program } from "../support/program.ts"

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url))

const whyNot: string | false =
  spawnSync("clang", ["--version"]).status === 0 ? false : "no clang, whose libFuzzer this needs"

/** The time for each parser; all run side by side. */
const seconds = Number(process.env.BERTH_FUZZ_SECONDS ?? 10)

// The environment without the sanitizers of the tests themselves.
const { LD_PRELOAD: _, ASAN_OPTIONS: __, ...env } = process.env

const run = (command: string, args: ReadonlyArray<string>): Promise<Ended> =>
  ended(spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env }))

allowTime()

const harnesses = [
  {
    name: "plan",
    title: "the decoder of plans",
    sources: ["fuzz/plan_dump.c", "supervisor/plan.c"]
  },
  {
    name: "message",
    title: "the supervisor's reader of messages",
    sources: [
      "fuzz/message.c",
      "supervisor/connection.c",
      "supervisor/lease.c",
      "supervisor/plan.c",
      "common/descriptor.c"
    ]
  },
  {
    name: "names",
    title: "the responder for names",
    sources: ["fuzz/names.c", "names/server.c", "names/message.c", "common/descriptor.c"]
  },
  { name: "path", title: "the paths of a tar", sources: ["fuzz/path.c", "common/remove.c"] }
] as const

type Harness = (typeof harnesses)[number]

const compile = async (folder: string, { name, sources }: Harness): Promise<void> => {
  const { code, stderr } = await run("clang", [
    ...["-std=gnu17", "-D_GNU_SOURCE", "-DFUZZ", "-g", "-O1"],
    ...["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"],
    ...["-o", `${folder}/${name}`, ...sources.map((source) => path(`../../native/${source}`))]
  ])
  assert.equal(code, 0, stderr)
}

const fuzz = (folder: string, name: string): Promise<Ended> => {
  fs.mkdirSync(`${folder}/found/${name}`, { recursive: true })
  // The shell forks, which resets the peak of memory: a program has that of the process that executed it, and a runtime in which
  // all tests have run has more than the limit below (getrusage(2)).
  const forked = ["-c", '"$0" "$@"; exit $?', `${folder}/${name}`]
  return run("sh", [
    ...forked,
    `-max_total_time=${seconds}`,
    "-max_len=4096",
    "-timeout=120",
    "-rss_limit_mb=1024",
    `-artifact_prefix=${process.env.BERTH_FUZZ_FOUND ?? folder}/`,
    `${folder}/found/${name}`,
    path(`../corpus/${name}`)
  ])
}

const check = ({ code, signal, stderr, stdout }: Ended): void => {
  assert.deepEqual({ code, signal }, { code: 0, signal: null }, stderr.slice(-4000))
  const runs = Number(/Done (\d+) runs/.exec(`${stderr}${stdout}`)?.[1])
  assert.ok(runs > 100, `only ${runs} runs: ${stderr.slice(-1000)}`)
}

describe("parsers of untrusted input", () => {
  let folder = ""
  const fuzzed = new Map<string, Promise<Ended>>()
  before(async () => {
    folder = makeTemporaryFolder()
    for (const name of Object.keys(parsers))
      fuzzed.set(name, ended(program("fuzzParser.ts", [name, String(seconds)], { stdio: "pipe" })))
    if (whyNot !== false) return
    await Promise.all(harnesses.map((harness) => compile(folder, harness)))
    for (const { name } of harnesses) fuzzed.set(name, fuzz(folder, name))
  })
  after(async () => {
    await Promise.all(fuzzed.values())
    remove(folder)
  })

  for (const { name, title } of harnesses) {
    test(`${title} accepts every file of its corpus`, { skip: whyNot }, async () => {
      const files = fs.readdirSync(path(`../corpus/${name}`)).map((file) => path(`../corpus/${name}/${file}`))
      assert.ok(files.length >= 3)
      const { code, stderr } = await run(`${folder}/${name}`, files)
      assert.equal(code, 0, stderr)
    })

    test(`${title} does not crash, leak or hang on input made by libFuzzer`, {
      skip: whyNot
    }, async (context) => {
      const done = await fuzzed.get(name)!
      check(done)
      context.diagnostic?.(/Done \d+ runs/.exec(done.stderr)![0])
    })
  }

  for (const name of Object.keys(parsers))
    test(`random ${name} are parsed or refused with one of Berth's errors`, async (context) => {
      const done = await fuzzed.get(name)!
      check(done)
      context.diagnostic?.(done.stdout.trim())
    })
})
