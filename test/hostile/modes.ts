/** The modes of a hostile container: root and non-root users run the tests in different ones. */
import type { Container } from "../../lib/index.ts"

export interface Mode {
  readonly name: string
  /** Options of `Container.start` that make the container of this mode. */
  readonly options: Pick<Container.StartOptions, "userns">
}

/** Root runs two modes. A non-root user has one, in which the container is in Berth's own user namespace. */
export const modes: ReadonlyArray<Mode> =
  process.getuid?.() === 0
    ? [
        { name: "root", options: {} },
        { name: "userns", options: { userns: "auto" } }
      ]
    : [{ name: "rootless", options: {} }]
