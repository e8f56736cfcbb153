/** A container's own cgroup, made on first use, and pausing. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Scope from "effect/Scope"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import type * as Cgroup from "../../Cgroup.ts"
import type { Container, ProcessInfo } from "../../Container.ts"
import type { Process } from "../../Process.ts"
import * as internal from "../cgroup/cgroup.ts"
import * as freezer from "../cgroup/freezer.ts"
import { noFilesError } from "../files/archiveCopy.ts"
import { here } from "../util/elsewhere.ts"
import { attempt } from "../util/fromThrowing.ts"
import { running, unlessEnded } from "./execIn.ts"
import { afterCopy } from "./handle.ts"
import * as processes from "./processes.ts"

const isOwn = (process: Process): boolean => {
  const { cgroup, ended } = process.state
  return cgroup !== undefined && cgroup.state.owner?.container === ended
}

/** Makes a cgroup with these folders for the container and moves all of it there. */
const adopt = (
  container: Container,
  made: ReturnType<typeof internal.operations>,
  cgroup: Cgroup.Cgroup
): Effect.Effect<Cgroup.Cgroup, BerthError> =>
  Effect.gen(function* () {
    const { berth, ended, scope } = container.state
    const release = yield* internal.perform(berth, `cgroup ${cgroup.name}`, made.create)
    yield* Scope.addFinalizer(scope, release)
    cgroup.state.owner = { berth, scope, container: ended }
    // First, so that new execs start in it.
    container.state.cgroup = cgroup
    // Earlier execs are moved with the others, once they are visible.
    yield* freezer.settled(container.state.inside)
    const pids = () => processes.processesOf(container)
    for (const { path } of made.folders) yield* internal.moveAll(path, pids)
    return cgroup
  }).pipe(Effect.uninterruptible)

const nameFor = (container: Container): string => {
  const { folder, nextId } = container.state.berth.supervisor
  return internal.nameOf(folder, nextId())
}

/** The cgroup in which the container was started, or a new one. */
export const cgroupOf = (container: Container): Effect.Effect<Cgroup.Cgroup, BerthError> =>
  Effect.suspend(() => {
    const { cgroup } = container.state
    if (cgroup !== undefined) return Effect.succeed(cgroup)
    const make = Effect.suspend(() => {
      if (container.state.cgroup !== undefined) return Effect.succeed(container.state.cgroup)
      const name = nameFor(container)
      return Effect.flatMap(
        attempt(() => internal.operations(container.state.berth.memory.tree(), {}, name)),
        (made) => adopt(container, made, internal.unsafeMake(name, made.folders))
      )
    })
    return Effect.zipRight(
      running(container),
      internal.inTurn(container.state.inside, "adopting").withPermits(1)(make)
    ).pipe(unlessEnded(container), here(container, "the cgroup of a container"))
  })

/** A cgroup with no other processes: below a shared cgroup, the container only has its own freezer. */
const ownCgroup = (container: Container): Effect.Effect<Cgroup.Cgroup, BerthError> =>
  Effect.flatMap(cgroupOf(container), (cgroup) => {
    if (isOwn(container)) return Effect.succeed(cgroup)
    const make = Effect.suspend(() => {
      if (isOwn(container)) return Effect.succeed(container.state.cgroup!)
      const name = nameFor(container)
      const folders = internal
        .folders(container.state.berth.memory.tree(), name, ["freezer"], cgroup.folders)
        .map((folder) => ({ ...folder, controllers: ["freezer"] }))
      const create = folders.map(({ path }) => ({ op: "cgroup-create", path }) as const)
      // The shared cgroup still has the limits and statistics.
      const all = [
        ...cgroup.folders.map((folder) => ({
          ...folder,
          controllers: folder.controllers.filter((controller) => controller !== "freezer")
        })),
        ...folders
      ]
      return adopt(container, { folders, create }, internal.unsafeMake(name, all))
    })
    return internal.inTurn(container.state.inside, "adopting").withPermits(1)(make)
  })

const freeze = (container: Container): Effect.Effect<void, BerthError> =>
  running(container).pipe(
    Effect.zipRight(
      Effect.flatMap(ownCgroup(container), (cgroup) =>
        Effect.zipRight(
          freezer.freeze(cgroup, container.state.inside),
          Effect.tapError(running(container), () => Effect.ignore(freezer.thaw(cgroup)))
        )
      )
    ),
    unlessEnded(container)
  )

const isPaused = (process: Process): boolean => freezer.isFrozen(process.state.cgroup) && isOwn(process)

/** Lets it go on, also during a snapshot, which fails then. */
export const thaw = (process: Process): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => (isPaused(process) ? freezer.thaw(process.state.cgroup!) : Effect.void))

export const pause = (container: Container): Effect.Effect<void, BerthError> =>
  (container.state.elsewhere?.pause ?? afterCopy(container.state.inside, freeze(container))).pipe(
    Effect.withSpan("berth.Container.pause", { attributes: { "container.id": container.id } })
  )

export const resume = (container: Container): Effect.Effect<void, BerthError> =>
  (container.state.elsewhere?.resume ?? afterCopy(container.state.inside, thaw(container))).pipe(
    Effect.withSpan("berth.Container.resume", { attributes: { "container.id": container.id } })
  )

const resumed = (container: Container): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    if (container.state.root < 0) return noFilesError(container)
    if (isPaused(container)) return Effect.void
    const detail = "it was stopped or resumed while its files were copied, so the copy was dropped: try again"
    return Effect.zipRight(
      running(container),
      new ContainerError({ reason: "Running", container: container.id, detail })
    )
  })

/**
 * Copies files of the container while it stands still, one copy at a time. A container that was paused before stays paused. Others
 * who pause, resume or enter it wait for the end; if it was let go nevertheless, the copy fails.
 */
export const whileFrozen = <A, R>(
  container: Container,
  copy: Effect.Effect<A, BerthError, R>
): Effect.Effect<A, BerthError, R> => {
  const { inside } = container.state
  const begin = Effect.sync(() => {
    inside.copying = Deferred.unsafeMake<void>(FiberId.none)
    return { done: inside.copying, before: isPaused(container) }
  })
  return afterCopy(
    inside,
    Effect.acquireUseRelease(
      begin,
      () => Effect.zipRight(freeze(container), Effect.zipLeft(copy, resumed(container))),
      ({ before, done }) => {
        const letGo = before
          ? Effect.void
          : Effect.catchAll(thaw(container), (error) => Effect.logWarning(error))
        return Effect.map(letGo, () => {
          inside.copying = undefined
          Deferred.unsafeDone(done, Effect.void)
        })
      }
    )
  )
}

/** A process that was told to end must not stay frozen. */
export const letEnd = (process: Process): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const { cgroup, ended, inside } = process.state
    const places = cgroup === undefined ? [inside] : [cgroup.state, inside]
    const going = freezer.leave(places, Deferred.await(ended))
    if (!freezer.isFrozen(cgroup)) return going
    if (isOwn(process)) return Effect.zipRight(going, freezer.thaw(cgroup!))
    return Effect.sync(() => freezer.letOut(cgroup!, () => processes.processesOf(process)))
  })

export const top = (container: Container): Effect.Effect<ReadonlyArray<ProcessInfo>, BerthError> =>
  container.state.elsewhere?.top ??
  Effect.zipRight(
    running(container),
    Effect.suspend(() => processes.top(container, processes.processesOf(container)))
  ).pipe(Effect.withSpan("berth.Container.top", { attributes: { "container.id": container.id } }))
