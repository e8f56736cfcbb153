/** The namespaces, their flags of clone(2), and the error of a kernel that lacks one of them. */
import * as Inspectable from "effect/Inspectable"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Kind, Namespace, TypeId as PublicTypeId } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { EINVAL, ENOSYS } from "../util/errno.ts"
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

/** CLONE_NEW* of clone(2), in the order in which a plan prints them. */
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

/** The folder on which the holder of a mount namespace mounts its empty root, until the first process sets the root up. */
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
    (error.errno === EINVAL || error.errno === ENOSYS)
      ? new Unsupported({
          feature: `namespaces ${kinds.join(", ")}`,
          why: `clone3 fails with ${error.code}: this kernel lacks one of them`,
          hint: "Leave it out, or use a newer kernel: namespaces(7) has the version for each kind",
          cause: error
        })
      : error
