/** The functions of a session: they start, run and connect containers on a shared supervisor. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Network from "../../Network.ts"
import type {
  Box,
  CallOptions,
  Closable,
  ClosableNetwork,
  ClosablePod,
  ClosableVolume,
  NetworkFaults,
  OpenNetwork,
  RunOptions,
  StartOptions,
  volumes
} from "../../promise.ts"
import * as Volume from "../../Volume.ts"
import * as hosts from "../network/hosts.ts"
import {
  closableIn,
  closing,
  containerOf,
  faulty,
  inScope,
  makeBox,
  publishedOf,
  withContainers
} from "./box.ts"
import { streamOf, withInput } from "./command.ts"
import { fetchIn } from "./fetch.ts"
import { named } from "./images.ts"
import { iterableOf } from "./rejection.ts"
import type { Shared } from "./runtime.ts"

/** Makes a value that exists until the function that `use` gets is called. */
export const opened = <A, B>(
  shared: Shared,
  { linger, signal }: CallOptions,
  make: Effect.Effect<A, BerthError, Berth | Scope.Scope>,
  use: (made: A, close: () => Promise<void>, scope: Scope.CloseableScope) => B
): Promise<B> =>
  shared.run(
    inScope(make, (made, scope) => use(made, closing(shared, scope, linger), scope)),
    { linger, signal }
  )

const target = (of: Box | Network.Pod): Container.Container | Network.Pod =>
  Network.isPod(of) ? of : containerOf(of)

const group = (boxes: Box | ReadonlyArray<Box>) =>
  Array.isArray(boxes) ? boxes.map(containerOf) : containerOf(boxes as Box)

const faultsOf = (shared: Shared, network: Network.Network): Omit<NetworkFaults, "toxic"> => {
  const until = <A, B extends object>(
    effect: () => Effect.Effect<A, BerthError, Berth | Scope.Scope>,
    give: (value: A) => B
  ): Promise<B & Closable> =>
    opened(shared, {}, Effect.suspend(effect), (value, close) =>
      Object.assign(give(value), { close, [Symbol.asyncDispose]: close })
    )
  const counted = ({ statistics }: Network.FileCapture) => ({ statistics: () => shared.run(statistics) })
  const nothing = () => ({})
  return {
    partition: (a, b, options) =>
      until(() => Network.partition(network, group(a), group(b), options), nothing),
    rate: (box, rates) => until(() => Network.rate(network, containerOf(box), rates), nothing),
    impair: (box, impairment) => until(() => Network.impair(network, containerOf(box), impairment), nothing),
    capture: (box) =>
      until(
        () => Network.capture(network, containerOf(box)),
        (capture) => ({
          ...counted(capture),
          stream: iterableOf(capture.stream)
        })
      ),
    captureToFile: (box, path) => until(() => Network.captureToFile(network, containerOf(box), path), counted)
  }
}

/** A network with its functions, until the scope closes. */
export const withFunctions = (
  shared: Shared,
  made: Network.Network,
  scope: Scope.CloseableScope
): OpenNetwork => {
  const functions: Omit<OpenNetwork, keyof Network.Network | "toxic"> = {
    ...faultsOf(shared, made),
    expose: (options) =>
      closableIn(shared, scope, Network.expose(made, options), (port) => faulty(shared, scope, port)),
    join: (box, { signal, ...options } = {}) =>
      closableIn(
        shared,
        scope,
        Effect.suspend(() => Network.join(made, target(box), options)),
        () => ({}),
        { signal }
      ),
    fetch: fetchIn(shared, scope, `network ${made.name}`, hosts.fetcher(made)),
    dispatcher: () => shared.run(Scope.extend(Network.dispatcher(made), scope)),
    refusals: () => iterableOf(Network.refusals(made)),
    leave: (box) => shared.run(Effect.suspend(() => Network.leave(made, target(box))))
  }
  return Object.assign(faulty(shared, scope, made), functions)
}

export const networkWith =
  (shared: Shared) =>
  ({ linger, signal, ...options }: Network.NetworkOptions & CallOptions = {}): Promise<ClosableNetwork> =>
    opened(shared, { linger, signal }, Network.make(options), (made, close, scope) =>
      Object.assign(withFunctions(shared, made, scope), { close, [Symbol.asyncDispose]: close })
    )

export const podWith =
  (shared: Shared) =>
  ({ linger, signal, ...options }: Network.PodOptions & CallOptions = {}): Promise<ClosablePod> =>
    opened(shared, { linger, signal }, Network.pod(options), (made, close, scope) =>
      Object.assign(made, {
        published: publishedOf(shared, scope, made),
        close,
        [Symbol.asyncDispose]: close
      })
    )

export const volumeWith =
  (shared: Shared) =>
  ({ linger, signal, ...options }: Volume.Options & CallOptions = {}): Promise<ClosableVolume> =>
    opened(shared, { linger, signal }, Volume.make(options), (made, close) =>
      Object.assign(made, { close, [Symbol.asyncDispose]: close })
    )

export const volumesWith = (shared: Shared): typeof volumes => ({
  list: (options) => shared.run(Volume.list, options),
  remove: (name, options) => shared.run(Volume.remove(name), options)
})

export const startWith =
  (shared: Shared) =>
  (image: string | Image, options: StartOptions & CallOptions = {}): Promise<Box> =>
    shared.run(
      inScope(
        Effect.flatMap(named(image, options), (from) => Container.start(from, withContainers(options))),
        (container, scope) => makeBox(shared, container, scope, options.linger)
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
