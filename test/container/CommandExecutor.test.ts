import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Command from "@effect/platform/Command"
import * as CommandExecutor from "@effect/platform/CommandExecutor"
import type { PlatformError } from "@effect/platform/Error"
import { pipe } from "effect"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { bytesOf, firstLineOf, textOf } from "../support/containers.ts"
import { suite } from "../support/effect.ts"
import { eventually, isAlive } from "../support/leftovers.ts"

type Program = Effect.Effect<unknown, PlatformError, CommandExecutor.CommandExecutor | Scope.Scope>

interface Row {
  readonly name: string
  /** The program that runs on the host and in the container; both have `folder`. */
  readonly program: (folder: string) => Program
  /** Its result or the fields of its error, the same on both. */
  readonly expected: unknown
  /** Where the host gives this result: with Node's own `child_process` only, or nowhere. Default: in every runtime. */
  readonly host?: "node" | "nowhere"
}

const sh = (script: string): Command.Command => Command.make("sh", "-c", script)

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

const failsWith = (reason: string, method: string, pathOrDescriptor: string, module = "Command") => ({
  _tag: "SystemError",
  reason,
  module,
  method,
  pathOrDescriptor
})

const rows: ReadonlyArray<Row> = [
  {
    name: "Command.string gives everything written to stdout",
    program: () => Command.string(sh("echo out; echo err >&2; echo more")),
    expected: "out\nmore\n"
  },
  {
    name: "Command.lines and Command.streamLines split stdout into lines",
    program: () =>
      Effect.all([
        Command.lines(sh("echo 1; echo 2; printf 3")),
        Effect.map(Stream.runCollect(Command.streamLines(sh("seq 3"))), Chunk.toReadonlyArray)
      ]),
    expected: [
      ["1", "2", "3"],
      ["1", "2", "3"]
    ]
  },
  {
    name: "Command.stream gives the bytes of stdout unchanged",
    program: () => Effect.map(bytesOf(Command.stream(sh("printf '\\377\\000\\376'"))), (all) => [...all]),
    expected: [255, 0, 254]
  },
  {
    name: "Command.string decodes stdout with the given encoding",
    program: () => Command.string(sh("printf '\\351'"), "latin1"),
    expected: "é"
  },
  {
    name: "an output of a megabyte arrives whole",
    program: () => Effect.map(Command.string(sh("head -c 1000000 /dev/zero")), (text) => text.length),
    expected: 1_000_000
  },
  {
    name: "a nonzero exit code is a value and not an error",
    program: () => Command.exitCode(sh("exit 42")),
    expected: 42
  },
  {
    name: "a command ends although nobody reads its 100 kilobytes of output",
    program: () => Command.exitCode(sh("head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2; exit 3")),
    expected: 3
  },
  {
    name: "the exit code of a command that a signal ended is an error",
    program: () => Command.exitCode(sh("kill -KILL $$")),
    expected: failsWith("Unknown", "exitCode", "sh -c kill -KILL $$")
  },
  {
    name: "a missing command fails with NotFound",
    program: () => Command.exitCode(Command.make("no-such-command", "a", "b")),
    expected: failsWith("NotFound", "spawn", "no-such-command a b")
  },
  {
    name: "a missing path fails with NotFound",
    program: (folder) => Command.string(Command.make("./missing").pipe(Command.workingDirectory(folder))),
    expected: failsWith("NotFound", "spawn", "./missing ")
  },
  {
    name: "a file that is not executable fails with PermissionDenied",
    program: (folder) => Command.exitCode(Command.make("./plain").pipe(Command.workingDirectory(folder))),
    expected: failsWith("PermissionDenied", "spawn", "./plain ")
  },
  {
    name: "a folder in place of a command fails with PermissionDenied",
    program: () => Command.exitCode(Command.make("/usr")),
    expected: failsWith("PermissionDenied", "spawn", "/usr ")
  },
  {
    name: "a script without a #! line is run by a shell",
    host: "node",
    program: (folder) =>
      Command.string(Command.make("./script", "x y").pipe(Command.workingDirectory(folder))),
    expected: "script has x y\n"
  },
  {
    name: "a command is searched for in the PATH of its own environment",
    host: "node",
    program: (folder) => Command.string(Command.make("script", "z").pipe(Command.env({ PATH: folder }))),
    expected: "script has z\n"
  },
  {
    name: "a missing working folder fails with NotFound",
    program: () => Command.exitCode(Command.make("true").pipe(Command.workingDirectory("/no/such/folder"))),
    expected: failsWith("NotFound", "access", "/no/such/folder", "FileSystem")
  },
  {
    name: "a command runs in its working folder",
    program: (folder) =>
      Effect.map(
        Command.string(Command.make("pwd").pipe(Command.workingDirectory(folder))),
        (text) => text.trimEnd() === folder
      ),
    expected: true
  },
  {
    name: "Command.env adds variables to the environment",
    program: () =>
      Command.string(
        pipe(sh('echo "$A $B $(test -n "$PATH" && echo path)"'), Command.env({ A: "1", B: "two words" }))
      ),
    expected: "1 two words path\n"
  },
  {
    name: "Command.env with extendEnv: false replaces the environment",
    program: () => Command.string(Command.make("env").pipe(Command.env({ A: "1" }, { extendEnv: false }))),
    expected: "A=1\n"
  },
  {
    name: "Command.runInShell lets the shell expand and pipe",
    host: "node",
    program: () =>
      Command.string(Command.make("echo", "$((1 + 1))", "|", "tr", "2", "3").pipe(Command.runInShell(true))),
    expected: "3\n"
  },
  {
    name: "Command.runInShell with a path runs that shell",
    host: "node",
    program: () =>
      Command.string(Command.make("echo", "$BASH_VERSION", "$0").pipe(Command.runInShell("/bin/sh"))).pipe(
        Effect.map((text) => text.trimEnd().endsWith("/bin/sh"))
      ),
    expected: true
  },
  {
    name: "a command that the shell does not find ends with exit code 127",
    program: () => Command.exitCode(Command.make("no-such-command").pipe(Command.runInShell(true))),
    expected: 127
  },
  {
    name: "a missing shell fails with NotFound",
    program: () => Command.exitCode(Command.make("true").pipe(Command.runInShell("/no/sh"))),
    expected: failsWith("NotFound", "spawn", "true ")
  },
  {
    name: "Command.feed writes a text to stdin",
    program: () => Command.string(Command.make("cat").pipe(Command.feed("fed"))),
    expected: "fed"
  },
  {
    name: "a stream of 300 kilobytes passes through stdin to stdout",
    program: () =>
      Command.string(
        Command.make("cat").pipe(
          Command.stdin(Stream.range(1, 300).pipe(Stream.map(() => bytes("x".repeat(1000)))))
        )
      ).pipe(Effect.map((text) => text.length)),
    expected: 300_000
  },
  {
    name: "a stdin stream that fails ends stdin",
    program: () =>
      Command.string(
        Command.make("cat").pipe(
          Command.stdin(
            Stream.concat(Stream.make(bytes("so far")), Stream.fail({} as PlatformError)) as Stream.Stream<
              Uint8Array,
              PlatformError
            >
          )
        )
      ),
    expected: "so far"
  },
  {
    name: "the stdin sink writes its input and then ends stdin",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(Command.make("cat"))
        yield* Stream.run(Stream.make(bytes("one "), bytes("two")), process.stdin)
        return [yield* textOf(process.stdout), yield* process.exitCode]
      }),
    expected: ["one two", 0]
  },
  {
    name: "writing to the stdin of a command that has ended succeeds",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(Command.make("true"))
        yield* process.exitCode
        return yield* Stream.run(Stream.make(bytes("x")), process.stdin)
      }),
    expected: undefined
  },
  {
    name: "a sink given to Command.stdout transforms stdout",
    program: () =>
      Effect.gen(function* () {
        const length = Sink.map(Sink.collectAll<Uint8Array>(), (all) =>
          bytes(`${Chunk.reduce(all, 0, (total, next) => total + next.length)} bytes`)
        )
        const command = Command.stdout(sh("printf 1234"), length as never)
        const process = yield* Command.start(command)
        return yield* textOf(process.stdout)
      }),
    expected: "4 bytes"
  },
  {
    name: "stderr is a stream apart from stdout",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(sh("echo out; echo err >&2"))
        return yield* Effect.all([textOf(process.stdout), textOf(process.stderr)], { concurrency: 2 })
      }),
    expected: ["out\n", "err\n"]
  },
  {
    name: "inherited streams are those of the calling program",
    program: () =>
      Command.exitCode(
        sh("[ -e /dev/stdin ] && [ -e /dev/stdout ] && [ -e /dev/stderr ]").pipe(
          Command.stdin("inherit"),
          Command.stdout("inherit"),
          Command.stderr("inherit")
        )
      ),
    expected: 0
  },
  {
    name: "Command.pipeTo pipes commands into each other",
    program: () =>
      Command.string(
        pipe(
          sh("echo b; echo a; echo c"),
          Command.pipeTo(Command.make("sort")),
          Command.pipeTo(Command.make("head", "-n", "2")),
          Command.pipeTo(Command.make("tr", "ab", "AB"))
        )
      ),
    expected: "A\nB\n"
  },
  {
    name: "nested calls of Command.pipeTo make one pipeline",
    program: () =>
      Command.string(
        Command.pipeTo(
          sh("echo b; echo a"),
          Command.pipeTo(Command.make("sort"), Command.make("head", "-n", "1"))
        )
      ),
    expected: "a\n"
  },
  {
    name: "a pipeline's stdin goes to its first command, its environment and folder to every command",
    program: (folder) =>
      Command.lines(
        pipe(
          sh('cat; echo; echo "$A"; pwd'),
          Command.pipeTo(sh('cat; echo "$A"; pwd')),
          Command.stdin(Stream.make(bytes("in"))),
          Command.env({ A: "a" }),
          Command.workingDirectory(folder)
        )
      ).pipe(Effect.map((lines) => lines.map((line) => (line === folder ? "folder" : line)))),
    expected: ["in", "a", "folder", "a", "folder"]
  },
  {
    // On the host, its writer may live on.
    name: "an endless writer in a pipeline ends with its reader",
    host: "nowhere",
    program: () => Command.string(Command.pipeTo(Command.make("yes"), Command.make("head", "-n1"))),
    expected: "y\n"
  },
  {
    name: "a missing command in a pipeline leaves the next one without input",
    program: () => Command.string(Command.pipeTo(Command.make("no-such-command"), Command.make("cat"))),
    expected: ""
  },
  {
    name: "Process.kill sends SIGTERM and waits for the command to end",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(Command.make("sleep", "1000"))
        const before = yield* process.isRunning
        yield* process.kill()
        const after = yield* process.isRunning
        assert.deepEqual([before, after], [true, false])
        return yield* process.exitCode
      }),
    expected: failsWith("Unknown", "exitCode", "sleep 1000")
  },
  {
    name: "Process.kill sends the given signal, which the command may handle",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(sh("trap 'exit 7' USR1; echo up; while :; do sleep 0.02; done"))
        yield* firstLineOf(process)
        yield* process.kill("SIGUSR1")
        return yield* process.exitCode
      }),
    expected: 7
  },
  {
    name: "Process.kill fails when the command has ended",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(Command.make("true"))
        yield* process.exitCode
        return yield* process.kill()
      }),
    expected: failsWith("Unknown", "kill", "true ")
  },
  {
    name: "Process.kill also kills the children of the command",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(sh("sleep 1000 & echo up; wait"))
        yield* firstLineOf(process)
        yield* process.kill()
        // stdout ends with the last process that could write to it.
        return yield* Stream.runDrain(process.stdout)
      }),
    expected: undefined
  },
  {
    name: "closing the scope asks the command to end and waits until it has",
    program: (folder) =>
      Effect.gen(function* () {
        const file = `${folder}/said-goodbye`
        const script = `trap 'sleep 0.05; echo goodbye > ${file}; exit' TERM; echo up; while :; do sleep 0.02; done`
        yield* Effect.scoped(Effect.flatMap(Command.start(sh(script)), firstLineOf))
        const text = fs.readFileSync(file, "utf8")
        fs.rmSync(file)
        return text
      }),
    expected: "goodbye\n"
  },
  {
    name: "closing the scope kills the children that a failed command left",
    program: () =>
      Effect.gen(function* () {
        const left = yield* Effect.scoped(
          Effect.gen(function* () {
            const process = yield* Command.start(sh("sleep 1000 </dev/null >/dev/null 2>&1 & exit 1"))
            yield* process.exitCode
            return process.pid
          })
        )
        return yield* Effect.promise(() => eventually(() => !isGroupAlive(left)))
      }),
    expected: true
  },
  {
    name: "an interrupted program ends its command",
    program: () =>
      Effect.gen(function* () {
        const started = yield* Deferred.make<number>()
        const waiting = Effect.gen(function* () {
          const process = yield* Command.start(sh("echo up; exec sleep 1000"))
          yield* firstLineOf(process)
          yield* Deferred.succeed(started, process.pid as number)
          return yield* process.exitCode
        })
        const fiber = yield* Effect.fork(Effect.scoped(waiting))
        const pid = yield* Deferred.await(started)
        yield* Fiber.interrupt(fiber)
        return yield* Effect.promise(() => eventually(() => !isAlive(pid)))
      }),
    expected: true
  },
  {
    name: "a Process has a pid and prints with its type",
    program: () =>
      Effect.gen(function* () {
        const process = yield* Command.start(Command.make("sleep", "1000"))
        const printed = process.toJSON() as { readonly _id: string; readonly pid: number }
        return [isAlive(process.pid), printed._id, printed.pid === process.pid]
      }),
    expected: [true, "@effect/platform/CommandExecutor/Process", true]
  }
]

const isNode = !("Deno" in globalThis || "Bun" in globalThis)

/** Whether any process of this group is alive. */
const isGroupAlive = (group: number): boolean =>
  fs
    .readdirSync("/proc")
    .map(Number)
    .filter(Number.isInteger)
    .some((pid) => {
      try {
        const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\)/s, "").trim().split(" ")
        return Number(stat[2]) === group && stat[0] !== "Z" && stat[0] !== "X"
      } catch {
        return false
      }
    })

const outcome = (exit: Exit.Exit<unknown, PlatformError>): unknown => {
  if (Exit.isSuccess(exit)) return exit.value
  const error = Cause.squash(exit.cause) as PlatformError
  return error._tag === "SystemError"
    ? {
        _tag: error._tag,
        reason: error.reason,
        module: error.module,
        method: error.method,
        pathOrDescriptor: error.pathOrDescriptor
      }
    : error
}

suite("Container.commandExecutor", (effect, folder) => {
  const shared = (): string => {
    const path = `${folder()}-shared`
    if (!fs.existsSync(path)) {
      fs.mkdirSync(path, { recursive: true })
      fs.writeFileSync(`${path}/plain`, "#!/bin/sh\n", { mode: 0o644 })
      fs.writeFileSync(`${path}/script`, "echo script has $1\n", { mode: 0o755 })
    }
    return path
  }

  const box = (options: Container.StartOptions = {}) =>
    Effect.flatMap(Image.host, (image) =>
      Container.start(image, {
        command: ["sleep", "infinity"],
        mounts: [{ type: "bind", source: shared(), target: shared() }],
        ...options
      })
    )

  for (const { name, program, expected, host } of rows)
    effect(name, function* () {
      const inside = Container.commandExecutor(yield* box())
      if (host === undefined || (host === "node" && isNode)) {
        const onHost = yield* Effect.exit(Effect.scoped(program(shared())))
        assert.deepEqual(outcome(onHost), expected, "on the host")
      }
      const inContainer = yield* Effect.exit(
        Effect.scoped(Effect.provideService(program(shared()), CommandExecutor.CommandExecutor, inside))
      )
      assert.deepEqual(outcome(inContainer), expected, "in the container")
    })

  effect("a command has the container's hostname, user, folder, environment and limits", function* () {
    const started = yield* box({ hostname: "inside", user: "1:1", cwd: "/usr", env: { MINE: "yes" } })
    const text = yield* Container.commandExecutor(started).string(
      sh('hostname; id -u; pwd; echo "$MINE"; ulimit -n')
    )
    const limit = yield* Container.exec(started, ["sh", "-c", "ulimit -n"])
    assert.deepEqual(text.trimEnd().split("\n"), ["inside", "1", "/usr", "yes", limit.stdout.trimEnd()])
  })

  effect("a relative working folder is resolved from the container's working folder", function* () {
    const executor = Container.commandExecutor(yield* box({ cwd: "/usr" }))
    const command = Command.make("pwd").pipe(Command.workingDirectory("bin/.."))
    assert.equal(yield* executor.string(command), "/usr\n")
  })

  effect(
    "an endless stdin stream is pulled no more once the command has ended, unlike on the host",
    function* () {
      const executor = Container.commandExecutor(yield* box())
      const endless = Stream.forever(Stream.make(bytes("abc")))
      const command = Command.make("head", "-c", "5").pipe(Command.stdin(endless))
      assert.equal(yield* executor.string(command), "abcab")
    }
  )

  effect("an invalid command line is a typed failure, unlike on the host, where it throws", function* () {
    const executor = Container.commandExecutor(yield* box())
    for (const command of [Command.make("echo", "a\0b"), Command.make("")]) {
      const error = yield* Effect.flip(executor.exitCode(command))
      assert.equal(error._tag, "BadArgument")
    }
    const file = Command.make("true").pipe(Command.workingDirectory("/etc/passwd"))
    const error = yield* Effect.flip(executor.exitCode(file))
    assert.equal(error._tag === "SystemError" && error.reason, "BadResource")
  })

  effect("a command in a container that has ended fails with ContainerError", function* () {
    const started = yield* box()
    const executor = Container.commandExecutor(started)
    yield* Container.signal(started, "SIGKILL")
    yield* started.exit
    const error = yield* Effect.flip(executor.exitCode(Command.make("true")))
    assert.match(error.message, /it has ended/)
    assert.equal((error.cause as { readonly _tag: string })._tag, "ContainerError")
  })
})
