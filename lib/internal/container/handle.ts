/** The handles of processes and containers: what they keep to themselves, how they ended, and how they print. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import { pipeArguments } from "effect/Pipeable"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption, type SupervisorError } from "../../BerthError.ts"
import type { Cgroup } from "../../Cgroup.ts"
import type { Container, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import type { Kind } from "../../Namespace.ts"
import type { Plan } from "../../Plan.ts"
import type { ExitStatus, Process } from "../../Process.ts"
import * as freezer from "../cgroup/freezer.ts"
import { readMemoryEvents, readMemoryLimit, sourceOf } from "../cgroup/stats.ts"
import type { Ids } from "../ids/idMaps.ts"
import type { Station } from "../network/network.ts"
import type { Ended } from "../supervisor/protocol.ts"
import * as Loop from "../system/eventLoop.ts"
import type { Input, Output } from "../system/pipe.ts"
import { ContainerTypeId, isContainer, ProcessTypeId } from "../typeIds.ts"
import type { ContainerElsewhere, ProcessElsewhere } from "../util/elsewhere.ts"
import { signalName } from "../util/signals.ts"
import type { Settings } from "./compile.ts"
import type { Names } from "./etcFiles.ts"
import type { Log } from "./log.ts"
import type { Terminal } from "./stdio.ts"

/** What a root is made of. */
export interface Base {
  readonly image: Image
  /** The folder of the writable layer, undefined if it is in memory, or in a file of a fixed size. */
  readonly upper: string | undefined
  /** The same in the supervisor's mount namespace, undefined if it is in memory. */
  readonly mountedUpper: string | undefined
  /** The layer of mount targets between the image's layers and the writable one. */
  readonly targets: string | undefined
  /** The ids of its files, and the ids on the host that they stand for. */
  readonly ids: Ids
  /** Whether it has not been released. */
  readonly isThere: () => boolean
  /** Whether nothing can write to it once its container has been released, and nothing else has a part in it. */
  readonly isOwn: boolean
}

/** The common state of all processes of a container. */
export interface Inside {
  /** The `ended` of the container's first process. */
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** The number of processes that are entering it. */
  entering: number
  /** The processes that have been executed in it and not been released. */
  readonly executed: Set<Process>
  /** Held by the fiber that makes its cgroup, so that it is made once. */
  adopting: Effect.Semaphore | undefined
  /** There while a snapshot has it frozen, and done afterwards. */
  copying: Deferred.Deferred<void> | undefined
}

/** Runs the effect once no snapshot has the container frozen. The wait can be interrupted in a region where `interruptible` says so. */
export const afterCopy = <A, E, R>(
  inside: Inside,
  effect: Effect.Effect<A, E, R>,
  interruptible: <B, F, S>(wait: Effect.Effect<B, F, S>) => Effect.Effect<B, F, S> = (wait) => wait
): Effect.Effect<A, E, R> =>
  Effect.suspend(() =>
    inside.copying === undefined
      ? effect
      : Effect.zipRight(
          interruptible(Deferred.await(inside.copying)),
          afterCopy(inside, effect, interruptible)
        )
  )

/** The internal state of a `Process`. */
export interface ProcessState {
  readonly berth: Berth
  /** -1 once its scope has closed. */
  readonly pidfd: number
  /** The cgroup that it is in; a container may get one later: see pause.ts. */
  readonly cgroup: Cgroup | undefined
  readonly stdin: Input | undefined
  readonly stdout: Output | undefined
  readonly stderr: Output | undefined
  readonly terminal: Terminal | undefined
  /** Its log, which has what the outputs have kept and what comes from the first call on. */
  readonly log: () => Log
  /** The state of the container that it is in. */
  readonly inside: Inside
  /** Its exit status, once it has ended. */
  readonly ended: Deferred.Deferred<Ended, SupervisorError>
  /** What to do if it runs on another machine. */
  readonly elsewhere?: ProcessElsewhere | undefined
}

/** The internal state of a `Container`. */
export interface ContainerState extends ProcessState {
  cgroup: Cgroup | undefined
  /** The descriptor of its root; -1 once its scope has closed, or if it joined a mount namespace that had a root. */
  readonly root: number
  readonly base: Base
  /** The names in its files below /etc; undefined if it has the files of its image. */
  readonly names: Names | undefined
  /** The ids of its user namespace, if it has one with its own ids. */
  readonly ids: Ids | undefined
  /** The options that it was started with. */
  started: StartOptions
  readonly settings: Settings
  /** The namespaces that are not the host's: processes beside its first one join them. */
  readonly kinds: ReadonlyArray<Kind>
  /** Its addresses on networks, the first network's first. */
  readonly addresses: ReadonlyArray<string>
  /** What joins networks: its network namespace, or the pod that it is in; undefined for other namespaces. */
  readonly station: Station | undefined
  /** The scope that removes it. */
  readonly scope: Scope.Scope
  /** Removes it before its scope does; runs once. */
  readonly release: Effect.Effect<void>
  readonly elsewhere?: ContainerElsewhere | undefined
}

const NO_STREAM: Stream.Stream<Uint8Array> = Stream.empty
const noSink: Sink.Sink<void, Uint8Array, never, BerthError> = Sink.suspend(() => Sink.fail(withoutPipe()))

/** The failure of a write to a process that was not started with a pipe for its input. */
export const withoutPipe = (): InvalidOption =>
  new InvalidOption({
    option: "stdin",
    value: "an input for a process that was started without a pipe",
    expected: 'stdin: "pipe" at the start of the process'
  })

/** The exit code and the signal of a wait status, wait(2). */
const endOf = (status: number): Pick<ExitStatus, "exitCode" | "signal"> => {
  const number = status & 0x7f
  return number === 0
    ? { exitCode: (status >> 8) & 0xff, signal: undefined }
    : { exitCode: 128 + number, signal: signalName(number) }
}

/** The state in a few words: running, or how it ended. */
const statusOf = ({ state }: Process): string => {
  const end = Effect.runSync(Deferred.poll(state.ended))
  if (Option.isNone(end)) return freezer.isFrozen(state.cgroup) ? "paused" : "running"
  const ended = Effect.runSyncExit(end.value)
  if (Exit.isFailure(ended)) return "lost with its supervisor"
  const { exitCode, signal } = endOf(ended.value.status)
  return signal === undefined ? `ended with exit code ${exitCode}` : `ended by ${signal}`
}

const print = (process: Process): string =>
  `${isContainer(process) ? "Container" : "Process"}(${process.id}, pid ${process.pid}, ${statusOf(process)})`

// Neither the arguments nor the environment are printed: they may hold secrets.
const ProcessProto = {
  [ProcessTypeId]: ProcessTypeId,
  toJSON(this: Process) {
    const _id = isContainer(this) ? "berth/Container" : "berth/Process"
    return { _id, id: this.id, pid: this.pid, status: statusOf(this) }
  },
  toString(this: Process) {
    return print(this)
  },
  [Inspectable.NodeInspectSymbol](this: Process) {
    return print(this)
  },
  get stdout(): Process["stdout"] {
    return (this as unknown as Process).state.stdout?.stream ?? NO_STREAM
  },
  get stderr(): Process["stderr"] {
    return (this as unknown as Process).state.stderr?.stream ?? NO_STREAM
  },
  get stdin(): Process["stdin"] {
    return (this as unknown as Process).state.stdin?.sink ?? noSink
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

const ContainerProto = Object.assign(Object.create(ProcessProto), { [ContainerTypeId]: ContainerTypeId })

const outOfMemory = (cgroup: Cgroup | undefined, ended: number): ExitStatus["outOfMemory"] => {
  if (cgroup === undefined || ended !== 128 + SIGKILL) return undefined
  const file = sourceOf(cgroup)
  const { oomKill } = readMemoryEvents(file)
  if (oomKill === undefined || oomKill <= cgroup.state.oomKills) return undefined
  cgroup.state.oomKills = oomKill
  return readMemoryLimit(file)
}

const SIGKILL = 9

const exitStatus = (ended: Ended, cgroup: Cgroup | undefined): ExitStatus => {
  const end = endOf(ended.status)
  return {
    ...end,
    userMicros: ended.userMicros,
    systemMicros: ended.systemMicros,
    maxRssBytes: ended.maxRssKiB * 1024,
    // An init ends with this code if its command has been killed.
    outOfMemory: outOfMemory(cgroup, end.exitCode)
  }
}

/** Waits for the end, and keeps the program alive meanwhile. */
const exitOf = (state: ProcessState): Process["exit"] => {
  let status: ExitStatus | undefined
  return Effect.acquireUseRelease(
    Effect.sync(Loop.retain),
    () =>
      Effect.map(Deferred.await(state.ended), (ended) => {
        status ??= exitStatus(ended, state.cgroup)
        return status
      }),
    () => Effect.sync(Loop.release)
  )
}

export const makeProcess = (id: string, pid: number, plan: Plan, state: ProcessState): Process =>
  Object.assign(Object.create(ProcessProto), { id, pid, plan, exit: exitOf(state), state })

export const makeContainer = (id: string, pid: number, plan: Plan, state: ContainerState): Container =>
  Object.assign(Object.create(ContainerProto), { id, pid, plan, exit: exitOf(state), state })
