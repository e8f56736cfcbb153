/**
 * `@effect/platform`'s CommandExecutor inside a container. What it does, and how it fails, is what platform-node's does
 * on the host, so that a program cannot tell the two apart; where that one throws, this one fails.
 */
import { existsSync } from "node:fs"
import { posix } from "node:path"
import * as process from "node:process"
import * as Command from "@effect/platform/Command"
import * as CommandExecutor from "@effect/platform/CommandExecutor"
import * as PlatformError from "@effect/platform/Error"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { type BerthError, ContainerError, OperationFailed } from "../BerthError.ts"
import * as Cgroup from "../Cgroup.ts"
import type { Container } from "../Container.ts"
import { attempt } from "./attempt.ts"
import * as compile from "./compile.ts"
import { ENOENT, ENOEXEC, errnoName } from "./errno.ts"
import { native } from "./native.ts"
import * as check from "./options.ts"
import { Input, Output } from "./pipe.ts"
import { launch } from "./process.ts"
import { signalNumber } from "./signals.ts"

/** What a program may write before anybody reads; on the host it is a socket pair, which takes about as much. */
const PIPE_BYTES = 256 * 1024

/** How long a process has to end by SIGTERM once its scope is closed. */
const GRACE = "10 seconds"

/** The table of platform-node. */
const reasons: Readonly<Record<string, PlatformError.SystemErrorReason>> = {
  ENOENT: "NotFound",
  EACCES: "PermissionDenied",
  EEXIST: "AlreadyExists",
  EISDIR: "BadResource",
  ENOTDIR: "BadResource",
  EBUSY: "Busy",
  ELOOP: "BadResource"
}

const printed = (command: Command.StandardCommand): string => `${command.command} ${command.args.join(" ")}`

const unknown = (
  command: Command.StandardCommand,
  method: string,
  description: string,
  cause?: unknown
): PlatformError.PlatformError =>
  new PlatformError.SystemError({
    reason: "Unknown",
    module: "Command",
    method,
    pathOrDescriptor: printed(command),
    description,
    cause
  })

const unexpected =
  (command: Command.StandardCommand, method: string) =>
  (error: BerthError): PlatformError.PlatformError =>
    unknown(command, method, error.message, error)

/** Why a command could not be started; platform-node looks at the working directory before it spawns. */
const spawnError =
  (command: Command.StandardCommand, program: string, folder: string) =>
  (error: BerthError): PlatformError.PlatformError => {
    if (error._tag === "InvalidOption")
      return new PlatformError.BadArgument({
        module: "Command",
        method: "spawn",
        description: error.message,
        cause: error
      })
    if (error._tag !== "CommandFailed") return unexpected(command, "spawn")(error)
    const isFolder = error.reason === "WorkingDirectory" && error.errno === ENOENT
    return new PlatformError.SystemError({
      reason: reasons[errnoName(error.errno)] ?? "Unknown",
      module: isFolder ? "FileSystem" : "Command",
      method: isFolder ? "access" : "spawn",
      pathOrDescriptor: isFolder ? folder : printed(command),
      syscall: isFolder ? "access" : `spawn ${program}`,
      description: isFolder
        ? `${errnoName(error.errno)}: ${error.message}`
        : `spawn ${program} ${errnoName(error.errno)}`,
      cause: error
    })
  }

/** Fails where the container has ended. */
const running = (box: Container): Effect.Effect<void, BerthError> =>
  Effect.flatMap(Deferred.isDone(box.state.ended), (ended) =>
    ended || native().signal(box.state.pidfd, 0) < 0
      ? Effect.fail(
          new ContainerError({
            reason: "NotRunning",
            container: box.id,
            detail: "it has ended; start another one"
          })
        )
      : Effect.void
  )

/** A process's standard streams, from both sides. */
interface Streams {
  readonly descriptors: Readonly<Record<string, number>>
  readonly stdin: Input | undefined
  readonly stdout: Output | undefined
  readonly stderr: Output | undefined
  /** Closes the process's ends: they are its own once it has been started. */
  readonly handOver: () => void
  readonly close: () => void
}

const openStreams = (command: Command.StandardCommand, container: string): Streams => {
  const theirs: Array<number> = []
  const opened: Array<Input | Output> = []
  const descriptors: Record<string, number> = {}
  const pipe = (name: string, ours: 0 | 1): number => {
    const [read, write] = native().pipe(ours, PIPE_BYTES)
    if (read < 0)
      throw new OperationFailed({ operation: "stdio", index: -1, syscall: "pipe2", errno: -read, hint: "" })
    descriptors[name] = ours === 0 ? write : read
    theirs.push(descriptors[name])
    return ours === 0 ? read : write
  }
  const output = (name: string, own: number, how: Command.Command.Output): Output | undefined => {
    if (how === "inherit") {
      descriptors[name] = own
      return undefined
    }
    const end = new Output(pipe(name, 0), container)
    opened.push(end)
    return end
  }
  const input = (): Input | undefined => {
    if (command.stdin === "inherit") {
      descriptors.stdin = 0
      return undefined
    }
    const end = new Input(pipe("stdin", 1))
    opened.push(end)
    return end
  }
  const handOver = (): void => {
    for (const fd of theirs.splice(0)) native().close(fd)
  }
  const close = (): void => {
    handOver()
    for (const end of opened) end.close()
  }
  try {
    const stdin = input()
    const stdout = output("stdout", 1, command.stdout)
    return { descriptors, stdin, stdout, stderr: output("stderr", 2, command.stderr), handOver, close }
  } catch (error) {
    close()
    throw error
  }
}

interface Execution {
  readonly arguments: ReadonlyArray<string>
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory: string
}

const executionOf = (box: Container, command: Command.StandardCommand): Execution => {
  const { environment, workingDirectory } = box.state.settings
  const own = Object.fromEntries(command.env)
  const words = [command.command, ...command.args]
  return {
    arguments:
      command.shell === false
        ? words
        : [command.shell === true ? "/bin/sh" : command.shell, "-c", words.join(" ")],
    environment: command.extendEnv ? { ...environment, ...own } : own,
    workingDirectory: Option.match(command.cwd, {
      onNone: () => workingDirectory,
      onSome: (folder) => posix.resolve(workingDirectory, folder)
    })
  }
}

/** As the container's own first process is: the same user, capabilities and limits, in all of its namespaces. */
const execute = (
  box: Container,
  execution: Execution,
  streams: Streams
): Effect.Effect<Container, BerthError, Scope.Scope> => {
  const { state } = box
  const settings: compile.Process = {
    ...state.settings,
    ...execution,
    createWorkingDirectory: false,
    init: false,
    terminal: undefined,
    stdio: { stdin: "stdin", stdout: "stdout", stderr: "stderr" },
    cgroup: state.cgroup === undefined ? [] : Cgroup.joins(state.cgroup),
    joined: [{ descriptor: "container", kinds: state.kinds }]
  }
  return launch({
    berth: state.berth,
    unit: state.berth.supervisor.nextId(),
    id: box.id,
    options: { stdout: "null", stderr: "null" },
    settings,
    operations: compile.joining(settings),
    descriptors: { container: state.pidfd, ...streams.descriptors },
    created: [],
    kinds: state.kinds,
    cgroup: state.cgroup,
    stopSignal: undefined,
    logs: undefined
  }).pipe(
    Effect.catchAll((error) =>
      error._tag === "OperationFailed"
        ? Effect.zipRight(running(box), Effect.fail(error))
        : Effect.fail(error)
    )
  )
}

/** Has the shell run a file that is executable but says not by what, as execvp(3) does. */
const byShell = (execution: Execution): Execution => ({
  ...execution,
  arguments: ["/bin/sh", "-c", 'exec "$0" "$@"', ...execution.arguments]
})

interface Started {
  readonly handle: Container
  readonly streams: Streams
}

const spawn = (
  box: Container,
  command: Command.StandardCommand
): Effect.Effect<Started, PlatformError.PlatformError, Scope.Scope> =>
  Effect.suspend(() => {
    const execution = executionOf(box, command)
    const { environment, workingDirectory } = execution
    return Effect.gen(function* () {
      yield* running(box)
      yield* attempt(() => {
        check.process({ env: environment, cwd: workingDirectory })
        check.command(execution.arguments)
      })
      const streams = yield* Effect.acquireRelease(
        Effect.try({ try: () => openStreams(command, box.id), catch: (error) => error as BerthError }),
        (opened) => Effect.sync(opened.close)
      )
      const handle = yield* Effect.catchTag(execute(box, execution, streams), "CommandFailed", (error) =>
        error.reason === "NotExecutable" && error.errno === ENOEXEC
          ? execute(box, byShell(execution), streams)
          : Effect.fail(error)
      )
      streams.handOver()
      return { handle, streams }
    }).pipe(Effect.mapError(spawnError(command, execution.arguments[0]!, workingDirectory)))
  })

/**
 * Signals a process and all of its group, which it leads since before it was executed: whether there was any. The number
 * is the group's for as long as the group has members; once the process has ended, one of its number is another's.
 */
export const signalGroup = (handle: Container, number: number): Effect.Effect<boolean> =>
  Effect.map(Deferred.isDone(handle.state.ended), (ended) => {
    try {
      return !(ended && existsSync(`/proc/${handle.pid}`)) && process.kill(-handle.pid, number)
    } catch {
      return false
    }
  })

/** What the scope's end does: platform-node asks the group to end and waits; what does not listen is killed here. */
const terminate = ({ handle }: Started): Effect.Effect<void> =>
  Effect.gen(function* () {
    if (yield* Deferred.isDone(handle.state.ended)) {
      const { exitCode, signal } = yield* handle.exit
      if (exitCode !== 0 && signal === undefined) yield* signalGroup(handle, 15)
      return
    }
    yield* signalGroup(handle, 15)
    if (Option.isNone(yield* Effect.timeoutOption(handle.exit, GRACE))) yield* signalGroup(handle, 9)
  }).pipe(Effect.ignore)

const ProcessProto = {
  [CommandExecutor.ProcessTypeId]: CommandExecutor.ProcessTypeId,
  ...Inspectable.BaseProto,
  toJSON(this: CommandExecutor.Process) {
    return { _id: "@effect/platform/CommandExecutor/Process", pid: this.pid }
  }
}

const makeProcess = (
  command: Command.StandardCommand,
  { handle, streams }: Started
): CommandExecutor.Process => {
  const exit = Effect.mapError(handle.exit, unexpected(command, "exitCode"))
  const output = (
    from: Output | undefined,
    method: string
  ): Stream.Stream<Uint8Array, PlatformError.PlatformError> =>
    from === undefined ? Stream.empty : Stream.mapError(from.stream, unexpected(command, method))
  const stdout = output(streams.stdout, "fromReadable(stdout)")
  const failedToKill = (why: string) => Effect.fail(unknown(command, "kill", why))
  const kill: CommandExecutor.Process["kill"] = (signal = "SIGTERM") =>
    Effect.gen(function* () {
      const number = signalNumber(signal)
      if (number === undefined) return yield* failedToKill(`Unknown signal: ${signal}`)
      const ended = yield* Deferred.isDone(handle.state.ended)
      if (ended || !(yield* signalGroup(handle, number))) return yield* failedToKill("Failed to kill process")
      yield* exit
    })
  return Object.assign(Object.create(ProcessProto), {
    pid: CommandExecutor.ProcessId(handle.pid),
    exitCode: Effect.flatMap(exit, ({ exitCode, signal }) =>
      signal === undefined
        ? Effect.succeed(CommandExecutor.ExitCode(exitCode))
        : Effect.fail(unknown(command, "exitCode", `Process interrupted due to receipt of signal: ${signal}`))
    ),
    isRunning: Effect.negate(Deferred.isDone(handle.state.ended)),
    kill,
    stdin:
      streams.stdin === undefined
        ? Sink.drain
        : Sink.mapError(streams.stdin.sink, unexpected(command, "toWritable")),
    stdout: typeof command.stdout === "string" ? stdout : Stream.transduce(stdout, command.stdout),
    stderr: output(streams.stderr, "fromReadable(stderr)")
  })
}

type Start = CommandExecutor.CommandExecutor["start"]

const startStandard = (box: Container, command: Command.StandardCommand): ReturnType<Start> =>
  Effect.acquireRelease(spawn(box, command), terminate).pipe(
    Effect.flatMap((started) => {
      const made = makeProcess(command, started)
      if (typeof command.stdin === "string") return Effect.succeed(made)
      // Its own failure is the end of the input, no more; and when nobody is there to read, it is not asked for any.
      const { stdin } = started.streams
      const wanted = Stream.takeWhile(command.stdin, () => stdin?.closed === false)
      const feed = Effect.raceFirst(
        Stream.run(wanted, made.stdin),
        Deferred.await(started.handle.state.ended)
      )
      return Effect.as(Effect.forkScoped(feed), made)
    }),
    Effect.withSpan("berth.Container.command", {
      attributes: { "container.id": box.id, "process.executable.name": command.command },
      captureStackTrace: false
    })
  )

const start = (box: Container): Start => {
  const self: Start = (command) => {
    const [head, ...tail] = Command.flatten(command)
    const last = tail.pop()
    if (last === undefined) return startStandard(box, head)
    const output = (of: Command.Command) =>
      Stream.unwrapScoped(Effect.map(self(of), (process) => process.stdout))
    const input = tail.reduce((stdin, next) => output(Command.stdin(next, stdin)), output(head))
    return self(Command.stdin(last, input))
  }
  return self
}

export const commandExecutor = (box: Container): CommandExecutor.CommandExecutor =>
  CommandExecutor.makeExecutor(start(box))
