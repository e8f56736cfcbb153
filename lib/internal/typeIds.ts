/** What tells a value of Berth's from any other, for modules that need no more of it. */
import { hasProperty } from "effect/Predicate"
import type * as Container from "../Container.ts"
import type * as Process from "../Process.ts"

export const ProcessTypeId: Process.TypeId = Symbol.for("berth/Process") as Process.TypeId

export const ContainerTypeId: Container.TypeId = Symbol.for("berth/Container") as Container.TypeId

export const isProcess = (u: unknown): u is Process.Process => hasProperty(u, ProcessTypeId)

export const isContainer = (u: unknown): u is Container.Container => hasProperty(u, ContainerTypeId)
