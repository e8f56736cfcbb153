/** A fixture with promises. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Container } from "../../Container.ts"
import type * as BerthFixture from "../../Fixture.ts"
import type { Box } from "../../promise.ts"
import type { Fixture, Fork, ForkOptions, Server } from "../../promiseFixtures.ts"
import { addLog } from "../fixtures/addLog.ts"
import { closing, inScope, makeBox } from "./box.ts"
import { type Site, siteOf } from "./rejection.ts"
import type { Shared } from "./runtime.ts"

/** The effect of a function that uses the box of a container. */
export const withBox = (
  shared: Shared,
  container: Container,
  use: (box: Box) => unknown
): Effect.Effect<unknown, unknown> =>
  Effect.acquireUseRelease(
    Effect.map(Scope.make(), (scope) => makeBox(shared, container, scope, undefined)),
    (box) =>
      Effect.tryPromise({
        try: async () => await use(box),
        catch: (error) => error
      }),
    (box) => Effect.promise(box.close)
  )

/** The effect of a function that fills a server. */
type Filling = <A extends object>(
  fill: (server: Server<A>) => Promise<unknown>
) => (server: BerthFixture.Server<A>) => Effect.Effect<unknown, unknown>

const filling =
  (shared: Shared): Filling =>
  (fill) =>
  ({ container, ...client }) =>
    withBox(shared, container, (box) => fill({ ...client, box } as never))

/** What makes the effects of each fixture, on a supervisor that is given. */
const makers = new WeakMap<object, (shared: Shared) => BerthFixture.Fixture<object>>()

/** The effects of a fixture; undefined for something else. */
export const effectsOf = (
  shared: Shared,
  fixture: Fixture<unknown>
): BerthFixture.Fixture<object> | undefined => makers.get(fixture)?.(shared)

interface Opened<A> {
  readonly name: string
  readonly source: BerthFixture.Source<A>
  readonly close: () => Promise<void>
}

/** A fork, with what its log is found by. */
interface Forked<A> {
  readonly name: string
  readonly container: Container
  readonly fork: Fork<A>
}

export const makeFixture = <A extends object>(
  shared: Shared,
  make: (filling: Filling) => BerthFixture.Fixture<A>
): Fixture<A> => {
  let opened: Promise<Opened<A>> | undefined
  const begin = async (site: Site, options: ForkOptions): Promise<Forked<A>> => {
    const { linger, signal, ...rest } = options
    signal?.throwIfAborted()
    if (opened === undefined) {
      const opening = shared.runFrom(
        site,
        Effect.flatMap(
          Effect.sync(() => make(filling(shared))),
          ({ name, open }) =>
            inScope(
              open,
              (source, scope): Opened<A> => ({ name, source, close: closing(shared, scope, linger) })
            )
        ),
        { linger }
      )
      opened = opening
      // The next fork tries again.
      opening.catch(() => {
        if (opened === opening) opened = undefined
      })
    }
    const { name, source } = await opened
    return shared.runFrom(
      site,
      inScope(source.fork(rest), ({ container, ...client }, scope) => {
        const box = makeBox(shared, container, scope, linger)
        const fork = { ...client, box, close: box.close, [Symbol.asyncDispose]: box.close }
        return { name, container, fork: fork as never }
      }),
      { linger, signal }
    )
  }
  const fork = async (options: ForkOptions = {}): Promise<Fork<A>> =>
    (await begin(siteOf(fork), options)).fork
  const use = async <T>(body: (fork: Fork<A>) => T, options: ForkOptions = {}): Promise<Awaited<T>> => {
    const { container, fork, name } = await begin(siteOf(use), options)
    try {
      return await body(fork)
    } catch (error) {
      addLog(error, name, container)
      throw error
    } finally {
      await fork.close()
    }
  }
  const close = async (): Promise<void> => {
    const closed = opened
    opened = undefined
    await (await closed?.catch(() => undefined))?.close()
  }
  const fixture: Fixture<A> = { fork, use, close, [Symbol.asyncDispose]: close }
  makers.set(fixture, (on) => make(filling(on)))
  return fixture
}
