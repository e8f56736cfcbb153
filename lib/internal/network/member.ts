/** Containers of a network, as its public functions take them. */
import * as Effect from "effect/Effect"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Network } from "../../Network.ts"
import { isContainer } from "../typeIds.ts"
import type { Interface } from "./network.ts"

/** Whether a network's scope is open: else its namespace is gone, with all that was done in it. */
export const isOpen = ({ state }: Network): boolean => state.router.namespace.fd >= 0

/** A container's interface on a network, with the container's number there and the interface's place in the container; throws. */
export const memberOf = (
  network: Network,
  option: string,
  container: Container
): { readonly number: number; readonly place: number; readonly link: Interface } => {
  if (!isOpen(network))
    throw new InvalidOption({
      option: "network",
      value: String(network),
      expected: "a network whose scope is open"
    })
  if (isContainer(container))
    for (const [number, { container: id, interfaces }] of network.state.members)
      for (const [place, link] of interfaces)
        if (id === container.id && link.network === network) return { number, place, link }
  const expected = `a container that is on this network, ${network.name}, and whose scope is open`
  throw new InvalidOption({ option, value: String(container), expected })
}

/** Undoes a change of a network as its scope closes, which cannot fail: nothing is left of it once the network's scope has closed. */
export const undone = (
  network: Network,
  what: string,
  change: Effect.Effect<void, BerthError>
): Effect.Effect<void> =>
  Effect.suspend(() => (isOpen(network) ? change : Effect.void)).pipe(
    Effect.catchAll((error) =>
      isOpen(network)
        ? Effect.logWarning(
            `${what} of network ${network.name} is there until the network's scope closes: ${error.message}`
          )
        : Effect.void
    )
  )
