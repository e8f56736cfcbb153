import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import * as fs from "node:fs"
import * as process from "node:process"
import { Readable } from "node:stream"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import * as fc from "fast-check"
import { BerthError, type Box, open, run, type Session, start, type Value } from "../../lib/promise.ts"
import { makeTemporaryFolder, rejection, remove, whyNoContainers } from "../support/effect.ts"
import {
  descendants,
  isAlive,
  leftovers,
  type Snapshot,
  sleep,
  snapshot,
  supervisors,
  until
} from "../support/leftovers.ts"

const sleeper = { command: ["sleep", "infinity"] }

/** The command lines of a box's processes that begin with `sleep`; that of the box itself is always among them. */
const commands = async (box: Box): Promise<ReadonlyArray<string>> =>
  (await box.$`sh -c ${'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <$f; echo; done 2>/dev/null'}`.lines())
    .map((line) => line.trim())
    .filter((line) => line.startsWith("sleep"))

describe("berth/promise", { skip: whyNoContainers }, () => {
  let folder = ""
  let earlier: Snapshot
  let berth: Session
  let box: Box

  before(async () => {
    if (whyNoContainers !== false) return
    folder = makeTemporaryFolder()
    await run("host", { command: ["true"], linger: 0 })
    earlier = snapshot()
    berth = await open({ folder: `${folder}/berth` })
    box = await berth.start("host", sleeper)
  })

  after(async () => {
    if (whyNoContainers !== false) return
    await box[Symbol.asyncDispose]()
    await berth[Symbol.asyncDispose]()
    const left = await leftovers(earlier, `${folder}/berth`)
    remove(folder)
    assert.deepEqual(left, [])
  })

  describe("a command of a template", () => {
    test("a command gives its output and its exit code", async () => {
      const result = await box.$`sh -c "echo out; echo err >&2"`
      assert.equal(result.stdout, "out\n")
      assert.equal(result.stderr, "err\n")
      assert.equal(result.exitCode, 0)
    })

    test("a command gets any text as one argument, byte for byte", async () => {
      const text = fc.oneof(
        fc.string({ unit: "binary" }),
        fc.string({ unit: fc.constantFrom(..."'\"\\$`(){}[]*?~!#&|;<> \t\n=-%\u0001é😀") })
      )
      const argument = text.map((value) => value.replaceAll("\0", ""))
      await fc.assert(
        fc.asyncProperty(fc.array(argument, { minLength: 1, maxLength: 50 }), argument, async (all, one) => {
          const out = await box.$`printf '%s\0' ${all} ${one} x${one}y '${one}' "${one}"`.text()
          assert.deepEqual(out.split("\0"), [...all, one, `x${one}y`, one, one, ""])
        }),
        { numRuns: 40 }
      )
    })

    test("a command has a word for each element of an array, and none for an empty array", async () => {
      const arguments_ = async (value: Value) => box.$`printf '%s|' a ${value} b`.text()
      assert.equal(await arguments_([]), "a|b|")
      assert.equal(await arguments_(["x y", 2, ""]), "a|x y|2||b|")
      assert.equal(await arguments_(""), "a||b|")
      assert.equal(await arguments_(-0.5), "a|-0.5|b|")
    })

    test("a template refuses values that cannot be an argument, and the syntax of a shell", async () => {
      const values: ReadonlyArray<unknown> = [
        undefined,
        null,
        {},
        true,
        "a\0b",
        "\ud800",
        [undefined],
        [["x"]]
      ]
      for (const value of values) {
        const error = await rejection(box.$`echo ${value as Value}`)
        assert.ok(error instanceof BerthError && error._tag === "InvalidOption", String(error))
      }
      for (const command of [box.$`echo a | cat`, box.$`echo $HOME`, box.$`echo "a`, box.$``])
        assert.equal(((await rejection(command)) as BerthError)._tag, "InvalidOption")
    })

    test("a command with a nonzero exit code rejects with its output", async () => {
      const error = await rejection(box.$`sh -c ${"echo out; echo why >&2; exit 3"}`)
      assert.ok(error instanceof BerthError && error instanceof Error && error._tag === "NonZeroExit")
      assert.equal(error.exitCode, 3)
      assert.equal(error.signal, undefined)
      assert.equal(error.stdout, "out\n")
      assert.equal(error.stderr, "why\n")
      assert.equal(error.command, "sh -c 'echo out; echo why >&2; exit 3'")
      assert.match(error.message, /exit code 3\nwhy$/)
    })

    test("a command with nothrow resolves however it ends", async () => {
      assert.equal((await box.$`sh -c "exit 3"`.nothrow()).exitCode, 3)
      assert.equal((await box.$`sh -c 'kill -KILL $$'`.nothrow()).signal, "SIGKILL")
      assert.equal(await box.$`sh -c "echo x; exit 1"`.nothrow().text(), "x\n")
    })

    test("a missing command rejects even with nothrow", async () => {
      const error = await rejection(box.$`no-such-command`.nothrow())
      assert.ok(error instanceof BerthError && error._tag === "CommandFailed" && error.reason === "NotFound")
    })

    test("a command gives its stdout as text, lines and JSON", async () => {
      assert.equal(await box.$`printf ' a\n\n'`.text(), " a\n\n")
      assert.deepEqual(await box.$`printf 'a\n\nb\r\n'`.lines(), ["a", "", "b"])
      assert.deepEqual(await box.$`true`.lines(), [])
      assert.deepEqual(await box.$`printf ${'{"a":[1]}'}`.json<{ a: Array<number> }>(), { a: [1] })
    })

    test("a command is iterated line by line while it runs", async () => {
      const script =
        "trap 'printf 2; exit 0' USR1; echo 1; for i in $(seq 2000); do sleep 0.01; done; echo late"
      const command = box.$`sh -c ${script}`
      const lines: Array<string> = []
      for await (const line of command) {
        lines.push(line)
        // It goes on only once its first line has been read.
        if (line === "1") await command.kill("SIGUSR1")
      }
      assert.deepEqual(lines, ["1", "2"])
    })

    test("iterating over a command that fails throws after its last line", async () => {
      const lines: Array<string> = []
      const error = await rejection(
        (async () => {
          for await (const line of box.$`sh -c "echo 1; echo why >&2; exit 2"`) lines.push(line)
        })()
      )
      assert.deepEqual(lines, ["1"])
      assert.ok(error instanceof BerthError && error._tag === "NonZeroExit" && error.stderr === "why\n")
    })

    test("a command that is iterated waits for its reader, and ends when the reader leaves the loop", async () => {
      let count = 0
      for await (const line of box.$`yes`) {
        assert.equal(line, "y")
        if (++count === 20_000) break
      }
      const names = await box.$`sh -c "cat /proc/[0-9]*/comm; true"`.lines()
      assert.ok(!names.includes("yes"), names.join())
    })

    test("a command reads text, bytes and iterables of both from stdin", async () => {
      const cat = (input: Parameters<ReturnType<Box["$"]>["stdin"]>[0]) => box.$`cat`.stdin(input).text()
      async function* slowly() {
        yield "a"
        await sleep(10)
        yield new Uint8Array([98])
      }
      assert.equal(await cat("text"), "text")
      assert.equal(await cat(""), "")
      assert.equal(await cat(new Uint8Array([120])), "x")
      assert.equal(await cat(["a", "b"]), "ab")
      assert.equal(await cat(slowly()), "ab")
      assert.equal(await cat(Readable.from([Buffer.from("node")])), "node")
      assert.equal((await cat("é".repeat(300_000))).length, 300_000)
      assert.equal(await box.$`cat`.text(), "")
    })

    test("a command that has ended ends its input, which may be endless or silent", async () => {
      let open = true
      async function* endless() {
        try {
          for (;;) yield "y\n"
        } finally {
          open = false
        }
      }
      async function* silent() {
        yield "y\n"
        await new Promise(() => {})
      }
      assert.equal(await box.$`head -n1`.stdin(endless()).text(), "y\n")
      await until("the input is closed", () => !open)
      assert.equal(await box.$`head -n1`.stdin(silent()).text(), "y\n")
    })

    test("a command rejects with the error that its input throws", async () => {
      async function* failing() {
        yield "a"
        throw new RangeError("no more")
      }
      assert.ok((await rejection(box.$`cat`.stdin(failing()))) instanceof RangeError)
    })

    test("kill ends a command and its children, whether it comes early, late or after the end", async () => {
      const early = box.$`sleep 1001`
      await early.kill("SIGINT")
      assert.equal(((await rejection(early)) as { readonly signal?: string }).signal, "SIGINT")
      const late = box.$`sh -c "sleep 1001 & echo up; wait"`.nothrow()
      await until("sleep 1001 runs", async () => (await commands(box)).includes("sleep 1001"))
      await late.kill()
      assert.equal((await late).signal, "SIGTERM")
      await until("the end of sleep 1001", async () => !(await commands(box)).includes("sleep 1001"))
      const done = box.$`true`
      await done
      await done.kill()
    })

    test("a command that exceeds its timeout is killed with its children", async () => {
      const error = await rejection(box.$`sh -c "echo started; sleep 1002 & wait"`.timeout("1500 millis"))
      assert.ok(error instanceof BerthError && error._tag === "WaitFailed" && error.reason === "TimedOut")
      assert.deepEqual(error.log, ["started"])
      assert.deepEqual([error.stdout, error.stderr], ["started\n", ""])
      assert.match(error.message, /no end of sh -c .* within 1500 ms/)
      await until("the end of sleep 1002", async () => !(await commands(box)).includes("sleep 1002"))
    })

    test("a command that has been awaited takes no more options", async () => {
      const command = box.$`true`
      await command
      assert.throws(() => command.nothrow(), { _tag: "InvalidOption" })
    })

    test("a command of a verbose box shows its output unless it is quiet", async () => {
      const written: Array<string> = []
      const { write } = process.stderr
      process.stderr.write = ((chunk: Uint8Array) => {
        written.push(Buffer.from(chunk).toString())
        return true
      }) as typeof write
      try {
        const { $ } = box.with({ verbose: true })
        assert.equal((await $`sh -c "echo shown >&2"`).stderr, "shown\n")
        assert.equal((await $`sh -c "echo not >&2"`.quiet()).stderr, "not\n")
        assert.equal((await box.$`sh -c "echo neither >&2"`).stderr, "neither\n")
      } finally {
        process.stderr.write = write
      }
      assert.deepEqual(written, ["shown\n"])
    })

    test("a command that writes more than maxOutputBytes rejects", async () => {
      const error = await rejection(box.with({ maxOutputBytes: 1000 }).$`yes`)
      assert.ok(error instanceof BerthError && error._tag === "ContainerError")
      assert.equal(error.reason, "OutputTooLong")
      assert.equal(error.stdout, "y\n".repeat(500))
      const cut = await box.with({ maxOutputBytes: 4, onOverflow: "truncate" }).$`seq 1 100000`
      assert.deepEqual([cut.stdout, cut.truncated], ["1\n2\n", true])
    })

    test("a command gives its stdout byte for byte", async () => {
      assert.deepEqual([...(await box.$`printf ${"a\\377\\000b"}`.bytes())], [97, 255, 0, 98])
      assert.equal((await box.$`head -c 1000000 /dev/zero`.bytes()).length, 1_000_000)
      const command = box.$`true`
      await command
      await assert.rejects(command.bytes(), { _tag: "InvalidOption" })
    })

    test("run and exec give a command its input", async () => {
      const lines = function* () {
        yield "one\n"
        yield new TextEncoder().encode("two\n")
      }
      assert.equal((await box.exec(["cat"], { input: lines() })).stdout, "one\ntwo\n")
      assert.equal((await box.with({ input: "text" }).$`cat`).stdout, "text")
      assert.equal(
        (await berth.run("host", { command: ["cat"], input: Readable.from(["a", "b"]) })).stdout,
        "ab"
      )
    })

    test("a wrong duration, and an input that a process has no pipe for, reject with InvalidOption", async () => {
      const command = box.$`true`
      assert.throws(() => command.timeout("soon" as never), { _tag: "InvalidOption", option: "$.timeout" })
      await command
      await assert.rejects(box.stdin("text"), { _tag: "InvalidOption", option: "stdin" })
    })
  })

  test("box.with gives commands another folder, environment and user", async () => {
    const inner = box.with({ cwd: "/usr", env: { A: "1", B: "1" } }).with({ env: { B: "2" }, user: "1:1" })
    assert.deepEqual(await inner.$`sh -c 'pwd; echo $A$B; id -u'`.lines(), ["/usr", "12", "1"])
    const { stdout } = await inner.exec(["sh", "-c", "echo $A$B$C"], { env: { C: "3" } })
    assert.equal(stdout, "123\n")
    assert.equal((await box.exec(["sh", "-c", "exit 4"])).exitCode, 4)
  })

  test("a box is read, written to, signalled and waited for", async () => {
    await using cat = await berth.start("host", { command: ["cat"], stdin: "pipe" })
    await cat.stdin("in and out")
    const parts: Array<Uint8Array> = []
    for await (const bytes of cat.stdout) parts.push(bytes)
    assert.equal(Buffer.concat(parts).toString(), "in and out")
    assert.equal((await cat.wait()).exitCode, 0)
    await using trap = await berth.start("host", {
      command: ["sh", "-c", "trap 'exit 5' USR1; echo up; while :; do sleep 0.02; done"]
    })
    for await (const { line, stream } of trap.logs({ follow: true })) {
      assert.deepEqual([line, stream], ["up", "stdout"])
      await trap.kill("SIGUSR1")
    }
    assert.equal((await trap.wait()).exitCode, 5)
    await using deaf = await berth.start("host", sleeper)
    assert.equal((await deaf.stop({ grace: 50 })).signal, "SIGKILL")
  })

  test("disposing of a box ends it, and can be repeated", async () => {
    const { pid } = await (async () => {
      await using inner = await berth.start("host", sleeper)
      assert.ok(isAlive(inner.pid))
      return inner
    })()
    assert.ok(!isAlive(pid))
    const twice = await berth.start("host", sleeper)
    await Promise.all([twice[Symbol.asyncDispose](), twice[Symbol.asyncDispose]()])
    await twice[Symbol.asyncDispose]()
    assert.ok(!isAlive(twice.pid))
  })

  describe("an AbortSignal", () => {
    test("a signal that is already aborted rejects every call with its reason", async () => {
      const reason = new TypeError("enough")
      const signal = AbortSignal.abort(reason)
      assert.equal(await rejection(berth.start("host", { ...sleeper, signal })), reason)
      assert.equal(await rejection(berth.run("host", { ...sleeper, signal })), reason)
      assert.equal(await rejection(box.with({ signal }).$`true`), reason)
      assert.equal(await rejection(box.exec(["true"], { signal })), reason)
      assert.equal(await rejection(box.wait({ signal })), reason)
      assert.equal(await rejection(open({ signal })), reason)
    })

    test("an abort ends its own call and nothing else", async () => {
      const before = descendants(process.pid)
      const soon = () => AbortSignal.timeout(150)
      const errors = await Promise.all([
        rejection(berth.run("host", { ...sleeper, signal: soon() })),
        rejection(box.exec(["sh", "-c", "sleep 1003 & wait"], { signal: soon() })),
        rejection(box.with({ signal: soon() }).$`sh -c "sleep 1003 & wait"`),
        rejection(box.wait({ signal: soon() })),
        rejection(
          (async () => {
            for await (const _ of box.with({ signal: soon() }).$`sleep 1003`);
          })()
        )
      ])
      for (const error of errors) assert.equal((error as Error).name, "TimeoutError")
      // The sleeper does not wait for orphans, so they stay zombies until the box ends.
      const isLeft = (pid: number): boolean => !before.includes(pid) && isAlive(pid)
      await until("the end of all that was aborted", () => !descendants(process.pid).some(isLeft))
      assert.equal(await box.$`echo still here`.text(), "still here\n")
    })

    test("an abort ends a start at any of its stages", async () => {
      const before = supervisors().length
      // The moment is what is tested.
      for (let millis = 0; millis < 20; millis += 2) {
        const controller = new AbortController()
        setTimeout(() => controller.abort(), millis)
        try {
          const started = await start("host", { ...sleeper, signal: controller.signal, linger: 0 })
          await started[Symbol.asyncDispose]()
        } catch (error) {
          assert.equal((error as Error).name, "AbortError")
        }
        assert.equal(supervisors().length, before)
      }
    })
  })

  describe("an error", () => {
    test("an error of Berth is an instance of BerthError with a tag", async () => {
      const errors = [
        await rejection(start("/no/such/folder")),
        await rejection(start("host", { limits: { memory: "12 parsecs" } })),
        await rejection(start("UPPER/case")),
        await rejection(run("host", { command: ["/no/such"], linger: 0 }))
      ]
      for (const error of errors)
        assert.ok(error instanceof BerthError && error instanceof Error, String(error))
      assert.equal((errors[1] as BerthError)._tag, "InvalidOption")
      assert.equal((errors[3] as BerthError)._tag, "CommandFailed")
    })

    test("an error of another kind is not an instance of BerthError", () => {
      for (const other of [new Error("x"), { _tag: "InvalidOption" }, null, undefined, 1])
        assert.ok(!((other as unknown) instanceof BerthError))
    })
  })

  describe("the supervisor", () => {
    test("without a linger, the supervisor ends with the last box, and the next start begins another", async () => {
      const before = supervisors().length
      const first = await start("host", { ...sleeper, linger: 0 })
      const second = await start("host", { ...sleeper, linger: 0 })
      assert.equal(supervisors().length, before + 1)
      await first[Symbol.asyncDispose]()
      assert.equal(await second.$`echo 1`.text(), "1\n")
      assert.equal(supervisors().length, before + 1)
      await second[Symbol.asyncDispose]()
      assert.equal(supervisors().length, before)
      assert.equal((await run("host", { command: ["echo", "2"], linger: 0 })).stdout, "2\n")
      assert.equal(supervisors().length, before)
    })

    test("one supervisor serves all boxes that run at once", async () => {
      const before = supervisors().length
      let most = 0
      const timer = setInterval(() => {
        most = Math.max(most, supervisors().length)
      }, 5)
      await Promise.all(
        Array.from({ length: 8 }, () => run("host", { command: ["sleep", "0.1"], linger: 0 }))
      )
      clearInterval(timer)
      assert.equal(most, before + 1)
      assert.equal(supervisors().length, before)
    })

    test("a session's supervisor lives until the session and its boxes are disposed of", async () => {
      const before = supervisors().length
      const own = await open({ folder: `${folder}/own` })
      assert.equal(supervisors().length, before + 1)
      await own.run("host", { command: ["true"] })
      assert.equal(supervisors().length, before + 1)
      const last = await own.start("host", sleeper)
      await own[Symbol.asyncDispose]()
      assert.equal(await last.$`echo 1`.text(), "1\n")
      await last[Symbol.asyncDispose]()
      assert.equal(supervisors().length, before)
      assert.deepEqual(fs.readdirSync(`${folder}/own/run`), [])
    })
  })

  const root = fileURLToPath(new URL("../..", import.meta.url))
  const deno = `${root}node_modules/.bin/deno`

  test("Deno's sanitizers find no operation, resource or timer left open", {
    skip: fs.existsSync(deno) ? false : "no deno: npm ci installs it"
  }, async () => {
    const file = `${root}test/deno/sanitizers.deno.ts`
    const env = { ...process.env, BERTH_TEST_FOLDER: `${folder}/deno`, NO_COLOR: "1" }
    const output = await new Promise<string>((resolve) => {
      execFile(deno, ["test", "-A", "--no-check", file], { cwd: root, env }, (_, out, err) =>
        resolve(out + err)
      )
    })
    assert.match(output, /ok \| 7 passed \| 0 failed/, output)
  })
})
