import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"
import { Container, Image } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"

/** A tracer that keeps what it is told. */
const recording = () => {
  const spans: Array<Tracer.Span> = []
  const native = Effect.runSync(Effect.tracer)
  return {
    spans,
    tracer: Tracer.make({
      span: (...given) => {
        const span = native.span(...given)
        spans.push(span)
        return span
      },
      context: native.context
    })
  }
}

suite("the trace of a container", (effect) => {
  effect("goes from the client to the runner", function* () {
    const there = recording()
    const here = recording()
    const address = yield* runner().pipe(Effect.withTracer(there.tracer))
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), { command: ["sleep", "1000"] })
      yield* Container.exec(box, ["true"])
    }).pipe(
      Effect.withSpan("the program"),
      (program) => onFleet([address])(program),
      Effect.withTracer(here.tracer)
    )
    const root = here.spans.find(({ name }) => name === "the program")!
    const of = (spans: ReadonlyArray<Tracer.Span>) =>
      new Set(spans.filter(({ traceId }) => traceId === root.traceId).map(({ name }) => name))
    for (const name of ["berth.Container.exec", "berth.fleet.exec"]) assert.ok(of(here.spans).has(name), name)
    for (const name of ["berth.runner.exec", "berth.runner.start", "berth.Container.exec"])
      assert.ok(of(there.spans).has(name), `${name} of ${[...of(there.spans)].join(", ")}`)
  })
})
