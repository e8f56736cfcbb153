/** `Image.import`: makes an image of one layer from a root filesystem. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import type { BerthError, InvalidOption } from "../../BerthError.ts"
import type { Image, ImageConfig, ImportOptions } from "../../Image.ts"
import type { Digest } from "../../Reference.ts"
import * as Reference from "../../Reference.ts"
import { io, storageError } from "../disk/files.ts"
import { orUndone } from "../gc/collect.ts"
import * as layerDiff from "../layer/diff.ts"
import * as ImageLayer from "../layer/unpack.ts"
import * as Descriptors from "../oci/descriptors.ts"
import type * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import * as Store from "../store/store.ts"
import * as Archive from "../store/tarIndex.ts"
import { defaultPath } from "../util/defaultPath.ts"
import { kindAt } from "./load.ts"
import { checkEnvironment, encodeConfig, healthcheckOf, keySet, write } from "./write.ts"

/** Empty fields are omitted, as in the specification. */
const unlessEmpty = <A extends object>(value: A | undefined): A | undefined =>
  value === undefined || Object.keys(value).length === 0 ? undefined : value

/** Converts a config from Berth's names to the specification's. */
const runOf = (config: Partial<ImageConfig>) => ({
  User: config.user || undefined,
  ExposedPorts: unlessEmpty(keySet(config.exposedPorts ?? [])),
  Env: unlessEmpty(
    Object.entries({ PATH: defaultPath, ...config.environment }).map(([name, value]) => `${name}=${value}`)
  ),
  Entrypoint: unlessEmpty(config.entrypoint),
  Cmd: unlessEmpty(config.command),
  Volumes: unlessEmpty(keySet(config.volumes ?? [])),
  WorkingDir: config.workingDirectory,
  Labels: unlessEmpty(config.labels),
  StopSignal: config.stopSignal,
  Healthcheck: config.healthcheck === undefined ? undefined : healthcheckOf(config.healthcheck)
})

/** The config in its stored form. */
const configOf = (config: Partial<ImageConfig>, diffId: string): Effect.Effect<Uint8Array, InvalidOption> =>
  Effect.suspend(() => {
    const host = hostPlatform()
    const document = {
      ...(config.architecture === undefined ? host : { architecture: config.architecture }),
      os: config.os ?? host.os,
      config: runOf(config),
      rootfs: { type: "layers", diff_ids: [diffId] },
      // Builders such as buildah need an entry for each layer. Without a time, equal files make equal images.
      history: [{ created_by: "berth import" }]
    }
    return Effect.zipRight(checkEnvironment(config), encodeConfig(document, "text without NUL"))
  })

/** Puts the layer into the store, and returns it with the digest of its tar. */
const storeLayer = (
  berth: Berth,
  path: string,
  subject: string,
  options: ImportOptions
): Effect.Effect<{ readonly layer: Oci.Descriptor; readonly diffId: Digest }, BerthError, Berth> =>
  Effect.gen(function* () {
    const compression = yield* Archive.compressionAt(path, subject)
    const { size } = yield* io(subject)(berth.fileSystem.stat(path))
    const part = { offset: 0, size: Number(size) }
    const digest = yield* Archive.digestOf(berth, path, subject, part)
    yield* Store.put(berth, digest, Archive.read(berth, path, subject, part), part.size, Store.isIntact)
    const layer = Descriptors.ofLayer(compression, digest, part.size)
    const stored = Layout.blobPath(Store.folder(berth), digest)
    const diffId =
      compression === "none" ? digest : yield* ImageLayer.unpackUnknown(stored, digest, compression, options)
    return { layer, diffId }
  })

export const importFrom = (path: string, options: ImportOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    // Checks come before anything is read: a mistake should not appear only at the end.
    yield* configOf(options.config ?? {}, "")
    const limit = options.maxBytes ?? ImageLayer.DEFAULT_LAYER_BYTES_MAX
    const spooled = (content: Stream.Stream<Uint8Array, BerthError>) =>
      Archive.spooled(berth, path, content, limit, (spool) => storeLayer(berth, spool, path, options))
    const kind = yield* kindAt(berth, path)
    const { diffId, layer } =
      kind === "file"
        ? yield* storeLayer(berth, path, path, options)
        : kind === "folder"
          ? yield* spooled(layerDiff.diff({ upper: path, maxHoleBytes: limit }))
          : yield* spooled(Stream.mapError(berth.fileSystem.stream(path), storageError(path)))
    return yield* write(berth, name, [layer], yield* configOf(options.config ?? {}, diffId), options)
  }).pipe(Store.keeping, orUndone)
