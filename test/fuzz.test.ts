import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { allowTime, makeTemporaryFolder, remove } from "./support/effect.ts"
import { ended } from "./support/program.ts"

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url))

const whyNot: string | false =
  spawnSync("clang", ["--version"]).status === 0 ? false : "no clang, whose libFuzzer this needs"

const seconds = Number(process.env.BERTH_FUZZ_SECONDS ?? 10)

// Without the sanitizers that the tests themselves may run under.
const { LD_PRELOAD: _, ASAN_OPTIONS: __, ...env } = process.env

const run = (command: string, args: ReadonlyArray<string>) =>
  ended(spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env }))

allowTime()

describe("the decoder of plans, fuzzed", { skip: whyNot }, () => {
  let folder = ""
  before(async () => {
    if (whyNot !== false) return
    folder = makeTemporaryFolder()
    const { code, stderr } = await run("clang", [
      ...["-std=gnu17", "-D_GNU_SOURCE", "-DFUZZ", "-g", "-O1"],
      ...["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"],
      ...["-o", `${folder}/plan-fuzz`, path("../native/plan_dump.c"), path("../native/plan.c")]
    ])
    assert.equal(code, 0, stderr)
  })
  after(() => remove(folder))

  test("takes every plan of the corpus", async () => {
    const files = fs.readdirSync(path("corpus/plan")).map((name) => path(`corpus/plan/${name}`))
    assert.ok(files.length >= 5)
    const { code, stderr } = await run(`${folder}/plan-fuzz`, files)
    assert.equal(code, 0, stderr)
  })

  test("does not crash, leak or hang on what libFuzzer makes of them", async () => {
    fs.mkdirSync(`${folder}/found`)
    const { code, signal, stderr } = await run(`${folder}/plan-fuzz`, [
      `-max_total_time=${seconds}`,
      "-max_len=4096",
      "-timeout=5",
      "-rss_limit_mb=1024",
      `-artifact_prefix=${folder}/`,
      `${folder}/found`,
      path("corpus/plan")
    ])
    assert.deepEqual({ code, signal }, { code: 0, signal: null }, stderr.slice(-4000))
    const runs = Number(
      /stat::number_of_executed_units:\s*(\d+)|Done (\d+) runs/.exec(stderr)?.slice(1).find(Boolean)
    )
    assert.ok(runs > 1000, `only ${runs} runs: ${stderr.slice(-1000)}`)
  })
})
