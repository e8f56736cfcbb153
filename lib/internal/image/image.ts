/** The bodies of `Image`. */
import * as fs from "node:fs/promises"
import * as process from "node:process"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { hasProperty } from "effect/Predicate"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption, Unsupported } from "../../BerthError.ts"
import type {
  FromLayoutOptions,
  Healthcheck,
  Image,
  ImageConfig,
  TypeId as ImageTypeId,
  PullOptions
} from "../../Image.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as ImageLayer from "../../ImageLayer.ts"
import type { Phase } from "../../Progress.ts"
import * as Reference from "../../Reference.ts"
import type * as Registry from "../../Registry.ts"
import { isNotFound, storageError } from "../disk/files.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import { orUndone } from "../gc/collect.ts"
import * as Implicit from "../layer/missingFolders.ts"
import * as LayerStack from "../layer/stack.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Progress from "../oci/progress.ts"
import { orFromNext } from "../registry/mirrors.ts"
import { connectTo, manifest, resolve, unverifiedBlob } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import { defaultPath } from "../util/defaultPath.ts"
import * as digests from "../util/digest.ts"
import { prints } from "../util/prints.ts"

export const TypeId: ImageTypeId = Symbol.for("berth/Image") as ImageTypeId

export const isImage = (u: unknown): u is Image => hasProperty(u, TypeId)

const LAYERS_AT_ONCE = 4

const Proto = {
  ...prints<Image>({
    id: "berth/Image",
    json: ({ digest, layers, reference }) => ({ reference, digest, layers: layers.length }),
    line: ({ digest, layers, reference }) =>
      [
        reference,
        ...(digest === undefined || digest === reference ? [] : [digests.shortened(digest)]),
        `${layers.length} ${layers.length === 1 ? "layer" : "layers"}`
      ].join(", ")
  }),
  [TypeId]: TypeId
}

const make = (
  fields: Pick<Image, "reference" | "digest" | "layers" | "config" | "upper" | "layout">
): Image => Object.assign(Object.create(Proto), fields)

/** The same image with another layer on top. It has no manifest: the layer has never been a tar. */
export const withLayer = (image: Image, layer: string): Image =>
  make({ ...image, digest: undefined, layout: undefined, layers: [...image.layers, layer] })

const plainConfig = (environment: Readonly<Record<string, string>>): ImageConfig => {
  const { architecture, os } = Layout.hostPlatform()
  return {
    entrypoint: [],
    command: [],
    environment,
    workingDirectory: "/",
    user: "",
    stopSignal: undefined,
    exposedPorts: [],
    volumes: [],
    labels: {},
    healthcheck: undefined,
    architecture,
    os
  }
}

export const scratch: Image = make({
  reference: "scratch",
  digest: undefined,
  layers: [],
  config: plainConfig({}),
  upper: "disk"
})

const ofFolder = (reference: string, folder: string): Image =>
  make({
    reference,
    digest: undefined,
    layers: [folder],
    config: plainConfig({ PATH: defaultPath }),
    upper: folder === "/" ? "memory" : "disk"
  })

export const host: Effect.Effect<Image, BerthError> = Effect.suspend(
  (): Effect.Effect<Image, BerthError> =>
    process.platform === "linux"
      ? Effect.succeed(ofFolder("host", "/"))
      : new Unsupported({
          feature: "the image of the host",
          why: `this is ${process.platform}`,
          hint: "Berth runs on Linux: use a Linux machine or virtual machine"
        })
)

export const fromRootfs = (path: string): Effect.Effect<Image, BerthError> =>
  Effect.gen(function* () {
    const resolved = yield* Effect.tryPromise({
      try: async () => {
        const real = await fs.realpath(path)
        return { real, isDirectory: (await fs.stat(real)).isDirectory() }
      },
      catch: (cause): BerthError => {
        const code = String((cause as { code?: unknown }).code ?? "")
        return code === "ENOENT"
          ? new ImageError({ reason: "NotFound", subject: path, detail: "there is no such folder", cause })
          : code.startsWith("ERR_")
            ? new InvalidOption({ option: "path", value: JSON.stringify(path), expected: "a path", cause })
            : new ImageError({ reason: "Storage", subject: path, detail: String(cause), cause })
      }
    })
    if (!resolved.isDirectory)
      return yield* new InvalidOption({ option: "path", value: JSON.stringify(path), expected: "a folder" })
    return ofFolder(resolved.real, resolved.real)
  })

/** Converts a config from the specification's names to Berth's. */
export const toConfig = (config: Oci.Config): ImageConfig => {
  const run = config.config ?? {}
  const environment = (run.Env ?? []).flatMap((entry) => {
    const equals = entry.indexOf("=")
    return equals < 1 ? [] : [[entry.slice(0, equals), entry.slice(equals + 1)] as const]
  })
  return {
    entrypoint: run.Entrypoint ?? [],
    command: run.Cmd ?? [],
    environment: Object.fromEntries(environment),
    workingDirectory: run.WorkingDir || "/",
    user: run.User ?? "",
    stopSignal: run.StopSignal || undefined,
    exposedPorts: Object.keys(run.ExposedPorts ?? {}),
    volumes: Object.keys(run.Volumes ?? {}),
    labels: run.Labels ?? {},
    healthcheck: run.Healthcheck === undefined ? undefined : toHealthcheck(run.Healthcheck),
    architecture: config.architecture,
    os: config.os
  }
}

const toHealthcheck = (
  check: NonNullable<NonNullable<Oci.Config["config"]>["Healthcheck"]>
): Healthcheck | undefined => {
  // Nanoseconds; 0 stands for the default.
  const duration = (nanos: number | undefined) => (nanos ? Duration.millis(nanos / 1e6) : undefined)
  return check.Test === undefined || check.Test.length === 0
    ? undefined
    : {
        test: check.Test,
        interval: duration(check.Interval),
        timeout: duration(check.Timeout),
        startPeriod: duration(check.StartPeriod),
        startInterval: duration(check.StartInterval),
        retries: check.Retries || undefined
      }
}

/** Fetches and unpacks every layer, and puts the image together. */
export const assemble = <R>(
  reference: string,
  resolved: Layout.Resolved,
  limits: Limits,
  blob: (descriptor: Oci.Descriptor) => Effect.Effect<string, BerthError, R>,
  enter: (descriptor: Oci.Descriptor, phase: Phase) => void = () => {}
): Effect.Effect<Image, BerthError, Berth | R> =>
  Effect.gen(function* () {
    // Unsupported media types are refused before anything is fetched.
    yield* Effect.forEach(resolved.manifest.layers, Oci.compressionOf, { discard: true })
    const layers = yield* Effect.forEach(
      resolved.manifest.layers,
      (descriptor, i) =>
        Effect.flatMap(blob(descriptor), (path) => {
          enter(descriptor, "unpacking")
          return ImageLayer.unpack({
            maxBytes: limits.maxBytes,
            maxEntries: limits.maxEntries,
            maxCpuSeconds: limits.maxCpuSeconds,
            descriptor,
            diffId: resolved.diffIds[i]!,
            blob: path
          })
        }).pipe(Effect.tap(() => Effect.sync(() => enter(descriptor, "done")))),
      { concurrency: LAYERS_AT_ONCE }
    )
    const folders = Implicit.withoutRepeats(layers.map((layer) => layer.folder))
    return make({
      reference,
      digest: resolved.descriptor.digest,
      layers: yield* LayerStack.make(yield* Berth, folders, limits),
      config: toConfig(resolved.config),
      upper: "disk"
    })
  })

/** Selects the entry of a layout's `index.json`. */
const chooseEntry = (
  path: string,
  entries: ReadonlyArray<Oci.Descriptor>,
  tag: string | undefined,
  wanted: Oci.Platform
): Effect.Effect<Oci.Descriptor, BerthError> => {
  const nameOf = (entry: Oci.Descriptor) => entry.annotations?.[Oci.refNameAnnotation]
  const names = [...new Set(entries.flatMap((entry) => nameOf(entry) ?? []))].sort()
  const shown = names.slice(0, 50).join(", ")
  if (tag === undefined && names.length > 1)
    return new InvalidOption({ option: "tag", value: "none", expected: `one of ${path}'s tags: ${shown}` })
  const candidates = tag === undefined ? entries : entries.filter((entry) => nameOf(entry) === tag)
  if (candidates.length > 0) return Layout.selectPlatform(path, candidates, wanted)
  const what = names.length === 0 ? "it has no tags" : `its tags are ${shown}`
  const detail = tag === undefined ? "there is no image in it" : `there is no tag ${tag}: ${what}`
  return new ImageError({ reason: "NotFound", subject: path, detail })
}

export const fromLayout = (
  path: string,
  options: FromLayoutOptions
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const { fileSystem } = yield* Berth
    const wanted = yield* Layout.parsePlatform(options.platform)
    const folder = yield* Effect.mapError(fileSystem.realPath(path), (error) =>
      isNotFound(error)
        ? new ImageError({
            reason: "NotFound",
            subject: path,
            detail: "there is no such folder",
            cause: error
          })
        : storageError(path)(error)
    )
    const layout = yield* Layout.readIndex(fileSystem, folder)
    if (Option.isNone(layout)) {
      const detail = "is not an OCI image layout: oci-layout or index.json is missing"
      return yield* new ImageError({ reason: "NotFound", subject: path, detail })
    }
    if (options.tag !== undefined && options.digest !== undefined) {
      const value = JSON.stringify(options.digest.slice(0, 200))
      return yield* new InvalidOption({ option: "digest", value, expected: "a tag or a digest, not both" })
    }
    const entry =
      options.digest === undefined
        ? yield* chooseEntry(path, layout.value.index.manifests, options.tag, wanted)
        : yield* Layout.descriptorOf(fileSystem, folder, yield* digests.parse(options.digest))
    const resolved = yield* Layout.resolveImage(entry, wanted, (descriptor) =>
      Layout.readDocument(fileSystem, folder, descriptor)
    )
    const name = options.tag ?? entry.annotations?.[Oci.refNameAnnotation]
    const which = options.digest !== undefined ? `@${options.digest}` : name === undefined ? "" : `:${name}`
    const image = yield* assemble(`${folder}${which}`, resolved, options, (layer) =>
      Layout.checkBlob(fileSystem, folder, layer)
    )
    return make({ ...image, layout: folder })
  }).pipe(Store.keeping)

export const pull = (reference: string, options: PullOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const listener = yield* Progress.listening(options)
    const steps = new Map<string, Progress.Steps>()
    const wanted = yield* Layout.parsePlatform(options.platform)
    const parsed = yield* Reference.parse(reference)
    const registry = yield* connectTo(berth, parsed.registry, options)
    const folder = Store.folder(berth)

    const document = (descriptor: Oci.Descriptor, kind: "manifest" | "config") =>
      Effect.gen(function* () {
        const digest = yield* Oci.digestOf(descriptor)
        if (descriptor.size > Oci.DOCUMENT_BYTES_MAX)
          return yield* tooLarge(digest, descriptor.size, Oci.DOCUMENT_BYTES_MAX)
        const content = (source: Registry.Registry) =>
          kind === "manifest"
            ? Stream.fromEffect(manifest(source, parsed, descriptor))
            : unverifiedBlob(source, parsed, descriptor)
        const get = (isThere?: Store.IsThere) =>
          orFromNext(registry, (source) =>
            Store.put(berth, digest, content(source), descriptor.size, isThere)
          )
        yield* get()
        return yield* Layout.readDocument(berth.fileSystem, folder, descriptor).pipe(
          Store.healing(berth, [descriptor], () => get(Store.isIntact))
        )
      })

    const blob = (descriptor: Oci.Descriptor, isThere?: Store.IsThere) =>
      Effect.gen(function* () {
        const digest = yield* Oci.digestOf(descriptor)
        const step = stepOf(descriptor)
        if (yield* Store.has(berth, digest)) step.enter("present")
        const content = (source: Registry.Registry) =>
          Progress.counted(unverifiedBlob(source, parsed, descriptor), step, "downloading")
        yield* orFromNext(registry, (source) =>
          Store.put(berth, digest, content(source), descriptor.size, isThere)
        )
        return yield* Layout.checkBlob(berth.fileSystem, folder, descriptor)
      })

    const stepOf = (layer: Oci.Descriptor): Progress.Steps => {
      const step = steps.get(layer.digest) ?? Progress.stepsOf(listener, layer)
      steps.set(layer.digest, step)
      return step
    }

    const start = yield* startOf(berth, registry, parsed)
    const resolved = yield* Layout.resolveImage(start, wanted, document)
    for (const layer of resolved.manifest.layers) stepOf(layer).enter("waiting")
    const image = yield* assemble(
      Reference.print(parsed),
      resolved,
      options,
      (layer) => blob(layer),
      (layer, phase) => stepOf(layer).enter(phase)
    ).pipe(Store.healing(berth, resolved.manifest.layers, (layer) => blob(layer, Store.isIntact)))
    // The manifest of this platform rather than the index, so that the store has every blob that the name reaches.
    yield* Store.repair(berth)
    yield* Store.tag(berth, Reference.print(parsed), Descriptors.ofResolved(resolved))
    return image
  }).pipe(Effect.scoped, Store.keeping, orUndone)

/** A digest in the store needs no registry; other references are sent to it. */
const startOf = (
  berth: Berth,
  registry: Registry.Registry,
  reference: Reference.Reference
): Effect.Effect<Oci.Descriptor, BerthError, Berth> =>
  Effect.gen(function* () {
    const { digest } = reference
    if (digest !== undefined && (yield* Store.isIntact(berth, digest)))
      return yield* Layout.descriptorOf(berth.fileSystem, Store.folder(berth), digest)
    return yield* resolve(registry, reference)
  })
