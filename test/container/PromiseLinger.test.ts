import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { BerthError, type RunOptions, run, start } from "../../lib/promise.ts"
import { whyNotNobody } from "../support/asNobody.ts"
import { allowTime, makeTemporaryFolder, rejection, remove, whyNoContainers } from "../support/effect.ts"
import { isAlive, leftovers, type Snapshot, snapshot, supervisors, until } from "../support/leftovers.ts"
import { ended, firstLine, program } from "../support/program.ts"

allowTime()

/** Empty once nobody has to wait for the process. */
const statusOf = (pid: number): string => {
  try {
    return fs.readFileSync(`/proc/${pid}/status`, "utf8")
  } catch {
    return ""
  }
}

describe("the supervisor of a program's promises", { skip: whyNoContainers }, () => {
  let folder = ""
  let earlier: Snapshot

  const runTrue = (linger?: RunOptions["linger"]) => run("host", { command: ["true"], linger })

  /** The supervisor that the last call has left. */
  const lingering = (): number => {
    const now = supervisors().filter((pid) => !earlier.processes.includes(pid))
    assert.equal(now.length, 1)
    return now[0]!
  }

  const isGone = (pid: number) => until(`the end of supervisor ${pid}`, () => !isAlive(pid))

  before(async () => {
    folder = makeTemporaryFolder()
    await runTrue(0)
    earlier = snapshot()
  })

  after(async () => {
    await runTrue(0)
    const left = await leftovers(earlier, folder)
    remove(folder)
    assert.deepEqual(left, [])
  })

  test("calls one after the other, and boxes, have one supervisor", async () => {
    await runTrue("1 hour")
    const supervisor = lingering()
    await runTrue("1 hour")
    assert.equal(lingering(), supervisor)
    {
      await using box = await start("host", { command: ["sleep", "infinity"], linger: "1 hour" })
      assert.equal(await box.$`echo 1`.text(), "1\n")
    }
    assert.equal(lingering(), supervisor)
  })

  test("the supervisor ends by itself after the linger", async () => {
    await runTrue()
    await isGone(lingering())
  })

  test("the call that ends last decides how long the supervisor stays", async () => {
    await runTrue("1 hour")
    const supervisor = lingering()
    await runTrue(0)
    assert.equal(isAlive(supervisor), false)
    await runTrue(Number.POSITIVE_INFINITY)
    const next = lingering()
    await runTrue(0)
    assert.equal(isAlive(next), false)
  })

  test("a supervisor that was killed while it lingered is replaced", async () => {
    await runTrue("1 hour")
    const supervisor = lingering()
    process.kill(supervisor, "SIGKILL")
    // A process closes its descriptors before it is a zombie.
    await until("the end of its connection", () => /^State:\s+Z/m.test(statusOf(supervisor)))
    assert.equal((await runTrue("1 hour")).exitCode, 0)
    assert.notEqual(lingering(), supervisor)
  })

  test("a supervisor whose folder was removed while it lingered is replaced", async () => {
    await runTrue("1 hour")
    const supervisor = lingering()
    const state = fs.readFileSync(`/proc/${supervisor}/cmdline`, "utf8").split("\0")[1]!
    assert.match(state, /\/run\/\d+-\w+$/)
    fs.rmSync(state, { recursive: true })
    assert.equal((await runTrue("1 hour")).exitCode, 0)
    await isGone(supervisor)
    assert.notEqual(lingering(), supervisor)
  })

  test("a call that cannot be made leaves no supervisor", async () => {
    await runTrue(0)
    const error = await rejection(runTrue("5 parsecs" as never))
    assert.ok(error instanceof BerthError && error._tag === "InvalidOption" && error.option === "linger")
    assert.deepEqual(
      supervisors().filter((pid) => !earlier.processes.includes(pid)),
      []
    )
  })

  test("a program with nothing else to do ends, and its supervisor before it", async () => {
    const child = program("lingering.ts", ["end"])
    const { code, stdout } = await ended(child)
    assert.equal(code, 0)
    assert.match(stdout, /^\d+\n$/)
    assert.equal(fs.existsSync(`/proc/${stdout.trim()}`), false)
  })

  test("a program that calls process.exit keeps its exit code, and its supervisor ends", async () => {
    const { code, stdout } = await ended(program("lingering.ts", ["exit"]))
    assert.equal(code, 3)
    await isGone(Number(stdout))
  })

  test("a program that has given up root's rights gets another supervisor", {
    skip: "Deno" in globalThis ? "Deno has no setuid" : whyNotNobody
  }, async () => {
    const home = `${folder}/nobody`
    fs.mkdirSync(home)
    fs.chmodSync(folder, 0o755)
    fs.chownSync(home, 65534, 65534)
    const { code, stdout } = await ended(program("lingering.ts", ["drop", home]))
    assert.equal(code, 0)
    const [first, ids, ...others] = stdout.trim().split("\n")
    assert.equal(ids, "0 65534 1")
    assert.equal(others.length, 1)
    assert.notEqual(others[0], first)
    assert.deepEqual(fs.readdirSync(`${home}/berth/run`), [])
  })

  test("a supervisor that lingers ends with a program that is killed", async () => {
    const child = program("lingering.ts", ["stay"])
    const supervisor = Number(await firstLine(child))
    assert.ok(isAlive(supervisor))
    const end = ended(child)
    child.kill("SIGKILL")
    assert.equal((await end).signal, "SIGKILL")
    await isGone(supervisor)
  })
})
