import { readdirSync, statSync } from "node:fs"
import { ImageError } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import type * as Plan from "../../Plan.ts"
import type { Options } from "../../RootFs.ts"
import type { Memory } from "../berth/memory.ts"
import { type Mapped, mapLayers } from "../ids/allocation.ts"
import { outside } from "../ids/idMaps.ts"
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY } from "../util/mountAttributes.ts"
import * as check from "../util/validate.ts"
import { checkBytes, checkMachine, mounted, type SizedDisk } from "../volume/image.ts"
import { hiddenIn } from "./hidden.ts"
import type { Targets } from "./targets.ts"

export interface Composed {
  readonly scratch: ReadonlyArray<Plan.Operation>
  readonly mount: Plan.Operation
  /** Operations on the root after its mount, by the process for which it is mounted. */
  readonly content: ReadonlyArray<Plan.Operation>
  /** The folder of the writable layer, undefined if this program cannot see it: in memory, or in a file of a fixed size. */
  readonly upper: string | undefined
  /** The same in the supervisor's mount namespace, undefined if it is in memory. */
  readonly mountedUpper: string | undefined
  /** The file that is to be made first. */
  readonly disk: SizedDisk | undefined
}

const none: ReadonlyArray<Plan.Operation> = []

// Device nodes of an image, or made by a container, cannot be opened.
const ROOT_ATTRIBUTES = MOUNT_ATTR_NODEV

/** The mode of an image's root folder. The merged root has that of the writable layer, so that gets this mode. */
const modeOf = ({ modes }: Memory, image: Image): number => {
  const known = modes.get(image)
  if (known !== undefined) return known
  const top = image.layers.at(-1)
  try {
    const mode = top === undefined ? 0o755 : statSync(top).mode & 0o7777
    modes.set(image, mode)
    return mode
  } catch (cause) {
    throw new ImageError({
      reason: "NotFound",
      subject: image.reference,
      detail: `its layer ${top} was removed: get the image again`,
      cause
    })
  }
}

// The folders that a container has itself, or must be able to write to.
const notTheHosts = new Set(["proc", "sys", "dev", "run", "tmp", "root", "lost+found"])

/**
 * The host's root for a non-root user, who may not use it as a layer of an overlay, because a user namespace must not
 * uncover folders below other mounts (mount_namespaces(7)): each of its folders is bound, read-only, into an empty
 * root.
 */
const hostFolders = (): ReadonlyArray<Plan.Operation> => [
  ...readdirSync("/").flatMap((name): ReadonlyArray<Plan.Operation> => {
    const path = `/${name}`
    if (notTheHosts.has(name) || statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) return []
    const attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    return [{ op: "bind", source: path, target: path, attributes, recursive: 1, pinned: 0 }]
  }),
  { op: "directory", path: "/run", mode: 0o755 },
  { op: "directory", path: "/tmp", mode: 0o1777 },
  { op: "directory", path: "/root", mode: 0o700 }
]

/** The same for a user namespace: its root owns the writable layer, and the layers are shown with its ids. */
export const withIds = (composed: Composed, mapped: Mapped): Composed => {
  const { gids, uids } = mapped.ids
  const [uid, gid] = [outside(uids, 0), outside(gids, 0)]
  const { mount } = composed
  return {
    ...composed,
    scratch: [
      ...composed.scratch,
      ...(mount.op === "overlay" ? [{ op: "owner", path: mount.upper, uid, gid } as const] : []),
      ...mapLayers(mapped)
    ],
    mount:
      mount.op === "overlay-memory"
        ? { ...mount, tmpfs: [...mount.tmpfs, `uid=${uid}`, `gid=${gid}`] }
        : mount
  }
}

/** The operations for an image's root with the writable layer of the options; throws. */
export const compose = (
  image: Image,
  options: Options,
  memory: Memory,
  folder: string,
  id: number,
  rootless: boolean,
  targets: Targets | undefined
): Composed => {
  const where = options.upper ?? image.upper
  const size = options.size === undefined ? undefined : check.bytes("size", options.size)
  if (where === "disk" && image.upper === "memory") {
    const expected = `"memory" for ${image.reference}: overlayfs refuses a writable layer inside a read-only one (ELOOP)`
    check.invalid("upper", where, expected)
  }
  const bound = rootless && image.layers.length === 1 && image.layers[0] === "/"
  // A folder of the host may contain Berth's own folder.
  const hidden = image.layers.flatMap((layer) => hiddenIn(memory, layer, folder, rootless))
  const masked: ReadonlyArray<Plan.Operation> =
    hidden.length === 0 ? none : [{ op: "mask", null: `${folder}/dev/null`, paths: hidden, required: 0 }]
  const mode = bound ? 0o755 : modeOf(memory, image)
  // A scratch image has no layer: an empty folder takes its place.
  const layers = image.layers.length === 0 || bound ? [`${folder}/empty`] : image.layers.toReversed()
  const lower = targets === undefined ? layers : [targets.layer, ...layers]
  const discard: ReadonlyArray<Plan.Operation> =
    targets?.discard === undefined ? none : [{ op: "discard", path: targets.discard }]
  // The container's files are removed with it, so they are never synced to disk (overlayfs.rst, volatile mount).
  const overlay = rootless ? ["volatile", "userxattr"] : ["volatile"]
  if (where === "memory") {
    const tmpfs = ["mode=0755", ...(size === undefined ? [] : [`size=${size}`])]
    return {
      scratch: discard,
      mount: { op: "overlay-memory", lower, mode, tmpfs, options: overlay, attributes: ROOT_ATTRIBUTES },
      content: [...(bound ? hostFolders() : none), ...masked],
      upper: undefined,
      mountedUpper: undefined,
      disk: undefined
    }
  }
  const base = `${folder}/${id}`
  const [upper, work] = [`${base}/upper`, `${base}/work`]
  const disk = size === undefined ? undefined : sizedDisk(`${base}.disk`, size, mode, rootless)
  return {
    scratch: [
      ...discard,
      ...(disk === undefined ? [] : [{ op: "discard", path: `${base}.disk` } as const]),
      { op: "scratch", path: base, mode: 0o700 },
      ...(disk === undefined
        ? ([
            { op: "scratch", path: upper, mode },
            { op: "scratch", path: work, mode: 0o700 }
          ] as const)
        : mounted(disk.path, base, disk.durable))
    ],
    mount: { op: "overlay", lower, upper, work, options: overlay, attributes: ROOT_ATTRIBUTES },
    content: masked,
    upper: disk === undefined ? upper : undefined,
    mountedUpper: upper,
    disk
  }
}

/** A file of a fixed size for the writable layer; throws where there can be none. */
const sizedDisk = (folder: string, size: number, mode: number, rootless: boolean): SizedDisk => {
  checkMachine(rootless)
  const bytes = checkBytes("size", size)
  return { folder, path: `${folder}/image`, bytes, folders: { upper: mode, work: 0o700 }, durable: false }
}
