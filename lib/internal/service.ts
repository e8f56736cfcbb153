/** What the service is known by, on its own, for what `Berth`'s own layer is made of. */
import * as Context from "effect/Context"
import type * as Service from "../Berth.ts"

export const Berth: Context.Tag<Service.Berth, Service.Berth> =
  Context.GenericTag<Service.Berth>("berth/Berth")
export type Berth = Service.Berth

export const TypeId: typeof Service.TypeId = Symbol.for("berth/Berth") as never
