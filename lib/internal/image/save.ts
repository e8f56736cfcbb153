/** `Image.save`: writes an image of the store to a file or folder that other tools read. */
import { randomBytes } from "node:crypto"
import * as path from "node:path"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, type ImageError, type InvalidData, InvalidOption } from "../../BerthError.ts"
import type { Image, SaveOptions } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import { append, io, syncFolder } from "../disk/files.ts"
import * as copy from "../files/archiveCopy.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Store from "../store/store.ts"
import * as Archive from "../store/tarIndex.ts"
import * as tar from "../tar/format.ts"
import * as digests from "../util/digest.ts"
import * as ImageStore from "./names.ts"
import { ofImage } from "./source.ts"

/** An image with all its blobs in a layout, the store or another. */
interface Source {
  /** Its name in the store, if it has one. */
  readonly name: string | undefined
  readonly resolved: Layout.Resolved
  readonly folder: string
}

/** Selects the image. Its documents are held before they are read. */
const resolve = (
  berth: Berth,
  image: Image | string,
  options: SaveOptions
): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    if (typeof image === "string") {
      const resolved = yield* ImageStore.resolve(berth, image, options)
      return { name: resolved.name, resolved, folder: Store.folder(berth) }
    }
    const { descriptor, folder } = yield* ofImage(image)
    const wanted =
      options.platform === undefined ? image.config : yield* Layout.parsePlatform(options.platform)
    const resolved = yield* Layout.resolveImage(descriptor, wanted, (document) =>
      Effect.zipRight(
        ImageStore.hold(berth, document),
        Layout.readDocument(berth.fileSystem, folder, document)
      )
    )
    const entries = yield* Store.entries(berth)
    const isNamed = entries.some(
      (entry) => Store.nameOf(entry) === image.reference && entry.digest === image.digest
    )
    return { name: isNamed ? image.reference : undefined, resolved, folder }
  })

/** Selects the image, and checks that all its layers exist, before anything is written. */
const sourceOf = (
  berth: Berth,
  image: Image | string,
  options: SaveOptions
): Effect.Effect<Source, BerthError, Berth> =>
  Effect.gen(function* () {
    const source = yield* resolve(berth, image, options)
    for (const layer of source.resolved.manifest.layers) {
      yield* Oci.compressionOf(layer)
      yield* ImageStore.hold(berth, layer)
      yield* Layout.checkBlob(berth.fileSystem, source.folder, layer)
    }
    // A digest is a name only inside the store.
    const isDigest = Either.isRight(digests.parse(source.name ?? ""))
    return isDigest ? { ...source, name: undefined } : source
  })

/** A blob of the store. */
const blobOf = (
  berth: Berth,
  folder: string,
  descriptor: Oci.Descriptor
): Stream.Stream<Uint8Array, ImageError> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const digest = yield* Oci.digestOf(descriptor)
      const blob = yield* Layout.checkBlob(berth.fileSystem, folder, descriptor)
      const content = Archive.read(berth, blob, digest, { offset: 0, size: descriptor.size })
      return digests.verified(content, { digest, size: descriptor.size })
    })
  )

/** A member of an archive or a layout, in the order of writing. */
type Member =
  | { readonly name: string; readonly folder: true }
  | {
      readonly name: string
      /** Undefined if the size is only known at the end. */
      readonly size: number | undefined
      readonly content: Stream.Stream<Uint8Array, ImageError>
    }

const small = (name: string, document: unknown): Member => {
  const bytes = new TextEncoder().encode(JSON.stringify(document))
  return { name, size: bytes.length, content: Stream.succeed(bytes) }
}

/** The header is the same for equal images, whatever the time and the user. */
const headerOf = (kind: "file" | "folder", name: string, size: number): Uint8Array =>
  tar.encode({
    kind,
    name,
    size,
    link: "",
    mode: kind === "file" ? 0o644 : 0o755,
    uid: 0,
    gid: 0,
    seconds: 0,
    nanoseconds: 0,
    xattrs: []
  })

/** Writes at a position in the file, because the platform's File cannot seek backwards in every runtime. */
const writeAt = (
  file: FileSystem.File,
  target: string,
  position: number,
  bytes: Uint8Array
): Effect.Effect<void, ImageError> =>
  // An abandoned write would reach the next file with the descriptor's number.
  Effect.uninterruptible(
    Effect.tryPromise({
      try: () => copy.writeAt(file.fd, bytes, position),
      catch: Archive.failedOn(target)
    })
  )

/** Writes a member from `start` on, and returns its end. */
const writeMember = (
  file: FileSystem.File,
  target: string,
  start: number,
  member: Member
): Effect.Effect<number, ImageError> =>
  Effect.gen(function* () {
    if ("folder" in member) {
      const header = headerOf("folder", member.name, 0)
      yield* writeAt(file, target, start, header)
      return start + header.length
    }
    const writeWith = (header: Uint8Array) =>
      Effect.gen(function* () {
        const contents = start + header.length
        let at = contents
        yield* writeAt(file, target, start, header)
        yield* Stream.runForEach(member.content, (chunk) => {
          const position = at
          at += chunk.length
          return writeAt(file, target, position, chunk)
        })
        yield* writeAt(file, target, at, new Uint8Array(tar.padding(at - contents)))
        return at - contents
      })
    const guess = headerOf("file", member.name, member.size ?? 0)
    const size = yield* writeWith(guess)
    const header = headerOf("file", member.name, size)
    if (member.size !== undefined && member.size !== size)
      return yield* digests.mismatch(target, member.name, `${member.size} bytes`, `${size} bytes`)
    if (header.length !== guess.length) {
      // From 8 GiB on, a size needs an additional header, for which there is no room.
      yield* writeWith(header)
    } else if (member.size === undefined) {
      yield* writeAt(file, target, start, header)
    }
    return start + header.length + size + tar.padding(size)
  })

/** Writes to a name beside the target, and renames it to the target when everything is on the disk. */
const replacing = <A, E, R>(
  fs: FileSystem.FileSystem,
  target: string,
  write: (temporary: string) => Effect.Effect<A, E, R>
): Effect.Effect<void, E | ImageError, R> => {
  const folder = path.dirname(target)
  const temporary = path.join(folder, `.${path.basename(target)}.${randomBytes(8).toString("hex")}`)
  return write(temporary).pipe(
    Effect.zipRight(io(target)(fs.rename(temporary, target))),
    Effect.onError(() => Effect.ignore(fs.remove(temporary, { recursive: true, force: true }))),
    Effect.zipRight(io(target)(syncFolder(fs, folder)))
  )
}

const inFile = <A, E, R>(
  fs: FileSystem.FileSystem,
  target: string,
  at: string,
  use: (file: FileSystem.File) => Effect.Effect<A, E, R>
): Effect.Effect<void, E | ImageError, Exclude<R, Scope.Scope>> =>
  Effect.scoped(
    Effect.gen(function* () {
      const file = yield* io(target)(fs.open(at, { flag: "wx" }))
      yield* use(file)
      yield* io(target)(file.sync)
    })
  )

/** Writes a stream to a file, which appears completely or not at all. */
export const writeFile = (
  fs: FileSystem.FileSystem,
  target: string,
  content: Stream.Stream<Uint8Array, BerthError>
): Effect.Effect<void, BerthError> =>
  replacing(fs, target, (temporary) =>
    inFile(fs, target, temporary, (file) =>
      Stream.runForEach(content, (chunk) => io(target)(append(file, chunk)))
    )
  )

const writeArchive = (
  fs: FileSystem.FileSystem,
  target: string,
  members: ReadonlyArray<Member>
): Effect.Effect<void, ImageError> =>
  replacing(fs, target, (temporary) =>
    inFile(fs, target, temporary, (file) =>
      Effect.flatMap(
        Effect.reduce(members, 0, (at, member) => writeMember(file, target, at, member)),
        (at) => writeAt(file, target, at, tar.end)
      )
    )
  )

const writeLayout = (
  fs: FileSystem.FileSystem,
  target: string,
  members: ReadonlyArray<Member>
): Effect.Effect<void, ImageError> =>
  replacing(fs, target, (temporary) =>
    Effect.gen(function* () {
      const disk = io(target)
      yield* disk(fs.makeDirectory(temporary))
      for (const member of members) {
        const at = `${temporary}/${member.name}`
        yield* "folder" in member
          ? disk(fs.makeDirectory(at))
          : inFile(fs, target, at, (file) =>
              Stream.runForEach(member.content, (chunk) => disk(append(file, chunk)))
            )
      }
      const folders = members.flatMap((member) => ("folder" in member ? [`${temporary}/${member.name}`] : []))
      yield* Effect.forEach([...folders, temporary], (each) => disk(syncFolder(fs, each)), { discard: true })
    })
  )

const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

/** The files of an OCI layout with this image. */
const ociMembers = (
  berth: Berth,
  source: Source,
  tag: string | undefined
): Effect.Effect<ReadonlyArray<Member>, BerthError> =>
  Effect.gen(function* () {
    const name = tag ?? source.name
    // The grammar of the specification.
    if (name !== undefined && !/^[A-Za-z0-9]+(?:(?:[-._:@+/]|--)[A-Za-z0-9]+)*$/.test(name)) {
      const expected = "letters and digits with one of - . _ : @ + / between them"
      return yield* new InvalidOption({ option: "tag", value: JSON.stringify(name.slice(0, 200)), expected })
    }
    const { descriptor, manifest } = source.resolved
    const blobs = new Map<string, Oci.Descriptor>()
    for (const each of [descriptor, manifest.config, ...manifest.layers]) {
      const { algorithm, hex } = digests.parts(yield* Oci.digestOf(each))
      blobs.set(`blobs/${algorithm}/${hex}`, each)
    }
    const paths = [...blobs.keys()].sort(compareText)
    const folders = [...new Set(paths.map((each) => path.posix.dirname(each)))]
    const annotations = name === undefined ? {} : { annotations: { [Oci.refNameAnnotation]: name } }
    const entry = { ...Descriptors.ofResolved(source.resolved), ...annotations }
    return [
      small("oci-layout", { imageLayoutVersion: "1.0.0" }),
      small("index.json", { schemaVersion: 2, mediaType: Oci.mediaTypes.index, manifests: [entry] }),
      ...["blobs", ...folders].map((each): Member => ({ name: each, folder: true })),
      ...paths.map((each): Member => {
        const blob = blobs.get(each)!
        return { name: each, size: blob.size, content: blobOf(berth, source.folder, blob) }
      })
    ]
  })

/** `name:tag`, the form of docker and podman; undefined if the store only has a bare tag or a digest. */
const repoTag = (
  name: string | undefined,
  tag: string | undefined
): Effect.Effect<string | undefined, InvalidData> =>
  Effect.gen(function* () {
    if (tag !== undefined) {
      const parsed = yield* Reference.parse(tag)
      return Reference.print({ ...parsed, tag: parsed.tag ?? "latest", digest: undefined })
    }
    const parsed =
      name !== undefined && /[:/]/.test(name) ? Either.getOrUndefined(Reference.parse(name)) : undefined
    return parsed?.tag === undefined ? undefined : Reference.print({ ...parsed, digest: undefined })
  })

/** The files of `docker save` that readers need: uncompressed layers, by their diff ids. */
const dockerMembers = (
  berth: Berth,
  source: Source,
  tag: string | undefined
): Effect.Effect<ReadonlyArray<Member>, BerthError> =>
  Effect.gen(function* () {
    const { diffIds, manifest } = source.resolved
    const named = yield* repoTag(source.name, tag)
    const layers = new Map<string, Member>()
    for (const [i, layer] of manifest.layers.entries()) {
      const diffId = yield* digests.parse(diffIds[i]!)
      const compression = yield* Oci.compressionOf(layer)
      yield* Archive.checkDecompression(
        compression,
        layer.digest,
        "save it as oci-archive, where layers stay as they are"
      )
      const blob = yield* Layout.checkBlob(berth.fileSystem, source.folder, layer)
      const name = `${digests.parts(diffId).hex}.tar`
      const plain = compression === "none" ? undefined : Archive.decompressed(blob, compression, layer.digest)
      layers.set(name, {
        name,
        size: plain === undefined ? layer.size : undefined,
        content: digests.verified(
          plain ?? Archive.read(berth, blob, layer.digest, { offset: 0, size: layer.size }),
          { digest: diffId, size: undefined, subject: layer.digest, what: "the layer's diff id" }
        )
      })
    }
    const names = diffIds.map((diffId) => `${diffId.slice(diffId.indexOf(":") + 1)}.tar`)
    const configName = `${manifest.config.digest.slice(manifest.config.digest.indexOf(":") + 1)}.json`
    return [
      {
        name: configName,
        size: manifest.config.size,
        content: blobOf(berth, source.folder, manifest.config)
      },
      ...[...layers.values()],
      small("manifest.json", [
        { Config: configName, RepoTags: named === undefined ? null : [named], Layers: names }
      ])
    ]
  })

/** Fails if the target has an entry that a rename would not, or should not, replace. */
const checkTarget = (
  fs: FileSystem.FileSystem,
  target: string,
  format: SaveOptions["format"]
): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const refuse = (expected: string) =>
      new InvalidOption({ option: "path", value: JSON.stringify(target), expected })
    if (target === "" || target.includes("\0") || path.basename(target) === "")
      return yield* refuse("the path of a file or folder to make")
    if (!(yield* io(target)(fs.exists(target)))) return
    const { type } = yield* io(target)(fs.stat(target))
    if (format !== "oci-layout")
      return type === "Directory" ? yield* refuse(`a file for ${format}: this is a folder`) : undefined
    if (type !== "Directory" || (yield* io(target)(fs.readDirectory(target))).length > 0)
      return yield* refuse("an unused path, or an empty folder")
  })

export const save = (
  image: Image | string,
  target: string,
  options: SaveOptions
): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { format, tag } = options
    yield* checkTarget(berth.fileSystem, target, format)
    const source = yield* sourceOf(berth, image, options)
    switch (format) {
      case "docker-archive":
        return yield* writeArchive(berth.fileSystem, target, yield* dockerMembers(berth, source, tag))
      case "oci-archive":
        return yield* writeArchive(berth.fileSystem, target, yield* ociMembers(berth, source, tag))
      case "oci-layout":
        return yield* writeLayout(berth.fileSystem, target, yield* ociMembers(berth, source, tag))
      default: {
        const expected = "oci-archive, docker-archive or oci-layout"
        return yield* new InvalidOption({ option: "format", value: JSON.stringify(format), expected })
      }
    }
  }).pipe(
    Store.keeping,
    Effect.withSpan("berth.Image.save", {
      attributes: {
        "container.image.name": typeof image === "string" ? image : image.reference,
        "berth.archive": target,
        "berth.archive.format": options.format
      }
    })
  )
