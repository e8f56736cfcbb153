/** `Build.shell`: a container on the files before the step that fails. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Shell, ShellOptions } from "../../Build.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { attempt } from "../util/fromThrowing.ts"
import type { Evaluation, Seen, State } from "./evaluate.ts"
import type { Node } from "./node.ts"
import * as running from "./run.ts"

/** A step that failed, with the image before it, and what its command sees. */
interface Failed {
  readonly node: Node
  readonly image: Image
  readonly seen: Seen
}

/** How the command of a step would be started. */
const startOf = (
  failed: Failed | undefined,
  { network }: ShellOptions
): Effect.Effect<Container.StartOptions, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const shell = { entrypoint: [], command: ["/bin/sh"], network }
    const node = failed?.node
    if (node?._tag !== "Run") return shell
    const { network: own = network } = node.options
    const mounts = yield* running.mountsOf(node, failed!.image, failed!.seen)
    return { ...shell, ...(yield* attempt(() => running.startOf(node))), network: own, mounts }
  })

export const shell = (
  evaluate: (failed: Evaluation["failed"]) => Effect.Effect<State, BerthError, Berth>,
  options: ShellOptions
): Effect.Effect<Shell, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    let first: Failed | undefined
    const result = yield* Effect.either(
      evaluate((node, image, seen) => {
        first ??= { node, image, seen }
      })
    )
    // What is no step's failure, such as that of the first image, leaves nothing to look at.
    if (Either.isLeft(result) && first === undefined) return yield* result.left
    const image = Either.isRight(result) ? result.right.image : first!.image
    const start = yield* startOf(Either.isRight(result) ? undefined : first, options)
    const container = yield* Container.start(image, { ...start, ...options.start })
    return { container, failure: Either.isLeft(result) ? result.left : undefined }
  })
