/** The symbols that mark Berth's values, for modules that need nothing else of them. */
import { hasProperty } from "effect/Predicate"
import type * as Container from "../Container.ts"
import type * as Process from "../Process.ts"
import type * as Registry from "../Registry.ts"

export const ProcessTypeId: Process.TypeId = Symbol.for("berth/Process") as Process.TypeId

export const ContainerTypeId: Container.TypeId = Symbol.for("berth/Container") as Container.TypeId

export const isProcess = (u: unknown): u is Process.Process => hasProperty(u, ProcessTypeId)

export const isContainer = (u: unknown): u is Container.Container => hasProperty(u, ContainerTypeId)

export const RegistryTypeId: Registry.TypeId = Symbol.for("berth/Registry") as Registry.TypeId

export const isRegistry = (u: unknown): u is Registry.Registry => hasProperty(u, RegistryTypeId)
