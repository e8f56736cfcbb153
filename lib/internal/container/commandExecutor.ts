/**
 * `@effect/platform`'s CommandExecutor inside a container. It behaves and fails like platform-node's on the host, so
 * that a program cannot tell the two apart; where that one throws, this one fails.
 */
import { existsSync } from "node:fs"
import { posix } from "node:path"
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
import type { BerthError } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Process } from "../../Process.ts"
import { reasons } from "../files/platformError.ts"
import type { Output } from "../system/pipe.ts"
import { ENOENT, ENOEXEC, errnoName } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalNumber } from "../util/signals.ts"
import * as check from "../util/validate.ts"
import { type Execution, launchInside, running } from "./execIn.ts"

/** The time for a process to end by SIGTERM after its scope has closed. */
const GRACE = "10 seconds"

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

/** The reason why a command could not be started; platform-node checks the working directory before it spawns. */
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

const executionOf = (box: Container, command: Command.StandardCommand): Execution => {
  const { environment, user, workingDirectory } = box.state.settings
  const own = Object.fromEntries(command.env)
  const words = [command.command, ...command.args]
  return {
    user,
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

/** Like the container's first process: with the same user, capabilities and limits, in all of its namespaces. */
const execute = (
  box: Container,
  command: Command.StandardCommand,
  execution: Execution
): Effect.Effect<Process, BerthError, Scope.Scope> => {
  const how = (stream: unknown) => (stream === "inherit" ? "inherit" : "pipe")
  const { stderr, stdin, stdout } = command
  const { umask } = box.state.settings
  const options = { umask, stdin: how(stdin), stdout: how(stdout), stderr: how(stderr) } as const
  return launchInside(box, options, execution)
}

/** Has the shell run an executable file without an interpreter line, as execvp(3) does. */
const byShell = (execution: Execution): Execution => ({
  ...execution,
  arguments: ["/bin/sh", "-c", 'exec "$0" "$@"', ...execution.arguments]
})

const spawn = (
  box: Container,
  command: Command.StandardCommand
): Effect.Effect<Process, PlatformError.PlatformError, Scope.Scope> =>
  Effect.suspend(() => {
    const execution = executionOf(box, command)
    const { environment, workingDirectory } = execution
    return Effect.gen(function* () {
      yield* running(box)
      yield* attempt(() => {
        check.process({ env: environment, cwd: workingDirectory })
        check.command(execution.arguments)
      })
      return yield* Effect.catchTag(execute(box, command, execution), "CommandFailed", (error) =>
        error.reason === "NotExecutable" && error.errno === ENOEXEC
          ? execute(box, command, byShell(execution))
          : Effect.fail(error)
      )
    }).pipe(Effect.mapError(spawnError(command, execution.arguments[0]!, workingDirectory)))
  })

/**
 * Signals a process with its group, of which it is the leader; returns whether any process was signalled. The group has
 * the number as long as it has members; afterwards, another process may get the number.
 */
export const signalGroup = (handle: Process, number: number): Effect.Effect<boolean> =>
  Effect.map(Deferred.isDone(handle.state.ended), (ended) => {
    try {
      return !(ended && existsSync(`/proc/${handle.pid}`)) && process.kill(-handle.pid, number)
    } catch {
      return false
    }
  })

/** Ends the process with the scope: signals the group and waits, as platform-node does, and then kills it. */
const terminate = (handle: Process): Effect.Effect<void> =>
  Effect.gen(function* () {
    if (yield* Deferred.isDone(handle.state.ended)) {
      const { exitCode, signal } = yield* handle.exit
      if (exitCode !== 0 && signal === undefined) yield* signalGroup(handle, 15)
      return
    }
    yield* signalGroup(handle, 15)
    // The finalizer cannot be interrupted, and without a limit would wait as long as the process is stopped.
    const ended = yield* Effect.timeoutOption(Effect.interruptible(handle.exit), GRACE)
    if (Option.isNone(ended)) yield* signalGroup(handle, 9)
  }).pipe(Effect.ignore)

const ProcessProto = {
  [CommandExecutor.ProcessTypeId]: CommandExecutor.ProcessTypeId,
  ...Inspectable.BaseProto,
  toJSON(this: CommandExecutor.Process) {
    return { _id: "@effect/platform/CommandExecutor/Process", pid: this.pid }
  }
}

const makeProcess = (command: Command.StandardCommand, handle: Process): CommandExecutor.Process => {
  const exit = Effect.mapError(handle.exit, unexpected(command, "exitCode"))
  const output = (
    from: Output | undefined,
    method: string
  ): Stream.Stream<Uint8Array, PlatformError.PlatformError> =>
    from === undefined ? Stream.empty : Stream.mapError(from.stream, unexpected(command, method))
  const stdout = output(handle.state.stdout, "fromReadable(stdout)")
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
      handle.state.stdin === undefined
        ? Sink.drain
        : Sink.mapError(handle.state.stdin.sink, unexpected(command, "toWritable")),
    stdout: typeof command.stdout === "string" ? stdout : Stream.transduce(stdout, command.stdout),
    stderr: output(handle.state.stderr, "fromReadable(stderr)")
  })
}

type Start = CommandExecutor.CommandExecutor["start"]

const startStandard = (box: Container, command: Command.StandardCommand): ReturnType<Start> =>
  // Not acquireRelease, because a start that a container holds up must be interruptible. The process ends with the
  // scope in any case.
  Effect.tap(spawn(box, command), (handle) => Effect.addFinalizer(() => terminate(handle))).pipe(
    Effect.flatMap((handle) => {
      const made = makeProcess(command, handle)
      if (typeof command.stdin === "string") return Effect.succeed(made)
      // A failure of the stream only ends the input; nothing is pulled once the process does not read any more.
      const { stdin, ended } = handle.state
      const wanted = Stream.takeWhile(command.stdin, () => stdin?.closed === false)
      const feed = Effect.raceFirst(Stream.run(wanted, made.stdin), Deferred.await(ended))
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
