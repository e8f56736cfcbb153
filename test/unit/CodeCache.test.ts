import assert from "node:assert/strict"
import * as fs from "node:fs"
import { describe, type TestContext, test } from "node:test"
import { makeTemporaryFolder, remove, whyNotRoot } from "../support/effect.ts"
import { ended, program } from "../support/program.ts"

const skip = "Deno" in globalThis || "Bun" in globalThis ? "only Node loads its modules so" : false

/** A file whose function says a letter, and a program that loads it. */
const made = (t: TestContext) => {
  const folder = makeTemporaryFolder()
  t.after(() => remove(folder))
  const cache = `${folder}/cache`
  fs.mkdirSync(cache, { mode: 0o700 })
  const file = `${folder}/file.js`
  return {
    cache,
    kept: () => fs.readdirSync(`${cache}/berth`).map((name) => `${cache}/berth/${name}`),
    says: async (letter: string, env: Record<string, string> = {}, options: ReadonlyArray<string> = []) => {
      fs.writeFileSync(file, `import them\nconst say = () => word + " ${letter}"; return { said: say() }`)
      const { code, stderr, stdout } = await ended(
        program("codeLoader.ts", [file], {
          stdio: "pipe",
          env: {
            ...process.env,
            NODE_DISABLE_COMPILE_CACHE: "",
            XDG_CACHE_HOME: cache,
            NODE_OPTIONS: options.join(" "),
            ...env
          }
        })
      )
      assert.deepEqual([code, stderr], [0, ""])
      return stdout.trim()
    }
  }
}

describe("kept code", { skip }, () => {
  test("the next program executes what the last one has compiled", async (t) => {
    const { cache, kept, says } = made(t)
    assert.equal(await says("a"), "given a")
    const [path, ...others] = kept()
    assert.deepEqual(others, [])
    assert.equal(fs.statSync(`${cache}/berth`).mode & 0o777, 0o700)
    assert.equal(fs.statSync(path!).mode & 0o777, 0o600)
    // The digest stands for the text, which nobody changes: so this shows where the code is from.
    const { ino } = fs.statSync(path!)
    assert.equal(await says("b"), "given a")
    assert.equal(fs.statSync(path!).ino, ino)
  })

  test("what is damaged, or was compiled with other options, is not executed", async (t) => {
    const { kept, says } = made(t)
    await says("a")
    const [path] = kept()
    const whole = fs.readFileSync(path!)
    for (const bytes of [
      Buffer.alloc(0),
      Buffer.alloc(whole.length),
      whole.subarray(0, -8),
      Buffer.from("{}")
    ]) {
      fs.writeFileSync(path!, bytes)
      assert.equal(await says("b"), "given b")
      assert.deepEqual(fs.readFileSync(path!), bytes)
    }
    fs.writeFileSync(path!, whole)
    assert.equal(await says("b", {}, ["--max-old-space-size=500"]), "given b")
    assert.deepEqual(fs.readFileSync(path!), whole)
    // After a day it is written again.
    const old = Date.now() / 1000 - 25 * 3600
    fs.writeFileSync(path!, "")
    fs.utimesSync(path!, old, old)
    await says("c")
    assert.equal(await says("d"), "given c")
  })

  for (const [what, change, why] of [
    ["a file that others may write", (path: string) => fs.chmodSync(path, 0o620), false],
    ["a file of another user", (path: string) => fs.chownSync(path, 12345, 12345), whyNotRoot],
    [
      "a link",
      (path: string) => {
        fs.renameSync(path, `${path}.other`)
        fs.symlinkSync(`${path}.other`, path)
      },
      false
    ]
  ] as const)
    test(`${what} is not executed, and is replaced`, { skip: why }, async (t) => {
      const { kept, says } = made(t)
      await says("a")
      change(kept()[0]!)
      assert.equal(await says("b"), "given b")
      assert.equal(await says("c"), "given b")
      const status = fs.lstatSync(kept()[0]!)
      assert.deepEqual([status.isFile(), status.mode & 0o777, status.uid], [true, 0o600, process.getuid!()])
    })

  for (const [what, change, why] of [
    ["others may write", (path: string) => fs.chmodSync(path, 0o777), false],
    ["is another user's", (path: string) => fs.chownSync(path, 12345, 12345), whyNotRoot]
  ] as const)
    test(`nothing is read or written in a folder that ${what}`, { skip: why }, async (t) => {
      const { cache, kept, says } = made(t)
      await says("a")
      const whole = fs.readFileSync(kept()[0]!)
      change(`${cache}/berth`)
      assert.equal(await says("b"), "given b")
      assert.deepEqual(fs.readFileSync(kept()[0]!), whole)
    })

  test("nothing is written where it is switched off, or where there is no home", async (t) => {
    const { cache, says } = made(t)
    assert.equal(await says("a", { NODE_DISABLE_COMPILE_CACHE: "1" }), "given a")
    assert.equal(await says("a", { XDG_CACHE_HOME: "", HOME: `${cache}/none` }), "given a")
    assert.deepEqual(fs.readdirSync(cache), [])
  })

  test("files that are older than a month are removed when another is written", async (t) => {
    const { cache, kept, says } = made(t)
    fs.mkdirSync(`${cache}/berth`, { mode: 0o700 })
    const now = Date.now() / 1000
    for (const [name, days] of [
      ["old", 31],
      ["young", 29]
    ] as const) {
      fs.writeFileSync(`${cache}/berth/${name}`, "")
      fs.utimesSync(`${cache}/berth/${name}`, now, now - days * 24 * 3600)
    }
    await says("a")
    assert.deepEqual(
      kept()
        .map((path) => path.replace(/.*\//, "").slice(0, 5))
        .sort(),
      ["00000", "young"]
    )
  })
})
