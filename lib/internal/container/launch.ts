/** A process of a unit: its standard streams, its end, and what has to be known to run another beside it. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, CommandFailed, ContainerError, type SupervisorError } from "../../BerthError.ts"
import type { Cgroup } from "../../Cgroup.ts"
import type { Container, ExitStatus, LogFiles, ProcessOptions } from "../../Container.ts"
import type { Healthcheck, Image } from "../../Image.ts"
import type { Kind } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import * as cgroups from "../cgroup/cgroup.ts"
import * as freezer from "../cgroup/freezer.ts"
import { readMemoryEvents, readMemoryLimit, sourceOf } from "../cgroup/stats.ts"
import type { Ids } from "../ids/idMaps.ts"
import { explain } from "../ids/namespaceFlags.ts"
import { attend, type Handler } from "../security/seccompNotify.ts"
import type { Interruptible, Unit } from "../supervisor/connection.ts"
import type { Ended } from "../supervisor/protocol.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import * as Loop from "../system/eventLoop.ts"
import type { Input, Output } from "../system/pipe.ts"
import { ContainerTypeId } from "../typeIds.ts"
import { E2BIG, ENOENT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalName } from "../util/signals.ts"
import { type Process, searchPath } from "./compile.ts"
import { Log } from "./log.ts"
import { forgetExecuted, noteExecuted, processesOf } from "./processes.ts"
import { makeStdio, type Stdio, type Terminal } from "./stdio.ts"

/** What a root is made of. */
export interface Base {
  readonly image: Image
  /** The folder of the writable layer, undefined where it is in memory. */
  readonly upper: string | undefined
  /** The ids that files in it have, and what they are on the host. */
  readonly ids: Ids
  /** Whether it has not been given back. */
  readonly isThere: () => boolean
}

/** What `Container` keeps to itself. */
export interface State {
  readonly berth: Berth
  /** -1 once its scope has closed. */
  readonly pidfd: number
  /** Its root, by which its files are reached; -1 for a process in another's, and once its scope has closed. */
  readonly root: number
  /** Undefined for a process in another's root. */
  readonly base: Base | undefined
  readonly ids: Ids | undefined
  readonly settings: Process
  /** The namespaces that are not the host's, and have to be joined to run something beside it. */
  readonly kinds: ReadonlyArray<Kind>
  /** May come later: see pause.ts. */
  cgroup: Cgroup | undefined
  /** What it ends with. */
  readonly scope: Scope.Scope
  readonly stopSignal: string | undefined
  readonly healthcheck: Healthcheck | undefined
  readonly stdin: Input | undefined
  readonly stdout: Output | undefined
  readonly stderr: Output | undefined
  readonly terminal: Terminal | undefined
  /** Its log, which reads both outputs from the first time that it is asked for. */
  readonly log: () => Log
  /** What stands for the container that it is in, which may be itself. */
  readonly inside: object
  /** How it ended, if it has. */
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
}

const NO_STREAM: Stream.Stream<Uint8Array> = Stream.empty
const NO_SINK: Sink.Sink<void, Uint8Array> = Sink.drain

const Proto = {
  [ContainerTypeId]: ContainerTypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Container) {
    return { _id: "Container", id: this.id, pid: this.pid }
  },
  get stdout(): Container["stdout"] {
    return (this as unknown as Container).state.stdout?.stream ?? NO_STREAM
  },
  get stderr(): Container["stderr"] {
    return (this as unknown as Container).state.stderr?.stream ?? NO_STREAM
  },
  get stdin(): Container["stdin"] {
    return (this as unknown as Container).state.stdin?.sink ?? NO_SINK
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

// How many kills of a cgroup have been told of, so that each is of one process.
const oomKills = new WeakMap<Cgroup, number>()

const outOfMemory = (cgroup: Cgroup | undefined, ended: number): ExitStatus["outOfMemory"] => {
  if (cgroup === undefined || ended !== 128 + SIGKILL) return undefined
  const file = sourceOf(cgroup.folders)
  const { oomKill } = readMemoryEvents(file)
  const before = oomKills.get(cgroup) ?? 0
  if (oomKill === undefined || oomKill <= before) return undefined
  oomKills.set(cgroup, oomKill)
  return readMemoryLimit(file)
}

const SIGKILL = 9

const statusOf = (ended: Ended, cgroup: Cgroup | undefined): ExitStatus => {
  const number = ended.status & 0x7f
  const exitCode = number === 0 ? (ended.status >> 8) & 0xff : 128 + number
  return {
    exitCode,
    signal: number === 0 ? undefined : signalName(number),
    userMicros: ended.userMicros,
    systemMicros: ended.systemMicros,
    maxRssBytes: ended.maxRssKiB * 1024,
    // An init ends with this code where the command has been killed.
    outOfMemory: outOfMemory(cgroup, exitCode)
  }
}

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
  /** Whether the cgroup was made for it, by its own plan. */
  readonly ownsCgroup: boolean
  /** What stands for the container that it is executed in. */
  readonly inside: object | undefined
  readonly stopSignal: string | undefined
  readonly healthcheck: Healthcheck | undefined
  readonly logs: LogFiles | undefined
  readonly base: Base | undefined
  /** Those of its user namespace, where it has one with ids of its own. */
  readonly ids: Ids | undefined
}

const lazily = <A>(make: () => A): (() => A) => {
  let made: A | undefined
  return () => {
    made ??= make()
    return made
  }
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
      return new CommandFailed({ reason, command, searched, errno: error.errno, cause: error })
    }
    if (operation?.op === "working-directory")
      return new CommandFailed({
        reason: "WorkingDirectory",
        command,
        searched: [operation.path],
        errno: error.errno,
        cause: error
      })
    const explained = cgroups.explain(plan)(error)
    return explained === error ? explain(launch.created)(error) : explained
  }

/** Throws where its log cannot be kept as it was asked for. */
const handle = ({ plan, stdio, unit }: Launched, options: Launch, scope: Scope.Scope): Container => {
  let cgroup: Cgroup | undefined
  let status: ExitStatus | undefined
  const exit = Effect.acquireUseRelease(
    Effect.sync(Loop.retain),
    () =>
      Effect.map(Deferred.await(unit.ended), (ended) => {
        status ??= statusOf(ended, cgroup ?? options.cgroup)
        return status
      }),
    () => Effect.sync(Loop.release)
  )
  const log = lazily(() => new Log({ stdout: stdio.stdout, stderr: stdio.stderr }, options.logs))
  if (options.logs !== undefined) log()
  const state: State = {
    berth: options.berth,
    get pidfd() {
      return unit.pidfd()
    },
    get root() {
      return unit.root()
    },
    base: options.base,
    ids: options.ids,
    settings: options.settings,
    kinds: options.kinds,
    get cgroup() {
      return cgroup ?? options.cgroup
    },
    set cgroup(made) {
      cgroup = made
    },
    scope,
    stopSignal: options.stopSignal,
    healthcheck: options.healthcheck,
    stdin: stdio.stdin,
    stdout: stdio.stdout,
    stderr: stdio.stderr,
    terminal: stdio.terminal,
    log,
    inside: options.inside ?? unit.ended,
    ended: unit.ended
  }
  return Object.assign(Object.create(Proto), {
    id: options.id,
    pid: unit.pid,
    exit,
    plan,
    state
  })
}

interface Launched {
  readonly unit: Unit
  readonly stdio: Stdio
  readonly plan: Plan.Plan
}

const paused = (id: string): ContainerError =>
  new ContainerError({
    reason: "Paused",
    container: id,
    detail: "it is paused, and a process that starts in it would be paused too: resume it first"
  })

/** Where it is not alone: the cgroup, and the container that may get one. */
const placesOf = ({ cgroup, inside, ownsCgroup }: Launch): ReadonlyArray<object> =>
  ownsCgroup ? [] : [cgroup, inside].filter((key) => key !== undefined)

/** Into a cgroup that was there before, which may stand still. */
const begin = (options: Launch, interruptible: Interruptible): Effect.Effect<Launched, BerthError> => {
  const places = placesOf(options)
  if (places.length === 0) return start(options, interruptible)
  if (freezer.isFrozen(options.cgroup)) return Effect.fail(paused(options.id))
  return freezer.enter(places)(start(options, interruptible))
}

const start = (options: Launch, interruptible: Interruptible): Effect.Effect<Launched, BerthError> =>
  Effect.flatMap(
    attempt(() => makeStdio(options.options, options.id)),
    (stdio) => {
      const plan = Plan.make(options.operations)
      const descriptors = { ...options.descriptors, ...stdio.descriptors }
      if (options.ids !== undefined) stdio.give(options.ids, options.settings.user)
      return options.berth.supervisor.start(options.unit, plan, descriptors, interruptible).pipe(
        Effect.tapErrorCause(() => Effect.sync(stdio.close)),
        Effect.mapBoth({
          onFailure: explainProcess(options, plan),
          onSuccess: (unit) => ({ unit, stdio, plan })
        })
      )
    }
  )

/**
 * Starts a process and gives its handle; it is killed, and its streams are closed, with the scope. The finalizer is added
 * by hand, as `Effect.acquireRelease` would carry every FiberRef over to it, which costs more than giving back.
 */
export const launch = (options: Launch): Effect.Effect<Container, BerthError, Scope.Scope> => {
  const { onSystemCall, seccomp, warnings } = options.settings
  const launched =
    seccomp?.notifies === true && onSystemCall !== undefined
      ? launchAttended(options, onSystemCall)
      : launchQuietly(options)
  return warnings.length === 0 ? launched : Effect.zipRight(warn(options.id, warnings), launched)
}

const launchAttended = (
  options: Launch,
  handler: Handler
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.flatMap(attend(handler), ({ close, socket, taken }) =>
    Effect.ensuring(
      launchQuietly({ ...options, descriptors: { ...options.descriptors, seccomp: socket } }, taken),
      close
    )
  )

const warn = (id: string, warnings: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.forEach(warnings, (warning) => Effect.logWarning(`container ${id}: ${warning}`), { discard: true })

/** `check` throws where what has been started cannot be used. */
const launchQuietly = (
  options: Launch,
  check: () => void = () => {}
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((interruptible) =>
    Effect.flatMap(Effect.scope, (scope) =>
      Effect.flatMap(begin(options, interruptible), (launched) => {
        const { unit, stdio } = launched
        let container: Container | undefined
        const release = Effect.map(releaseUnit(`container ${options.id}`, unit), () => {
          if (container !== undefined) forgetExecuted(container)
          stdio.close()
        })
        const letDie = Effect.suspend(() => {
          if (container !== undefined && freezer.isFrozen(options.cgroup)) {
            freezer.letOut(options.cgroup!, () => processesOf(container!))
            return release
          }
          const places = placesOf(options)
          return places.length === 0 ? release : freezer.enter(places)(release)
        })
        return Effect.zipRight(
          Scope.addFinalizer(scope, Effect.uninterruptible(letDie)),
          Effect.tapError(
            attempt(() => {
              stdio.handOver()
              check()
              container = handle(launched, options, scope)
              noteExecuted(container)
              if (options.ownsCgroup)
                cgroups.own(options.cgroup!, {
                  berth: options.berth,
                  scope,
                  container: unit.ended
                })
              return container
            }),
            () => letDie
          )
        )
      })
    )
  )
