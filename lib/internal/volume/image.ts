/** Files with a file system of a fixed size, which limit what is written to a volume or a writable layer on disk. */
import { execFile } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { type BerthError, ImageError, Unsupported } from "../../BerthError.ts"
import type { Operation } from "../../Plan.ts"
import { storageDetail } from "../disk/files.ts"
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID } from "../util/mountAttributes.ts"
import { invalid } from "../util/validate.ts"

/** A file to be made. */
export interface SizedDisk {
  /** The folder that is made for it. */
  readonly folder: string
  /** The file itself. */
  readonly path: string
  readonly bytes: number
  /** The folders in its root, with their modes. */
  readonly folders: Readonly<Record<string, number>>
  /** Whether its contents outlive a power cut. */
  readonly durable: boolean
}

/** Below this size, ext4's own data leaves no room for a journal and files. */
const BYTES_MIN = 4 * 1024 * 1024

export const checkBytes = (option: string, bytes: number): number =>
  bytes < BYTES_MIN
    ? invalid(option, bytes, "4MiB or more on disk, since the file system has data of its own")
    : bytes

const unsupported = (why: string, hint: string): Unsupported =>
  new Unsupported({ feature: "a limited size on disk", why, hint })

const inMemory = 'or have it in memory ("memory"), or without a size'

/** Throws where no such file can be mounted. */
export const checkMachine = (rootless: boolean): void => {
  if (rootless)
    throw unsupported(
      "only root may mount a file with a file system in it (loop(4))",
      `Run the program as root, ${inMemory}`
    )
  if (!fs.existsSync("/dev/loop-control"))
    throw unsupported(
      "this machine has no loop devices: /dev/loop-control is missing",
      `Load their module (modprobe loop), ${inMemory}`
    )
}

const searched = ["/usr/local/sbin", "/usr/sbin", "/sbin"]

const mkfs = ({ durable, path }: SizedDisk, content: string): Effect.Effect<void, BerthError> =>
  Effect.async((resume) => {
    const options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", "-d", content]
    const journal = durable ? [] : ["-O", "^has_journal"]
    const env = { ...process.env, PATH: [process.env.PATH, ...searched].join(":") }
    execFile("mkfs.ext4", [...options, ...journal, path], { env }, (cause, _, stderr) => {
      if (cause === null) return resume(Effect.void)
      if ((cause as NodeJS.ErrnoException).code === "ENOENT")
        return resume(unsupported("mkfs.ext4 is missing", `apt-get install e2fsprogs, ${inMemory}`))
      const detail = `mkfs.ext4: ${stderr.trim() || cause.message}`
      resume(new ImageError({ reason: "Storage", subject: path, detail, cause }))
    })
  })

/** Makes a sparse file with an empty ext4: it takes room on the host's disk as files are written, at most `bytes`. */
export const format = (disk: SizedDisk): Effect.Effect<void, BerthError> => {
  const content = `${disk.path}.content`
  return Effect.try({
    try: () => {
      fs.mkdirSync(disk.folder, { recursive: true, mode: 0o700 })
      const file = fs.openSync(disk.path, "wx", 0o600)
      try {
        fs.ftruncateSync(file, disk.bytes)
      } finally {
        fs.closeSync(file)
      }
      fs.mkdirSync(content, { mode: 0o755 })
      for (const [name, mode] of Object.entries(disk.folders)) {
        fs.mkdirSync(`${content}/${name}`)
        fs.chmodSync(`${content}/${name}`, mode)
      }
    },
    catch: (cause) => {
      const { code = "", message } = cause as NodeJS.ErrnoException
      const detail = storageDetail(code, message, disk.path)
      return new ImageError({ reason: "Storage", subject: disk.path, detail, cause })
    }
  }).pipe(
    Effect.zipRight(mkfs(disk, content)),
    Effect.ensuring(Effect.sync(() => fs.rmSync(content, { recursive: true, force: true })))
  )
}

/** Mounts the file at a folder. Room of removed files is given back to the host's disk. */
export const mounted = (image: string, at: string, durable: boolean): ReadonlyArray<Operation> => [
  {
    op: "filesystem",
    type: "ext4",
    image,
    options: ["discard"],
    attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
  },
  { op: "attach", path: at, discard: durable ? 0 : 1 }
]
