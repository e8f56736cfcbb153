import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { berth, events, startBerth } from "../support/cli.ts"
import { waitUntil } from "../support/containers.ts"
import { suite } from "../support/effect.ts"
import { descendants, isAlive } from "../support/leftovers.ts"
import { commandOf, ended, firstLine } from "../support/program.ts"
import { typedOnTerminal } from "../support/terminal.ts"

/** Sends a signal. In Deno, `child.kill` sends no second one. */
const kill = (child: ChildProcess, signal: NodeJS.Signals): boolean => process.kill(child.pid!, signal)

const isRoot = process.getuid?.() === 0

suite("berth run", (effect, folder) => {
  const run = (options: ReadonlyArray<string>, command: ReadonlyArray<string>, input?: string) =>
    Effect.promise(() =>
      berth(
        ["run", "--folder", folder(), ...options, "host", "--", ...command],
        input === undefined ? {} : { input }
      )
    )
  const sh = (script: string, options: ReadonlyArray<string> = [], input?: string) =>
    run(options, ["sh", "-c", script], input)
  const start = (options: ReadonlyArray<string>, script: string, io = {}) =>
    startBerth(["run", "--folder", folder(), ...options, "host", "--", "sh", "-c", script], io)

  effect("the container's outputs and exit code are those of the command", function* () {
    const { code, stderr, stdout } = yield* sh("echo out; echo err >&2; exit 7")
    assert.deepEqual([code, stdout, stderr], [7, "out\n", "err\n"])
  })

  effect("a signal that ends the container gives 128 and its number", function* () {
    assert.equal((yield* run(["--init"], ["sh", "-c", "kill -TERM $$"])).code, 143)
  })

  effect("a failure of Berth gives 125, 126 or 127, and one line", function* () {
    const missing = yield* run([], ["no-such-program"])
    assert.equal(missing.code, 127)
    assert.match(missing.stderr, /^berth: no-such-program: command not found[^\n]*\n$/)
    const refused = yield* run([], ["/etc/passwd"])
    assert.equal(refused.code, 126)
    assert.match(refused.stderr, /^berth: \/etc\/passwd: cannot be executed[^\n]*\n$/)
    const limit = yield* run(["--memory", "12 parsecs"], ["true"])
    assert.equal(limit.code, 125)
    assert.match(limit.stderr, /^berth: limits\.memory: "12 parsecs" is not acceptable[^\n]*\n$/)
    for (const { stdout } of [missing, refused, limit]) assert.equal(stdout, "")
  })

  effect("--debug prints the cause and the stack of a failure", function* () {
    const { code, stderr } = yield* run(["--debug"], ["no-such-program"])
    assert.equal(code, 127)
    assert.match(stderr, /execve.*ENOENT/)
    assert.ok(stderr.split("\n").length > 2)
  })

  effect("-i passes the input on, and without it the container reads nothing", function* () {
    assert.equal((yield* run(["-i"], ["cat"], "one\ntwo\n")).stdout, "one\ntwo\n")
    assert.equal((yield* run([], ["cat"], "one\n")).stdout, "")
  })

  effect("-i reads no more of a large input than the container takes", function* () {
    const child = startBerth(
      [
        "run",
        "--folder",
        folder(),
        "-i",
        "host",
        "--",
        "sh",
        "-c",
        "echo up; read line; echo $line; head -c 67108864 | wc -c"
      ],
      { stdio: ["pipe", "pipe", "inherit"] }
    )
    const end = ended(child)
    yield* Effect.promise(() => firstLine(child))
    child.stdin!.write("first\n")
    const chunk = Buffer.alloc(1 << 20)
    for (let sent = 0; sent < 64; sent++)
      yield* Effect.promise(() => new Promise((resolve) => child.stdin!.write(chunk, resolve)))
    child.stdin!.end()
    const { code, stdout } = yield* Effect.promise(() => end)
    assert.deepEqual([code, stdout], [0, "up\nfirst\n67108864\n"])
  })

  effect(
    "the options set environment, working folder, user, hostname, mounts and a read-only root",
    function* () {
      const data = `${folder()}/shared`
      fs.mkdirSync(data, { mode: 0o755 })
      fs.writeFileSync(`${data}/file`, "of the host")
      const options = [
        "-e",
        "A=b=c",
        "-e",
        "PATH",
        "-w",
        "/tmp",
        "-u",
        "0:0",
        "--hostname",
        "ship",
        "-v",
        `${data}:/mnt:ro`,
        "--read-only"
      ]
      const script =
        'echo "$A"; pwd; id -u; hostname; cat /mnt/file; echo; echo x > /mnt/file || echo refused; echo x > /root/x || echo refused'
      const { stdout } = yield* sh(script, options)
      const [a, cwd, id, hostname, ...rest] = stdout.trim().split("\n")
      assert.deepEqual([a, cwd, id, hostname], ["b=c", "/tmp", "0", "ship"])
      assert.deepEqual(rest, ["of the host", "refused", "refused"].slice(0, rest.length))
      assert.equal(fs.readFileSync(`${data}/file`, "utf8"), "of the host")
    }
  )

  effect("a wrong -v or -e is named", function* () {
    const mount = yield* run(["-v", "a:b"], ["true"])
    assert.deepEqual([mount.code, mount.stdout], [125, ""])
    assert.match(mount.stderr, /^berth: --volume: "a:b" is not acceptable: expected SOURCE:TARGET/)
    assert.match((yield* run(["-e", "=x"], ["true"])).stderr, /^berth: --env: "=x" is not acceptable/)
  })

  effect("a volume with a name keeps its files until it is removed", function* () {
    assert.equal((yield* sh("echo kept > /data/file", ["-v", "cli-data:/data"])).code, 0)
    assert.equal((yield* sh("cat /data/file", ["-v", "cli-data:/data:ro"])).stdout, "kept\n")
    const of = (args: ReadonlyArray<string>) =>
      Effect.promise(() => berth(["volumes", "--folder", folder(), ...args]))
    assert.match((yield* of([])).stdout, /^NAME +SIZE +COPY OF\ncli-data\n$/)
    assert.deepEqual(JSON.parse((yield* of(["--json"])).stdout), [{ name: "cli-data" }])
    assert.equal((yield* of(["--remove", "cli-data"])).code, 0)
    const again = yield* of(["--remove", "cli-data"])
    assert.equal(again.code, 3)
    assert.match(again.stderr, /^berth: volume cli-data: /)
  })

  effect.asRoot(
    "--userns gives ids of its own, and --memory says when it has ended the container",
    function* () {
      assert.notEqual(
        (yield* sh("cat /proc/self/uid_map", ["--userns"])).stdout,
        (yield* sh("cat /proc/self/uid_map")).stdout
      )
      const { code, stderr } = yield* run(["--memory", "16m"], ["tail", "/dev/zero"])
      assert.equal(code, 137)
      assert.match(stderr, /^berth: the OOM killer ended the container.*--memory/m)
    }
  )

  effect("--json prints events: the start, the outputs and the end", function* () {
    const { code, stdout } = yield* sh("echo out; cat; exit 3", ["--json", "-i"], "given")
    assert.equal(code, 3)
    const [first, ...others] = events(stdout)
    assert.equal(first!.type, "start")
    assert.match(String(first!.id), /^[0-9a-f]{12}$/)
    const text = others
      .filter(({ type }) => type === "output")
      .map((event) => event.text)
      .join("")
    assert.equal(text, "out\ngiven")
    assert.deepEqual([others.at(-1)!.type, others.at(-1)!.exitCode], ["exit", 3])
  })

  effect("--json prints a failure as JSON, without the container's environment", function* () {
    const { code, stderr, stdout } = yield* run(["--json", "-e", "SECRET=hush"], ["no-such-program"])
    assert.deepEqual([code, stdout], [127, ""])
    const { error, exitCode } = JSON.parse(stderr)
    assert.deepEqual([error._tag, error.reason, exitCode], ["CommandFailed", "NotFound", 127])
    assert.doesNotMatch(stderr, /hush/)
  })

  effect("-p publishes a port and says which one", function* () {
    const server = "require('node:net').createServer((s) => s.end('hello')).listen(80)"
    const child = startBerth([
      "run",
      "--folder",
      folder(),
      "--init",
      "-p",
      "80",
      "host",
      "--",
      "node",
      "--eval",
      server
    ])
    let text = ""
    child.stderr!.on("data", (bytes) => {
      text += bytes
    })
    const end = ended(child)
    yield* waitUntil("the published port", () => /leads to/.test(text))
    const [, hostname, port] = /^berth: (\S+):(\d+) leads to port 80 of the container$/m.exec(text)!
    const ask = (): Promise<string> =>
      new Promise((resolve) => {
        let got = ""
        const socket = net.connect(Number(port), hostname!)
        socket.on("data", (bytes) => {
          got += bytes
        })
        socket.on("error", () => resolve(""))
        socket.on("close", () => resolve(got))
      })
    yield* waitUntil("the server's answer", async () => (await ask()) === "hello")
    kill(child, "SIGTERM")
    assert.equal((yield* Effect.promise(() => end)).code, 143)
  })

  effect("SIGTERM and SIGINT go to the container, whose exit code counts", function* () {
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      const child = start(
        [],
        `trap 'echo got; exit 9' ${signal.slice(3)}; echo up; while :; do sleep 0.1; done`
      )
      const end = ended(child)
      yield* Effect.promise(() => firstLine(child))
      kill(child, signal)
      const { code, stdout } = yield* Effect.promise(() => end)
      assert.deepEqual([code, stdout], [9, "up\ngot\n"])
    }
  })

  effect("the second signal kills a container that ignores the first", function* () {
    const child = start([], "trap 'echo ignored' TERM; echo up; while :; do sleep 0.1; done")
    const end = ended(child)
    let text = ""
    child.stdout!.on("data", (bytes) => {
      text += bytes
    })
    yield* waitUntil("the container", () => text.includes("up\n"))
    kill(child, "SIGTERM")
    yield* waitUntil("the first signal", () => text.includes("ignored"))
    kill(child, "SIGTERM")
    assert.equal((yield* Effect.promise(() => end)).code, 137)
  })

  effect("a signal before the container runs ends the command", function* () {
    // It reads what it is asked, as it would not notice the end of a connection otherwise.
    const silent = net.createServer((socket) => socket.on("error", () => {}).resume())
    yield* Effect.promise(() => new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve)))
    const { port } = silent.address() as net.AddressInfo
    const asked = new Promise((resolve) => silent.once("connection", resolve))
    const child = startBerth(["run", "--folder", folder(), `127.0.0.1:${port}/never:1`])
    const end = ended(child)
    yield* Effect.promise(() => asked)
    kill(child, "SIGTERM")
    const { code, stdout } = yield* Effect.promise(() => end)
    assert.deepEqual([code, stdout], [143, ""])
    yield* Effect.promise(() => new Promise((resolve) => silent.close(resolve)))
  })

  effect("a reader that leaves ends the command quietly, with 141", function* () {
    const child = start([], "while :; do echo line; done")
    const exited = new Promise<number | null>((resolve) => child.on("exit", resolve))
    let errors = ""
    child.stderr!.on("data", (bytes) => {
      errors += bytes
    })
    yield* Effect.promise(() => firstLine(child))
    child.stdout!.destroy()
    assert.deepEqual([yield* Effect.promise(() => exited), errors], [141, ""])
  })

  effect("a kill of the command leaves no process, mount or folder", function* () {
    const child = start(["-v", "/kept"], "echo up; sleep 1000")
    const exited = new Promise((resolve) => child.on("exit", resolve))
    yield* Effect.promise(() => firstLine(child))
    const started = descendants(child.pid!)
    assert.ok(started.length >= 2, "the supervisor and the container")
    kill(child, "SIGKILL")
    yield* Effect.promise(() => exited)
    yield* waitUntil("the end of its processes", () => !started.some(isAlive))
    // The suite looks for all else.
  })

  effect(
    "-it is a terminal: its size, keys, resizes and exit code",
    function* () {
      const script =
        "trap 'stty size' WINCH; trap 'echo interrupted' INT; stty size; while :; do read -r line && $line; done"
      const { args, command } = commandOf("bin.ts", [
        "run",
        "--folder",
        folder(),
        "-it",
        "host",
        "--",
        "sh",
        "-c",
        script
      ])
      yield* typedOnTerminal([command, ...args])
    },
    { skip: fs.existsSync("/usr/bin/script") ? false : "script(1) is not installed" }
  )

  effect("the demo shows limits and leaves nothing behind", function* () {
    const { code, stdout } = yield* Effect.promise(() => berth(["demo", "--folder", folder()]))
    assert.equal(code, 0, stdout)
    assert.match(stdout, /written inside/)
    if (isRoot) assert.match(stdout, /ended with SIGKILL, OOM kills: [1-9]/)
    const json = yield* Effect.promise(() => berth(["demo", "--folder", folder(), "--json"]))
    assert.deepEqual(JSON.parse(json.stdout).left, { mounts: [], cgroups: [], processes: [], folders: [] })
  })
})
