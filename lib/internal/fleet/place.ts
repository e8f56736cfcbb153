/** Where a container goes: the runners that it can run on, the best first, and the wait for one that has room. */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import type { BerthError } from "../../BerthError.ts"
import { FleetError } from "../../FleetError.ts"
import type { Placement } from "../../fleet.ts"
import { isOver, type Link } from "./client.ts"
import { whileWaiting } from "./metrics.ts"
import type { Request } from "./policy.ts"
import { missing } from "./room.ts"

/** Where the containers go that a fiber starts. */
export const placement: FiberRef.FiberRef<Placement> = FiberRef.unsafeMake<Placement>({})

export interface Wanted {
  readonly request: Request
  readonly architecture: string | undefined
  readonly digest: string | undefined
}

/** Why a container cannot run on a runner, whatever else runs there. */
const unfit = (
  { description, room }: Link,
  wanted: Wanted,
  { labels = {}, runner }: Placement
): string | undefined => {
  if (runner !== undefined && description.name !== runner) return `it is not ${runner}`
  if (wanted.architecture !== undefined && description.architecture !== wanted.architecture)
    return `it is ${description.architecture}, and the image ${wanted.architecture}`
  const label = Object.entries(labels).find(([name, value]) => description.labels[name] !== value)
  if (label !== undefined) return `it lacks the label ${label[0]}=${label[1]}`
  const lacking = missing(room, wanted.request, true)
  return lacking === undefined ? undefined : `it is too small for ${lacking}`
}

/** The share of a room that is in use, by what there is less of. */
const load = ({ room }: Link): number =>
  Math.max(room.usedMemoryBytes / room.memoryBytes, room.usedCpus / room.cpus)

/** Those that have the image come first, then those with the most room, then those with the fewest containers. */
const better =
  (digest: string | undefined) =>
  (a: Link, b: Link): number =>
    Number(digest !== undefined && b.room.images.includes(digest)) -
      Number(digest !== undefined && a.room.images.includes(digest)) ||
    load(a) - load(b) ||
    a.room.containers + a.starting - (b.room.containers + b.starting)

const counted = <A, R>(
  link: Link,
  start: (link: Link) => Effect.Effect<A, BerthError, R>
): Effect.Effect<A, BerthError, R> =>
  Effect.suspend(() => {
    link.starting++
    return Effect.ensuring(
      start(link),
      Effect.sync(() => link.starting--)
    )
  })

const fleetError = (reason: "NoRunner" | "NoRoom", detail: string): FleetError =>
  new FleetError({ reason, subject: "fleet", detail })

/** The runners of a fleet that are there, and the wait for a change of them. */
export interface Runners {
  readonly links: () => ReadonlyArray<Link>
  readonly change: () => Deferred.Deferred<void>
}

/** Starts something on the best runner that takes it, and waits for room where all that could take it are full. */
export const place = <A, R>(
  runners: Runners,
  wanted: Wanted,
  start: (link: Link) => Effect.Effect<A, BerthError, R>
): Effect.Effect<A, BerthError, R> =>
  Effect.flatMap(FiberRef.get(placement), (where) => {
    let nobody = false
    const attempt: Effect.Effect<A, BerthError, R> = Effect.suspend(() => {
      // Before the rooms are read, so that no change is missed.
      const change = whileWaiting(Deferred.await(runners.change()))
      const all = runners.links().filter((link) => !isOver(link))
      const reasons = all.map((link) => `${link.description.name}: ${unfit(link, wanted, where) ?? ""}`)
      const fit = all.filter((link) => unfit(link, wanted, where) === undefined)
      nobody = all.length === 0
      if (nobody) return Effect.zipRight(change, attempt)
      if (fit.length === 0)
        return fleetError("NoRunner", `no runner can take the container: ${reasons.join("; ")}`)
      const open = fit
        .filter((link) => missing(link.room, wanted.request) === undefined)
        .sort(better(wanted.digest))
      // Another program may have taken the room that a runner told of.
      const next = (index: number): Effect.Effect<A, BerthError, R> =>
        index === open.length
          ? Effect.zipRight(change, attempt)
          : Effect.catchIf(
              counted(open[index]!, start),
              (error) =>
                (error._tag === "FleetError" && error.reason === "NoRoom") || error._tag === "RunnerLost",
              () => next(index + 1)
            )
      return next(0)
    })
    const patience = Duration.decode(where.patience ?? "1 minute")
    return Effect.timeoutFail(attempt, {
      duration: patience,
      onTimeout: () =>
        nobody
          ? fleetError(
              "NoRunner",
              `no runner has answered for ${Duration.format(patience)}: start one, or look why it does not answer`
            )
          : fleetError(
              "NoRoom",
              `no runner had room for ${wanted.request.memoryBytes} bytes of memory and ${wanted.request.cpus} CPUs within ${Duration.format(patience)}: add a runner, or wait longer with Fleet.on({ patience })`
            )
    })
  })
