/** Launches a process: makes its streams, sends its plan, makes its handle, and releases everything with the scope. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, CommandFailed, ContainerError } from "../../BerthError.ts"
import type { Cgroup } from "../../Cgroup.ts"
import type { Container, LogFiles, StartOptions } from "../../Container.ts"
import type { Kind } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import type { Process, ProcessOptions } from "../../Process.ts"
import * as cgroups from "../cgroup/cgroup.ts"
import * as freezer from "../cgroup/freezer.ts"
import type { Ids } from "../ids/idMaps.ts"
import { explain } from "../ids/namespaceFlags.ts"
import { addressesOf, type Station } from "../network/network.ts"
import { attend, type Handler } from "../security/seccompNotify.ts"
import type { Interruptible, Unit } from "../supervisor/connection.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { E2BIG, ENOENT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import type { SizedDisk } from "../volume/image.ts"
import { type Settings, searchPath } from "./compile.ts"
import type { Names } from "./etcFiles.ts"
import { afterCopy, type Base, makeContainer, makeProcess } from "./handle.ts"
import { Log } from "./log.ts"
import { forgetExecuted, noteExecuted, processesOf } from "./processes.ts"
import { makeStdio, type Stdio } from "./stdio.ts"

interface Common {
  readonly berth: Berth
  readonly unit: number
  readonly id: string
  readonly options: ProcessOptions
  readonly settings: Settings
  readonly operations: ReadonlyArray<Plan.Operation>
  /** Descriptors in the plan besides the standard streams. */
  readonly descriptors: Readonly<Record<string, number>>
  /** The ids of its user namespace, if it has one with its own ids. */
  readonly ids: Ids | undefined
}

/** The description of a container's first process. */
export interface ContainerLaunch extends Common {
  readonly options: StartOptions
  readonly created: ReadonlyArray<Kind>
  readonly kinds: ReadonlyArray<Kind>
  readonly cgroup: Cgroup | undefined
  /** Whether its own plan makes the cgroup. */
  readonly ownsCgroup: boolean
  readonly logs: LogFiles | undefined
  readonly base: Base
  /** The file that is to be made before. */
  readonly disk: SizedDisk | undefined
  readonly names: Names | undefined
  readonly station: Station | undefined
}

/** The description of a process beside a container's first one. */
export interface ProcessLaunch extends Common {
  readonly container: Container
}

type Launch = ContainerLaunch | ProcessLaunch

const lazily = <A>(make: () => A): (() => A) => {
  let made: A | undefined
  return () => {
    made ??= make()
    return made
  }
}

/** Turns a failure to execute the command into `CommandFailed`; other errors stay. */
const explainProcess =
  (launch: Launch, plan: Plan.Plan) =>
  (error: BerthError): BerthError => {
    if (error._tag !== "OperationFailed") return error
    const command = launch.settings.arguments[0]!
    const operation = plan.operations[error.index]
    if (operation?.op === "exec" || operation?.op === "exec-self") {
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
    return explained === error && "created" in launch ? explain(launch.created)(error) : explained
  }

interface Launched {
  readonly unit: Unit
  readonly stdio: Stdio
  readonly plan: Plan.Plan
  readonly scope: Scope.Scope
}

const processHandle = ({ plan, stdio, unit }: Launched, launch: ProcessLaunch): Process => {
  const container = launch.container.state
  const process = makeProcess(launch.id, unit.pid, plan, {
    berth: launch.berth,
    get pidfd() {
      return unit.pidfd()
    },
    // The cgroup that the container is in by then.
    get cgroup() {
      return container.cgroup
    },
    stdin: stdio.stdin,
    stdout: stdio.stdout,
    stderr: stdio.stderr,
    terminal: stdio.terminal,
    log: lazily(() => new Log(stdio, undefined)),
    inside: container.inside,
    ended: unit.ended
  })
  noteExecuted(process)
  return process
}

/** Throws if its log cannot be kept in the folder that the options name. */
export const containerHandle = (
  { plan, scope, stdio, unit }: Launched,
  launch: ContainerLaunch
): Container => {
  const { base, berth, cgroup, ids, kinds, logs, names, settings, station } = launch
  const log = lazily(() => new Log(stdio, logs))
  if (logs !== undefined) log()
  if (launch.ownsCgroup) cgroup!.state.owner = { berth, scope, container: unit.ended }
  return makeContainer(launch.id, unit.pid, plan, {
    berth,
    get pidfd() {
      return unit.pidfd()
    },
    get root() {
      return unit.root()
    },
    base,
    names,
    ids,
    started: launch.options,
    settings,
    kinds,
    cgroup,
    station,
    get addresses() {
      return station === undefined ? [] : addressesOf(station)
    },
    scope,
    release: releaseUnit(`container ${launch.id}`, unit),
    stdin: stdio.stdin,
    stdout: stdio.stdout,
    stderr: stdio.stderr,
    terminal: stdio.terminal,
    log,
    inside: { ended: unit.ended, entering: 0, executed: new Set(), adopting: undefined, copying: undefined },
    ended: unit.ended
  })
}

const paused = (id: string): ContainerError =>
  new ContainerError({
    reason: "Paused",
    container: id,
    detail: "it is paused, and a process that starts in it would be paused too: resume it first"
  })

const cgroupOf = (launch: Launch): Cgroup | undefined =>
  "container" in launch ? launch.container.state.cgroup : launch.cgroup

/** Shared places: the cgroup, and the container, which may get a cgroup later. */
const placesOf = (launch: Launch): ReadonlyArray<freezer.Entered> => {
  if (!("container" in launch) && launch.ownsCgroup) return []
  const cgroup = cgroupOf(launch)
  const inside = "container" in launch ? [launch.container.state.inside] : []
  return cgroup === undefined ? inside : [cgroup.state, ...inside]
}

/** Starts in a cgroup that existed before, which may be frozen. */
const begin = (launch: Launch, interruptible: Interruptible, scope: Scope.Scope) => {
  const places = placesOf(launch)
  if (places.length === 0) return start(launch, interruptible, scope)
  const entering = Effect.suspend(() =>
    freezer.isFrozen(cgroupOf(launch))
      ? Effect.fail(paused(launch.id))
      : freezer.enter(places)(start(launch, interruptible, scope))
  )
  return "container" in launch ? afterCopy(launch.container.state.inside, entering, interruptible) : entering
}

const start = (
  launch: Launch,
  interruptible: Interruptible,
  scope: Scope.Scope
): Effect.Effect<Launched, BerthError> =>
  Effect.flatMap(
    attempt(() => makeStdio(launch.options, launch.id)),
    (stdio) => {
      const plan = Plan.make(launch.operations)
      const descriptors = { ...launch.descriptors, ...stdio.descriptors }
      if (launch.ids !== undefined) stdio.give(launch.ids, launch.settings.user)
      return Effect.matchCauseEffect(
        launch.berth.supervisor.start(launch.unit, plan, descriptors, interruptible),
        {
          onFailure: (cause) => {
            stdio.close()
            return Effect.mapError(Effect.failCause(cause), explainProcess(launch, plan))
          },
          onSuccess: (unit) => Effect.succeed({ unit, stdio, plan, scope })
        }
      )
    }
  )

/** Starts a container and returns its handle. */
export const launchContainer = (launch: ContainerLaunch): Effect.Effect<Container, BerthError, Scope.Scope> =>
  launchAs(containerHandle, launch)

/** Starts a process beside a container's first one. */
export const launchProcess = (launch: ProcessLaunch): Effect.Effect<Process, BerthError, Scope.Scope> =>
  launchAs(processHandle, launch)

type MakeHandle<L extends Launch, P extends Process> = (launched: Launched, launch: L) => P

/** Starts a process and returns its handle; when the scope closes, it is killed and its streams are closed. */
const launchAs = <L extends Launch, P extends Process>(
  handle: MakeHandle<L, P>,
  launch: L
): Effect.Effect<P, BerthError, Scope.Scope> => {
  const { onSystemCall, seccomp, warnings } = launch.settings
  const launched =
    seccomp?.notifies === true && onSystemCall !== undefined
      ? launchAttended(handle, launch, onSystemCall)
      : launchQuietly(handle, launch)
  return warnings.length === 0 ? launched : Effect.zipRight(warn(launch.id, warnings), launched)
}

const launchAttended = <L extends Launch, P extends Process>(
  handle: MakeHandle<L, P>,
  launch: L,
  handler: Handler
): Effect.Effect<P, BerthError, Scope.Scope> =>
  Effect.flatMap(attend(handler), ({ close, socket, taken }) =>
    Effect.ensuring(
      launchQuietly(handle, { ...launch, descriptors: { ...launch.descriptors, seccomp: socket } }, taken),
      close
    )
  )

const warn = (id: string, warnings: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.forEach(warnings, (warning) => Effect.logWarning(`container ${id}: ${warning}`), { discard: true })

/**
 * `check` throws if the started process cannot be used. The finalizer is added by hand, because `Effect.acquireRelease`
 * would copy every FiberRef to it, which costs more than the release.
 */
const launchQuietly = <L extends Launch, P extends Process>(
  handle: MakeHandle<L, P>,
  launch: L,
  check: () => void = () => {}
): Effect.Effect<P, BerthError, Scope.Scope> =>
  Effect.uninterruptibleMask((interruptible) =>
    Effect.flatMap(Effect.scope, (scope) =>
      Effect.flatMap(begin(launch, interruptible, scope), (launched) => {
        const { unit, stdio } = launched
        let process: P | undefined
        const release = Effect.map(releaseUnit(`container ${launch.id}`, unit), () => {
          if (process !== undefined) forgetExecuted(process)
          stdio.close()
        })
        const letDie = Effect.suspend(() => {
          const cgroup = cgroupOf(launch)
          if (process !== undefined && freezer.isFrozen(cgroup)) {
            freezer.letOut(cgroup!, () => processesOf(process!))
            return release
          }
          const places = placesOf(launch)
          return places.length === 0 ? release : freezer.enter(places)(release)
        })
        return Effect.zipRight(
          Scope.addFinalizer(scope, Effect.uninterruptible(letDie)),
          Effect.tapError(
            attempt(() => {
              stdio.handOver()
              check()
              process = handle(launched, launch)
              stdio.flow()
              return process
            }),
            () => letDie
          )
        )
      })
    )
  )
