import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import * as fs from "node:fs"
import * as net from "node:net"
import { createClient } from "@libsql/client/sqlite3"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { postgres } from "../../lib/fixtures.ts"
import * as FleetWorkflow from "../../lib/fleetWorkflow.ts"
import { Fixture } from "../../lib/index.ts"
import { berth } from "../support/cli.ts"
import { allowTime, failure, suite } from "../support/effect.ts"
import { ended, firstLine, program, root } from "../support/program.ts"
import { startRegistry, whyNoServer, withoutDockerConfig } from "../support/registry.ts"
import { service } from "../support/services.ts"
import { until } from "../support/until.ts"

const { image, missing } = await service("postgres")
const database = postgres({ image })

allowTime(180_000)

// Its threads, and their descriptors, stay until the program ends.
createClient({ url: ":memory:" }).close()

/** A program that is killed when the scope closes, if it still runs then. */
const started = (script: string, ...args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => program(script, args)),
    (child) => Effect.promise(() => killed(child))
  )

const killed = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill("SIGKILL")
  await once(child, "exit")
}

/** The last line of a program is the text of the last step; the lines before are of its log. */
const checkEnd = (child: ChildProcess) =>
  Effect.map(
    Effect.promise(() => ended(child)),
    ({ code, stdout }) =>
      assert.deepEqual([code, stdout.trim().split("\n").at(-1)], [0, JSON.stringify("1\n2\n3\n4\n5\n")])
  )

/** Counts how often each step begins, and says when it may go on. */
const stepsServer = Effect.gen(function* () {
  const times = [0, 0, 0, 0, 0]
  const may = new Set([1, 2, 5])
  const waiting = new Map<number, net.Socket>()
  const server = yield* Effect.acquireRelease(
    Effect.async<net.Server>((resume) => {
      const made = net.createServer((socket) => {
        socket
          .on("error", () => {})
          .once("data", (line) => {
            const step = Number(line)
            times[step - 1]! += 1
            waiting.set(step, socket)
            if (may.has(step)) socket.write("go\n")
          })
      })
      made.listen(0, "127.0.0.1", () => resume(Effect.succeed(made)))
    }),
    (made) => Effect.sync(() => made.close())
  )
  return {
    port: (server.address() as net.AddressInfo).port,
    times,
    go: (step: number) => {
      may.add(step)
      waiting.get(step)?.write("go\n")
    },
    /** Until a step has begun so often. */
    begun: (step: number, often: number) =>
      Effect.promise(() => until(`step ${step}`, () => times[step - 1] === often, 60_000))
  }
})

suite("a workflow of five steps", (effect, berthFolder) => {
  withoutDockerConfig()
  const skip = missing || whyNoServer

  const aPostgres = (_folder: string) => Effect.map(Fixture.fork(database), ({ url }) => url)
  const aFile = (folder: string) => Effect.succeed(`file:${folder}/workflows`)

  /** Runners, a database and a registry, and what starts programs with them. */
  const fleetOf = Effect.fn(function* (databaseOf: typeof aPostgres) {
    const folder = fs.mkdtempSync(`${berthFolder()}-fleet-`)
    const steps = yield* stepsServer
    const registry = yield* Effect.acquireRelease(
      Effect.promise(() => startRegistry()),
      ({ stop }) => Effect.promise(stop)
    )
    const url = yield* databaseOf(folder)
    const token = randomBytes(16).toString("hex")
    const address = (name: string) => `unix:${folder}/${name}.socket`
    const runner = (name: string, labels: Readonly<Record<string, string>>) =>
      Effect.tap(
        started(
          "fleetMember.ts",
          `${folder}/${name}`,
          JSON.stringify({
            name,
            listen: address(name),
            labels,
            token,
            allow: { hostImage: true, hostNamespaces: true }
          })
        ),
        (child) => Effect.promise(() => firstLine(child))
      )
    const workflow = (lease: string) =>
      started(
        "workflow.ts",
        JSON.stringify({
          database: url,
          lease,
          runners: ["one", "two", "three"].map(address),
          token,
          place: `${registry.host}/team/ci`,
          port: steps.port
        })
      )
    return { runner, workflow, url, ...steps }
  })

  effect(
    "goes on after its program and a runner are killed, and does no step again that has ended",
    function* () {
      const { begun, go, runner, times, workflow } = yield* fleetOf(aPostgres)
      yield* runner("one", {})
      const two = yield* runner("two", { even: "yes" })
      const first = yield* workflow("3 seconds")
      yield* begun(3, 1)
      yield* Effect.promise(() => killed(first))
      const second = yield* workflow("3 seconds")
      yield* begun(3, 2)
      go(3)
      yield* begun(4, 1)
      yield* Effect.promise(() => killed(two))
      yield* runner("three", { even: "yes" })
      yield* begun(4, 2)
      go(4)
      yield* checkEnd(second)
      assert.deepEqual(times, [1, 1, 2, 2, 1])
    },
    { skip }
  )

  effect(
    "goes on after its program is killed, with its record in a file, which is for one program at a time",
    function* () {
      const { begun, go, runner, times, url, workflow } = yield* fleetOf(aFile)
      yield* runner("one", {})
      yield* runner("two", { even: "yes" })
      const first = yield* workflow("3 seconds")
      yield* begun(3, 1)
      const engine = FleetWorkflow.layerEngine({ database: Redacted.make(url) })
      const error = yield* failure("FleetError", Effect.scoped(Layer.build(engine)))
      assert.equal(error.reason, "Database")
      assert.match(error.message, new RegExp(`/workflows: process ${first.pid} .* one program at a time`))
      yield* Effect.promise(() => killed(first))
      const second = yield* workflow("3 seconds")
      yield* begun(3, 2)
      go(3)
      go(4)
      yield* checkEnd(second)
      assert.deepEqual(times, [1, 1, 2, 1, 1])
    },
    { skip: whyNoServer }
  )

  effect("is not recorded in what is no file of SQLite", function* () {
    const path = `${berthFolder()}-text`
    fs.writeFileSync(path, "this is a text, and no database at all\n".repeat(100))
    for (const [database, says] of [
      [`file:${path}`, /-text: the file cannot be used as a database: .*not a database/],
      ["file:/none/here", /^\/none\/here: the file cannot be used as a database: .*ENOENT/]
    ] as const) {
      const engine = FleetWorkflow.layerEngine({ database: Redacted.make(database) })
      assert.match((yield* failure("FleetError", Effect.scoped(Layer.build(engine)))).message, says)
    }
    fs.rmSync(path)
    fs.rmSync(`${path}-lock`)
    const elsewhere = FleetWorkflow.layerEngine({ database: Redacted.make("file://elsewhere/a") })
    yield* failure("InvalidOption", Effect.scoped(Layer.build(elsewhere)))
  })

  effect(
    "is done once by two programs that start together on an empty database",
    function* () {
      const { go, runner, times, workflow } = yield* fleetOf(aPostgres)
      yield* runner("one", {})
      yield* runner("two", { even: "yes" })
      go(3)
      go(4)
      const programs = yield* Effect.all([workflow("1 minute"), workflow("1 minute")])
      yield* Effect.forEach(programs, checkEnd, { concurrency: 2 })
      assert.deepEqual(times, [1, 1, 1, 1, 1])
    },
    { skip }
  )

  effect(
    "of a pipeline runs on the runners that `berth runner` has in a database: the example",
    function* () {
      const folder = fs.mkdtempSync(`${berthFolder()}-ci-`)
      const { url } = yield* Fixture.fork(database)
      fs.writeFileSync(`${folder}/database`, `${url}\n`)
      fs.writeFileSync(`${folder}/token`, "a token of the test\n")
      const files = ["--database-file", `${folder}/database`, "--token-file", `${folder}/token`]
      const where = ["--folder", `${folder}/runner`, "--listen", `unix:${folder}/runner.socket`]
      const runner = yield* started("bin.ts", "runner", ...where, ...files, "--allow-host-image")
      yield* Effect.promise(() => firstLine(runner))
      const listed = yield* Effect.promise(() => berth(["fleet", "--json", ...files]))
      assert.equal(JSON.parse(listed.stdout)[0].address, `unix:${folder}/runner.socket`)
      const env = {
        ...process.env,
        FLEET_DATABASE: url,
        FLEET_TOKEN: "a token of the test",
        FLEET_ARTIFACTS: "",
        TMPDIR: folder
      }
      const before =
        "Deno" in globalThis ? ["run", "--allow-all"] : "Bun" in globalThis ? ["run"] : ["--import", "tsx"]
      const example = spawn(process.execPath, [...before, `${root}examples/ci.ts`, "abc"], { cwd: root, env })
      const { code, stderr, stdout } = yield* Effect.promise(() => ended(example))
      assert.equal(code, 0, stderr)
      const shards = [1, 2, 3].map((shard) => `shard ${shard} is green\n`).join("")
      assert.match(stdout, new RegExp(`^built\n${shards}sha256:[0-9a-f]{64}\n$`, "m"))
    },
    { skip }
  )
})
