/** Parts of Berth that are loaded when an effect first needs them: most programs need few of them, and none of them at once. */
import * as Effect from "effect/Effect"

/**
 * Gives a module to effects that need it. The module is loaded once; after that, nothing is waited for. `load` has to be
 * `() => import("./module.ts")`, with the path as it is, because bundlers and Deno read it. A module that cannot be loaded,
 * such as one that was deleted while the program ran, is a defect.
 */
export const later = <Module>(load: () => Promise<Module>) => {
  let loaded: Module | undefined
  const loading = Effect.map(Effect.promise(load), (module) => {
    loaded = module
    return module
  })
  return <A, E, R>(use: (module: Module) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => (loaded === undefined ? Effect.flatMap(loading, use) : use(loaded)))
}
