/** Tests the verdict on the virtual machine's tests, with real output of node's test runner for each kind of file. */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { allowTime, makeTemporaryFolder, remove } from "../support/effect.ts"
import { type Outcome, outcome, result } from "./report.ts"

const node = spawnSync("node", ["--version"], { encoding: "utf8" })
const guest = new URL("guest/tests", import.meta.url).pathname

allowTime()

const guestSays = (checkout: string): string => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env
  return spawnSync("sh", [guest, "here"], {
    cwd: checkout,
    env: { ...env, BERTH_VM_CHECKOUT: checkout },
    encoding: "utf8"
  }).stdout
}

describe("tests in the virtual machine", { skip: node.status === 0 ? false : "no node on the PATH" }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    const files = {
      passes: 'test("a", () => {}); test("b", { skip: "not here" }, () => {})',
      fails: 'test("a", () => { throw new Error("no") })',
      throws: 'throw new Error("no")',
      empty: "",
      skipped: 'test("a", { skip: "not here" }, () => {})'
    }
    fs.writeFileSync(`${folder}/package.json`, '{ "type": "module" }')
    for (const [name, text] of Object.entries(files))
      fs.writeFileSync(`${folder}/${name}.test.js`, `import { test } from "node:test"\n${text}\n`)
  })
  after(() => remove(folder))

  /** The output of the machine's script for these files, run here and without touching a cgroup. */
  const output = (...names: ReadonlyArray<string>): string => {
    fs.writeFileSync(`${folder}/vm-files-here`, `${names.map((name) => `${name}.test.ts`).join("\n")}\n`)
    return guestSays(folder)
  }

  const judged = (...names: ReadonlyArray<string>): Outcome => outcome(output(...names), "here")

  test("a run in the virtual machine passes when one test has passed and none has failed", () => {
    assert.deepEqual(judged("passes"), { passed: 1, failed: 0, skipped: 1, problem: undefined })
  })

  test("a run in the virtual machine fails when a test fails or a file cannot be loaded", () => {
    assert.deepEqual(judged("passes", "fails"), { passed: 1, failed: 1, skipped: 1, problem: "1 failed" })
    assert.match(judged("passes", "throws").problem!, /failed/)
    assert.notEqual(judged("passes", "no-such-file").problem, undefined)
  })

  test("a run in the virtual machine fails when a file is empty or every test is skipped", () => {
    assert.match(judged("empty").problem!, /no test in .*empty\.test\.js/)
    assert.match(judged("passes", "empty").problem!, /no test in/)
    assert.equal(judged("skipped").problem, "no test was run")
  })

  test("a run in the virtual machine fails when the machine ends before the tests", () => {
    const whole = output("passes")
    assert.equal(outcome("", "here").problem, "the machine ended before its tests began")
    assert.equal(outcome(whole, "bare").problem, "the machine ended before its tests began")
    const cut = whole.slice(0, whole.indexOf("== berth-vm end"))
    assert.equal(outcome(cut, "here").problem, "the machine ended before its tests did")
  })

  test("a benchmark in the virtual machine gives its results unchanged, and none when it fails", () => {
    const at = `${folder}/benchmark`
    const written = `${JSON.stringify({ name: "one", median: 1.5 }, null, 2)}\n`
    const run = (ending: string): string => {
      fs.mkdirSync(`${at}/bench`, { recursive: true })
      fs.writeFileSync(
        `${at}/bench/index.js`,
        `const fs = require("fs"); fs.mkdirSync("bench/results", { recursive: true }); console.log(process.argv[2])
fs.writeFileSync("bench/results/one.json", ${JSON.stringify(written)}); ${ending}`
      )
      fs.writeFileSync(`${at}/package.json`, "{}")
      fs.writeFileSync(`${at}/vm-bench`, "one --rounds 1\n")
      return guestSays(at)
    }
    const output = run("")
    assert.equal(result(output, "here", "one"), written)
    assert.equal(result(output, "here", "other"), undefined)
    assert.equal(result(output.slice(0, output.indexOf("== berth-vm end")), "here", "one"), undefined)
    assert.equal(result(run("process.exit(1)"), "here", "one"), undefined)
  })
})
