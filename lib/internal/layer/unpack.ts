/** The bodies of `ImageLayer`: unpacks a blob into a folder. */
import { randomBytes } from "node:crypto"
import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { type BerthError, ImageError } from "../../BerthError.ts"
import type { ImageLayer, TypeId as ImageLayerTypeId, Limits, UnpackOptions } from "../../ImageLayer.ts"
import type { Digest } from "../../Reference.ts"
import { withFileLock } from "../disk/fileLock.ts"
import { clearWay, io, isFolder, oneAtATime, storageDetail } from "../disk/files.ts"
import * as Oci from "../oci/documents.ts"
import { hashFile } from "../oci/layout.ts"
import { Berth } from "../service.ts"
import * as Holds from "../store/leases.ts"
import type { Compression } from "../store/tarIndex.ts"
import * as digests from "../util/digest.ts"
import { describeErrno, errnoName } from "../util/errno.ts"
import { prints } from "../util/prints.ts"
import * as Implicit from "./missingFolders.ts"
import * as Notes from "./sidecar.ts"
import { lockPath, removeLock, removeTemporaries, siblingsFolder, sweep } from "./sweep.ts"
import * as Unpacker from "./unpackerProcess.ts"

export const TypeId: ImageLayerTypeId = Symbol.for("berth/ImageLayer") as ImageLayerTypeId

export const isImageLayer = (u: unknown): u is ImageLayer => hasProperty(u, TypeId)

const Proto = {
  ...prints<ImageLayer>({
    id: "berth/ImageLayer",
    json: ({ diffId, digest, folder, mediaType }) => ({ digest, diffId, mediaType, folder }),
    line: ({ digest, folder }) => `${digests.shortened(digest)}, ${folder}`
  }),
  [TypeId]: TypeId
}

const make = (fields: Pick<ImageLayer, "digest" | "diffId" | "mediaType" | "folder">): ImageLayer =>
  Object.assign(Object.create(Proto), fields)

export const DEFAULT_LAYER_BYTES_MAX = 64 * 1024 ** 3
const DEFAULT_ENTRIES_MAX = 10_000_000
const DEFAULT_CPU_SECONDS_MAX = 60

/** The size limit of a compressed layer without `maxBytes`. Layers of programs and text grow by a factor of 2 to 20. */
const EXPANSION_FREE_BYTES = 1024 ** 3
const EXPANSION_FACTOR_MAX = 200

const layersFolder = (berth: Berth) => berth.layers
/**
 * The folder of an unfinished layer. It is beside the final one, because a non-root user can rename a folder without
 * write permission (`/` is 0555 in some images) only within its parent.
 */
const temporaryPath = (berth: Berth, hex: string) =>
  `${siblingsFolder(berth)}/.${hex}.${randomBytes(8).toString("hex")}`

export const layerFolder = (berth: Berth, diffId: Digest): string => {
  const { algorithm, hex } = digests.parts(diffId)
  return `${layersFolder(berth)}/${algorithm}/${hex}`
}

/** Makes the folders with mode 0700: other users of this machine must not run set-user-ID programs of images. */
const makeFolders = (berth: Berth) =>
  Effect.zipRight(
    berth.fileSystem.makeDirectory(layersFolder(berth), { recursive: true, mode: 0o700 }),
    berth.fileSystem.makeDirectory(siblingsFolder(berth), { recursive: true })
  )

/** The layer is complete, because only complete layers get this name. */
export const isUnpacked = (berth: Berth, diffId: Digest): Effect.Effect<boolean, ImageError> => {
  const path = layerFolder(berth, diffId)
  return io(path)(isFolder(berth.fileSystem, path))
}

export const unpack = (options: UnpackOptions): Effect.Effect<ImageLayer, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => Holds.keeping(berth.holds)(unpackIn(berth, options)))

const unpackIn = (berth: Berth, options: UnpackOptions): Effect.Effect<ImageLayer, BerthError, Berth> =>
  Effect.gen(function* () {
    const fs = berth.fileSystem
    const { descriptor } = options
    const digest = yield* Oci.digestOf(descriptor)
    const diffId = yield* digests.parse(options.diffId)
    const compression = yield* Oci.compressionOf(descriptor)
    if (digests.parts(diffId).algorithm !== "sha256") {
      const detail = "the diff id has another algorithm than sha256, which is not supported"
      return yield* new ImageError({ reason: "Unsupported", subject: diffId, detail })
    }
    const folder = layerFolder(berth, diffId)
    const layer = make({ digest, diffId, mediaType: descriptor.mediaType, folder })
    yield* Holds.hold(berth.holds, [folder])
    if (yield* isUnpacked(berth, diffId)) return layer
    const { hex } = digests.parts(diffId)
    yield* io(folder)(makeFolders(berth))
    yield* sweep(berth, hex)
    const work = Effect.gen(function* () {
      if (yield* isUnpacked(berth, diffId)) return
      yield* removeTemporaries(berth, hex)
      const temporary = temporaryPath(berth, hex)
      const report = yield* unpackVerified(berth, temporary, options.blob, compression, options, {
        digest,
        diffId
      })
      yield* Notes.save(berth, folder, report)
      yield* io(folder)(Effect.zipRight(clearWay(fs, folder, "Directory"), fs.rename(temporary, folder)))
    }).pipe(Effect.scoped)
    yield* underLock(berth, diffId, work)
    return layer
  })

/** One lock for each layer. */
const underLock = <A, E, R>(berth: Berth, diffId: Digest, work: Effect.Effect<A, E, R>) => {
  const { hex } = digests.parts(diffId)
  return withFileLock(
    berth.fileSystem,
    lockPath(berth, hex),
    () => work,
    () => removeLock(berth, hex)
  ).pipe(oneAtATime(berth, layerFolder(berth, diffId)))
}

const maxBytesOf = (compression: Unpacker.Options["compression"], size: number): number =>
  compression === "none"
    ? DEFAULT_LAYER_BYTES_MAX
    : Math.min(DEFAULT_LAYER_BYTES_MAX, EXPANSION_FREE_BYTES + EXPANSION_FACTOR_MAX * size)

/** Unpacks a blob into a new folder, which is removed when the scope closes, unless it has been renamed. */
export const unpackInto = (
  berth: Berth,
  directory: string,
  blob: string,
  compression: Compression,
  limits: Limits,
  subject: string
): Effect.Effect<Report, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    yield* Implicit.ownedFolder(berth, directory)
    const size = Number((yield* io(blob)(berth.fileSystem.stat(blob))).size)
    const maxBytes = limits.maxBytes ?? maxBytesOf(compression, size)
    const { maxCpuSeconds = DEFAULT_CPU_SECONDS_MAX, maxEntries = DEFAULT_ENTRIES_MAX } = limits
    const text = yield* Unpacker.unpack({
      blob,
      directory,
      compression,
      maxBytes,
      maxEntries,
      maxCpuSeconds
    })
    return yield* readReport(subject, directory, text)
  })

/**
 * Unpacks an archive that is no layer into a new folder, which is removed when the scope closes. Gives false for data that is none.
 */
export const unpackArchive = (
  berth: Berth,
  directory: string,
  file: string,
  compression: Unpacker.Options["compression"],
  subject: string
): Effect.Effect<boolean, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    yield* Implicit.ownedFolder(berth, directory)
    const size = Number((yield* io(file)(berth.fileSystem.stat(file))).size)
    const text = yield* Unpacker.unpack({
      blob: file,
      directory,
      compression,
      isPlain: true,
      maxBytes: maxBytesOf(compression, size),
      maxEntries: DEFAULT_ENTRIES_MAX,
      maxCpuSeconds: DEFAULT_CPU_SECONDS_MAX
    })
    if (text.startsWith("error format ")) return false
    const { links } = yield* readReport(subject, directory, text)
    const [link] = links
    if (link === undefined) return true
    const detail = `${Notes.decodePath(link[1])} is a hard link to ${Notes.decodePath(link[0])}, which is not in the archive`
    return yield* new ImageError({ reason: "Corrupt", subject, detail })
  })

/** The same, of a blob that has to have these digests. */
export const unpackVerified = (
  berth: Berth,
  directory: string,
  blob: string,
  compression: Compression,
  limits: Limits,
  { diffId, digest }: { readonly digest: Digest; readonly diffId: Digest }
): Effect.Effect<Report, BerthError, Berth | Scope.Scope> =>
  Effect.tap(unpackInto(berth, directory, blob, compression, limits, digest), (report) =>
    check(berth, blob, digest, diffId, report)
  )

/** Unpacks a compressed layer whose diff id is unknown, and returns the diff id. */
export const unpackUnknown = (
  blob: string,
  digest: Digest,
  compression: Compression,
  limits: Limits
): Effect.Effect<Digest, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    // In the state folder until it has a name: a sweep removes the files of a killed supervisor.
    const temporary = `${berth.supervisor.folder}/unknown-${randomBytes(8).toString("hex")}`
    const report = yield* unpackInto(berth, temporary, blob, compression, limits, digest)
    const diffId = yield* digests.parse(report.diffId)
    yield* check(berth, blob, digest, diffId, report)
    const folder = layerFolder(berth, diffId)
    yield* Holds.hold(berth.holds, [folder])
    yield* io(folder)(makeFolders(berth))
    const place = Effect.gen(function* () {
      if (yield* isUnpacked(berth, diffId)) return
      yield* Notes.save(berth, folder, report)
      // If the rename is refused, as for a non-root user and a root of mode 0555, the layer is unpacked again.
      yield* Effect.ignore(
        Effect.zipRight(
          clearWay(berth.fileSystem, folder, "Directory"),
          berth.fileSystem.rename(temporary, folder)
        )
      )
    })
    yield* underLock(berth, diffId, place)
    return diffId
  }).pipe(Effect.scoped)

/** The unpacker's report. */
interface Report extends Notes.Notes {
  readonly digest: string
  readonly diffId: string
}

const check = (
  berth: Berth,
  blob: string,
  digest: Digest,
  diffId: Digest,
  report: Report
): Effect.Effect<void, ImageError> =>
  Effect.gen(function* () {
    // The unpacker supports only sha256.
    const found =
      digests.parts(digest).algorithm === "sha256"
        ? report.digest
        : yield* hashFile(berth.fileSystem, blob, digest)
    if (found !== digest) return yield* digests.mismatch(digest, "the layer's digest", digest, found)
    if (report.diffId !== diffId)
      return yield* digests.mismatch(digest, "the layer's diff id", diffId, report.diffId)
  })

const broken = (detail: string): ImageError =>
  new ImageError({ reason: "Storage", subject: "the unpacker", detail })

const reasons = {
  corrupt: "Corrupt",
  format: "Corrupt",
  escape: "Escape",
  unsupported: "Unsupported",
  limit: "TooLarge",
  io: "Storage",
  confine: "Storage"
} as const

/** Parses the unpacker's report. The program is Berth's own, but the names and paths in the report are the layer's. */
const readReport = (subject: string, directory: string, text: string): Effect.Effect<Report, ImageError> =>
  Effect.suspend(() => {
    const fields = new Map<string, string>()
    const implicit: Array<string> = []
    const links: Array<Notes.Link> = []
    for (const line of text.split("\n")) {
      const words = line.split(" ")
      switch (words[0]) {
        case "error": {
          return failure(subject, directory, words.slice(1))
        }
        case "hardlink":
          links.push([words[1] ?? "", words[2] ?? ""])
          break
        case "implicit":
          implicit.push(Notes.decodePath(words[1] ?? ""))
          break
        default:
          fields.set(words[0]!, words.slice(1).join(" "))
      }
    }
    const report = { digest: fields.get("digest"), diffId: fields.get("diffid") }
    return !fields.has("ok") || report.digest === undefined || report.diffId === undefined
      ? broken(`ended without a report: ${JSON.stringify(text.slice(-200))}`)
      : Effect.succeed({ digest: report.digest, diffId: report.diffId, implicit, links })
  })

const failure = (
  subject: string,
  directory: string,
  [kind = "", number = "", syscall = "", member = "", ...rest]: ReadonlyArray<string>
): ImageError => {
  const reason = Object.hasOwn(reasons, kind) ? reasons[kind as keyof typeof reasons] : undefined
  if (reason === undefined)
    return broken(
      `failed in an unknown way: ${JSON.stringify([kind, number, ...rest].join(" ").slice(0, 200))}`
    )
  const errno = Number(number)
  const code = errno > 0 ? errnoName(errno) : ""
  const message = Notes.decodePath(rest.join(" "))
  const parts = [
    Notes.decodePath(member),
    syscall,
    code,
    message === "-" && code !== "" ? describeErrno(errno) : message
  ]
  const detail = parts.filter((part) => part !== "" && part !== "-").join(": ")
  return new ImageError({ reason, subject, detail: storageDetail(code, detail, directory) })
}
