/** `Container.commit`: makes an image of the layers of a container's image, a layer of its changes, and a config. */
import * as fs from "node:fs"
import { pipeline, Readable } from "node:stream"
import { createGzip } from "node:zlib"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { CommitOptions, Container } from "../../Container.ts"
import { type Image, type ImageConfig, scratch } from "../../Image.ts"
import type { Digest } from "../../Reference.ts"
import * as Reference from "../../Reference.ts"
import { storageError } from "../disk/files.ts"
import { noFilesError } from "../files/archiveCopy.ts"
import * as inRoot from "../files/rooted.ts"
import type { Ids } from "../ids/idMaps.ts"
import { ofImage } from "../image/source.ts"
import { checkEnvironment, encodeConfig, healthcheckOf, keySet, write } from "../image/write.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import * as layerDiff from "../layer/diff.ts"
import * as mergedDiff from "../layer/memoryDiff.ts"
import { DEFAULT_LAYER_BYTES_MAX } from "../layer/unpack.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import * as Holds from "../store/leases.ts"
import * as Store from "../store/store.ts"
import * as Archive from "../store/tarIndex.ts"
import { native } from "../system/addon.ts"
import { type Holes, holesOf } from "../tar/members.ts"
import { Hasher } from "../util/digest.ts"
import { attempt } from "../util/fromThrowing.ts"

interface Source {
  readonly image: Image
  /** The folder of the writable layer, undefined if it is in memory. */
  readonly upper: string | undefined
  /** The layer of mount targets, which is no part of what it wrote. */
  readonly targets: string | undefined
  /** The maps between the ids of its files in the container and on the host. */
  readonly ids: Ids
}

/** The image that the container was started from, and the location of its changes. */
const sourceOf = (container: Container): Effect.Effect<Source, BerthError> =>
  Effect.suspend((): Effect.Effect<Source, BerthError> => {
    const { base, root } = container.state
    if (root < 0 || !base.isThere()) return Effect.fail(noFilesError(container))
    const { ids, image, targets, upper } = base
    if (image.digest === undefined && image !== scratch) {
      const expected =
        "a container of an image with a manifest, or of Image.scratch: Image.import makes one of a folder"
      return Effect.fail(new InvalidOption({ option: "container", value: image.reference, expected }))
    }
    return Effect.succeed({ image, upper, targets, ids })
  })

/** The size and digests of a layer, known at the end of its stream. */
class Measured {
  private readonly tar = new Hasher()
  private readonly gzip = new Hasher()
  size = 0

  get diffId(): Digest {
    return this.tar.digest
  }

  get digest(): Digest {
    return this.gzip.digest
  }

  async *compressed(parts: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    const { tar } = this
    const hashed = async function* () {
      for await (const part of parts) {
        tar.update(part)
        yield part
      }
    }
    const transform = createGzip({ level: 6, chunkSize: 64 * 1024 })
    // An error of either stream reaches the reader, and a reader that stops closes both.
    pipeline(Readable.from(hashed()), transform, () => {})
    for await (const part of transform as AsyncIterable<Uint8Array>) {
      // The byte of the gzip header for the operating system: unknown.
      if (this.size === 0) part[GZIP_SYSTEM_AT] = 255
      this.size += part.length
      this.gzip.update(part)
      yield part
    }
  }
}

const GZIP_SYSTEM_AT = 9

/** The writable layer: its folder or, if it cannot be opened, the differences between root and lower layers. */
const partsOf = (
  container: Container,
  { ids, image, targets, upper }: Source,
  holes: Holes,
  signal: AbortSignal
): Effect.Effect<
  { readonly parts: AsyncIterable<Uint8Array>; readonly isGone: () => boolean },
  BerthError,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const { berth, root } = container.state
    const owner = { rootless: berth.rootless, ids }
    const failed = layerDiff.failed(`container ${container.id}`)
    const fd = yield* Effect.acquireRelease(
      Effect.try({
        try: () => (upper === undefined ? native().duplicate(root) : inRoot.openHost(upper, inRoot.O_FOLDER)),
        catch: failed
      }),
      (opened) => Effect.sync(() => native().close(opened))
    )
    if (upper !== undefined) {
      const parts = layerDiff.archive(fd, owner, holes, signal)
      return { parts, isGone: () => fs.statSync(inRoot.via(fd)).nlink === 0 }
    }
    const layers = targets === undefined ? image.layers : [...image.layers, targets]
    const lower = layers.length === 0 ? undefined : yield* merged(berth, layers)
    return { parts: mergedDiff.archive(fd, lower, owner, holes, signal), isGone: () => false }
  })

/** The compressed writable layer. Fails if it was released in the meantime: an empty layer would be wrong then. */
const layerOf = (
  container: Container,
  source: Source,
  measured: Measured,
  holes: Holes
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const controller = new AbortController()
      const { isGone, parts } = yield* partsOf(container, source, holes, controller.signal)
      yield* Effect.addFinalizer(() => Effect.sync(() => controller.abort()))
      return Stream.concat(
        Stream.fromAsyncIterable(measured.compressed(parts), layerDiff.failed(`container ${container.id}`)),
        Stream.execute(
          Effect.suspend(() =>
            container.state.root < 0 || !container.state.base.isThere() || isGone()
              ? Effect.fail(noFilesError(container))
              : Effect.void
          )
        )
      )
    })
  )

type Json = Readonly<Record<string, unknown>>

const objectOf = (value: unknown): Json =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : {}

/** The variables in their order: existing ones get their new values in place. */
const environmentOf = (
  before: ReadonlyArray<string>,
  added: Readonly<Record<string, string>>
): ReadonlyArray<string> => {
  const names = new Set(before.map((entry) => entry.split("=", 1)[0]!))
  return [
    ...before.map((entry) => {
      const name = entry.split("=", 1)[0]!
      return Object.hasOwn(added, name) ? `${name}=${added[name]}` : entry
    }),
    ...Object.entries(added).flatMap(([name, value]) => (names.has(name) ? [] : [`${name}=${value}`]))
  ]
}

/** The new configuration in the specification's names; an omitted field keeps the image's value. */
const runOf = (before: Json, run: Oci.Config["config"], changes: Partial<ImageConfig>): Json => {
  const { command, entrypoint, environment, exposedPorts, healthcheck, labels, volumes } = changes
  const { stopSignal, user, workingDirectory } = changes
  return {
    ...before,
    ...(user === undefined ? {} : { User: user }),
    ...(entrypoint === undefined ? {} : { Entrypoint: entrypoint }),
    ...(command === undefined ? {} : { Cmd: command }),
    ...(workingDirectory === undefined ? {} : { WorkingDir: workingDirectory }),
    ...(stopSignal === undefined ? {} : { StopSignal: stopSignal }),
    ...(environment === undefined ? {} : { Env: environmentOf(run?.Env ?? [], environment) }),
    ...(labels === undefined ? {} : { Labels: { ...run?.Labels, ...labels } }),
    ...(exposedPorts === undefined ? {} : { ExposedPorts: keySet(exposedPorts) }),
    ...(volumes === undefined ? {} : { Volumes: keySet(volumes) }),
    ...(healthcheck === undefined ? {} : { Healthcheck: healthcheckOf(healthcheck) })
  }
}

/** An entry for each layer, because tools count them: a history with another number of entries is dropped. */
const historyOf = (raw: unknown, config: Oci.Config): ReadonlyArray<unknown> => {
  const layers = config.rootfs.diff_ids
  const said = config.history?.filter((entry) => entry.empty_layer !== true).length ?? 0
  return said === layers.length && Array.isArray(raw) ? raw : layers.map(() => ({}))
}

/** An image's documents: the config in its original form, so that unknown fields are kept. */
interface Documents {
  readonly layers: ReadonlyArray<Oci.Descriptor>
  readonly config: Oci.Config
  readonly raw: Json
  /** The layout that has the image's layers. */
  readonly folder: string
}

const documentsOf = (image: Image): Effect.Effect<Documents, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    if (image === scratch) {
      const raw = { ...hostPlatform(), rootfs: { type: "layers", diff_ids: [] } }
      const bytes = new TextEncoder().encode(JSON.stringify(raw))
      const config = yield* Oci.decodeConfig(image.reference, bytes)
      return { layers: [], config, raw, folder: Store.folder(berth) }
    }
    const { descriptor, folder } = yield* ofImage(image)
    const read = (document: Oci.Descriptor) => Layout.readDocument(berth.fileSystem, folder, document)
    const { architecture, os } = image.config
    const resolved = yield* Layout.resolveImage(descriptor, { architecture, os }, read)
    const bytes = yield* read(resolved.manifest.config)
    const raw = yield* Oci.parseObject(resolved.manifest.config.digest, bytes)
    return { layers: resolved.manifest.layers, config: resolved.config, raw, folder }
  })

const configOf = (
  { config, raw }: Documents,
  diffId: string,
  options: CommitOptions
): Effect.Effect<Uint8Array, BerthError> =>
  Effect.gen(function* () {
    const changes = options.config ?? {}
    yield* checkEnvironment(changes)
    const created = options.created ?? new Date()
    if (Number.isNaN(created.getTime()))
      return yield* new InvalidOption({ option: "created", value: "an invalid Date", expected: "a time" })
    const { author, comment } = options
    const entry = { created: created.toISOString(), created_by: "berth commit", author, comment }
    const document = {
      ...raw,
      created: entry.created,
      ...(author === undefined ? {} : { author }),
      config: runOf(objectOf(raw.config), config.config, changes),
      rootfs: { type: "layers", diff_ids: [...config.rootfs.diff_ids, diffId] },
      history: [...historyOf(raw.history, config), entry]
    }
    return yield* encodeConfig(document, "text without NUL, and a config of at most 4 MiB")
  })

/** Copies the image's layers into the store, and returns descriptors with the OCI specification's media types. */
const copyLayers = ({
  folder,
  layers
}: Documents): Effect.Effect<ReadonlyArray<Oci.Descriptor>, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    return yield* Effect.forEach(layers, (layer) =>
      Effect.gen(function* () {
        const digest = yield* Oci.digestOf(layer)
        const compression = yield* Oci.compressionOf(layer)
        const path = yield* Layout.checkBlob(berth.fileSystem, folder, layer)
        const content = Stream.mapError(
          berth.fileSystem.stream(path, { chunkSize: 256 * 1024 }),
          storageError(digest, folder)
        )
        yield* Store.put(berth, digest, content, layer.size)
        return { ...layer, mediaType: Descriptors.ofLayer(compression, digest, layer.size).mediaType }
      })
    )
  })

const commitTo = (container: Container, options: CommitOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const source = yield* sourceOf(container)
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    const documents = yield* documentsOf(source.image)
    // Checks come before anything is read: a mistake should not appear only at the end.
    const holes = yield* attempt(() => holesOf(options.maxHoleBytes))
    yield* configOf(documents, "", options)
    const below = yield* copyLayers(documents)
    const measured = new Measured()
    const subject = `container ${container.id}`
    const layer = yield* Archive.spooled(
      berth,
      subject,
      layerOf(container, source, measured, holes),
      DEFAULT_LAYER_BYTES_MAX,
      (path) => {
        const { digest, size } = measured
        const content = Archive.read(berth, path, subject, { offset: 0, size })
        return Effect.as(Store.put(berth, digest, content, size), Descriptors.ofLayer("gzip", digest, size))
      }
    )
    const config = yield* configOf(documents, measured.diffId, options)
    return yield* write(berth, name, [...below, layer], config, {})
  })

export const commit = (container: Container, options: CommitOptions): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return commitTo(container, options).pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    Effect.withSpan("berth.Container.commit", {
      attributes: { "container.id": container.id, "container.image.name": options.tag }
    })
  )
}
