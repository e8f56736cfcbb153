import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { describe, test } from "node:test"
import { allowTime, whyNoContainers } from "../support/effect.ts"
import { root } from "../support/program.ts"

allowTime()

const deno = `${root}node_modules/.bin/deno`
const skip = whyNoContainers || (fs.existsSync(deno) ? false : "no deno: npm ci installs it")

interface Outcome {
  readonly ready: boolean
  readonly stdout?: string
  readonly _tag?: string
  readonly message?: string
}

const outcome = (...flags: ReadonlyArray<string>): Outcome => {
  const words = ["run", "--no-prompt", "--no-check", ...flags, "test/support/permissions.ts"]
  const { stdout, stderr } = spawnSync(deno, words, { cwd: root, encoding: "utf8", timeout: 60_000 })
  const [first, second] = stdout.split("\n")
  assert.equal(first, "imported", stderr)
  assert.ok(second !== undefined && second !== "", stderr)
  return JSON.parse(second)
}

const permissions = ["read", "write", "env", "sys", "ffi", "run", "net", "import"]

describe("Deno's permissions", { skip }, () => {
  test("a container starts with --allow-all", () => {
    assert.equal(outcome("--allow-all").stdout, "hello\n")
  })

  test("a program without permissions imports Berth, and is told of every flag", () => {
    const { _tag, message, ready } = outcome()
    assert.deepEqual([_tag, ready], ["Unsupported", false])
    for (const name of permissions) assert.match(message ?? "", new RegExp(`--allow-${name}\\b`))
  })

  for (const name of permissions)
    test(`a program without --allow-${name} is told of it alone`, () => {
      const { _tag, message, ready } = outcome("--allow-all", `--deny-${name}`)
      assert.deepEqual([_tag, ready], ["Unsupported", false])
      assert.match(
        message ?? "",
        new RegExp(`^containers: Deno runs this program without --allow-${name}\\. `)
      )
    })

  test("a container starts with every permission by its own flag, as with --allow-all", () => {
    assert.equal(outcome(...permissions.map((name) => `--allow-${name}`)).stdout, "hello\n")
  })
})
