import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { Container, Image } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"

suite("tracing", (effect) => {
  effect(
    "a tracer gets a span of a start, with container and image, and one of an exec below the caller's span",
    function* () {
      const spans: Array<{ name: string; parent: string | undefined; attributes: Map<string, unknown> }> = []
      const tracer = Tracer.make({
        span: (name, parent, context, links, startTime, kind) => {
          const attributes = new Map<string, unknown>()
          const above = Option.getOrUndefined(parent)
          spans.push({
            name,
            parent: above?._tag === "Span" ? above.name : undefined,
            attributes
          })
          return {
            _tag: "Span",
            name,
            spanId: String(spans.length),
            traceId: "trace",
            parent,
            context,
            status: { _tag: "Started", startTime },
            attributes,
            links,
            sampled: true,
            kind,
            end: () => {},
            attribute: (key, value) => attributes.set(key, value),
            event: () => {},
            addLinks: () => {}
          }
        },
        context: (f) => f()
      })
      const id = yield* Effect.gen(function* () {
        const box = yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"] })
        yield* Container.exec(box, ["true"])
        return box.id
      }).pipe(Effect.withSpan("mine"), Effect.withTracer(tracer))
      const named = (name: string) => spans.find((span) => span.name === name)
      const start = named("berth.Container.start")
      assert.equal(start?.parent, "mine")
      assert.equal(start?.attributes.get("container.id"), id)
      assert.equal(start?.attributes.get("container.image.name"), "host")
      assert.equal(named("berth.Container.exec")?.attributes.get("container.id"), id)
    }
  )
})
