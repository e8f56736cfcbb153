/** Puts an image together from its documents and layers, and `Image.fromLayout`. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { FromLayoutOptions, Healthcheck, Image, ImageConfig } from "../../Image.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as ImageLayer from "../../ImageLayer.ts"
import type { Phase } from "../../Progress.ts"
import { isNotFound, storageError } from "../disk/files.ts"
import * as Implicit from "../layer/missingFolders.ts"
import * as LayerStack from "../layer/stack.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Store from "../store/store.ts"
import * as digests from "../util/digest.ts"
import { make } from "./image.ts"

const LAYERS_AT_ONCE = 4

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
  enter: (descriptor: Oci.Descriptor, phase: Phase) => void = () => {},
  unpacked: ReadonlyMap<string, string> = new Map()
): Effect.Effect<Image, BerthError, Berth | R> =>
  Effect.gen(function* () {
    // Unsupported media types are refused before anything is fetched.
    yield* Effect.forEach(resolved.manifest.layers, Oci.compressionOf, { discard: true })
    const layers = yield* Effect.forEach(
      resolved.manifest.layers,
      (descriptor, i) => {
        const folder = unpacked.get(resolved.diffIds[i]!)
        if (folder !== undefined) return Effect.succeed({ folder })
        return Effect.flatMap(blob(descriptor), (path) => {
          enter(descriptor, "unpacking")
          return ImageLayer.unpack({
            maxBytes: limits.maxBytes,
            maxEntries: limits.maxEntries,
            maxCpuSeconds: limits.maxCpuSeconds,
            descriptor,
            diffId: resolved.diffIds[i]!,
            blob: path
          })
        }).pipe(Effect.tap(() => Effect.sync(() => enter(descriptor, "done"))))
      },
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
