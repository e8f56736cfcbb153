/** The named images of the store: their descriptions, and changes of their names. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, type InvalidData, InvalidOption } from "../../BerthError.ts"
import type { GetOptions, HistoryEntry, Image, Inspected, NamedImage, NamedOptions } from "../../Image.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as Reference from "../../Reference.ts"
import { isUnpacked } from "../layer/unpack.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Holds from "../store/leases.ts"
import * as Store from "../store/store.ts"
import { nearest } from "../util/didYouMean.ts"
import * as digests from "../util/digest.ts"
import { attempt } from "../util/fromThrowing.ts"
import { later } from "../util/later.ts"
import * as check from "../util/validate.ts"
import { assemble, toConfig } from "./assemble.ts"

const pulling = later(() => import("./pull.ts"))

interface Found<Entry> {
  readonly name: string
  readonly entries: ReadonlyArray<Entry>
}

/** The entries of a name: as written, which need not be a reference, or in the form that `pull` writes. */
export const find = <Entry>(
  all: ReadonlyArray<Entry>,
  nameOf: (entry: Entry) => string | undefined,
  wanted: string
): Effect.Effect<Found<Entry>, ImageError | InvalidData | InvalidOption> =>
  Effect.gen(function* () {
    const exact = all.filter((entry) => nameOf(entry) === wanted)
    if (exact.length > 0) return { name: wanted, entries: exact }
    const name = Reference.print(yield* Reference.parse(wanted))
    const entries = all.filter((entry) => nameOf(entry) === name)
    if (entries.length === 0) {
      const names = all.flatMap((entry) => nameOf(entry) ?? [])
      const similar = names.length === 0 ? "" : `. The most similar name there is ${nearest(name, names)}`
      const detail = `is not in the store: pull it, or get it with pull: "missing"${similar}`
      return yield* new ImageError({ reason: "NotFound", subject: name, detail })
    }
    return { name, entries }
  })

const nameOfEntry = ({ descriptor }: Store.Entry): string | undefined => Store.nameOf(descriptor)

export const list: Effect.Effect<ReadonlyArray<NamedImage>, ImageError, Berth> = Effect.map(
  Effect.flatMap(Berth, Store.entries),
  (entries) =>
    entries.flatMap((entry) => {
      const name = Store.nameOf(entry)
      const { digest, mediaType, platform } = entry
      const printed = platform === undefined ? undefined : Layout.printPlatform(platform)
      return name === undefined ? [] : [{ name, digest, mediaType, platform: printed }]
    })
)

export const hold = (berth: Berth, descriptor: Oci.Descriptor): Effect.Effect<void, ImageError> =>
  Effect.flatMap(Oci.digestOf(descriptor), (digest) => Holds.hold(berth.holds, [digest]))

export interface Resolved extends Layout.Resolved {
  readonly name: string
}

/** The image of a name for a platform. Each document is held before it is looked up. */
export const resolve = (
  berth: Berth,
  wanted: string,
  options: NamedOptions
): Effect.Effect<Resolved, ImageError | InvalidData | InvalidOption> =>
  Effect.gen(function* () {
    const platform = yield* Layout.parsePlatform(options.platform)
    const { entries, name } = yield* find(yield* Store.entries(berth), Store.nameOf, wanted)
    const start = yield* Layout.selectPlatform(name, entries, platform)
    const resolved = yield* Layout.resolveImage(start, platform, (descriptor) =>
      Effect.zipRight(
        hold(berth, descriptor),
        Layout.readDocument(berth.fileSystem, Store.folder(berth), descriptor)
      )
    )
    return { ...resolved, name }
  })

export const fromStore = (
  wanted: string,
  options: NamedOptions & Limits
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const resolved = yield* resolve(berth, wanted, options)
    return yield* assemble(resolved.name, resolved, options, (layer) =>
      Effect.zipRight(hold(berth, layer), Layout.checkBlob(berth.fileSystem, Store.folder(berth), layer))
    )
  }).pipe(Store.keeping)

/** Whether a pull may get what the store could not give. */
const isPullable = (error: BerthError): error is ImageError =>
  error._tag === "ImageError" && ["NotFound", "Platform", "DigestMismatch", "Corrupt"].includes(error.reason)

/** The image of a name, from the store or its registry, as `pull` says. */
export const get = (name: string, options: GetOptions): Effect.Effect<Image, BerthError, Berth> => {
  const stored = fromStore(name, options)
  const pulled = pulling((module) => module.pull(name, options))
  switch (options.pull ?? "missing") {
    case "always":
      return pulled
    case "never":
      return stored
    case "missing":
      return Effect.catchIf(stored, isPullable, (missing) =>
        // The registry cannot have an image that was made here: the failure of the store says what is wrong with it.
        Effect.mapError(pulled, (error) => (missing.reason === "NotFound" ? error : missing))
      )
    default:
      return attempt(() => check.invalid("pull", options.pull, '"missing", "always" or "never"'))
  }
}

/** The text of a time may be invalid. */
const toDate = (text: string | undefined): Date | undefined => {
  const date = new Date(text ?? "")
  return Number.isNaN(date.getTime()) ? undefined : date
}

export const inspect = (
  wanted: string,
  options: NamedOptions
): Effect.Effect<Inspected, ImageError | InvalidData | InvalidOption, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { config, descriptor, diffIds, manifest, name } = yield* resolve(berth, wanted, options)
    const layers = yield* Effect.forEach(manifest.layers, ({ digest, mediaType, size }, i) =>
      Effect.gen(function* () {
        const diffId = yield* digests.parse(diffIds[i]!)
        return { digest, mediaType, size, diffId, unpacked: yield* isUnpacked(berth, diffId) }
      })
    )
    return {
      name,
      digest: descriptor.digest,
      mediaType: descriptor.mediaType,
      platform: Layout.printPlatform(config),
      created: toDate(config.created),
      author: config.author || undefined,
      annotations: manifest.annotations ?? {},
      config: toConfig(config),
      layers,
      size: [descriptor, manifest.config, ...manifest.layers].reduce((total, { size }) => total + size, 0)
    }
  }).pipe(Store.keeping)

export const history = (
  wanted: string,
  options: NamedOptions
): Effect.Effect<ReadonlyArray<HistoryEntry>, ImageError | InvalidData | InvalidOption, Berth> =>
  Effect.gen(function* () {
    const { config, manifest } = yield* resolve(yield* Berth, wanted, options)
    const layers = manifest.layers.values()
    return (config.history ?? []).map((step): HistoryEntry => {
      const layer = step.empty_layer === true ? undefined : layers.next().value
      return {
        created: toDate(step.created),
        createdBy: step.created_by || undefined,
        author: step.author || undefined,
        comment: step.comment || undefined,
        layer: layer === undefined ? undefined : { digest: layer.digest, size: layer.size }
      }
    })
  }).pipe(Store.keeping)

/** The new name of an image, in the form that `pull` writes. */
const newName = (input: string): Either.Either<string, InvalidData | InvalidOption> =>
  Either.filterOrLeft(
    Either.map(Reference.parse(input), (parsed) =>
      parsed.digest === undefined ? Reference.print(parsed) : ""
    ),
    (name) => name !== "",
    () => {
      const value = JSON.stringify(input.slice(0, 300))
      return new InvalidOption({ option: "newName", value, expected: "a name with a tag, and no digest" })
    }
  )

export const tag = (
  wanted: string,
  to: string
): Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth> =>
  Effect.gen(function* () {
    const name = yield* newName(to)
    // The old name is looked up under the same lock, so that its blobs have a name at every moment.
    yield* Store.update(yield* Berth, (all) =>
      Effect.map(find(all, nameOfEntry, wanted), ({ entries, name: old }) =>
        old === name ? all.map(({ raw }) => raw) : Store.named(all, name, entries)
      )
    )
  })

export const remove = (
  wanted: string
): Effect.Effect<void, ImageError | InvalidData | InvalidOption, Berth> =>
  Effect.flatMap(Berth, (berth) =>
    Store.update(berth, (all) =>
      Effect.map(find(all, nameOfEntry, wanted), ({ entries }) =>
        all.filter((entry) => !entries.includes(entry)).map(({ raw }) => raw)
      )
    )
  )
