/** The functions of a session: they start, run and connect containers on a shared supervisor. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Network from "../../Network.ts"
import type { Box, CallOptions, ClosableNetwork, RunOptions, StartOptions } from "../../promise.ts"
import { closing, makeBox, withContainers } from "./box.ts"
import { streamOf, withInput } from "./command.ts"
import { named } from "./images.ts"
import type { Shared } from "./runtime.ts"

export const networkWith =
  (shared: Shared) =>
  ({ linger, signal, ...options }: Network.NetworkOptions & CallOptions = {}): Promise<ClosableNetwork> =>
    shared.run(
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(Scope.make(), (scope) =>
          restore(Network.make(options)).pipe(
            Scope.extend(scope),
            Effect.map((made) => {
              const close = closing(shared, scope, linger)
              const expose = (options: Network.ExposeOptions) =>
                shared.run(Scope.extend(Network.expose(made, options), scope))
              return Object.assign(made, { expose, close, [Symbol.asyncDispose]: close })
            }),
            Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
          )
        )
      ),
      { linger, signal }
    )

export const startWith =
  (shared: Shared) =>
  (image: string | Image, options: StartOptions & CallOptions = {}): Promise<Box> =>
    shared.run(
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(Scope.make(), (scope) =>
          restore(
            Effect.flatMap(named(image, options), (from) => Container.start(from, withContainers(options)))
          ).pipe(
            Scope.extend(scope),
            Effect.map((container) => makeBox(shared, container, scope, options.linger)),
            Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
          )
        )
      ),
      options
    )

export const runWith =
  (shared: Shared) =>
  (image: string | Image, { input, ...options }: RunOptions = {}): Promise<Container.Result> =>
    withInput(input, (given) =>
      shared.run(
        Effect.flatMap(named(image, options), (from) =>
          Container.run(from, {
            ...withContainers(options),
            input: given === undefined ? undefined : streamOf(given)
          })
        ),
        options
      )
    )
