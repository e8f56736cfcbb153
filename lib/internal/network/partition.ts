/** Partitions of a network: rules that drop what containers send to others. */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Network, PartitionOptions } from "../../Network.ts"
import type * as Plan from "../../Plan.ts"
import { attempt } from "../util/fromThrowing.ts"
import { memberOf, undone } from "./member.ts"
import * as netlink from "./netlink.ts"
import { isNetwork } from "./network.ts"
import { addressesOf, checkByRules, near, netlinkOperations, perform } from "./router.ts"

/** Before the rules of the router, and after the one of its own addresses, which is 0. */
const PRIORITY = 50

type Group = Container | ReadonlyArray<Container>

const numbersOf = (network: Network, option: string, group: Group): ReadonlyArray<number> => {
  const containers = Array.isArray(group) ? (group as ReadonlyArray<Container>) : [group as Container]
  if (containers.length === 0)
    throw new InvalidOption({ option, value: "[]", expected: "a container, or several" })
  return [...new Set(containers.map((container) => memberOf(network, option, container).number))]
}

/** One rule for each way that a packet can take from one group to the other. */
const rulesOf = (
  { state }: Network,
  from: ReadonlyArray<number>,
  to: ReadonlyArray<number>
): ReadonlyArray<netlink.Rule> =>
  from.flatMap((sender) =>
    to.flatMap((receiver) =>
      addressesOf(state.router.range, receiver)
        .map(netlink.ip)
        .map((address) => ({
          priority: PRIORITY,
          family: address.family,
          interface: near(sender).name,
          to: address,
          action: "drop"
        }))
    )
  )

/** See `Network.partition`. */
export const partition: {
  (
    a: Group,
    b: Group,
    options?: PartitionOptions
  ): (network: Network) => Effect.Effect<void, BerthError, Scope.Scope>
  (
    network: Network,
    a: Group,
    b: Group,
    options?: PartitionOptions
  ): Effect.Effect<void, BerthError, Scope.Scope>
} = dual(
  ([first]) => isNetwork(first),
  (network: Network, a: Group, b: Group, { oneWay = false }: PartitionOptions = {}) =>
    Effect.gen(function* () {
      const { berth, router } = network.state
      const [one, other] = yield* attempt(() => {
        const groups = [numbersOf(network, "a", a), numbersOf(network, "b", b)] as const
        if (groups[0].some((number) => groups[1].includes(number)))
          throw new InvalidOption({
            option: "b",
            value: String(b),
            expected: "containers that are not in a as well"
          })
        return groups
      })
      const rules = [...rulesOf(network, one, other), ...(oneWay ? [] : rulesOf(network, other, one))]
      const apply = (changes: ReadonlyArray<Plan.Operation>) =>
        perform(berth, router.namespace.fd, `partition of network ${network.name}`, changes)
      const checks = oneWay ? other.flatMap((number) => checkByRules(router, number)) : []
      const begin = Effect.tap(apply([...checks, ...netlinkOperations(rules.map(netlink.rule))]), () =>
        Effect.sync(() => oneWay && other.forEach((number) => router.ruled4.add(number)))
      )
      const end = undone(
        network,
        "a partition",
        Effect.suspend(() => apply(netlinkOperations(rules.map(netlink.removeRule))))
      )
      // The rules name numbers, which no other container may get meanwhile.
      const held = [...one, ...other]
      yield* Effect.acquireRelease(
        Effect.sync(() => held.forEach((number) => router.numbers.hold(number))),
        () => Effect.sync(() => held.forEach((number) => router.numbers.give(number)))
      )
      yield* Effect.acquireRelease(begin, () => end)
    }).pipe(Effect.withSpan("berth.Network.partition", { attributes: { network: network.name } }))
)
