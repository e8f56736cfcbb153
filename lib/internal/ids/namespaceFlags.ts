/** Namespaces as plans and clone3(2) name them, and what a kernel without one of them says. */
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Kind } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { type Ids, print } from "./idMaps.ts"

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

/** Where the empty root of the holder of a mount namespace is, until its first process sets it up. */
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
          hint: "Leave it out, or use a kernel that has it: see namespaces(7) for the version of each",
          cause: error
        })
      : error
