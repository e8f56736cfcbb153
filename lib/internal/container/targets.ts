/**
 * A layer of the mount targets that an image lacks: folders such as /proc, the working directory, files such as /etc/hosts. It
 * is the uppermost one below the writable layer, which has by this what the container itself writes, and so has a commit.
 */
import * as fs from "node:fs"
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import type { Mount } from "../../Mount.ts"
import * as Plan from "../../Plan.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import { isVolume } from "../volume/volume.ts"
import * as etcFiles from "./etcFiles.ts"
import { hiddenIn } from "./hidden.ts"

/** A layer of targets. */
export interface Targets {
  readonly layer: string
  /** The folder that is to be removed with the root; undefined for a layer that later starts use as well. */
  readonly discard: string | undefined
}

/** A Berth keeps so many layers for later starts. The other ones are removed with the root that they are made for. */
const KEPT_MAX = 256

interface Wanted {
  readonly folders: ReadonlyArray<string>
  readonly files: ReadonlyArray<string>
}

const kernelFolders = ["/proc", "/sys", "/dev"]

/** The kind of target for a mount; undefined if its source cannot be read, which the start reports. */
const kindOf = (mount: Mount): "folders" | "files" | undefined => {
  switch (mount.type) {
    case "bind":
      try {
        return fs.statSync(mount.source).isDirectory() ? "folders" : "files"
      } catch {
        return undefined
      }
    case "file":
      return "files"
    case "volume":
      return isVolume(mount.volume) && mount.volume.state.isFile ? "files" : "folders"
    case "tmpfs":
      return "folders"
  }
}

/** What a start needs in its root, without what is below a mount; throws. */
const wantedBy = (
  image: Image,
  { cwd, etcFiles: hasEtcFiles = true, mounts = [] }: Pick<StartOptions, "cwd" | "etcFiles" | "mounts">
): Wanted => {
  const own = check.mounts(mounts)
  const places = [...kernelFolders, ...own.map(({ target }) => target)]
  const isInRoot = (path: string): boolean =>
    !etcFiles.isCovered(
      path,
      places.filter((place) => place !== path)
    )
  const workingDirectory = cwd ?? image.config.workingDirectory
  const wanted = { folders: [...kernelFolders], files: hasEtcFiles ? [...etcFiles.paths] : ([] as string[]) }
  if (workingDirectory.startsWith("/") && !workingDirectory.includes("\0"))
    wanted.folders.push(posix.normalize(workingDirectory))
  for (const mount of own) {
    const kind = kindOf(mount)
    if (kind !== undefined) wanted[kind].push(mount.target)
  }
  return { folders: wanted.folders.filter(isInRoot), files: wanted.files.filter(isInRoot) }
}

/** Makes the layer by an overlay of the image, in which the supervisor makes what is missing. */
const make = (berth: Berth, image: Image, wanted: Wanted): Effect.Effect<string | undefined, BerthError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const id = berth.supervisor.nextId()
      const base = `${berth.supervisor.folder}/targets-${id}`
      const [upper, work] = [`${base}/layer`, `${base}/work`]
      yield* attempt(() => {
        for (const folder of [upper, work]) fs.mkdirSync(folder, { recursive: true, mode: 0o755 })
      })
      const plan = Plan.make([
        { op: "discard", path: work },
        {
          op: "overlay",
          lower: image.layers.length === 0 ? [`${berth.supervisor.folder}/empty`] : image.layers.toReversed(),
          upper,
          work,
          options: berth.rootless ? ["volatile", "userxattr"] : ["volatile"],
          attributes: 0
        },
        { op: "targets", ...wanted }
      ])
      yield* scopedUnit(berth, id, `targets of mounts in ${image.reference}`, plan, {})
      return base
    })
  ).pipe(
    Effect.map((base) => {
      if (fs.readdirSync(`${base}/layer`).length > 0) return base
      fs.rmSync(base, { recursive: true })
      return undefined
    })
  )

/**
 * The layer for a container of an image; undefined if the image lacks nothing. Where none can be made, as on a file system
 * that overlayfs does not write to, a start makes the targets in its writable layer.
 */
export const layerFor = (
  berth: Berth,
  image: Image,
  options: Pick<StartOptions, "cwd" | "etcFiles" | "mounts">
): Effect.Effect<Targets | undefined, BerthError> => {
  // The host's root contains this layer, and overlayfs takes no layer within another one.
  if (image.upper === "memory") return Effect.succeed(undefined)
  return Effect.flatMap(
    attempt(() => wantedBy(image, options)),
    (wanted) => {
      const { targets } = berth.memory
      const known = targets.layers.get(image) ?? new Map<string, Targets | undefined>()
      targets.layers.set(image, known)
      const key = JSON.stringify(wanted)
      if (known.has(key)) return Effect.succeed(known.get(key))
      // A folder of the host may contain Berth's own folder, and overlayfs refuses a layer within another one (ELOOP).
      const { folder } = berth.supervisor
      const isWithin = image.layers.some(
        (layer) => hiddenIn(berth.memory, layer, folder, berth.rootless).length > 0
      )
      return (isWithin ? Effect.succeed(undefined) : make(berth, image, wanted)).pipe(
        Effect.orElseSucceed(() => undefined),
        Effect.map((base): Targets | undefined => {
          const isKept = targets.count < KEPT_MAX
          const made =
            base === undefined ? base : { layer: `${base}/layer`, discard: isKept ? undefined : base }
          if (isKept) {
            targets.count++
            known.set(key, made)
          }
          return made
        })
      )
    }
  )
}
