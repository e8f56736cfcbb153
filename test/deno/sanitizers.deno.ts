// Run by test/container/Promise.test.ts. Deno fails a test that leaves an operation, a resource or a timer open.
import assert from "node:assert/strict"
import { BerthError, open, run, start } from "../../lib/promise.ts"

declare const Deno: {
  readonly env: { readonly get: (name: string) => string | undefined }
  readonly test: (options: {
    readonly name: string
    readonly sanitizeOps: boolean
    readonly sanitizeResources: boolean
    readonly sanitizeExit: boolean
    readonly fn: () => Promise<void>
  }) => void
}

const test = (name: string, fn: () => Promise<void>): void =>
  Deno.test({ name, sanitizeOps: true, sanitizeResources: true, sanitizeExit: true, fn })

const folder = Deno.env.get("BERTH_TEST_FOLDER")!

test("a box and its commands leave nothing open", async () => {
  await using box = await start("host", { command: ["sleep", "infinity"], linger: 0 })
  assert.equal(await box.$`echo ${"a b"}`.text(), "a b\n")
  await assert.rejects(box.$`false`, (error) => error instanceof BerthError)
})

test("a run leaves nothing open", async () => {
  assert.equal((await run("host", { command: ["echo", "hello"], linger: 0 })).stdout, "hello\n")
})

test("a session in its own folder leaves nothing open", async () => {
  await using berth = await open({ folder })
  const [first, second] = await Promise.all([
    berth.run("host", { command: ["true"] }),
    berth.run("host", { command: ["false"] })
  ])
  assert.deepEqual([first.exitCode, second.exitCode], [0, 1])
})

test("a loop over lines that ends early leaves nothing open", async () => {
  await using box = await start("host", { command: ["sleep", "infinity"], linger: 0 })
  for await (const line of box.$`seq 1000000`) if (line === "3") break
})

test("commands that are aborted, killed or too slow leave nothing open", async () => {
  await using box = await start("host", { command: ["sleep", "infinity"], linger: 0 })
  const signal = AbortSignal.abort()
  await assert.rejects(box.with({ signal }).$`sleep 100`, { name: "AbortError" })
  const controller = new AbortController()
  const aborted = box.with({ signal: controller.signal }).$`sleep 100`
  controller.abort()
  await assert.rejects(aborted, { name: "AbortError" })
  const killed = box.$`sleep 100`
  await killed.kill()
  await assert.rejects(killed, { _tag: "NonZeroExit", signal: "SIGTERM" })
  await assert.rejects(box.$`sleep 100`.timeout(50), { _tag: "WaitFailed" })
})

test("a container that is read, written to and stopped leaves nothing open", async () => {
  await using box = await start("host", { command: ["cat"], stdin: "pipe", linger: 0 })
  await box.stdin("through")
  let text = ""
  for await (const bytes of box.stdout) text += new TextDecoder().decode(bytes)
  assert.equal(text, "through")
  assert.equal((await box.stop()).exitCode, 0)
})

test("a start that fails leaves nothing open", async () => {
  await assert.rejects(start("host", { command: ["/no/such/command"], linger: 0 }), { _tag: "CommandFailed" })
})
