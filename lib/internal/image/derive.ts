/** The documents of an image that is made from another one: its layers and new ones on top, and a changed configuration. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import { type Image, type ImageConfig, scratch } from "../../Image.ts"
import { storageError } from "../disk/files.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import * as Store from "../store/store.ts"
import { ofImage } from "./source.ts"
import { checkEnvironment, encodeConfig, healthcheckOf, keySet } from "./write.ts"

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
export interface Documents {
  readonly layers: ReadonlyArray<Oci.Descriptor>
  readonly config: Oci.Config
  readonly raw: Json
  /** The layout that has the image's layers. */
  readonly folder: string
}

export const documentsOf = (image: Image): Effect.Effect<Documents, BerthError, Berth> =>
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

/** The configuration of an image in the specification's names; empty for one without a manifest. */
export const rawConfigOf = (image: Image): Effect.Effect<Json, BerthError, Berth> =>
  image.digest === undefined
    ? Effect.succeed({})
    : Effect.map(documentsOf(image), ({ raw }) => objectOf(raw.config))

/** Copies the image's layers into the store, and returns descriptors with the OCI specification's media types. */
export const copyLayers = ({
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

/** An entry of an image's history in the specification's names, without its time (OCI image-spec, config.md). */
export interface History {
  readonly created_by: string
  readonly comment?: string | undefined
  /** Set if the step made no layer. */
  readonly empty_layer?: true | undefined
}

/** The difference between an image and the one that it is made from. */
export interface Changes {
  readonly diffIds: ReadonlyArray<string>
  readonly history: ReadonlyArray<History>
  readonly config: Partial<ImageConfig>
  readonly created: Date | undefined
  readonly author: string | undefined
  /** Fields that `config` does not have, in the specification's names. */
  readonly raw?: Readonly<Record<string, unknown>> | undefined
}

/** The bytes of the new configuration. */
export const configOf = (
  { config, raw }: Documents,
  changes: Changes
): Effect.Effect<Uint8Array, BerthError> =>
  Effect.gen(function* () {
    yield* checkEnvironment(changes.config)
    const time = changes.created ?? new Date()
    if (Number.isNaN(time.getTime()))
      return yield* new InvalidOption({ option: "created", value: "an invalid Date", expected: "a time" })
    const created = time.toISOString()
    const { author } = changes
    const document = {
      ...raw,
      created,
      ...(author === undefined ? {} : { author }),
      config: { ...runOf(objectOf(raw.config), config.config, changes.config), ...changes.raw },
      rootfs: { type: "layers", diff_ids: [...config.rootfs.diff_ids, ...changes.diffIds] },
      history: [
        ...historyOf(raw.history, config),
        ...changes.history.map(({ created_by, ...rest }) => ({ created, created_by, author, ...rest }))
      ]
    }
    return yield* encodeConfig(document, "text without NUL, and a config of at most 4 MiB")
  })
