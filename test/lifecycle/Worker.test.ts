import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as process from "node:process"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import { Worker } from "node:worker_threads"
import * as Effect from "effect/Effect"
import { Container, Image } from "../../lib/index.ts"
import { allowTime, berthIn, makeTemporaryFolder, remove, whyNoContainers } from "../support/effect.ts"
import { descendants, eventually, leftovers, type Snapshot, snapshot } from "../support/leftovers.ts"

const source = "../support/worker.ts"
const bundled = process.env.BERTH_BUNDLED
const isNode = !("Deno" in globalThis || "Bun" in globalThis)

const begin = (folder: string, work: string): Worker =>
  isNode && bundled !== undefined
    ? new Worker(`${bundled}/test/lifecycle/${source.replace(/ts$/, "js")}`, { workerData: { folder, work } })
    : new Worker(fileURLToPath(new URL(source, import.meta.url)), {
        workerData: { folder, work },
        ...(isNode ? { execArgv: ["--import", "tsx"] } : {})
      })

/** The next message of a worker. */
const said = (worker: Worker): Promise<unknown> =>
  new Promise((resolve, reject) => {
    worker.once("message", resolve)
    worker.once("error", reject)
  })

const threads = (): number => fs.readdirSync("/proc/self/task").length

// Where a worker is terminated while it works, Deno leaves the two descriptors of its event loop. Berth's loop would leave
// a pipe as well.
const isDenos = (what: string): boolean =>
  "Deno" in globalThis && /^descriptor of anon_inode:\[event(poll|fd)\]/.test(what)

const nothingLeft = async (before: Snapshot, folder: string): Promise<void> =>
  assert.deepEqual(await leftovers(before, folder, isDenos), [])

/** Lets the runtime start the threads that it keeps. */
const warm = async (): Promise<void> => {
  for (let k = 0; k < 2; k++) {
    const worker = begin("", "idle")
    assert.equal(await said(worker), "ready")
    await worker.terminate()
  }
}

allowTime()

describe("Worker threads", { skip: whyNoContainers }, () => {
  let folder = ""
  before(async () => {
    folder = makeTemporaryFolder()
    await warm()
  })
  after(() => remove(folder))

  for (const work of ["nothing", "exec", "log", "stream", "files"]) {
    test(`a worker that is terminated leaves nothing, its work: ${work}`, async () => {
      const own = `${folder}/${work}`
      const earlier = snapshot()
      const were = threads()
      for (let round = 0; round < 2; round++) {
        const worker = begin(own, work)
        assert.equal(await said(worker), "ready")
        assert.ok(descendants(process.pid).length > earlier.processes.length, "its container should run")
        await worker.terminate()
      }
      await nothingLeft(earlier, own)
      assert.ok(await eventually(() => threads() <= were), `${threads()} threads, ${were} before`)
    })
  }

  test("a worker that ends by itself leaves nothing", async () => {
    const own = `${folder}/exit`
    const earlier = snapshot()
    const worker = begin(own, "exit")
    const ended = new Promise((resolve) => worker.once("exit", resolve))
    assert.equal(await said(worker), "ready")
    await ended
    await nothingLeft(earlier, own)
  })

  test("other workers and the program go on when a worker is terminated", async () => {
    const program = Effect.gen(function* () {
      const image = yield* Image.host
      const box = yield* Container.start(image, { command: ["sleep", "1000"] })
      yield* Effect.promise(async () => {
        const workers = ["log", "nothing"].map((work) => begin(`${folder}/several-${work}`, work))
        for (const reply of await Promise.all(workers.map(said))) assert.equal(reply, "ready")
        const [first, second] = workers as [Worker, Worker]
        await first.terminate()
        const answer = said(second)
        second.postMessage("say")
        assert.equal(await answer, "here")
        await second.terminate()
      })
      assert.equal((yield* Container.exec(box, ["echo", "here"])).stdout, "here\n")
    })
    await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(berthIn(`${folder}/own`))))
  })
})
