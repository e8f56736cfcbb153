/** `Container.snapshot` and `Container.fork`: images and containers of a container that runs. */

import { availableParallelism } from "node:os"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import type { Container, ForkOptions, SnapshotOptions, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { checkKey, imageOf } from "../image/kept.ts"
import * as Kept from "../layer/kept.ts"
import * as Holds from "../store/leases.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import { copied, ownUpper } from "./keep.ts"
import { start, whileStarted } from "./lifecycle.ts"
import { whileFrozen } from "./pause.ts"

const FORKS_MAX = 1000

const checkRuns = (container: Container): Effect.Effect<void, ContainerError> =>
  Effect.flatMap(Deferred.isDone(container.state.ended), (ended) => {
    const detail = "it has ended: Container.keep makes its files a layer, without a copy"
    return ended ? new ContainerError({ reason: "NotRunning", container: container.id, detail }) : Effect.void
  })

const folderOf = (container: Container, key: string | undefined): string =>
  Kept.folderOf(container.state.berth, container.state.base.image, key)

/** Makes the layer in a folder of the store, unless it is there by the key. */
const makeLayer = (
  container: Container,
  folder: string,
  { key, maxBytes }: SnapshotOptions
): Effect.Effect<Image, BerthError> => {
  const { base, berth } = container.state
  return Effect.gen(function* () {
    const most = maxBytes === undefined ? undefined : yield* attempt(() => check.bytes("maxBytes", maxBytes))
    const upper = yield* ownUpper(container)
    yield* checkRuns(container)
    const make = Effect.scoped(
      Effect.flatMap(whileFrozen(container, copied(container, upper, most)), (prepared) =>
        Kept.place(berth, prepared, folder, base.image, key)
      )
    )
    const unlessThere = Effect.flatMap(Kept.use(berth, folder), (there) =>
      Option.isSome(there) ? Effect.void : make
    )
    yield* key === undefined ? make : Kept.exclusive(berth, folder, unlessThere)
    yield* Kept.use(berth, folder)
    return imageOf(base.image, folder)
  })
}

export const snapshot = (
  container: Container,
  options: SnapshotOptions
): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return (options.key === undefined ? Effect.void : checkKey(options.key)).pipe(
    Effect.zipRight(Effect.suspend(() => makeLayer(container, folderOf(container, options.key), options))),
    Holds.keeping(berth.holds),
    Effect.withSpan("berth.Container.snapshot", { attributes: { "container.id": container.id } })
  )
}

/** An image of the container whose layer is removed when the scope closes, unless something uses it then. */
const template = (container: Container): Effect.Effect<Image, BerthError, Scope.Scope> =>
  Effect.suspend(() => {
    const folder = folderOf(container, undefined)
    return Effect.zipRight(
      Effect.addFinalizer(() => Effect.ignore(Kept.drop(container.state.berth, folder))),
      makeLayer(container, folder, {})
    )
  })

/** The options of a fork: those of its container, without what only one container can have. */
const optionsOf = (container: Container, { count: _, ...options }: ForkOptions): StartOptions => {
  const { aliases: _a, logs: _l, name: _n, ports: _p, ...started } = container.state.started
  return { ...started, ...options }
}

const countOf = ({ count = 1 }: ForkOptions): number =>
  Number.isInteger(count) && count >= 1 && count <= FORKS_MAX
    ? count
    : check.invalid("count", count, `a whole number from 1 to ${FORKS_MAX}`)

/** Takes each fork by `take`, which starts it. */
export const forkEach = <A>(
  container: Container,
  options: ForkOptions,
  take: (
    start: Effect.Effect<Container, BerthError, Berth | Scope.Scope>
  ) => Effect.Effect<A, BerthError, Berth | Scope.Scope>
): Effect.Effect<ReadonlyArray<A>, BerthError, Scope.Scope> => {
  const { berth } = container.state
  const forks = Effect.gen(function* () {
    const count = yield* attempt(() => countOf(options))
    const image = yield* template(container)
    const begin = start(image, optionsOf(container, options))
    // A failure of Effect.forEach would not wait for the end of the other starts, whose layer is removed then.
    let failed: BerthError | undefined
    const one = Effect.suspend(() =>
      failed === undefined ? Effect.either(take(begin)) : Effect.succeed(Either.left(failed))
    ).pipe(
      Effect.tap((made) => {
        if (Either.isLeft(made)) failed = made.left
      })
    )
    const all = yield* Effect.forEach(Array.from({ length: count }), () => one, {
      concurrency: availableParallelism()
    })
    return yield* Either.all(all)
  })
  // The layer's lease ends before its release, which a failure runs.
  return forks.pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    whileStarted,
    Effect.withSpan("berth.Container.fork", { attributes: { "container.id": container.id } })
  )
}

export const fork = (
  container: Container,
  options: ForkOptions
): Effect.Effect<ReadonlyArray<Container>, BerthError, Scope.Scope> =>
  forkEach(container, options, (begin) => begin)
