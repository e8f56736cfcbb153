import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import { Berth, BerthError, Container, Image } from "../../lib/index.ts"
import { asNobody, whyNotNobody } from "../support/asNobody.ts"
import { allowTime, berthIn, makeTemporaryFolder, remove, suite, whyNoContainers } from "../support/effect.ts"
import { commandOf, ended, program } from "../support/program.ts"

allowTime()

describe("Berth: unsupported machines", { skip: process.platform === "linux" ? false : "not Linux" }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
  })
  after(() => remove(folder))

  /** The error that the layer fails with in another program. */
  const errorOf = async (args: ReadonlyArray<string>, env: NodeJS.ProcessEnv = process.env) => {
    const child = program("system.ts", ["error", `${folder}/b`, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
      env
    })
    const { code, stdout, stderr } = await ended(child)
    assert.equal(code, 0, stderr)
    return JSON.parse(stdout)
  }

  for (const platform of ["darwin", "win32"]) {
    test(`Berth can be imported on ${platform}, and its layer fails with what to do`, async () => {
      const error = await errorOf([platform])
      assert.equal(error._tag, "Unsupported")
      assert.match(error.message, new RegExp(`this is ${platform}.*Linux`))
    })
  }

  test("a layer without the native part fails with how to build it", async () => {
    const error = await errorOf([], { ...process.env, BERTH_NATIVE: "no/such/build" })
    assert.deepEqual([error._tag, error.feature], ["Unsupported", "the native part"])
    const expected =
      /no\/such\/build\/berth\.node is missing\. Set BERTH_NATIVE, which is no\/such\/build, to the folder native\/build of/
    assert.match(error.message, expected)
  })

  test("a layer without root and without user namespaces fails with how to have them", {
    skip: whyNoContainers || whyNotNobody
  }, async () => {
    const home = `${folder}/rootless`
    fs.chmodSync(folder, 0o755)
    const noFurther = "echo 0 > /proc/sys/user/max_user_namespaces &&"
    const program = commandOf("system.ts", ["error", `${home}/berth`])
    const { code, stdout, stderr } = await asNobody(home, noFurther, program)
    assert.equal(code, 0, stderr)
    const error = JSON.parse(stdout)
    assert.deepEqual([error._tag, error.feature], ["Unsupported", "user namespaces"], stdout)
    assert.match(error.message, /max_user_namespaces/)
    assert.deepEqual(fs.readdirSync(`${home}/berth/run`), [])
  })

  test("a layer in a folder that cannot be written to fails with how to choose another", async () => {
    const file = `${folder}/file`
    fs.writeFileSync(file, "")
    const error = await Effect.runPromise(Effect.flip(Effect.provide(Berth.Berth, berthIn(`${file}/below`))))
    assert.equal(error._tag, "OperationFailed")
    assert.match(error.message, /layerWith\(\{ folder \}\)/)
    assert.ok(BerthError.isBerthError(error))
  })
})

suite("Berth", (effect, folder) => {
  effect("a Berth keeps its state in its folder, private to its user", function* () {
    const berth = yield* Berth.Berth
    assert.equal(berth.folder, folder())
    assert.equal(berth.rootless, process.getuid?.() !== 0)
    assert.equal(fs.readdirSync(`${folder()}/run`).length, 1)
    assert.equal(fs.statSync(`${folder()}/run`).mode & 0o077, 0)
  })

  effect("five Berths one after another in one folder leave nothing in it", function* () {
    const at = `${folder()}/again`
    for (let k = 0; k < 5; k++) {
      const program = Effect.flatMap(Image.host, (image) =>
        Container.run(image, { command: ["echo", String(k)] })
      )
      assert.equal((yield* Effect.provide(program, berthIn(at))).stdout, `${k}\n`)
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    }
  })

  effect("six Berths at once in one folder do not sweep each other", function* () {
    const at = `${folder()}/together`
    const results = yield* Effect.forEach(
      [1, 2, 3, 4, 5, 6],
      (k) =>
        Effect.flatMap(Image.host, (image) =>
          Container.run(image, { command: ["sh", "-c", `sleep 0.0${k}; echo ${k}`], limits: {} })
        ).pipe(Effect.provide(berthIn(at))),
      { concurrency: "unbounded" }
    )
    assert.deepEqual(
      results.map(({ stdout }) => stdout),
      ["1\n", "2\n", "3\n", "4\n", "5\n", "6\n"]
    )
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect("the folder of a supervisor that never started is swept once it is old", function* () {
    const at = `${folder()}/half`
    fs.mkdirSync(`${at}/run/.1-old/empty`, { recursive: true })
    fs.mkdirSync(`${at}/run/.1-new`)
    const long = new Date(Date.now() - 120_000)
    fs.utimesSync(`${at}/run/.1-old`, long, long)
    yield* Effect.provide(Berth.Berth, berthIn(at))
    assert.deepEqual(fs.readdirSync(`${at}/run`), [".1-new"])
  })
})
