/** The modes in which a hostile container is tried: what it may be depends on who runs the tests. */
import type { Container } from "../../lib/index.ts"

export interface Mode {
  readonly name: string
  /** Options of `Container.start` that make the container of this mode. */
  readonly options: Pick<Container.StartOptions, "userns">
}

/** Root runs both; without root there is one, in which Berth's own user namespace is the container's. */
export const modes: ReadonlyArray<Mode> =
  process.getuid?.() === 0
    ? [
        { name: "root", options: {} },
        { name: "userns", options: { userns: "auto" } }
      ]
    : [{ name: "rootless", options: {} }]
