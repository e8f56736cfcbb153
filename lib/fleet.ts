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
import type { Berth, Options as BerthOptions } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { Bytes } from "./Cgroup.ts"
import type { Container } from "./Container.ts"
import * as internal from "./internal/fleet/fleet.ts"
import { placement } from "./internal/fleet/place.ts"

export { FleetError, RunnerLost } from "./FleetError.ts"

/**
 * Who a runner or a client is: both have the same token, or certificates of an authority that both know, or both.
 *
 * @since 0.2.0
 * @category models
 */
export interface Identity {
  readonly token?: Redacted.Redacted<string> | undefined
  /** Texts in the PEM format. */
  readonly tls?:
    | {
        readonly certificate: string
        readonly key: Redacted.Redacted<string>
        /** The authority of the other side's certificate. A runner with one refuses clients without a certificate of it. */
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
  /** The prefixes of the images: `registry.example.com/team/`. Default: all. */
  readonly images?: ReadonlyArray<string> | undefined
  /** The folders of the runner's machine that containers may bind, with all that is in them. Default: none. */
  readonly binds?: ReadonlyArray<string> | undefined
  /** Whether containers may use namespaces of the runner's machine. Default: false. */
  readonly hostNamespaces?: boolean | undefined
  /**
   * Whether containers may have more rights than by default: capabilities, other profiles for seccomp and AppArmor, devices, paths
   * that are not masked, sysctls. Default: false.
   */
  readonly privileges?: boolean | undefined
  /** The largest limits of a container, and the limits of one that asks for none. */
  readonly limits?:
    | {
        readonly memory?: Bytes | undefined
        readonly cpus?: number | undefined
        readonly pids?: number | undefined
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
  readonly memoryBytes?: number | undefined
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
 * Berth on a fleet: a program that has it runs unchanged, and its containers are on the runners that have room for them. `limits` say how
 * much room a container needs; among the runners that have it, those come first that have its image, and then those with the most room.
 * A runner that is lost is connected again when it answers; what was on it is lost.
 *
 * `Image.pull`, `Image.get`, `Container` and `WaitFor` work on a fleet. What needs this machine fails with `Unsupported`.
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
 * The name of the runner that has a container; undefined for a container of this machine.
 *
 * @since 0.2.0
 * @category placement
 */
export const runnerOf = (container: Container): string | undefined => container.state.elsewhere?.runner
