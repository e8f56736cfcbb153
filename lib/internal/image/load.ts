/** `Image.load`: copies the images of an archive into the store, and returns them. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { Image, LoadOptions } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import { isNotFound, storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import { orUndone } from "../gc/collect.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as references from "../oci/reference.ts"
import * as Store from "../store/store.ts"
import * as Archive from "../store/tarIndex.ts"
import * as digests from "../util/digest.ts"
import { quote } from "../util/text.ts"
import { assemble } from "./assemble.ts"

const DEFAULT_ARCHIVE_BYTES_MAX = 64 * 1024 ** 3

/** The annotation with the whole name that containerd and docker write beside the standard's tag. */
const containerdName = "io.containerd.image.name"

/** A name of an image in an archive. */
interface Name {
  readonly written: string
  /** The name in the store: a whole reference, or a bare tag unchanged. */
  readonly stored: Either.Either<string, ImageError>
}

/** An image of an archive of any format: its top descriptor, and its blobs. */
interface Candidate {
  readonly names: ReadonlyArray<Name>
  readonly start: Effect.Effect<Oci.Descriptor, ImageError>
  readonly blob: (digest: Reference.Digest) => Stream.Stream<Uint8Array, ImageError>
}

const corrupt = (subject: string, detail: string, cause?: unknown) =>
  new ImageError({ reason: "Corrupt", subject, detail, cause })

const nameOf = (subject: string, written: string): Name => ({
  written,
  stored: /[:/]/.test(written)
    ? Either.mapBoth(Reference.parse(written), {
        onLeft: (cause) =>
          corrupt(subject, `has an image with the name ${quote(written)}: expected ${cause.expected}`, cause),
        onRight: Reference.print
      })
    : references.isTag(written)
      ? Either.right(written)
      : Either.left(corrupt(subject, `has an image with the malformed tag ${quote(written)}`))
})

/** Finds the name of an image that `tag` selects, if there is one. */
const picking = (tag: string): ((names: ReadonlyArray<Name>) => Name | undefined) => {
  const whole = Either.getOrUndefined(Either.map(Reference.parse(tag), Reference.print))
  return (names) =>
    names.find(
      ({ stored, written }) =>
        written === tag || (whole !== undefined && Either.getOrUndefined(stored) === whole)
    )
}

const choose = (
  subject: string,
  candidates: ReadonlyArray<Candidate>,
  tag: string | undefined
): Effect.Effect<ReadonlyArray<Candidate>, ImageError> => {
  const pick = tag === undefined ? undefined : picking(tag)
  const chosen =
    pick === undefined
      ? candidates
      : candidates.flatMap((candidate) => {
          const name = pick(candidate.names)
          return name === undefined ? [] : [{ ...candidate, names: [name] }]
        })
  if (chosen.length > 0) return Effect.succeed(chosen)
  const names = candidates.flatMap((candidate) => candidate.names.map(({ written }) => written)).slice(0, 50)
  const what = names.length === 0 ? "it has no tags" : `its tags are ${names.join(", ").slice(0, 2000)}`
  const detail = tag === undefined ? "there is no image in it" : `there is no tag ${tag}: ${what}`
  return new ImageError({ reason: "NotFound", subject, detail })
}

const fromOci = (
  berth: Berth,
  archive: Archive.Archive,
  wanted: Oci.Platform
): Effect.Effect<ReadonlyArray<Candidate>, ImageError> =>
  Effect.gen(function* () {
    const { path, subject } = archive
    const document = (name: string) => Archive.readSmall(berth, archive, name, Oci.DOCUMENT_BYTES_MAX)
    yield* Effect.flatMap(document("oci-layout"), (bytes) =>
      Oci.decodeLayout(`${subject}: oci-layout`, bytes)
    )
    const { index } = yield* Effect.flatMap(document("index.json"), (bytes) =>
      Oci.decodeLayoutIndex(`${subject}: index.json`, bytes)
    )
    const blob = (digest: Reference.Digest) => {
      const { algorithm, hex } = digests.parts(digest)
      return Stream.unwrap(
        Effect.map(Archive.find(archive, `blobs/${algorithm}/${hex}`), (part) =>
          Archive.read(berth, path, subject, part)
        )
      )
    }
    // Entries of the same name are one image for several platforms; an entry without a name is an image of its own.
    const groups = new Map<string, { name: string | undefined; entries: Array<Oci.Descriptor> }>()
    index.manifests.forEach((entry, i) => {
      const name = entry.annotations?.[containerdName] ?? entry.annotations?.[Oci.refNameAnnotation]
      const key =
        name !== undefined ? `named ${name}` : entry.platform === undefined ? `entry ${i}` : "platforms"
      const group = groups.get(key) ?? { name, entries: [] }
      group.entries.push(entry)
      groups.set(key, group)
    })
    return [...groups.values()].map(({ entries, name }) => ({
      names: name === undefined ? [] : [nameOf(subject, name)],
      start: Layout.selectPlatform(name === undefined ? subject : `${subject}:${name}`, entries, wanted),
      blob
    }))
  })

const DockerManifest = Schema.parseJson(
  Schema.Array(
    Schema.Struct({
      Config: Schema.String,
      RepoTags: Schema.optionalWith(Schema.Array(Schema.String), { nullable: true, default: () => [] }),
      Layers: Schema.optionalWith(Schema.Array(Schema.String), { nullable: true, default: () => [] })
    })
  )
)

type DockerImage = (typeof DockerManifest.Type)[number]

const decodeDocker = (
  subject: string,
  bytes: Uint8Array
): Effect.Effect<ReadonlyArray<DockerImage>, ImageError> => {
  const decoded = Schema.decodeUnknownEither(DockerManifest)(new TextDecoder().decode(bytes))
  if (Either.isRight(decoded)) return Effect.succeed(decoded.right)
  const issue = ParseResult.ArrayFormatter.formatErrorSync(decoded.left)[0]
  const path = issue === undefined || issue.path.length === 0 ? "the document" : issue.path.join(".")
  return corrupt(subject, `${path}: ${(issue?.message ?? "is not as expected").slice(0, 300)}`, decoded.left)
}

/** Converts an image of `docker save` to OCI: the bytes of the config are kept, the layers stay as in the archive. */
const translate = (
  berth: Berth,
  archive: Archive.Archive,
  described: DockerImage,
  blobs: Map<string, Uint8Array | Archive.Part>
): Effect.Effect<Oci.Descriptor, ImageError> =>
  Effect.gen(function* () {
    const { path, subject } = archive
    const store = (mediaType: string, bytes: Uint8Array): Oci.Descriptor => {
      const descriptor = Descriptors.of(mediaType, bytes)
      blobs.set(descriptor.digest, bytes)
      return descriptor
    }
    const configBytes = yield* Archive.readSmall(berth, archive, described.Config, Oci.DOCUMENT_BYTES_MAX)
    const config = store(Oci.mediaTypes.config, configBytes)
    // Docker names the config by its digest: `<hex>.json`, or as in an OCI layout.
    const stated = /(?:^|\/)([0-9a-f]{64})(?:\.json)?$/.exec(described.Config)?.[1]
    if (stated !== undefined && config.digest !== digests.of("sha256", stated))
      return yield* digests.mismatch(
        subject,
        "its config's digest",
        digests.of("sha256", stated),
        config.digest
      )
    const decoded = yield* Oci.decodeConfig(`${subject}: ${described.Config.slice(0, 200)}`, configBytes)
    const diffIds = decoded.rootfs.diff_ids
    if (diffIds.length !== described.Layers.length) {
      const detail = `has ${described.Layers.length} layers, but its config ${diffIds.length} diff ids`
      return yield* corrupt(subject, detail)
    }
    if (diffIds.length > Oci.LAYERS_MAX) {
      const detail = `has ${diffIds.length} layers; the limit is ${Oci.LAYERS_MAX}`
      return yield* new ImageError({ reason: "TooLarge", subject, detail })
    }
    const layers = yield* Effect.forEach(described.Layers, (name, i) =>
      Effect.gen(function* () {
        const part = yield* Archive.find(archive, name)
        const compression = yield* Archive.compressionAt(path, `${subject}: ${name}`, part.offset)
        // The diff id of an uncompressed tar is its digest, so storing it verifies it.
        const digest =
          compression === "none"
            ? yield* digests.parse(diffIds[i]!)
            : yield* Archive.digestOf(berth, path, subject, part)
        blobs.set(digest, part)
        return Descriptors.ofLayer(compression, digest, part.size)
      })
    )
    return store(Oci.mediaTypes.manifest, Descriptors.manifestOf(config, layers))
  })

const fromDocker = (
  berth: Berth,
  archive: Archive.Archive
): Effect.Effect<ReadonlyArray<Candidate>, ImageError> =>
  Effect.gen(function* () {
    const bytes = yield* Archive.readSmall(berth, archive, "manifest.json", Oci.DOCUMENT_BYTES_MAX)
    const images = yield* decodeDocker(`${archive.subject}: manifest.json`, bytes)
    return images.map((described): Candidate => {
      const blobs = new Map<string, Uint8Array | Archive.Part>()
      return {
        names: described.RepoTags.map((name) => nameOf(archive.subject, name)),
        start: translate(berth, archive, described, blobs),
        blob: (digest) => {
          const blob = blobs.get(digest)
          return blob === undefined
            ? Stream.fail(corrupt(archive.subject, `names a blob that is not in it: ${digest}`))
            : blob instanceof Uint8Array
              ? Stream.succeed(blob)
              : Archive.read(berth, archive.path, archive.subject, blob)
        }
      }
    })
  })

/** Copies the blobs into the store and unpacks the layers; only the names are missing then. */
const bring = (
  berth: Berth,
  candidate: Candidate,
  wanted: Oci.Platform,
  options: LoadOptions
): Effect.Effect<Loaded, BerthError, Berth> =>
  Effect.gen(function* () {
    const folder = Store.folder(berth)
    const names = yield* Effect.forEach(candidate.names, ({ stored }) => stored)
    const put = (descriptor: Oci.Descriptor, isThere?: Store.IsThere) =>
      Effect.flatMap(Oci.digestOf(descriptor), (digest) =>
        Store.put(berth, digest, candidate.blob(digest), descriptor.size, isThere)
      )
    const again = (descriptor: Oci.Descriptor) => put(descriptor, Store.isIntact)
    const start = yield* candidate.start
    const resolved = yield* Layout.resolveImage(start, wanted, (descriptor) =>
      descriptor.size > Oci.DOCUMENT_BYTES_MAX
        ? tooLarge(descriptor.digest.slice(0, 300), descriptor.size, Oci.DOCUMENT_BYTES_MAX)
        : Effect.zipRight(
            put(descriptor),
            Layout.readDocument(berth.fileSystem, folder, descriptor).pipe(
              Store.healing(berth, [descriptor], again)
            )
          )
    )
    const name = names[0] ?? resolved.descriptor.digest
    const loaded = yield* assemble(name, resolved, options, (layer) =>
      Effect.zipRight(put(layer), Layout.checkBlob(berth.fileSystem, folder, layer))
    ).pipe(Store.healing(berth, resolved.manifest.layers, again))
    return {
      image: loaded,
      names: names.length === 0 ? [name] : names,
      descriptor: Descriptors.ofResolved(resolved)
    }
  })

interface Loaded {
  readonly image: Image
  readonly names: ReadonlyArray<string>
  readonly descriptor: Oci.Descriptor
}

const loadFrom = (
  berth: Berth,
  path: string,
  subject: string,
  wanted: Oci.Platform,
  options: LoadOptions
): Effect.Effect<readonly [Image, ...Array<Image>], BerthError, Berth> =>
  Effect.gen(function* () {
    const archive = yield* Archive.open(path, subject)
    const { members } = archive
    // Archives of docker since version 25 have both formats; the standard's has more data.
    const candidates =
      members.has("oci-layout") && members.has("index.json")
        ? yield* fromOci(berth, archive, wanted)
        : members.has("manifest.json")
          ? yield* fromDocker(berth, archive)
          : yield* new ImageError({
              reason: "Unsupported",
              subject,
              detail:
                "is neither an OCI archive (oci-layout and index.json) nor one of docker save (manifest.json), or is cut off. A root filesystem is for Image.import"
            })
    const chosen = yield* choose(subject, candidates, options.tag)
    const loaded = yield* Effect.forEach(chosen, (candidate) => bring(berth, candidate, wanted, options))
    // Names come last, so that the store shows nothing of a broken archive.
    yield* Store.tagAll(
      berth,
      loaded.flatMap(({ descriptor, names }) => names.map((name) => [name, descriptor] as const))
    )
    return loaded.map((each) => each.image) as unknown as readonly [Image, ...Array<Image>]
  })

/** The kind of file at a path: a regular file can be read by offset, and twice. */
export const kindAt = (
  berth: Berth,
  path: string
): Effect.Effect<"file" | "folder" | "other", ImageError | InvalidOption> =>
  berth.fileSystem.stat(path).pipe(
    Effect.map(({ type }) => (type === "File" ? "file" : type === "Directory" ? "folder" : "other")),
    Effect.mapError((error) =>
      isNotFound(error)
        ? new ImageError({ reason: "NotFound", subject: path, detail: "there is no such file", cause: error })
        : path.includes("\0")
          ? new InvalidOption({
              option: "path",
              value: JSON.stringify(path),
              expected: "a path",
              cause: error
            })
          : storageError(path)(error)
    )
  )

export const load = <E, R>(
  source: string | Stream.Stream<Uint8Array, E, R>,
  options: LoadOptions
): Effect.Effect<readonly [Image, ...Array<Image>], BerthError | E, Berth | R> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const wanted = yield* Layout.parsePlatform(options.platform)
    const limit = options.maxArchiveBytes ?? DEFAULT_ARCHIVE_BYTES_MAX
    const subject = typeof source === "string" ? source : "the archive"
    const fromFile = (path: string): Effect.Effect<readonly [Image, ...Array<Image>], BerthError, Berth> =>
      Effect.gen(function* () {
        const compression = yield* Archive.compressionAt(path, subject)
        if (compression === "none") return yield* loadFrom(berth, path, subject, wanted, options)
        yield* Archive.checkDecompression(compression, subject, "decompress it first (zstd -d)")
        return yield* Archive.spooled(
          berth,
          subject,
          Archive.decompressed(path, compression, subject),
          limit,
          (plain) => loadFrom(berth, plain, subject, wanted, options)
        )
      })
    if (typeof source !== "string") return yield* Archive.spooled(berth, subject, source, limit, fromFile)
    const kind = yield* kindAt(berth, source)
    if (kind === "folder") {
      const expected = "an archive: a folder in the OCI layout is for Image.fromLayout"
      return yield* new InvalidOption({ option: "path", value: JSON.stringify(source), expected })
    }
    return kind === "file"
      ? yield* fromFile(source)
      : yield* Archive.spooled(
          berth,
          subject,
          Stream.mapError(berth.fileSystem.stream(source), storageError(source)),
          limit,
          fromFile
        )
  }).pipe(Store.keeping, orUndone)
