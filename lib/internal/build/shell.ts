/** `Build.shell`: a container on the files before the step that fails. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Shell, ShellOptions } from "../../Build.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import type { Evaluation, State } from "./evaluate.ts"
import type { Node } from "./node.ts"
import { mountsOf } from "./run.ts"

/** How the command of a step would be started. */
const startOf = (
  node: Node | undefined,
  { network }: ShellOptions
): Effect.Effect<Container.StartOptions, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const shell = { entrypoint: [], command: ["/bin/sh"], network }
    if (node?._tag !== "Run") return shell
    const { env, limits, network: own = network, user } = node.options
    return { ...shell, env, limits, network: own, user, mounts: yield* mountsOf(node.options) }
  })

export const shell = (
  evaluate: (failed: Evaluation["failed"]) => Effect.Effect<State, BerthError, Berth>,
  options: ShellOptions
): Effect.Effect<Shell, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    let first: { readonly node: Node; readonly image: Image } | undefined
    const result = yield* Effect.either(
      evaluate((node, image) => {
        first ??= { node, image }
      })
    )
    // What is no step's failure, such as that of the first image, leaves nothing to look at.
    if (Either.isLeft(result) && first === undefined) return yield* result.left
    const image = Either.isRight(result) ? result.right.image : first!.image
    const start = yield* startOf(Either.isRight(result) ? undefined : first?.node, options)
    const container = yield* Container.start(image, { ...start, ...options.start })
    return { container, failure: Either.isLeft(result) ? result.left : undefined }
  })
