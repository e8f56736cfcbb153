/** `Image.import`: a root filesystem as an image of one layer. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth } from "../Berth.ts"
import { type BerthError, InvalidOption } from "../BerthError.ts"
import type { Healthcheck, Image, ImageConfig, ImportOptions } from "../Image.ts"
import type { Digest } from "../Reference.ts"
import * as Reference from "../Reference.ts"
import * as Archive from "./archive.ts"
import * as Descriptors from "./descriptors.ts"
import * as image from "./image.ts"
import * as ImageLayer from "./imageLayer.ts"
import { kindAt } from "./imageLoad.ts"
import * as layerDiff from "./layerDiff.ts"
import * as Layout from "./layout.ts"
import * as Oci from "./oci.ts"
import * as Store from "./store.ts"
import { io, storageError } from "./storeFiles.ts"

export const keySet = (keys: ReadonlyArray<string>) => Object.fromEntries(keys.map((key) => [key, {}]))

/** Nothing where there is nothing to say, as the specification has it. */
const unlessEmpty = <A extends object>(value: A | undefined): A | undefined =>
  value === undefined || Object.keys(value).length === 0 ? undefined : value

export const healthcheckOf = (check: Healthcheck) => {
  const nanos = (duration: Duration.Duration | undefined) =>
    duration === undefined ? undefined : Math.round(Duration.toMillis(duration) * 1e6)
  return {
    Test: check.test,
    Interval: nanos(check.interval),
    Timeout: nanos(check.timeout),
    StartPeriod: nanos(check.startPeriod),
    StartInterval: nanos(check.startInterval),
    Retries: check.retries
  }
}

/** Berth's names into the specification's. */
const runOf = (config: Partial<ImageConfig>) => ({
  User: config.user || undefined,
  ExposedPorts: unlessEmpty(keySet(config.exposedPorts ?? [])),
  Env: unlessEmpty(
    Object.entries({ PATH: image.defaultPath, ...config.environment }).map(
      ([name, value]) => `${name}=${value}`
    )
  ),
  Entrypoint: unlessEmpty(config.entrypoint),
  Cmd: unlessEmpty(config.command),
  Volumes: unlessEmpty(keySet(config.volumes ?? [])),
  WorkingDir: config.workingDirectory,
  Labels: unlessEmpty(config.labels),
  StopSignal: config.stopSignal,
  Healthcheck: config.healthcheck === undefined ? undefined : healthcheckOf(config.healthcheck)
})

/** The config as it is stored. Fails with `InvalidOption` for what could not be read again. */
const configOf = (config: Partial<ImageConfig>, diffId: string): Effect.Effect<Uint8Array, InvalidOption> =>
  Effect.gen(function* () {
    const wrong = Object.keys(config.environment ?? {}).find((name) => name === "" || name.includes("="))
    if (wrong !== undefined) {
      const expected = "names of variables without ="
      return yield* new InvalidOption({
        option: "config.environment",
        value: JSON.stringify(wrong),
        expected
      })
    }
    const host = Layout.hostPlatform()
    const bytes = new TextEncoder().encode(
      JSON.stringify({
        ...(config.architecture === undefined ? host : { architecture: config.architecture }),
        os: config.os ?? host.os,
        config: runOf(config),
        rootfs: { type: "layers", diff_ids: [diffId] }
      })
    )
    yield* Effect.mapError(
      Oci.decodeConfig("config", bytes),
      ({ detail }) => new InvalidOption({ option: "config", value: detail, expected: "text without NUL" })
    )
    return bytes
  })

/** The layer in the store, and the digest of the tar in it. */
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
    const diffId =
      compression === "none"
        ? digest
        : yield* ImageLayer.measure(
            Layout.blobPath(Store.folder(berth), digest),
            digest,
            compression,
            options
          )
    return { layer, diffId }
  })

const finish = (
  berth: Berth,
  subject: string,
  name: string | undefined,
  options: ImportOptions,
  { diffId, layer }: { readonly layer: Oci.Descriptor; readonly diffId: Digest }
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const folder = Store.folder(berth)
    const put = (mediaType: string, bytes: Uint8Array) => {
      const descriptor = Descriptors.of(mediaType, bytes)
      return Effect.as(
        Store.put(berth, descriptor.digest, Stream.succeed(bytes), descriptor.size, Store.isIntact),
        descriptor
      )
    }
    const configBytes = yield* configOf(options.config ?? {}, diffId)
    const config = yield* put(Oci.mediaTypes.config, configBytes)
    const start = yield* put(Oci.mediaTypes.manifest, Descriptors.manifestOf(config, [layer]))
    // What it is for is what the caller says, this machine's or not.
    const wanted = yield* Oci.decodeConfig(subject, configBytes)
    const resolved = yield* Layout.resolveImage(start, wanted, (descriptor) =>
      Layout.readDocument(berth.fileSystem, folder, descriptor)
    )
    const made = yield* image.assemble(name ?? start.digest, resolved, options, (descriptor) =>
      Layout.checkBlob(berth.fileSystem, folder, descriptor)
    )
    yield* Store.tag(berth, name ?? start.digest, Descriptors.ofResolved(resolved))
    return made
  })

const defaultMaxBytes = 64 * 1024 ** 3

export const importFrom = (path: string, options: ImportOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const name = options.tag === undefined ? undefined : Reference.print(yield* Reference.parse(options.tag))
    // Before anything is read: what is wrong with it would be wrong at the end, too.
    yield* configOf(options.config ?? {}, "")
    const limit = options.maxBytes ?? defaultMaxBytes
    const spooled = (content: Stream.Stream<Uint8Array, BerthError>) =>
      Archive.spooled(berth, path, content, limit, (spool) => storeLayer(berth, spool, path, options))
    const kind = yield* kindAt(berth, path)
    const layer =
      kind === "file"
        ? yield* storeLayer(berth, path, path, options)
        : kind === "folder"
          ? yield* spooled(layerDiff.diff({ upper: path }))
          : yield* spooled(Stream.mapError(berth.fileSystem.stream(path), storageError(path)))
    return yield* finish(berth, path, name, options, layer)
  }).pipe(Store.keeping)
