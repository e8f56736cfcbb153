/** The tag of the service, in a module of its own for the modules that make the service. */
import * as Context from "effect/Context"
import * as Inspectable from "effect/Inspectable"
import type * as Service from "../Berth.ts"

export const Berth: Context.Tag<Service.Berth, Service.Berth> =
  Context.GenericTag<Service.Berth>("berth/Berth")
export type Berth = Service.Berth

export const TypeId: Service.TypeId = Symbol.for("berth/Berth") as Service.TypeId

export const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Berth) {
    return {
      _id: "berth/Berth",
      folder: this.folder,
      rootless: this.rootless,
      supervisor: this.supervisor.pid
    }
  },
  toString(this: Berth) {
    return `Berth(${this.folder}, supervisor ${this.supervisor.pid}${this.rootless ? ", without root" : ""})`
  },
  [Inspectable.NodeInspectSymbol](this: Berth) {
    return this.toString()
  }
}
