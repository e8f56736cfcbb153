/** A container's own user namespace: which ids it has, so that no two containers have the same. */
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

/** The ids of a namespace and the lock, a descriptor, that keeps them from other containers; -1 where there is none. */
export interface Mapped {
  readonly ids: Ids.Ids
  readonly lock: number
}

/** As many ids as an image commonly knows, `nobody` (65534) being the last but one. */
const SIZE = 65536

// Below 2^31, and nobody else's by systemd's plan of user ids (UIDS-GIDS.md), which distributions keep to.
const high: ReadonlyArray<Ids.SubIds> = [{ start: 0x70000000, size: 0xfff0000 }]

/** Of all users of this machine that run Berth as root, whatever their folders. */
const lockFolder = "/run/berth/ids"

/** The ids that start a range, of the ranges of a user in a file like /etc/subuid. */
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
  const hint = "This folder holds the locks of the id ranges in use"
  throw new OperationFailed({
    operation: `lock of ids in ${lockFolder}`,
    index: -1,
    syscall: "flock",
    errno,
    hint
  })
}

// Where the search begins: behind the range that was given last, so that a range is not soon somebody else's.
let next = 0

const anyRange = (owner: string): Mapped => {
  const [uids, gids] = [startsIn("/etc/subuid", owner), startsIn("/etc/subgid", owner)]
  const slots = Math.min(uids.length, gids.length)
  for (let tried = 0; tried < slots; tried++) {
    const slot = next++ % slots
    const [uid, gid] = [uids[slot]!, gids[slot]!]
    const lock = lockOf(`${uid}-${gid}`)
    if (lock < 0) continue
    const range = (host: number) => [{ container: 0, host, size: SIZE }]
    return { ids: { uids: range(uid), gids: range(gid) }, lock }
  }
  throw new Unsupported({
    feature: 'userns: "auto"',
    why: `all ${slots} ranges of ${SIZE} ids of the user ${owner} are in use`,
    hint: `Give ${owner} more ids in /etc/subuid and /etc/subgid, or give containers maps of their own`
  })
}

/** Without root. */
const refuse = (): never => {
  throw new Unsupported({
    feature: "a user namespace with other ids than Berth's own",
    why: "only root may map the ids of the file system of the layers (mount_setattr(2)), and their files have the wrong owners without that",
    hint: 'Without root every container is in a user namespace already: leave userns out, or use namespaces: { user: "new" }'
  })
}

/** The ids that the option asks for; throws. The lock is the caller's, to be closed once the supervisor has it. */
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
  return explicit === undefined ? anyRange(berth.idOwner) : { ids: explicit, lock: -1 }
}

/** Keeps the lock for as long as the unit is there. */
export const hold = ({ lock }: Mapped): ReadonlyArray<Plan.Operation> =>
  lock < 0 ? [] : [{ op: "keep-open", descriptor: "ids" }]

/** For the layers of a root. The ids are nobody else's until all that has been written with them is gone. */
export const mapLayers = (mapped: Mapped): ReadonlyArray<Plan.Operation> => [
  ...hold(mapped),
  { op: "layer-map", uids: Ids.print(mapped.ids.uids), gids: Ids.print(mapped.ids.gids) }
]

/** The descriptors that these name. */
export const descriptors = ({ lock }: Mapped): Readonly<Record<string, number>> =>
  lock < 0 ? {} : { ids: lock }

/** What a root is made for: the ids of a `Namespace`, undefined where they are Berth's own; throws. */
export const mappedOf = (namespaces: Namespace | undefined, rootless: boolean): Mapped | undefined => {
  if (namespaces === undefined) return undefined
  if (namespaces?.kinds?.includes("user") !== true || namespaces.pidfd < 0)
    return invalid("userns", namespaces, "namespaces with a user namespace among them, in an open scope")
  const { mapped } = namespaces
  if (mapped !== undefined && rootless) refuse()
  return mapped
}

/** Whether a root of these ids is right for namespaces of those. */
export const areFor = (root: Mapped | undefined, namespaces: Mapped | undefined): boolean =>
  root === namespaces ||
  (root !== undefined &&
    namespaces !== undefined &&
    Ids.print(root.ids.uids) === Ids.print(namespaces.ids.uids) &&
    Ids.print(root.ids.gids) === Ids.print(namespaces.ids.gids))

/** Of no effect for a lock that is not there. */
export const release = ({ lock }: Mapped): void => {
  if (lock >= 0) native().close(lock)
}
