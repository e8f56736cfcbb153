/** `Image.pull`: the blobs of an image come from its registry. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Image, PullOptions } from "../../Image.ts"
import * as Reference from "../../Reference.ts"
import type * as Registry from "../../Registry.ts"
import { tooLarge } from "../disk/tooLarge.ts"
import { orUndone } from "../gc/collect.ts"
import * as Descriptors from "../oci/descriptors.ts"
import * as Oci from "../oci/documents.ts"
import * as Layout from "../oci/layout.ts"
import * as Progress from "../oci/progress.ts"
import { orFromNext } from "../registry/mirrors.ts"
import { connectTo, manifest, resolve, unverifiedBlob } from "../registry/reads.ts"
import * as Store from "../store/store.ts"
import { assemble } from "./assemble.ts"

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
