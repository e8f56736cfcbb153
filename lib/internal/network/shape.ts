/** Slow and bad links: queues in front of the two ends of a container's interface. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, ContainerError, InvalidOption, Unsupported } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Impairment, Network, Rates } from "../../Network.ts"
import { ENODEV, ENOENT, ESRCH } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as validate from "../util/validate.ts"
import { memberOf, undone } from "./member.ts"
import type { Bytes } from "./netlink.ts"
import * as queues from "./netlinkQueue.ts"
import type { Interface } from "./network.ts"
import { far, near, netlinkOperation, perform } from "./router.ts"

/** The way of packets: from the container, or to it. */
type Way = "up" | "down"

/** What is done to the packets of one way. */
interface Shape {
  /** In bytes a second. */
  readonly rate?: number | undefined
  readonly impair?: queues.Faults | undefined
}

/** The shapes of a container's interface, which change one after the other. */
interface Shapes {
  readonly lock: Effect.Semaphore
  up: Shape
  down: Shape
}

const known = new WeakMap<Interface, Shapes>()

const shapesOf = (link: Interface): Shapes => {
  const shapes = known.get(link) ?? { lock: Effect.unsafeMakeSemaphore(1), up: {}, down: {} }
  known.set(link, shapes)
  return shapes
}

// A queue that replaces another one needs a number of its own.
let ids = 0

const nextId = (): number => (ids++ % 0xffff) + 1

const messages = (index: number, { impair, rate }: Shape): ReadonlyArray<Bytes> => {
  if (impair === undefined && rate === undefined) return [queues.removeQueue(index)]
  const [outer, inner] = [nextId(), nextId()]
  if (impair === undefined) return [queues.slowly({ index, id: outer }, rate!)]
  const bad = queues.badly({ index, id: outer }, impair)
  return rate === undefined ? [bad] : [bad, queues.slowly({ index, id: inner, inside: outer }, rate)]
}

const explain =
  (container: Container) =>
  (error: BerthError): BerthError => {
    if (error._tag !== "OperationFailed") return error
    if (error.errno === ESRCH)
      return new ContainerError({
        reason: "NotRunning",
        container: container.id,
        detail: "it has ended, and its links cannot be changed",
        cause: error
      })
    if (error.errno !== ENOENT) return error
    return new Unsupported({
      feature: "slow and bad links",
      why: "this kernel lacks a kind of queue: sch_tbf for Network.rate, sch_netem for Network.impair",
      hint: "Load them as root (modprobe sch_tbf sch_netem), or use a kernel with CONFIG_NET_SCH_TBF and CONFIG_NET_SCH_NETEM",
      cause: error
    })
  }

/** What has no interface any more has no queue. */
const isGone = (error: BerthError): boolean =>
  error._tag === "OperationFailed" && (error.errno === ESRCH || error.errno === ENODEV)

/** Adds to what is done to the packets of one way, until the scope closes. */
const shape = (
  network: Network,
  container: Container,
  way: Way,
  added: Shape
): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { link, number, place } = yield* attempt(() => memberOf(network, "container", container))
    const { berth, members, router } = network.state
    const shapes = shapesOf(link)
    const [namespace, index] =
      way === "up" ? [container.state.pidfd, far(place).index] : [router.namespace.fd, near(number).index]
    const apply = (next: Shape): Effect.Effect<void, BerthError> =>
      perform(berth, namespace, `links of container ${container.id}`, [
        netlinkOperation(messages(index, next))
      ]).pipe(Effect.tap(() => Effect.sync(() => (shapes[way] = next))))
    const begin = Effect.suspend(() => {
      const taken = (Object.keys(added) as ReadonlyArray<keyof Shape>).find(
        (key) => shapes[way][key] !== undefined
      )
      if (taken === undefined) return Effect.mapError(apply({ ...shapes[way], ...added }), explain(container))
      const expected = `a container whose packets have no ${taken} of this way yet: close the scope of the first`
      return Effect.fail(new InvalidOption({ option: `${taken} ${way}`, value: String(container), expected }))
    })
    const end = Effect.suspend(() => {
      if (members.get(number)?.interfaces.get(place) !== link) return Effect.void
      const left = Object.entries(shapes[way]).filter(([key]) => !(key in added))
      return Effect.catchIf(apply(Object.fromEntries(left)), isGone, () => Effect.void)
    })
    yield* Effect.acquireRelease(shapes.lock.withPermits(1)(begin), () =>
      undone(network, `the link of container ${container.id}`, shapes.lock.withPermits(1)(end))
    )
  })

const bits: Readonly<Record<string, number>> = { bit: 1, kbit: 1e3, mbit: 1e6, gbit: 1e9 }

const LOWEST_BITS = 8e3
const HIGHEST_BITS = 1e11

/** Bytes a second of bits a second. */
const parseRate = (option: string, value: number | string): number => {
  const [, amount, unit] =
    /^(\d+(?:\.\d+)?)\s*([a-z]+)$/i.exec(typeof value === "number" ? `${value}bit` : value) ?? []
  const rate = Number(amount) * (bits[unit?.toLowerCase() ?? ""] ?? Number.NaN)
  return rate >= LOWEST_BITS && rate <= HIGHEST_BITS
    ? Math.floor(rate / 8)
    : validate.invalid(
        option,
        value,
        'bits a second, from 8kbit to 100gbit, as a number or as text like "10mbit"'
      )
}

/** See `Network.rate`. */
export const rate: {
  (container: Container, rates: Rates): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (network: Network, container: Container, rates: Rates): Effect.Effect<void, BerthError, Scope.Scope>
} = dual(3, (network: Network, container: Container, rates: Rates) =>
  Effect.gen(function* () {
    const given = yield* attempt(() =>
      (["up", "down"] as const).flatMap((way) => {
        const value = rates[way]
        return value === undefined ? [] : [[way, parseRate(way, value)] as const]
      })
    )
    if (given.length === 0)
      return yield* new InvalidOption({ option: "rates", value: "{}", expected: "up, down or both" })
    for (const [way, rate] of given) yield* shape(network, container, way, { rate })
  }).pipe(Effect.withSpan("berth.Network.rate", { attributes: { "container.id": container.id } }))
)

const nanosOf = (option: string, value: Duration.DurationInput = 0): number => {
  const millis = Duration.toMillis(validate.duration(option, value))
  return millis <= DELAY_MILLIS_MAX
    ? Math.round(millis * 1e6)
    : validate.invalid(option, value, "a duration of at most an hour")
}

const DELAY_MILLIS_MAX = 3_600_000

const probability = (option: string, value = 0): number =>
  value >= 0 && value <= 1 ? value : validate.invalid(option, value, "a share of the packets, from 0 to 1")

const faultsOf = (given: Impairment): queues.Faults => {
  const faults = {
    delayNanos: nanosOf("delay", given.delay),
    jitterNanos: nanosOf("jitter", given.jitter),
    loss: probability("loss", given.loss),
    duplicate: probability("duplicate", given.duplicate),
    corrupt: probability("corrupt", given.corrupt)
  }
  if (faults.jitterNanos > faults.delayNanos)
    validate.invalid("jitter", given.jitter, "a jitter that is not longer than the delay")
  if (Object.values(faults).every((fault) => fault === 0))
    validate.invalid(
      "impairment",
      given,
      "a delay, or a share of packets that are lost, duplicated or damaged"
    )
  return faults
}

const ways: Readonly<Record<string, ReadonlyArray<Way>>> = {
  up: ["up"],
  down: ["down"],
  both: ["up", "down"]
}

/** See `Network.impair`. */
export const impair: {
  (
    container: Container,
    impairment: Impairment
  ): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (
    network: Network,
    container: Container,
    impairment: Impairment
  ): Effect.Effect<void, BerthError, Scope.Scope>
} = dual(3, (network: Network, container: Container, impairment: Impairment) =>
  Effect.gen(function* () {
    const { direction = "both" } = impairment
    const [impair, chosen] = yield* attempt(
      () =>
        [
          faultsOf(impairment),
          ways[direction] ?? validate.invalid("direction", direction, '"up", "down" or "both"')
        ] as const
    )
    for (const way of chosen) yield* shape(network, container, way, { impair })
  }).pipe(Effect.withSpan("berth.Network.impair", { attributes: { "container.id": container.id } }))
)
