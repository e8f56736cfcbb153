/** Containers that run on another machine: what their handles do in place of the functions that work on this one. */
import type * as net from "node:net"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Stats } from "../../Cgroup.ts"
import type { Address, Connection, Publishable, PublishedPort } from "../../Connection.ts"
import type {
  ArchiveOptions,
  Container,
  CopyOutOptions,
  ExecOptions,
  ProcessInfo,
  StartOptions
} from "../../Container.ts"
import type { Runner, RunnerContainer } from "../../fleet.ts"
import type { Image, PullOptions } from "../../Image.ts"
import type { ExitStatus, Process, ProcessOptions, Result, StopOptions } from "../../Process.ts"
import type { CommitOptions } from "../../Snapshot.ts"
import type { PollOptions } from "../../WaitFor.ts"

type Done<A> = Effect.Effect<A, BerthError>

/** Of a process of another machine. */
export interface ProcessElsewhere {
  readonly signal: (signal: string | number) => Done<void>
  readonly stop: (options: StopOptions) => Done<ExitStatus>
}

/** Of a container of another machine. */
export interface ContainerElsewhere extends ProcessElsewhere {
  /** The name of the runner that has it. */
  readonly runner: string
  readonly exec: (command: ReadonlyArray<string>, options: ExecOptions) => Done<Result>
  readonly execStream: (
    command: ReadonlyArray<string>,
    options: ProcessOptions
  ) => Effect.Effect<Process, BerthError, Scope.Scope>
  readonly stats: Done<Stats>
  readonly top: Done<ReadonlyArray<ProcessInfo>>
  readonly pause: Done<void>
  readonly resume: Done<void>
  readonly fileSystem: FileSystem.FileSystem
  readonly tarOut: (path: string, options: ArchiveOptions) => Stream.Stream<Uint8Array, BerthError>
  readonly tarIn: (path: string) => Sink.Sink<void, Uint8Array, never, BerthError>
  readonly copyIn: (hostPath: string, containerPath: string) => Done<void>
  readonly copyOut: (containerPath: string, hostPath: string, options: CopyOutOptions) => Done<void>
  readonly connect: (address: Address) => Effect.Effect<Connection, BerthError, Scope.Scope>
  readonly netSocket: (address: Address) => net.Socket
  readonly commit: (options: CommitOptions) => Done<Image>
  readonly publish: (given: Publishable) => Effect.Effect<PublishedPort, BerthError, Scope.Scope>
  readonly waitForPort: (port: number, options: PollOptions) => Done<void>
}

/** Starts containers on other machines. */
export interface Fleet {
  readonly pull: (reference: string, options: PullOptions) => Done<Image>
  readonly start: (image: Image, options: StartOptions) => Effect.Effect<Container, BerthError, Scope.Scope>
  readonly runners: () => ReadonlyArray<Runner>
  /** The runners now, and after each change. */
  readonly changes: Stream.Stream<ReadonlyArray<Runner>>
  readonly containers: Done<ReadonlyArray<RunnerContainer>>
}

/** The failure of what only this machine's containers can do. */
export const onlyHere = (process: Process, feature: string): Unsupported =>
  new Unsupported({
    feature,
    why: `container ${process.id} runs on another machine`,
    hint: "Run the program on that machine, with Berth.layer"
  })

/** Refuses what only this machine's containers can do. */
export const here =
  (process: Process, feature: string) =>
  <A, R>(effect: Effect.Effect<A, BerthError, R>): Effect.Effect<A, BerthError, R> =>
    Effect.suspend(() => (process.state.elsewhere === undefined ? effect : onlyHere(process, feature)))
