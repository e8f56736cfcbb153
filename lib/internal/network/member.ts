/** Containers of a network, as its public functions take them. */
import { InvalidOption } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Network } from "../../Network.ts"
import { isContainer } from "../typeIds.ts"

/** The number of a container on a network, and the place of the network among those of the container; throws. */
export const memberOf = (
  network: Network,
  option: string,
  container: Container
): { readonly number: number; readonly place: number } => {
  if (isContainer(container))
    for (const [number, member] of network.state.members)
      if (member.container === container.id) return { number, place: member.place }
  const expected = `a container that was started with this network, ${network.name}, and whose scope is open`
  throw new InvalidOption({ option, value: String(container), expected })
}

/** Whether a network's scope is open: else its namespace is gone, with all that was done in it. */
export const isOpen = ({ state }: Network): boolean => state.router.holder.pidfd >= 0
