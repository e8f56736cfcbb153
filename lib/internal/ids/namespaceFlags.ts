/** Namespaces: their values, their flags in plans and clone3(2), and the error of a kernel that lacks one. */
import * as Inspectable from "effect/Inspectable"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Kind, Namespace, TypeId as PublicTypeId } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { type Ids, print } from "./idMaps.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Namespace") as PublicTypeId

export const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Namespace) {
    return { _id: "berth/Namespace", kinds: this.kinds, pid: this.pid }
  },
  toString(this: Namespace) {
    return `Namespace(${this.kinds.join(", ")}; held by pid ${this.pid})`
  },
  [Inspectable.NodeInspectSymbol](this: Namespace) {
    return this.toString()
  }
}

export const flags: Readonly<Record<Kind, number>> = {
  mount: 0x00020000,
  cgroup: 0x02000000,
  uts: 0x04000000,
  ipc: 0x08000000,
  user: 0x10000000,
  pid: 0x20000000,
  network: 0x40000000,
  time: 0x00000080
}

export const flagsOf = (kinds: Iterable<Kind>): number => {
  let all = 0
  for (const kind of kinds) all |= flags[kind]
  return all
}

/** The empty root of the holder of a mount namespace, until a first process sets up the root. */
export const emptyFolder = (supervisorFolder: string): string => `${supervisorFolder}/empty`

export const idMap = (ids: Ids): Plan.Operation => ({
  op: "id-map",
  uids: print(ids.uids),
  gids: print(ids.gids)
})

export const explain =
  (kinds: ReadonlyArray<Kind>) =>
  (error: BerthError): BerthError =>
    error._tag === "OperationFailed" &&
    error.syscall === "clone3" &&
    (error.errno === 22 || error.errno === 38)
      ? new Unsupported({
          feature: `namespaces ${kinds.join(", ")}`,
          why: `clone3 fails with ${error.code}: this kernel lacks one of them`,
          hint: "Leave it out, or use a newer kernel: namespaces(7) has the version for each kind"
        })
      : error
