import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { BerthError, type Box, open, run, type Session } from "../../lib/promise.ts"
import { allowTime, makeTemporaryFolder, rejection, remove, whyNoContainers } from "../support/effect.ts"
import { isAlive, leftovers, type Snapshot, snapshot, until } from "../support/leftovers.ts"
import { ended, program } from "../support/program.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"

const whyNoSnapshots: string | false =
  whyNoBusybox || (detect().controllers.freezer === undefined ? "no freezer" : false)

allowTime()

describe("a box of berth/promise", { skip: whyNoContainers }, () => {
  let folder = ""
  let earlier: Snapshot
  let berth: Session
  let box: Box

  before(async () => {
    if (whyNoContainers !== false) return
    folder = makeTemporaryFolder()
    const warm = await open({ folder: `${folder}/warm` })
    await warm.run("host", { command: ["true"] })
    await warm.close()
    earlier = snapshot()
    berth = await open({ folder: `${folder}/berth` })
    box = await berth.start("host", { command: ["sleep", "infinity"] })
  })

  after(async () => {
    if (whyNoContainers !== false) return
    await box.close()
    await berth.close()
    const left = await leftovers(earlier, `${folder}/berth`)
    remove(folder)
    assert.deepEqual(left, [])
  })

  test("close ends a box, and can be repeated", async () => {
    const other = await berth.start("host", { command: ["sleep", "infinity"] })
    await other.close()
    await other.close()
    assert.ok(!isAlive(other.pid))
  })

  test("files of a box are written, read, listed, renamed and removed", async () => {
    const { files } = box
    await files.makeFolder("/tmp/a/b", { recursive: true })
    await files.writeFile("/tmp/a/b/text", "é\n", { mode: 0o600 })
    assert.equal(await box.$`cat /tmp/a/b/text`.text(), "é\n")
    await files.writeFile("/tmp/a/b/bytes", new Uint8Array([0, 255]))
    assert.deepEqual([...(await files.readFile("/tmp/a/b/bytes"))], [0, 255])
    assert.equal(await files.readText("/tmp/a/b/text"), "é\n")
    assert.deepEqual([...(await files.list("/tmp/a/b"))].sort(), ["bytes", "text"])
    const { gid, mode, modified, size, type, uid } = await files.stat("/tmp/a/b/text")
    assert.deepEqual([type, size, mode & 0o777, uid, gid], ["File", 3, 0o600, 0, 0])
    assert.ok(modified instanceof Date)
    await files.rename("/tmp/a/b/text", "/tmp/a/moved")
    assert.equal(await files.exists("/tmp/a/b/text"), false)
    await files.remove("/tmp/a", { recursive: true })
    assert.equal(await files.exists("/tmp/a"), false)
    await files.remove("/tmp/a", { force: true })
  })

  test("a failure of a file is an OperationFailed with its path", async () => {
    const error = await rejection(box.files.readFile("/tmp/missing"))
    assert.ok(error instanceof BerthError && error._tag === "OperationFailed", String(error))
    assert.equal(error.code, "ENOENT")
    assert.equal(error.message, "readFile /tmp/missing: open: ENOENT (no such file or directory)")
    const refused = await rejection(box.files.readFile("/tmp/a\0b"))
    assert.equal((refused as BerthError)._tag, "InvalidOption")
    assert.match(error.stack ?? "", /PromiseBox\.test\.[jt]s/)
  })

  test("files are copied in and out", async () => {
    fs.writeFileSync(`${folder}/in`, "from the host\n")
    await box.copyIn(`${folder}/in`, "/tmp/in")
    assert.equal(await box.$`cat /tmp/in`.text(), "from the host\n")
    await box.copyOut("/tmp/in", `${folder}/out`)
    assert.equal(fs.readFileSync(`${folder}/out`, "utf8"), "from the host\n")
  })

  test("waitFor waits for a line and a command, and fails when the time is over or a signal aborts", async () => {
    await using slow = await berth.start("host", {
      command: ["sh", "-c", "sleep 0.1; echo ready; touch /tmp/ready; exec sleep infinity"]
    })
    assert.equal((await slow.waitFor.log(/^rea/)).line, "ready")
    await slow.waitFor.command(["test", "-e", "/tmp/ready"])
    const error = await rejection(slow.waitFor.port(1, { timeout: 50 }))
    assert.ok(error instanceof BerthError && error._tag === "WaitFailed" && error.reason === "TimedOut")
    const { name } = (await rejection(slow.waitFor.port(1, { signal: AbortSignal.timeout(50) }))) as Error
    assert.equal(name, "TimeoutError")
  })

  test("a box shares the network and other namespaces of another box", async () => {
    const inode = (of: Box, kind: string) => of.$`readlink /proc/self/ns/${kind}`.text()
    await using beside = await berth.start("host", {
      command: ["sleep", "infinity"],
      namespaces: { network: box, ipc: box }
    })
    assert.equal(await inode(beside, "net"), await inode(box, "net"))
    assert.equal(await inode(beside, "ipc"), await inode(box, "ipc"))
    assert.notEqual(await inode(beside, "uts"), await inode(box, "uts"))
  })

  test("resize sets the size of a terminal", async () => {
    await using terminal = await berth.start("host", {
      command: ["sh", "-c", "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.02; done"],
      terminal: { rows: 10, columns: 20 },
      stdin: "pipe"
    })
    let output = ""
    for await (const bytes of terminal.stdout) {
      if (output === "") await terminal.resize({ rows: 33, columns: 44 })
      output += Buffer.from(bytes).toString()
    }
    assert.match(output, /33 44/)
  })

  test("attach connects a box with this program, which ends with its input still open", async () => {
    const child = program("attachedPromise.ts", [])
    child.stdin?.write("typed\n")
    const { code, stdout } = await ended(child)
    assert.deepEqual([code, stdout], [3, "typed\n"])
  })

  test("a command reads the output of another one", async () => {
    assert.equal(await box.$`printf 'b\na\n'`.pipe(box.$`sort`).text(), "a\nb\n")
    assert.equal(await box.$`sort`.stdin(box.$`printf 'b\na\n'`).text(), "a\nb\n")
    assert.equal(await box.$`seq 3`.pipe(box.$`cat`).pipe(box.$`wc -l`).text(), "3\n")
    assert.equal(await box.$`head -c 3000000 /dev/zero`.pipe(box.$`wc -c`).text(), "3000000\n")
    const lines: Array<string> = []
    for await (const line of box.$`seq 3`.pipe(box.$`cat`)) lines.push(line)
    assert.deepEqual(lines, ["1", "2", "3"])
  })

  test("a pipe ends a writer that its reader leaves, and rejects where either fails", async () => {
    assert.equal(await box.$`yes`.pipe(box.$`head -n1`).text(), "y\n")
    const isGone = async (): Promise<boolean> =>
      !(await box.$`sh -c "cat /proc/[0-9]*/comm; true"`.lines()).includes("yes")
    assert.ok(await isGone())
    const first = await rejection(box.$`sh -c "echo x; exit 3"`.pipe(box.$`cat`))
    assert.ok(first instanceof BerthError && first._tag === "NonZeroExit" && first.exitCode === 3)
    assert.equal(await box.$`sh -c "echo x; exit 3"`.nothrow().pipe(box.$`cat`).text(), "x\n")
    const second = await rejection(box.$`yes`.pipe(box.$`false`))
    assert.ok(second instanceof BerthError && second._tag === "NonZeroExit" && second.command === "false")
    const missing = await rejection(box.$`yes`.pipe(box.$`no-such-command`))
    assert.ok(missing instanceof BerthError && missing._tag === "CommandFailed")
    await until("the end of every writer", isGone)
  })

  test("the option input takes a command, which ends with its reader", async () => {
    const text = await box.exec(["sort"], { input: box.$`printf 'b\na\n'` })
    assert.equal(text.stdout, "a\nb\n")
    assert.equal((await run("host", { command: ["wc", "-l"], input: box.$`seq 3` })).stdout, "3\n")
    assert.equal(await box.with({ input: box.$`seq 3` }).$`wc -l`.text(), "3\n")
    assert.equal((await box.exec(["head", "-n1"], { input: box.$`yes` })).stdout, "y\n")
    const writer = box.$`yes`
    const refused = await rejection(box.exec(["cat"], { input: writer, maxOutputBytes: -1 }))
    assert.ok(refused instanceof BerthError && refused._tag === "InvalidOption")
    await rejection(writer)
    await rejection(box.stdin(box.$`yes`))
  })

  test("a command that has begun cannot be read by another one", async () => {
    const begun = box.$`true`
    await begun
    assert.throws(() => begun.pipe(box.$`cat`), { _tag: "InvalidOption" })
  })

  test("a supervised container starts again for as long as restart says so", async () => {
    const started: Array<number> = []
    const codes: Array<number> = []
    const status = await berth.supervised("host", {
      command: ["sh", "-c", "exit 4"],
      onStart: ({ pid }) => started.push(pid),
      restart: ({ exitCode }, times) => {
        codes.push(exitCode)
        return times < 3 && 5
      }
    })
    assert.equal(status.exitCode, 4)
    assert.deepEqual(codes, [4, 4, 4])
    assert.equal(new Set(started).size, 3)
  })

  test("a supervised container ends with an abort, and with an error of onStart", async () => {
    const options = { command: ["sleep", "infinity"], restart: () => "1 minute" as const }
    const signal = AbortSignal.timeout(200)
    const { name } = (await rejection(berth.supervised("host", { ...options, signal }))) as Error
    assert.equal(name, "TimeoutError")
    const onStart = (): never => {
      throw new RangeError("not wanted")
    }
    assert.ok((await rejection(berth.supervised("host", { ...options, onStart }))) instanceof RangeError)
  })

  test("a snapshot and forks of a box are boxes with its files", { skip: whyNoSnapshots }, async () => {
    const image = await Effect.runPromise(makeImage(`${folder}/root`))
    await using first = await berth.start(image, { command: ["/bin/cat"], stdin: "pipe" })
    await first.$`sh -c ${"echo 1 > /n"}`
    const made = await first.snapshot()
    const forks = await first.fork({ count: 2, env: { NAME: "fork" } })
    await first.$`sh -c ${"echo 2 > /n"}`
    for (const fork of forks) assert.equal(await fork.$`sh -c ${"cat /n; echo $NAME"}`.text(), "1\nfork\n")
    assert.equal((await berth.run(made, { command: ["/bin/cat", "/n"] })).stdout, "1\n")
    const layers = () => fs.readdirSync(`${folder}/berth/layers/kept`).length
    assert.equal(layers(), 2)
    await forks[0]!.close()
    assert.equal(await forks[1]!.$`cat /n`.text(), "1\n")
    assert.equal(layers(), 2)
    await forks[1]!.close()
    assert.equal(layers(), 1)
    await assert.rejects(first.fork({ count: 2, command: ["/nowhere"] }), { _tag: "CommandFailed" })
    assert.equal(layers(), 1)
    const reason = new Error("enough")
    assert.equal(await rejection(first.snapshot({ signal: AbortSignal.abort(reason) })), reason)
  })
})
