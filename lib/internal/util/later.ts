/** Parts of Berth that are loaded when an effect first needs them, because most programs need only few of them. */
import * as Effect from "effect/Effect"
import { limitOf } from "./fromThrowing.ts"

/**
 * Gives a module to the effects that need it. The first one loads it; the others wait for nothing. `load` has to be
 * `() => import("./module.ts")`, with the path as it is, because bundlers and Deno read it. A module that cannot be loaded
 * (the program may open no more files, or the package was deleted) is a defect: Node fails each later import of it as well.
 */
export const later = <Module>(load: () => Promise<Module>) => {
  let loaded: Module | undefined
  const loading = Effect.tryPromise({ try: load, catch: (cause) => limitOf(cause) ?? cause }).pipe(
    Effect.orDie,
    Effect.tap((module) => {
      loaded = module
    })
  )
  return <A, E, R>(use: (module: Module) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => (loaded === undefined ? Effect.flatMap(loading, use) : use(loaded)))
}
