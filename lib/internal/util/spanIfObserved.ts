import * as Context from "effect/Context"
import { liveServices } from "effect/DefaultServices"
import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"

const unobserved = Context.get(liveServices as Context.Context<Tracer.Tracer>, Tracer.Tracer)

/**
 * Makes a span if a tracer collects spans. Effect's own tracer only keeps them, so an exec should not pay for that: of
 * 800 execs with such a span and 800 without, alternating, the 10th percentiles differ by 0.05 ms in 1.8 ms, and the
 * medians by less than the noise of a busy machine, as do those of starts.
 */
export const spanIfObserved =
  (name: string, attributes: Readonly<Record<string, unknown>> = {}) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.tracerWith((tracer) =>
      tracer === unobserved
        ? effect
        : (Effect.withSpan(effect, name, { attributes, captureStackTrace: false }) as Effect.Effect<A, E, R>)
    )
