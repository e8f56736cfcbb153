/**
 * Mounts of a container besides its root: binds of host paths, file systems in memory, volumes, and files with a given text.
 *
 * @since 0.1.0
 */
import type * as Redacted from "effect/Redacted"
import type { Volume } from "./Volume.ts"

/**
 * A host path, visible inside the container.
 *
 * @since 0.1.0
 * @category models
 */
export interface Bind {
  readonly type: "bind"
  /** An existing path on the host. */
  readonly source: string
  /** The path in the container; made if it is missing. */
  readonly target: string
  /** Whether the mount is read-only in the container. Default false. */
  readonly readOnly?: boolean | undefined
  /** Whether mounts below the source are included. Default true. */
  readonly recursive?: boolean | undefined
}

/**
 * A file system in memory, which is empty at first and removed with the container. Its contents count as the
 * container's memory.
 *
 * @since 0.1.0
 * @category models
 */
export interface Tmpfs {
  readonly type: "tmpfs"
  readonly target: string
  /** Its capacity, as in `Limits.memory`. Default: half of the machine's memory (tmpfs(5)). */
  readonly size?: number | string | undefined
  /** The mode of its root. Default 0o1777. */
  readonly mode?: number | undefined
}

/**
 * A volume of `Volume.make`, nosuid and nodev. What the image has at the target is hidden, not copied into the volume.
 *
 * @since 0.2.0
 * @category models
 */
export interface OfVolume {
  readonly type: "volume"
  readonly volume: Volume
  /** The path in the container; made if it is missing. */
  readonly target: string
  /** Whether the mount is read-only in the container. Default false. */
  readonly readOnly?: boolean | undefined
}

/**
 * A file with a given text, such as a configuration or a secret. It is in the container's memory and never on a disk, and the mount is
 * read-only. It is mounted before all other mounts.
 *
 * @since 0.2.0
 * @category models
 */
export interface File {
  readonly type: "file"
  /** The path in the container; made if it is missing. */
  readonly target: string
  /** At most 1 MiB, without NUL. */
  readonly text: string | Redacted.Redacted<string>
  /** The file's owner, as ids of the container. Default 0, root. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  /** At most 0o777. Default 0o444: every user of the container can read it. */
  readonly mode?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export type Mount = Bind | Tmpfs | OfVolume | File

/**
 * Shows a host path inside the container: a folder or a file, nosuid and nodev.
 *
 * @since 0.1.0
 * @category constructors
 */
export const bind = (
  source: string,
  target: string,
  options?: { readonly readOnly?: boolean | undefined; readonly recursive?: boolean | undefined }
): Mount => ({ type: "bind", source, target, ...options })

/**
 * A file system in memory, nosuid, nodev and noexec.
 *
 * @since 0.1.0
 * @category constructors
 */
export const tmpfs = (
  target: string,
  options?: { readonly size?: number | string | undefined; readonly mode?: number | undefined }
): Mount => ({ type: "tmpfs", target, ...options })

/**
 * A volume, nosuid and nodev.
 *
 * @since 0.2.0
 * @category constructors
 */
export const volume = (
  volume: Volume,
  target: string,
  options?: { readonly readOnly?: boolean | undefined }
): Mount => ({ type: "volume", volume, target, ...options })

/**
 * A file with a given text.
 *
 * @since 0.2.0
 * @category constructors
 */
export const file = (
  target: string,
  text: string | Redacted.Redacted<string>,
  options?: {
    readonly uid?: number | undefined
    readonly gid?: number | undefined
    readonly mode?: number | undefined
  }
): Mount => ({ type: "file", target, text, ...options })
