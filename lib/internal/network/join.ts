/** How containers join networks: when they start, and while they run. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Scope from "effect/Scope"
import {
  type BerthError,
  ContainerError,
  InvalidOption,
  NetworkError,
  type OperationFailed
} from "../../BerthError.ts"
import type { Container, StartOptions } from "../../Container.ts"
import type { JoinOptions, Network, Pod } from "../../Network.ts"
import type { Operation } from "../../Plan.ts"
import { isContainer } from "../typeIds.ts"
import { EADDRINUSE, ENODEV, ESRCH } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { NETWORKS_MAX, RESOLVER } from "./names.ts"
import {
  enter,
  exit,
  type Interface,
  isNetwork,
  isPod,
  makeStation,
  parseName,
  type Station,
  see,
  serve,
  stopAsking
} from "./network.ts"
import { detach, perform } from "./router.ts"

/** What a start makes of its networks. */
export interface Joined {
  /** Undefined for a container that no network was named for. */
  readonly station: Station | undefined
  readonly operations: ReadonlyArray<Operation>
  readonly descriptors: Readonly<Record<string, number>>
  readonly addresses: ReadonlyArray<string>
  /** Says that the operations have been performed. */
  readonly done: () => void
  readonly leave: () => void
}

export const none: Joined = {
  station: undefined,
  operations: [],
  descriptors: {},
  addresses: [],
  done: () => {},
  leave: () => {}
}

type Named = Pick<StartOptions, "network" | "name" | "aliases">

/** The networks that the option of a start names. */
const networksOf = ({ network }: Named): ReadonlyArray<Network> =>
  network === undefined || typeof network === "string"
    ? []
    : Array.isArray(network)
      ? network
      : [network as Network]

const check = (networks: ReadonlyArray<Network>): void => {
  networks.forEach((network, place) => {
    if (!isNetwork(network) || networks.indexOf(network) !== place || place >= NETWORKS_MAX)
      throw new InvalidOption({
        option: "network",
        value: String(network),
        expected: `"none", "host", a network of Network.make, a pod, or a list of at most ${NETWORKS_MAX} networks without repetition`
      })
  })
}

const parseAliases = (aliases: ReadonlyArray<string> = []): ReadonlyArray<string> =>
  aliases.map((alias) => parseName("aliases", alias))

/** The names of a start on one of its networks. */
const aliasesOn = (network: Network, { aliases = [] }: Named): ReadonlyArray<string> =>
  parseAliases(
    Array.isArray(aliases) ? aliases : (aliases as ReadonlyMap<Network, Array<string>>).get(network)
  )

const connected = ({ attachment, network }: Interface): void => {
  attachment.close()
  network.state.router.ruled.add(attachment.number)
}

/** Takes an address on each network of a start; throws, and then has taken none. */
export const joinAtStart = (container: string, options: Named): Joined => {
  const networks = networksOf(options)
  check(networks)
  const name = options.name === undefined ? undefined : parseName("name", options.name)
  const aliases = networks.map((network) => aliasesOn(network, options))
  const station = makeStation(container, name)
  station.isReleased = true
  const responder = networks[0]?.state.names.responder
  // Those that it has joined in the meantime as well.
  const leave = (): void => {
    for (const one of [...station.interfaces.values()]) exit(station, one)
    stopAsking(station)
  }
  try {
    const entered = networks.map((network, k) => enter(station, network, aliases[k]!))
    const attachments = entered.map(({ one }) => one.attachment)
    const introductions = entered.flatMap(({ introductions }) => introductions)
    const served = responder === undefined ? undefined : serve(station, responder, introductions)
    return {
      station,
      operations: [
        ...attachments.flatMap(({ operations }) => operations),
        ...(served === undefined ? [] : [served.operation])
      ],
      descriptors: Object.assign(
        { ...served?.descriptors },
        ...attachments.map(({ descriptors }) => descriptors)
      ),
      addresses: attachments.flatMap(({ addresses }) => addresses),
      done: () => [...station.interfaces.values()].forEach(connected),
      leave
    }
  } catch (error) {
    leave()
    throw error
  }
}

/** A container or a pod that joins a network. */
type Target = Container | Pod

const isTarget = (u: unknown): u is Target => isContainer(u) || isPod(u)

const nameOf = (target: Target): string => (isContainer(target) ? `container ${target.id}` : String(target))

/** The station of a target, if it has one of its own; throws. */
const stationOf = (target: Target): Station => {
  if (!isTarget(target))
    throw new InvalidOption({ option: "container", value: String(target), expected: "a container or a pod" })
  const { station } = target.state
  if (station !== undefined && (!isContainer(target) || station.container === target.id)) return station
  const expected =
    station !== undefined
      ? `a container with a network namespace of its own: this one is in pod ${station.container}, which can join the network`
      : target.state.kinds.includes("network")
        ? "a container with a network namespace of its own: this one shares that of another container, or of a Namespace"
        : "a container with a network namespace of its own: this one has the host's"
  throw new InvalidOption({ option: "container", value: nameOf(target), expected })
}

const ended = (target: Target): BerthError =>
  new ContainerError({
    reason: "NotRunning",
    container: isContainer(target) ? target.id : target.name,
    detail: "it has ended, and can join no network"
  })

const explain =
  (target: Target) =>
  (error: BerthError): BerthError => {
    if (error._tag !== "OperationFailed") return error
    if (error.errno === ESRCH) return ended(target)
    if (error.errno !== EADDRINUSE || error.syscall !== "bind") return error
    const detail =
      "a process of the container has this port, at which the container would ask for names: end it, or name a network at the start"
    return new NetworkError({
      reason: "AddressInUse",
      subject: nameOf(target),
      address: `${RESOLVER}:53`,
      errno: error.errno,
      detail
    })
  }

const alone = <A, E>(station: Station, change: Effect.Effect<A, E>): Effect.Effect<A, E> => {
  station.changing ??= Effect.unsafeMakeSemaphore(1)
  return station.changing.withPermits(1)(change)
}

const joinNow = (
  network: Network,
  target: Target,
  aliases: ReadonlyArray<string>
): Effect.Effect<Interface, BerthError> =>
  Effect.gen(function* () {
    if (!isNetwork(network))
      return yield* Effect.fail(
        new InvalidOption({
          option: "network",
          value: String(network),
          expected: "a network of Network.make"
        })
      )
    const station = yield* attempt(() => stationOf(target))
    const parsed = yield* attempt(() => parseAliases(aliases))
    const { berth, names } = network.state
    const joined = yield* alone(
      station,
      Effect.gen(function* () {
        if (target.state.pidfd < 0 || station.isLeaving) return yield* Effect.fail(ended(target))
        const { introductions, one } = yield* attempt(() => enter(station, network, parsed))
        introductions.forEach(names.responder.tell)
        const { descriptors, operations } = one.attachment
        const served = station.asker === undefined ? serve(station, names.responder) : undefined
        const all = served === undefined ? operations : [...operations, served.operation]
        const what = `a network of ${nameOf(target)}`
        yield* perform(berth, target.state.pidfd, what, all, { ...descriptors, ...served?.descriptors }).pipe(
          Effect.mapError(explain(target)),
          // A part of it may have succeeded.
          Effect.tapError(() => Effect.ignore(drop(station, target, one))),
          Effect.tapError(() => Effect.sync(() => served !== undefined && stopAsking(station)))
        )
        connected(one)
        see(station)
        return one
      })
    )
    // Not alone any more: if the scope has closed meanwhile, it leaves at once.
    yield* releaseWith(target, station)
    return joined
  })

/** What the kernel has removed already: the container has ended, or the network is gone. */
const isGone = ({ errno }: OperationFailed): boolean => errno === ENODEV || errno === ESRCH

/** Removes the interface; one that remains has the route to all other addresses from then on. */
const removeInterface = (station: Station, target: Target, one: Interface): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const { berth, router } = one.network.state
    yield* detach(berth, router, one.attachment)
    const places = [...station.interfaces.keys()].sort((a, b) => a - b)
    const heir = places.map((place) => station.interfaces.get(place)!).find((other) => other !== one)
    if (!one.isDefault || heir === undefined) return
    yield* perform(berth, target.state.pidfd, `a route of ${nameOf(target)}`, [heir.attachment.defaultRoute])
    heir.isDefault = true
  }).pipe(
    Effect.catchIf(
      (error) => error._tag === "OperationFailed" && isGone(error),
      () => Effect.void
    )
  )

/** Removes the interface, and then gives its address back. */
const drop = (station: Station, target: Target, one: Interface): Effect.Effect<void, BerthError> =>
  Effect.ensuring(
    removeInterface(station, target, one),
    Effect.sync(() => {
      exit(station, one)
      see(station)
    })
  )

const leaveNow = (target: Target, station: Station, one: Interface): Effect.Effect<void, BerthError> =>
  alone(
    station,
    Effect.suspend(() => {
      const { names } = one.network.state
      if (station.interfaces.get(one.attachment.place) !== one) return Effect.void
      names.remove(one.attachment.number)
      return drop(station, target, one)
    })
  ).pipe(Effect.uninterruptible)

/** Has it leave all networks at its own end, if nothing else does. */
const releaseWith = (target: Target, station: Station): Effect.Effect<void> => {
  if (station.isReleased) return Effect.void
  station.isReleased = true
  const leaveAll = Effect.suspend(() => {
    // A semaphore is not fair: whoever joins and leaves in a loop would keep this waiting.
    station.isLeaving = true
    const left = [...station.interfaces.values()]
    return Effect.forEach(left, (one) => Effect.ignore(leaveNow(target, station, one)), { discard: true })
  })
  const stop = Effect.sync(() => stopAsking(station))
  return Scope.addFinalizer(target.state.scope, Effect.zipRight(leaveAll, stop))
}

/** See `Network.join`. */
export const join: {
  (target: Target, options?: JoinOptions): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (network: Network, target: Target, options?: JoinOptions): Effect.Effect<void, BerthError, Scope.Scope>
} = dual(
  (args) => !isTarget(args[0]),
  (network: Network, target: Target, options: JoinOptions = {}) =>
    Effect.acquireRelease(joinNow(network, target, options.aliases ?? []), (one) =>
      Effect.catchAll(leaveNow(target, target.state.station!, one), (error) => Effect.logWarning(error))
    ).pipe(Effect.asVoid, Effect.withSpan("berth.Network.join", { attributes: { network: network.name } }))
)

/** See `Network.leave`. */
export const leave: {
  (target: Target): (network: Network) => Effect.Effect<void, BerthError>
  (network: Network, target: Target): Effect.Effect<void, BerthError>
} = dual(2, (network: Network, target: Target) =>
  Effect.gen(function* () {
    const station = yield* attempt(() => stationOf(target))
    const one = [...station.interfaces.values()].find((one) => one.network === network)
    if (one !== undefined) return yield* leaveNow(target, station, one)
    const expected = `a network that ${nameOf(target)} is on`
    return yield* Effect.fail(new InvalidOption({ option: "network", value: String(network), expected }))
  }).pipe(Effect.withSpan("berth.Network.leave", { attributes: { network: network.name } }))
)
