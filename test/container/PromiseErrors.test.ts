import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as process from "node:process"
import { after, before, describe, test } from "node:test"
import { inspect, types } from "node:util"
import { BerthError, type Box, images, open, run, start } from "../../lib/promise.ts"
import { allowTime, rejection, whyNoContainers } from "../support/effect.ts"
import { root } from "../support/program.ts"

allowTime()

describe("what berth/promise rejects with", { skip: whyNoContainers }, () => {
  let box: Box

  before(async () => {
    if (whyNoContainers === false) box = await start("host", { command: ["sleep", "infinity"] })
  })
  after(async () => {
    if (whyNoContainers === false) await box[Symbol.asyncDispose]()
  })

  // Each awaits, as Bun keeps no frame of a tail call.
  const calls: Readonly<Record<string, () => Promise<unknown>>> = {
    callsRun: async () => await run("host", { command: ["/no/such"] }),
    callsStart: async () => await start("host", { limits: { memory: "12 parsecs" } }),
    callsOpen: async () => await open({ folder: "/dev/null/no" }),
    callsPull: async () => await images.pull("UPPER/case"),
    callsSave: async () => await images.save("no/such:1", "/tmp/no.tar", { format: "docker-archive" }),
    callsExec: async () => await box.exec(["/no/such"]),
    callsCommand: async () => await box.$`sh -c "echo why >&2; exit 3"`,
    callsText: async () => await box.$`false`.text(),
    callsKill: async () => await box.kill("SIGNOTHING"),
    callsStats: async () => await box.stats(),
    callsLines: async () => {
      for await (const _ of box.$`false`);
    },
    callsLate: async () => {
      const command = box.$`true`
      await command
      command.quiet()
    }
  }

  for (const [name, call] of Object.entries(calls))
    test(`${name}: a plain error of Berth with the frame of its caller`, async () => {
      const error = await rejection(call())
      assert.ok(types.isNativeError(error) && !types.isProxy(error), inspect(error))
      assert.ok(error instanceof BerthError && error instanceof Error)
      assert.notEqual(error.message, "")
      assert.ok(error.stack?.startsWith(`${error._tag}: ${error.message}\n    at `), error.stack)
      assert.match(error.stack ?? "", /\n {4}at .*PromiseErrors\.test\.[jt]s/)
      assert.match(inspect(error), /\n {4}at .*PromiseErrors\.test\.[jt]s/)
      const clone: Error = structuredClone(error)
      assert.equal(clone.message, error.message)
    })

  test("an error keeps its fields, and its causes are plain as well", async () => {
    const error = await rejection(run("host", { command: ["/no/such"] }))
    assert.ok(error instanceof BerthError && error._tag === "CommandFailed")
    assert.deepEqual([error.reason, error.command, error.exitCode], ["NotFound", "/no/such", 127])
    assert.ok(error.cause instanceof BerthError && types.isNativeError(error.cause))
    assert.ok(!types.isProxy(error.cause))
    assert.match(inspect(error), /\n {2}\[cause\]: OperationFailed: exec/)
    assert.equal(JSON.parse(JSON.stringify(error)).message, error.message)
  })

  test("two promises that reject with one failure each have their own caller", async () => {
    async function firstCaller() {
      return await rejection(box.stats())
    }
    async function secondCaller() {
      return await rejection(box.stats())
    }
    const [first, second] = (await Promise.all([firstCaller(), secondCaller()])) as [Error, Error]
    assert.match(first.stack ?? "", /firstCaller/)
    assert.match(second.stack ?? "", /secondCaller/)
  })

  const programs: Readonly<Record<string, ReadonlyArray<string>>> = {
    Node: ["node_modules/.bin/tsx"],
    Deno: ["node_modules/.bin/deno", "run", "--allow-all", "--no-check"],
    Bun: ["node_modules/.bin/bun"]
  }

  for (const [runtime, [program, ...words]] of Object.entries(programs)) {
    const skip = fs.existsSync(`${root}${program}`) ? false : `no ${program}: npm ci installs it`
    test(`${runtime} prints the message and the caller of an error that nobody catches`, { skip }, () => {
      const env = { ...process.env, NO_COLOR: "1", NODE_OPTIONS: "" }
      const command = `${root}${program}`
      const { status, stderr } = spawnSync(command, [...words, "test/support/uncaught.ts"], {
        cwd: root,
        env,
        encoding: "utf8",
        timeout: 60_000
      })
      assert.equal(status, 1, stderr)
      assert.match(stderr, /\/no\/such\/command: command not found in the image/)
      assert.match(stderr, /at .*uncaught\.ts/)
    })
  }
})
