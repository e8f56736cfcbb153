/** Writes an image that Berth makes: its config in the specification's names, and its documents in the store. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, type ImageError, InvalidOption } from "../../BerthError.ts"
import type { Healthcheck, Image, ImageConfig } from "../../Image.ts"
import type { Limits } from "../../ImageLayer.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Store from "../store/store.ts"
import { assemble } from "./assemble.ts"

export const keySet = (keys: ReadonlyArray<string>) => Object.fromEntries(keys.map((key) => [key, {}]))

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

/** Refuses variable names that would not be read back unchanged. */
export const checkEnvironment = ({ environment }: Partial<ImageConfig>): Effect.Effect<void, InvalidOption> =>
  Effect.suspend(() => {
    const wrong = Object.keys(environment ?? {}).find((name) => name === "" || name.includes("="))
    return wrong === undefined
      ? Effect.void
      : new InvalidOption({
          option: "config.environment",
          value: JSON.stringify(wrong),
          expected: "names of variables without ="
        })
  })

/** A config's bytes. Fails with `InvalidOption` for values that could not be read again. */
export const encodeConfig = (
  document: unknown,
  expected: string
): Effect.Effect<Uint8Array, InvalidOption> => {
  const bytes = new TextEncoder().encode(JSON.stringify(document))
  return Effect.mapBoth(Oci.decodeConfig("config", bytes), {
    onFailure: (cause) => new InvalidOption({ option: "config", value: cause.detail, expected, cause }),
    onSuccess: () => bytes
  })
}

/** Writes a document to the store. */
export const putDocument = (
  berth: Berth,
  mediaType: string,
  bytes: Uint8Array
): Effect.Effect<Oci.Descriptor, ImageError> => {
  const descriptor = Descriptors.of(mediaType, bytes)
  const content = Stream.succeed(bytes)
  return Effect.as(Store.put(berth, descriptor.digest, content, descriptor.size, Store.isIntact), descriptor)
}

export interface More {
  /** Layers that are folders already and are not unpacked, by their diff ids. */
  readonly unpacked?: ReadonlyMap<string, string> | undefined
  /** Annotations of the manifest. */
  readonly annotations?: Readonly<Record<string, string>> | undefined
}

/** Writes the documents of an image whose layers are in the store, and names it; the default name is its digest. */
export const write = (
  berth: Berth,
  name: string | undefined,
  layers: ReadonlyArray<Oci.Descriptor>,
  configBytes: Uint8Array,
  limits: Limits,
  { annotations, unpacked }: More = {}
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const folder = Store.folder(berth)
    const config = yield* putDocument(berth, Oci.mediaTypes.config, configBytes)
    const start = yield* putDocument(
      berth,
      Oci.mediaTypes.manifest,
      Descriptors.manifestOf(config, layers, annotations)
    )
    // The platform is that of the config, whatever this machine's is.
    const wanted = yield* Oci.decodeConfig(config.digest, configBytes)
    const resolved = yield* Layout.resolveImage(start, wanted, (descriptor) =>
      Layout.readDocument(berth.fileSystem, folder, descriptor)
    )
    const made = yield* assemble(
      name ?? start.digest,
      resolved,
      limits,
      (descriptor) => Layout.checkBlob(berth.fileSystem, folder, descriptor),
      () => {},
      unpacked
    )
    yield* Store.tag(berth, name ?? start.digest, Descriptors.ofResolved(resolved))
    return made
  })
