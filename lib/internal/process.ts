/** A process of a unit: its standard streams, its end, and what has to be known to run another beside it. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { Berth } from "../Berth.ts"
import { type BerthError, CommandFailed, type SupervisorError } from "../BerthError.ts"
import type { Cgroup } from "../Cgroup.ts"
import type { Container, ExitStatus, ProcessOptions } from "../Container.ts"
import { explain, type Kind } from "../Namespace.ts"
import * as Plan from "../Plan.ts"
import { type Process, searchPath } from "./compile.ts"
import { E2BIG, ENOENT } from "./errno.ts"
import * as Loop from "./loop.ts"
import type { Output } from "./pipe.ts"
import { signalName } from "./signals.ts"
import { makeStdio, type Terminal } from "./stdio.ts"
import type { Ended } from "./supervisor.ts"
import { scopedUnit } from "./unit.ts"

const TypeId: unique symbol = Symbol.for("berth/Container") as never

/** What `Container` keeps to itself. */
export interface State {
  readonly berth: Berth
  readonly pidfd: number
  /** Its root, by which its files are reached; -1 for a process in another's. */
  readonly root: number
  readonly settings: Process
  /** The namespaces that are not the host's, and have to be joined to run something beside it. */
  readonly kinds: ReadonlyArray<Kind>
  readonly cgroup: Cgroup | undefined
  readonly stopSignal: string | undefined
  readonly stdout: Output | undefined
  readonly stderr: Output | undefined
  readonly terminal: Terminal | undefined
  /** How it ended, if it has. */
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
}

const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Container) {
    return { _id: "Container", id: this.id, pid: this.pid }
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

const statusOf = (ended: Ended): ExitStatus => {
  const number = ended.status & 0x7f
  return {
    exitCode: number === 0 ? (ended.status >> 8) & 0xff : 128 + number,
    signal: number === 0 ? undefined : signalName(number),
    userMicros: ended.userMicros,
    systemMicros: ended.systemMicros,
    maxRssBytes: ended.maxRssKiB * 1024
  }
}

const NO_STREAM: Stream.Stream<Uint8Array> = Stream.empty
const NO_SINK: Sink.Sink<void, Uint8Array> = Sink.drain

/** What `launch` is given. */
export interface Launch {
  readonly berth: Berth
  readonly unit: number
  readonly id: string
  readonly options: ProcessOptions
  readonly settings: Process
  readonly operations: ReadonlyArray<Plan.Operation>
  /** Descriptors that the plan names besides the standard streams'. */
  readonly descriptors: Readonly<Record<string, number>>
  readonly created: ReadonlyArray<Kind>
  readonly kinds: ReadonlyArray<Kind>
  readonly cgroup: Cgroup | undefined
  readonly stopSignal: string | undefined
}

/** The command's own failures by name; all others as they are. */
const explainProcess =
  (launch: Launch, plan: Plan.Plan) =>
  (error: BerthError): BerthError => {
    if (error._tag !== "OperationFailed") return error
    const command = launch.settings.arguments[0]!
    const operation = plan.operations[error.index]
    if (operation?.op === "exec" || operation?.op === "self") {
      const reason =
        error.errno === ENOENT ? "NotFound" : error.errno === E2BIG ? "ArgumentsTooLong" : "NotExecutable"
      const searched = searchPath(command, launch.settings.environment)
      return new CommandFailed({ reason, command, searched, errno: error.errno })
    }
    if (operation?.op === "working-directory")
      return new CommandFailed({
        reason: "WorkingDirectory",
        command,
        searched: [operation.path],
        errno: error.errno
      })
    return explain(launch.created)(error)
  }

/** Starts a process and gives its handle; it is killed, and its streams are closed, with the scope. */
export const launch = (options: Launch): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const stdio = yield* Effect.acquireRelease(
      Effect.try({
        try: () => makeStdio(options.options, options.id),
        catch: (error) => error as BerthError
      }),
      (made) => Effect.sync(made.close)
    )
    const plan = Plan.make(options.operations)
    const descriptors = { ...options.descriptors, ...stdio.descriptors }
    const unit = yield* scopedUnit(
      options.berth,
      options.unit,
      `container ${options.id}`,
      plan,
      descriptors
    ).pipe(Effect.mapError(explainProcess(options, plan)))
    stdio.handOver()
    const exit = Effect.acquireUseRelease(
      Effect.sync(Loop.retain),
      () => Effect.map(Deferred.await(unit.ended), statusOf),
      () => Effect.sync(Loop.release)
    )
    const state: State = {
      berth: options.berth,
      pidfd: unit.pidfd,
      root: unit.root,
      settings: options.settings,
      kinds: options.kinds,
      cgroup: options.cgroup,
      stopSignal: options.stopSignal,
      stdout: stdio.stdout,
      stderr: stdio.stderr,
      terminal: stdio.terminal,
      ended: unit.ended
    }
    return Object.assign(Object.create(Proto), {
      id: options.id,
      pid: unit.pid,
      exit,
      stdout: stdio.stdout?.stream ?? NO_STREAM,
      stderr: stdio.stderr?.stream ?? NO_STREAM,
      stdin: stdio.stdin?.sink ?? NO_SINK,
      plan,
      state
    }) as Container
  })
