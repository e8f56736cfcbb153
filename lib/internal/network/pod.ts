/** Pods: network namespaces that containers share. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Inspectable from "effect/Inspectable"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Publishable } from "../../Connection.ts"
import type { StartOptions } from "../../Container.ts"
import type { Namespace } from "../../Namespace.ts"
import type { Pod, PodOptions } from "../../Network.ts"
import { attempt } from "../util/fromThrowing.ts"
import { invalid } from "../util/validate.ts"
import { whole } from "../util/whole.ts"
import { type Joined, joinAtStart } from "./join.ts"
import { addressesOf, isPod, PodTypeId, parseName, type Station } from "./network.ts"
import { parsePorts } from "./ports.ts"
import { publishAll } from "./publish.ts"
import { perform } from "./router.ts"

export interface State {
  readonly berth: Berth
  readonly holder: Namespace
  readonly station: Station
  readonly addresses: ReadonlyArray<string>
  readonly kinds: ReadonlyArray<"network">
  /** No root: the containers have their own. */
  readonly root: -1
  /** That of the process that holds its network namespace; -1 once its scope has closed. */
  readonly pidfd: number
  readonly scope: Scope.Scope
}

const Proto = {
  [PodTypeId]: PodTypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Pod) {
    return { _id: "berth/Pod", name: this.name, addresses: this.state.addresses }
  },
  toString(this: Pod) {
    return `Pod(${[this.name, ...this.state.addresses].join(", ")})`
  },
  [Inspectable.NodeInspectSymbol](this: Pod) {
    return this.toString()
  }
}

/** A pod has no root in which a Unix socket could be; throws. */
const parseOwnPorts = (ports: NonNullable<PodOptions["ports"]>): ReadonlyArray<Publishable> =>
  ports
    .flatMap((port) => parsePorts("ports", port))
    .map((port) =>
      typeof port === "object" && typeof port.container === "object"
        ? invalid("ports", port.container, "a port: a pod has no root, and no Unix socket at a path")
        : port
    )

/** See `Network.pod`. `holder` is a network namespace that nothing else uses. */
export const make = (
  berth: Berth,
  holder: Namespace,
  options: PodOptions
): Effect.Effect<Pod, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const given = options.name ?? `pod-${randomBytes(4).toString("hex")}`
    const name = yield* attempt(() => parseName("name", given))
    const ports = yield* attempt(() => parseOwnPorts(options.ports ?? []))
    const joined = yield* Effect.acquireRelease(
      attempt(() => joinAtStart(name, { ...options, name })),
      ({ leave }) => Effect.sync(leave)
    )
    const { descriptors, operations } = joined
    if (operations.length > 0)
      yield* perform(berth, holder.pidfd, "the networks of a pod", operations, descriptors)
    joined.done()
    const station = joined.station!
    const state: State = {
      berth,
      holder,
      station,
      get addresses() {
        return addressesOf(station)
      },
      kinds: ["network"],
      root: -1,
      get pidfd() {
        return holder.pidfd
      },
      scope
    }
    const pod: Pod = Object.assign(Object.create(Proto), { name, state })
    yield* publishAll({ id: name, state }, ports)
    return pod
  }).pipe(whole)

/** The options of a start in a pod, and what the start makes of them; throws. */
export const inPod = (
  pod: Pod,
  { aliases, name, network: _, ...options }: StartOptions
): { readonly options: StartOptions; readonly joined: Joined } => {
  const { addresses, holder, station } = pod.state
  const refused = Object.entries({ name, aliases, "namespaces.network": options.namespaces?.network }).find(
    ([, value]) => value !== undefined
  )
  if (refused !== undefined)
    throw new InvalidOption({
      option: refused[0],
      value: JSON.stringify(refused[1]),
      expected: "undefined for a container in a pod, which has the pod's names and networks"
    })
  if (options.userns !== undefined)
    throw new InvalidOption({
      option: "userns",
      value: JSON.stringify(options.userns),
      expected:
        "undefined for a container in a pod: a user namespace of its own has no rights over the pod's network namespace"
    })
  if (holder.pidfd < 0)
    throw new InvalidOption({
      option: "network",
      value: String(pod),
      expected: "a pod whose scope is open"
    })
  return {
    options: { ...options, namespaces: { ...options.namespaces, network: holder } },
    joined: { station, operations: [], descriptors: {}, addresses, done: () => {}, leave: () => {} }
  }
}

/** The pod that a start names. */
export const podOf = ({ network }: StartOptions): Pod | undefined => (isPod(network) ? network : undefined)
