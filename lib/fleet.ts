/**
 * A fleet: the same program on more than one machine.
 *
 * @since 0.2.0
 */
import type * as FileSystem from "@effect/platform/FileSystem"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Berth, Options as BerthOptions } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Bytes } from "./Cgroup.ts"
import type { Container } from "./Container.ts"
import * as internal from "./internal/fleet/fleet.ts"
import { placement } from "./internal/fleet/place.ts"
import * as seen from "./internal/fleet/seen.ts"

export { FleetError, RunnerLost } from "./FleetError.ts"

/**
 * Who a runner or a client is: both have the same token, or certificates of an authority that both know, or both.
 *
 * @since 0.2.0
 * @category models
 */
export interface Identity {
  /** A text of one line. At `tcp://` it crosses the network as it is: use `tls://` where others can listen. */
  readonly token?: Redacted.Redacted<string> | undefined
  /** For `tls://`. Texts in the PEM format. */
  readonly tls?:
    | {
        /** Who this side is: a runner needs both, and a client of a runner with an `authority`. */
        readonly certificate?: string | undefined
        readonly key?: Redacted.Redacted<string> | undefined
        /**
         * The authority of the other side's certificate. A runner with one refuses clients without a certificate of it. Default: for a
         * runner, none, and its clients need a token; for a client, those that its machine trusts.
         */
        readonly authority?: string | undefined
      }
    | undefined
}

/**
 * What the clients of a runner may do. Without more, they start containers of any image as `Container.start` makes them by default, with
 * less rights, but never with more.
 *
 * @since 0.2.0
 * @category models
 */
export interface Allow {
  /**
   * The registries of the images, `registry.example.com/`, and paths in registries: `registry.example.com/team/` has all images below it, and
   * none of `registry.example.com/team2/`. Default: all.
   */
  readonly images?: ReadonlyArray<string> | undefined
  /**
   * Where clients may send images that `Container.commit` makes, with the runner's credentials, written as in `images`. Default: nowhere.
   */
  readonly push?: ReadonlyArray<string> | undefined
  /** Whether the image may be `host`: the files of the runner's machine, which the container reads as its own. Default: false. */
  readonly hostImage?: boolean | undefined
  /**
   * The folders of the runner's machine that containers may bind, each as a whole: a part of one is no fixed place, as containers can put
   * links there. `/` allows every path. Default: none.
   */
  readonly binds?: ReadonlyArray<string> | undefined
  /** Whether containers may use namespaces of the runner's machine. Default: false. */
  readonly hostNamespaces?: boolean | undefined
  /**
   * Whether containers, and processes in them, may have more rights than by default: capabilities, other profiles for seccomp and
   * AppArmor, devices, paths that are not masked, sysctls, weights above those of others, resource limits of the whole machine such as
   * `rtprio`. Default: false.
   */
  readonly privileges?: boolean | undefined
  /** The largest limits of a container, and the limits of one that asks for none. */
  readonly limits?:
    | {
        readonly memory?: Bytes | undefined
        readonly cpus?: number | undefined
        readonly pids?: number | undefined
        /** Of the writable layer: `upperSize`, with what that needs. */
        readonly disk?: Bytes | undefined
      }
    | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RunnerOptions extends Identity {
  /** Where its clients reach it: `tcp://host:port`, `tls://host:port` or `unix:/path`. The port 0 is one that is free. */
  readonly listen: string
  /** Default: the hostname of the machine. */
  readonly name?: string | undefined
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** How much of the machine its containers get, by their limits. Default: all of it. */
  readonly memory?: Bytes | undefined
  readonly cpus?: number | undefined
  readonly allow?: Allow | undefined
  /**
   * The address of a Postgres, `postgres://user:password@host:5432/name`, in which clients with the same `database` find the runner, by
   * the address that it listens on: for all addresses of the machine, by the machine's hostname. Default: none.
   */
  readonly database?: Redacted.Redacted<string> | undefined
  /** How long what a client has lives on when the client is no longer heard. Default: 10 seconds. */
  readonly lease?: Duration.DurationInput | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface Options extends Identity {
  /** The addresses of the runners, as `RunnerOptions.listen` has them. Default, without `database`: one runner in this program. */
  readonly runners?: ReadonlyArray<string> | undefined
  /**
   * The address of a Postgres in which the runners are found that have the same `database`, also those that start later. A program that
   * is connected does not need it. Who can write to it can lead this program to other runners: with `tls`, only to those with a
   * certificate of its authority. It needs the packages `@effect/sql` and `@effect/sql-pg`.
   */
  readonly database?: Redacted.Redacted<string> | undefined
  /** Of the runner in this program. By default, it allows everything: the program may do it without a fleet, too. */
  readonly runner?: Omit<RunnerOptions, "database" | "listen" | keyof Identity> | undefined
  /** Of the Berth of the runner in this program. */
  readonly berth?: BerthOptions | undefined
}

/**
 * Where containers go.
 *
 * @since 0.2.0
 * @category models
 */
export interface Placement {
  /** The labels that the runner must have. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** The name of the runner. */
  readonly runner?: string | undefined
  /** How long to wait for a runner with room. Default: 1 minute. */
  readonly patience?: Duration.DurationInput | undefined
}

/**
 * How much of its machine a runner gives away, and how much of that is in use.
 *
 * @since 0.2.0
 * @category models
 */
export interface Room {
  readonly memoryBytes: number
  readonly cpus: number
  readonly usedMemoryBytes: number
  readonly usedCpus: number
  /** The number of containers, of all programs. */
  readonly containers: number
  /** The digests of the images that it has. */
  readonly images: ReadonlyArray<string>
}

/**
 * A runner that a program is connected to.
 *
 * @since 0.2.0
 * @category models
 */
export interface Runner {
  readonly name: string
  /** As images name it: `amd64`, `arm64`. */
  readonly architecture: string
  /** The release of its kernel. */
  readonly kernel: string
  readonly rootless: boolean
  /** The checks of `Berth.doctor` that its machine passes. */
  readonly features: ReadonlyArray<string>
  readonly labels: Readonly<Record<string, string>>
  readonly room: Room
}

/**
 * A container on a runner, of this or of another program.
 *
 * @since 0.2.0
 * @category models
 */
export interface RunnerContainer {
  /** The name of the runner. */
  readonly runner: string
  readonly id: string
  /** The reference of its image. */
  readonly image: string
  /** The room that it takes: its limits; 0 without a limit. */
  readonly memoryBytes: number
  readonly cpus: number
}

/**
 * Berth on a fleet: a program that has it runs unchanged, and its containers are on the runners that have room for them. `limits` say how
 * much room a container needs; among the runners that have it, those come first that have its image, and then those with the most room.
 * A runner that is lost is connected again when it answers; what was on it is lost.
 *
 * `Image.pull`, `Image.get`, `Container` and `WaitFor` work on a fleet. What needs this machine fails with `Unsupported`. `Container.copyOut`
 * first unpacks what comes into a folder below `TMPDIR`, and leaves devices out.
 *
 * Effect's metrics tell of it: `berth.fleet.runners`, `berth.fleet.runners.lost` by runner, `berth.fleet.waiting`, the starts and pulls
 * that wait for a runner with room, and `berth.fleet.start`, the time of starts in milliseconds. The spans of a runner are part of the
 * program's trace.
 *
 * Fails with `FleetError` if no runner answers, or refuses this program, or if the database does not answer (`Database`); and as `Berth.layer` for the runner in this program.
 *
 * @since 0.2.0
 * @category layers
 * @example
 * const fleet = Fleet.layer({ runners: ["tls://ci-1.example.com:7411", "tls://ci-2.example.com:7411"], token })
 */
export const layer = (options: Options = {}): Layer.Layer<Berth, BerthError, FileSystem.FileSystem> =>
  Layer.scopedContext(internal.make(options))

/**
 * A runner that serves its clients.
 *
 * @since 0.2.0
 * @category models
 */
export interface Serving {
  /** Where its clients reach it, with the port that it has. */
  readonly address: string
  /**
   * Waits until it serves nobody any more: its scope has closed, or its supervisor has ended, which happens to a runner that was stopped
   * by a signal for longer than its lease. Start it anew then, with a new Berth.
   */
  readonly ended: Effect.Effect<void>
}

/**
 * Serves this machine to the clients of a fleet until the scope closes. Each client has what it started for as
 * long as it renews its lease: a client that closes, breaks off or falls silent loses its containers, and a lease that has ended is never
 * renewed.
 *
 * Effect's metrics tell of it, tagged with the runner's name: `berth.runner.clients`, `.leases.ended`, `.containers`, `.memory.used` and
 * `.memory.size` in bytes, `.cpus.used` and `.cpus.size`.
 *
 * Fails with `FleetError` if the address cannot be listened on (`Listen`) or the database does not answer (`Database`), and with `InvalidOption` for an address that others can reach
 * without a token or certificates.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const runner = Fleet.serve({ listen: "tcp://0.0.0.0:7411", token }).pipe(Effect.flatMap(({ ended }) => ended), Effect.scoped)
 */
export const serve: (options: RunnerOptions) => Effect.Effect<Serving, BerthError, Berth | Scope.Scope> =
  internal.serve

/**
 * A runner as a layer: `serve`.
 *
 * @since 0.2.0
 * @category layers
 */
export const runnerLayer = (options: RunnerOptions): Layer.Layer<never, BerthError, Berth> =>
  Layer.scopedDiscard(serve(options))

/**
 * Says where the containers go that an effect starts.
 *
 * @since 0.2.0
 * @category placement
 * @example
 * const trained = Container.run(image, { command: ["train"] }).pipe(Fleet.on({ labels: { gpu: "a100" } }))
 */
export const on =
  (where: Placement) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.locallyWith(effect, placement, (outer) => ({ ...outer, ...where }))

/**
 * The addresses of the runners that are alive in a database, as `Options.database` has it: now, and after each change. It connects to none
 * of them.
 *
 * Fails with `FleetError` (`Database`) if the database does not answer at first. While it is away later, the addresses stay as they are.
 *
 * @since 0.2.0
 * @category runners
 */
export const addresses: (
  database: Redacted.Redacted<string>
) => Stream.Stream<ReadonlyArray<string>, BerthError> = internal.addresses

/**
 * The runners that this program is connected to. One that is lost is none of them until it answers again.
 *
 * Fails with `Unsupported` if the program's Berth is no fleet.
 *
 * @since 0.2.0
 * @category runners
 * @example
 * const names = Effect.map(Fleet.runners, (all) => all.map(({ name, room }) => `${name}: ${room.containers} containers`))
 */
export const runners: Effect.Effect<ReadonlyArray<Runner>, BerthError, Berth> = seen.runners

/**
 * The runners that this program is connected to: now, and after each change of them or of their rooms. Changes that come faster than they
 * are read become one.
 *
 * Fails with `Unsupported` if the program's Berth is no fleet.
 *
 * @since 0.2.0
 * @category runners
 */
export const runnerChanges: Stream.Stream<ReadonlyArray<Runner>, BerthError, Berth> = seen.changes

/**
 * The containers on the runners that this program is connected to, also those of other programs.
 *
 * Fails with `Unsupported` if the program's Berth is no fleet.
 *
 * @since 0.2.0
 * @category runners
 */
export const containers: Effect.Effect<ReadonlyArray<RunnerContainer>, BerthError, Berth> = seen.containers

/**
 * The name of the runner that has a container; undefined for a container of this machine.
 *
 * @since 0.2.0
 * @category placement
 */
export const runnerOf = (container: Container): string | undefined => container.state.elsewhere?.runner
