/** What a program sees of its fleet: the runners, their rooms and their containers. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Runner, RunnerContainer } from "../../fleet.ts"
import type { Fleet } from "../util/elsewhere.ts"
import { isOver, type Link } from "./client.ts"
import type { Runners } from "./place.ts"

const runnerOf = ({ description, room }: Link): Runner => {
  const { architecture, features, kernel, labels, name, rootless } = description
  const { serial: _, ...shown } = room
  return { name, architecture, kernel, rootless, features, labels, room: shown }
}

const containersOf = (link: Link): Effect.Effect<ReadonlyArray<RunnerContainer>, BerthError> => {
  const { name } = link.description
  return link
    .call((calls) => calls.containers())
    .pipe(
      Effect.map((all) => all.map((container) => ({ runner: name, ...container }))),
      Effect.catchTag("RunnerLost", () => Effect.succeed([]))
    )
}

/** The part of a fleet that tells of its runners. */
export const seenOf = (links: Runners): Pick<Fleet, "runners" | "changes" | "containers"> => {
  const there = () => links.links().filter((link) => !isOver(link))
  const runners = () => there().map(runnerOf)
  // Before the runners are read, so that no change is missed.
  const next = (before: Deferred.Deferred<void> | undefined) =>
    Effect.map(before === undefined ? Effect.void : Deferred.await(before), () => {
      const change = links.change()
      return Option.some([runners(), change] as const)
    })
  return {
    runners,
    changes: Stream.unfoldEffect(undefined, next),
    containers: Effect.map(
      Effect.suspend(() => Effect.forEach(there(), containersOf, { concurrency: "unbounded" })),
      (all) => all.flat()
    )
  }
}

const fleetOf: Effect.Effect<Fleet, Unsupported, Berth> = Effect.flatMap(Berth, ({ fleet }) =>
  fleet === undefined
    ? new Unsupported({
        feature: "the runners of a fleet",
        why: "the Berth of this program is no fleet",
        hint: "Provide Fleet.layer in place of Berth.layer"
      })
    : Effect.succeed(fleet)
)

export const runners: Effect.Effect<ReadonlyArray<Runner>, BerthError, Berth> = Effect.map(fleetOf, (fleet) =>
  fleet.runners()
)

export const changes: Stream.Stream<ReadonlyArray<Runner>, BerthError, Berth> = Stream.unwrap(
  Effect.map(fleetOf, (fleet) => fleet.changes)
)

export const containers: Effect.Effect<ReadonlyArray<RunnerContainer>, BerthError, Berth> = Effect.flatMap(
  fleetOf,
  (fleet) => fleet.containers
)
