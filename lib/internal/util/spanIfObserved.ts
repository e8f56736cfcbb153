import * as Context from "effect/Context"
import { liveServices } from "effect/DefaultServices"
import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"

const unobserved = Context.get(liveServices as Context.Context<Tracer.Tracer>, Tracer.Tracer)

/**
 * A span where somebody collects them: Effect's own tracer only keeps them, and what is on the path of every start does
 * not pay for that.
 */
export const traced =
  (name: string, attributes: Readonly<Record<string, unknown>> = {}) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.tracerWith((tracer) =>
      tracer === unobserved
        ? effect
        : (Effect.withSpan(effect, name, { attributes, captureStackTrace: false }) as Effect.Effect<A, E, R>)
    )
