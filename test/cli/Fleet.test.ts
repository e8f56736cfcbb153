import assert from "node:assert/strict"
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { berth, startBerth } from "../support/cli.ts"
import { waitUntil } from "../support/containers.ts"
import { suite } from "../support/effect.ts"
import { isAlive } from "../support/leftovers.ts"
import { ended, firstLine, program, root } from "../support/program.ts"

const TOKEN = "a token of the test"

suite("a fleet of the command line", (effect, folder) => {
  /** A file with the token, as an editor writes it. */
  const tokenFile = (): string => {
    fs.writeFileSync(`${folder()}/token`, `${TOKEN}\n`)
    return `${folder()}/token`
  }

  const killed = (child: ChildProcess) =>
    Effect.sync(() => {
      child.kill("SIGKILL")
    })

  /** A runner, until the scope closes, and its address. */
  const startRunner = (...options: ReadonlyArray<string>) =>
    Effect.gen(function* () {
      const args = ["--listen", "tcp://127.0.0.1:0", "--token-file", tokenFile(), "--allow-host-image"]
      const child = yield* Effect.acquireRelease(
        Effect.sync(() => startBerth(["runner", "--folder", `${folder()}/runner`, ...args, ...options])),
        killed
      )
      const line = yield* Effect.promise(() => firstLine(child))
      const [address] = /tcp:\/\/127\.0\.0\.1:\d+/.exec(line) ?? assert.fail(line)
      return { child, line, address }
    })

  /** A program that has a container on the runner. */
  const startClient = (address: string) =>
    Effect.gen(function* () {
      const child = yield* Effect.acquireRelease(
        Effect.sync(() => program("fleetProgram.ts", [address, TOKEN])),
        killed
      )
      const output = ended(child)
      const { id, pid } = JSON.parse(yield* Effect.promise(() => firstLine(child)))
      return { child, id: id as string, pid: pid as number, output: Effect.promise(() => output) }
    })

  const list = (...args: ReadonlyArray<string>) =>
    Effect.promise(() => berth(["fleet", "--token-file", tokenFile(), ...args]))

  for (const signal of ["SIGTERM", "SIGINT"] as const)
    effect(
      `a runner that gets ${signal} ends its containers and then itself, with the exit code 0`,
      function* () {
        const { address, child, line } = yield* startRunner()
        assert.match(line, /^the runner listens on tcp:\/\/127\.0\.0\.1:\d+$/)
        const exit = ended(child)
        const { output, pid } = yield* startClient(address)
        assert.ok(isAlive(pid))
        process.kill(child.pid!, signal)
        const { code, stderr } = yield* Effect.promise(() => exit)
        assert.deepEqual([code, stderr], [0, ""])
        assert.ok(!isAlive(pid))
        assert.match((yield* output).stdout, /RunnerLost\n$/)
        assert.deepEqual(fs.readdirSync(`${folder()}/runner/run`), [])
      }
    )

  effect("berth fleet lists the runners, their room and the containers of all programs", function* () {
    const { address } = yield* startRunner(
      "--name",
      "one",
      "--label",
      "gpu=a100",
      "--memory",
      "1GB",
      "--cpus",
      "3"
    )
    const { child, id, output } = yield* startClient(address)
    const { code, stderr, stdout } = yield* list("--runner", address)
    assert.deepEqual([code, stderr], [0, ""])
    assert.match(stdout, /^RUNNER +ADDRESS +MACHINE +MEMORY +CPUS +CONTAINERS +LABELS\n/)
    assert.match(stdout, new RegExp(`^one +${address} .* 67\\.1 MB of 1\\.0 GB +0 of 3 +1 +gpu=a100$`, "m"))
    assert.match(stdout, new RegExp(`^${id.slice(0, 12)} +one +host +67\\.1 MB$`, "m"))

    const [seen] = JSON.parse((yield* list("--runner", address, "--json")).stdout)
    assert.equal(seen.address, address)
    assert.deepEqual(seen.labels, { gpu: "a100" })
    assert.deepEqual([seen.room.memoryBytes, seen.room.cpus, seen.room.containers], [1e9, 3, 1])
    assert.deepEqual(seen.running, [
      { runner: "one", id, image: "host", memoryBytes: 64 * 1024 * 1024, cpus: 0 }
    ])
    child.stdin!.end()
    assert.match((yield* output).stdout, /input\n$/)
  })

  effect("berth fleet --watch shows each change until a signal ends it", function* () {
    const { address } = yield* startRunner()
    const watcher = yield* Effect.acquireRelease(
      Effect.sync(() =>
        startBerth(["fleet", "--watch", "--json", "--runner", address, "--token-file", tokenFile()])
      ),
      killed
    )
    let text = ""
    watcher.stdout!.on("data", (chunk) => {
      text += chunk
    })
    const counts = () =>
      [...text.matchAll(/^{"type":"runner".*"containers":(\d)/gm)].map(([, count]) => Number(count))
    yield* waitUntil("the first line", () => counts().includes(0))
    const { child, output } = yield* startClient(address)
    yield* waitUntil("the container", () => counts().includes(1))
    child.stdin!.end()
    yield* output
    yield* waitUntil("the end of the container", () => counts().at(-1) === 0)
    const exit = ended(watcher)
    process.kill(watcher.pid!, "SIGINT")
    assert.equal((yield* Effect.promise(() => exit)).code, 130)
  })

  effect("a runner that does not answer is named, and the exit code is 1", function* () {
    const { address } = yield* startRunner("--name", "one")
    const { code, stdout } = yield* list("--runner", address, "--runner", "tcp://127.0.0.1:1")
    assert.equal(code, 1)
    assert.match(stdout, /^one /m)
    assert.match(stdout, /^ +tcp:\/\/127\.0\.0\.1:1 +tcp:\/\/127\.0\.0\.1:1: the runner does not answer/m)
  })

  effect("the built program has a fleet without any package beside it", function* () {
    const { scripts } = JSON.parse(fs.readFileSync(`${root}package.json`, "utf8"))
    const out = `${folder()}/built/dist`
    const script = String(scripts["build:bin"]).replace("--outdir=dist/bin", `--outdir=${out}`)
    execFileSync("sh", ["-c", `node_modules/.bin/${script}`], { cwd: root })
    const args = [`${out}/bin.js`, "fleet", "--runner", "tcp://127.0.0.1:1", "--token-file", tokenFile()]
    const { code, stdout } = yield* Effect.promise(() => ended(spawn("node", args, { cwd: out })))
    assert.equal(code, 1)
    assert.match(stdout, /tcp:\/\/127\.0\.0\.1:1: the runner does not answer/)
  })

  const refused: ReadonlyArray<readonly [what: string, args: ReadonlyArray<string>, says: RegExp]> = [
    ["no address", [], /^berth: --listen: "" is not acceptable.*tcp:\/\/0\.0\.0\.0:7411/],
    [
      "neither token nor authority",
      ["--listen", "tcp://0.0.0.0:0"],
      /^berth: token: .*everybody who reaches the port/
    ],
    [
      "no certificate for tls://",
      ["--listen", "tls://127.0.0.1:0", "--token-file", "TOKEN"],
      /^berth: tls: .*a certificate and its key/
    ],
    [
      "a file of a token that is missing",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "/none"],
      /^berth: --token-file: .*ENOENT/
    ],
    [
      "an empty token",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "/dev/null"],
      /^berth: --token-file: .*not empty/
    ],
    [
      "another kind of address",
      ["--listen", "http://127.0.0.1:80", "--token-file", "TOKEN"],
      /^berth: address: .*tcp:\/\/host:port/
    ],
    [
      "a label without a value",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "TOKEN", "--label", "gpu"],
      /^berth: --label: "gpu".*KEY=VALUE/
    ],
    [
      "a lease that is no time",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "TOKEN", "--lease", "soon"],
      /^berth: --lease: "soon".*10s/
    ],
    [
      "memory that is no size",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "TOKEN", "--memory", "much"],
      /^berth: memory: "much"/
    ],
    [
      "an image with a tag",
      ["--listen", "tcp://127.0.0.1:0", "--token-file", "TOKEN", "--allow-image", "a.example/b:1"],
      /^berth: allow\.images: "a\.example\/b:1".*without a tag/
    ]
  ]
  for (const [what, args, says] of refused)
    effect(`a runner with ${what} is refused with the exit code 2`, function* () {
      const given = args.map((arg) => (arg === "TOKEN" ? tokenFile() : arg))
      const { code, stderr, stdout } = yield* Effect.promise(() =>
        berth(["runner", "--folder", `${folder()}/runner`, ...given])
      )
      assert.match(stderr, says)
      assert.deepEqual([code, stdout], [2, ""])
    })
})
