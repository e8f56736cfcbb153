/** Allocates the ids of containers' user namespaces, so that no two containers have the same ids. */
import * as fs from "node:fs"
import type { Berth } from "../../Berth.ts"
import { OperationFailed, Unsupported } from "../../BerthError.ts"
import type { StartOptions } from "../../Container.ts"
import type { Namespace } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { tryLock } from "../disk/fileLock.ts"
import { AT_FDCWD, native, O_NOFOLLOW } from "../system/addon.ts"
import { EAGAIN } from "../util/errno.ts"
import { invalid } from "../util/validate.ts"
import * as Ids from "./idMaps.ts"

/** The ids of a namespace, and the descriptor of the lock that keeps other containers from them; -1 without a lock. */
export interface Mapped {
  readonly ids: Ids.Ids
  readonly lock: number
}

/** The number of ids that images commonly use; `nobody` (65534) is the last but one. */
const SIZE = 65536

// Below 2^31, and unused in systemd's plan of user ids (UIDS-GIDS.md), which distributions follow.
const high: ReadonlyArray<Ids.SubIds> = [{ start: 0x70000000, size: 0xfff0000 }]

/** One folder for all Berths that root runs on this machine, independent of their own folders. */
const lockFolder = "/run/berth/ids"

/** The first id of each range of SIZE ids that a user has in a file like /etc/subuid. */
const startsIn = (file: string, owner: string): ReadonlyArray<number> => {
  const ranges = Ids.subIdsOf(file, [owner])
  return (ranges.length === 0 ? high : ranges).flatMap(({ size, start }) =>
    Array.from({ length: Math.floor(size / SIZE) }, (_, k) => start + k * SIZE)
  )
}

const lockOf = (name: string): number => {
  fs.mkdirSync(lockFolder, { recursive: true, mode: 0o700 })
  const flags = fs.constants.O_RDWR | fs.constants.O_CREAT | O_NOFOLLOW
  const fd = native().openIn(AT_FDCWD, `${lockFolder}/${name}`, flags, 0, 0o600)
  const errno = fd < 0 ? -fd : tryLock(fd, "exclusive")
  if (errno === 0) return fd
  if (fd >= 0) native().close(fd)
  if (errno === EAGAIN) return -1
  const hint = "Berth locks the ranges of ids in use there: make the folder writable for root"
  throw new OperationFailed({
    operation: `lock of ids in ${lockFolder}`,
    index: -1,
    syscall: "flock",
    errno,
    hint
  })
}

/** The search begins after the range that was allocated last, so that ids are not reused soon. */
const anyRange = (owner: string, memory: Berth["memory"]): Mapped => {
  const [uids, gids] = [startsIn("/etc/subuid", owner), startsIn("/etc/subgid", owner)]
  const slots = Math.min(uids.length, gids.length)
  for (let tried = 0; tried < slots; tried++) {
    const slot = memory.nextIds++ % slots
    const [uid, gid] = [uids[slot]!, gids[slot]!]
    const lock = lockOf(`${uid}-${gid}`)
    if (lock < 0) continue
    const range = (host: number) => [{ container: 0, host, size: SIZE }]
    return { ids: { uids: range(uid), gids: range(gid) }, lock }
  }
  throw new Unsupported({
    feature: 'userns: "auto"',
    why: `all ${slots} ranges of ${SIZE} ids of user ${owner} are in use`,
    hint: `Give ${owner} more ids in /etc/subuid and /etc/subgid, or containers maps of their own`
  })
}

/** Throws for a non-root user. */
const refuse = (): never => {
  throw new Unsupported({
    feature: "a user namespace with other ids than Berth's own",
    why: "only root may make idmapped mounts of the layers (mount_setattr(2)), and without them the files have other owners",
    hint: 'Containers of a non-root user are in a user namespace already: leave userns out, or use namespaces: { user: "new" }'
  })
}

/** The ids of the option; throws. The caller closes the lock once the supervisor has it. */
export const acquire = (userns: NonNullable<StartOptions["userns"]>, berth: Berth): Mapped => {
  const explicit =
    userns === "auto"
      ? undefined
      : typeof userns !== "object" || userns === null
        ? invalid("userns", userns, '"auto", or { uidMap, gidMap }')
        : Ids.checkMaps("userns", { uids: userns.uidMap, gids: userns.gidMap }, berth.ids, [
            "uidMap",
            "gidMap"
          ])
  if (berth.rootless) refuse()
  return explicit === undefined ? anyRange(berth.idOwner, berth.memory) : { ids: explicit, lock: -1 }
}

/** The operation that keeps the lock until the unit is released. */
export const hold = ({ lock }: Mapped): ReadonlyArray<Plan.Operation> =>
  lock < 0 ? [] : [{ op: "keep-open", descriptor: "ids" }]

/** The operations that map the layers of a root. No other container gets the ids until all files with them are gone. */
export const mapLayers = (mapped: Mapped): ReadonlyArray<Plan.Operation> => [...hold(mapped), mapping(mapped)]

/** The operation that sets the ids for the operations after it. */
export const mapping = ({ ids }: Mapped): Plan.Operation => ({
  op: "layer-map",
  uids: Ids.print(ids.uids),
  gids: Ids.print(ids.gids)
})

/** The descriptors that these operations name. */
export const descriptors = ({ lock }: Mapped): Readonly<Record<string, number>> =>
  lock < 0 ? {} : { ids: lock }

/** The ids of a `Namespace` for which a root is made; undefined if they are Berth's own; throws. */
export const mappedOf = (namespaces: Namespace | undefined, rootless: boolean): Mapped | undefined => {
  if (namespaces === undefined) return undefined
  if (namespaces?.kinds?.includes("user") !== true || namespaces.pidfd < 0)
    return invalid("userns", namespaces, "namespaces with a user namespace among them, in an open scope")
  const { mapped } = namespaces
  if (mapped !== undefined && rootless) refuse()
  return mapped
}

/** Whether a root with these ids fits namespaces with those. */
export const areFor = (root: Mapped | undefined, namespaces: Mapped | undefined): boolean =>
  root === namespaces ||
  (root !== undefined &&
    namespaces !== undefined &&
    Ids.print(root.ids.uids) === Ids.print(namespaces.ids.uids) &&
    Ids.print(root.ids.gids) === Ids.print(namespaces.ids.gids))

/** Does nothing without a lock. */
export const release = ({ lock }: Mapped): void => {
  if (lock >= 0) native().close(lock)
}
