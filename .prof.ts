import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Berth, Namespace, Network } from "/work/wt-chaos/lib/index.ts"
import { configure } from "/work/wt-chaos/lib/internal/network/router.ts"
import { makeNames } from "/work/wt-chaos/lib/internal/network/names.ts"
const program = Effect.gen(function* () {
  const berth = yield* Berth.Berth
  const t: Record<string, Array<number>> = {}
  const time = <A, E, R>(name: string, e: Effect.Effect<A, E, R>) => Effect.suspend(() => { const s = performance.now(); return Effect.tap(e, () => Effect.sync(() => void (t[name] ??= []).push(performance.now() - s))) })
  for (let k = 0; k < 60; k++) {
    const s = performance.now()
    let inner = 0
    yield* Effect.scoped(Effect.gen(function* () {
      const holder = yield* time("holder", Namespace.make(["network"]))
      yield* time("configure", configure(berth, holder, { prefix4: "10.200", prefix6: "fd00:1:2:3" }))
      yield* time("names", makeNames(berth, "x"))
      inner = performance.now()
    }))
    ;(t.close ??= []).push(performance.now() - inner)
    ;(t.total ??= []).push(performance.now() - s)
  }
  for (const [name, list] of Object.entries(t)) { list.sort((a, b) => a - b); console.log(name.padEnd(12), "min", list[0]!.toFixed(2), "p50", list[30]!.toFixed(2)) }
})
Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Berth.layer.pipe(Layer.provideMerge(NodeContext.layer)))))
