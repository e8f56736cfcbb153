/** What tells a value of Berth's from any other, for modules that need no more of it. */
import { hasProperty } from "effect/Predicate"
import type { Container } from "../Container.ts"

export const ContainerTypeId: unique symbol = Symbol.for("berth/Container") as never

export const isContainer = (u: unknown): u is Container => hasProperty(u, ContainerTypeId)
