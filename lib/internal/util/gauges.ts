/** Several of Effect's gauges of one value. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"

export interface Gauge<A> {
  readonly metric: Metric.Metric.Gauge<number>
  readonly of: (value: A) => number | undefined
}

export const gauge = <A>(
  name: string,
  description: string,
  of: (value: A) => number | undefined
): Gauge<A> => ({
  metric: Metric.gauge(name, { description }),
  of
})

/** Sets the gauges, with this tag, to what they are of a value; those that it has nothing of stay as they are. */
export const setting = <A>(gauges: ReadonlyArray<Gauge<A>>, tag: string, name: string) => {
  const tagged = gauges.map(({ metric, of }) => ({ metric: Metric.tagged(metric, tag, name), of }))
  return (value: A): Effect.Effect<void> =>
    Effect.forEach(
      tagged,
      ({ metric, of }) => {
        const number = of(value)
        return number === undefined ? Effect.void : Metric.set(metric, number)
      },
      { discard: true }
    )
}
