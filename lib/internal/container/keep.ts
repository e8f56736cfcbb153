/** `Container.keep`: an ended container's writable layer becomes a layer of the store, by a rename where that is possible. */

import * as fs from "node:fs/promises"
import { basename, dirname } from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError, ImageError, InvalidOption } from "../../BerthError.ts"
import type { Container, KeepOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { storageDetail } from "../disk/files.ts"
import { noFilesError } from "../files/archiveCopy.ts"
import { checkKey, imageOf } from "../image/kept.ts"
import { copyLayer } from "../layer/copy.ts"
import * as Kept from "../layer/kept.ts"
import { removeTree } from "../layer/sweep.ts"
import { DEFAULT_LAYER_BYTES_MAX } from "../layer/unpack.ts"
import * as Holds from "../store/leases.ts"

/** The writable layer in the supervisor's mount namespace, if nothing but the container writes to it. */
export const ownUpper = (container: Container): Effect.Effect<string, BerthError> =>
  Effect.suspend((): Effect.Effect<string, BerthError> => {
    const { base, root } = container.state
    if (!base.isOwn)
      return new InvalidOption({
        option: "container",
        value: container.id,
        expected:
          "a container of Container.start with a pid namespace of its own: its end is the end of all that writes to the layer"
      })
    if (base.mountedUpper === undefined)
      return new InvalidOption({
        option: "container",
        value: container.id,
        expected: `a container with its writable layer on disk: start it with upper: "disk"${
          base.image.upper === "memory" ? ", of another image than the host's root" : ""
        }`
      })
    return root < 0 ? noFilesError(container) : Effect.succeed(base.mountedUpper)
  })

const rename = (from: string, to: string): Effect.Effect<void, ImageError> =>
  Effect.tryPromise({
    try: () => fs.rename(from, to),
    catch: (cause) => {
      const { code = "", message } = cause as NodeJS.ErrnoException
      return new ImageError({
        reason: "Storage",
        subject: from,
        detail: storageDetail(code, message, to),
        cause
      })
    }
  })

/** A writable layer that nothing else writes to, with what ends the use of its files. */
interface Ended {
  readonly image: Image
  /** The folder of the layer. */
  readonly upper: string
  readonly release: Effect.Effect<void>
}

/** Makes a writable layer a layer of the store, by a rename. */
export const place = (
  berth: Berth,
  { image, release, upper }: Ended,
  key: string | undefined
): Effect.Effect<Image, BerthError> =>
  Effect.gen(function* () {
    const folder = Kept.folderOf(berth, image, key)
    const base = dirname(upper)
    // In the state folder until it has a name: a sweep removes the files of a killed supervisor.
    const prepared = `${berth.supervisor.folder}/kept-${basename(base)}`
    yield* rename(base, prepared)
    // From here on nothing has the files open, not even this program.
    yield* release
    yield* Effect.gen(function* () {
      yield* removeTree(berth, `${prepared}/work`)
      yield* Kept.place(berth, prepared, folder, image, key)
    }).pipe(Effect.ensuring(Effect.ignore(removeTree(berth, prepared))))
    yield* Kept.use(berth, folder)
    return imageOf(image, folder)
  }).pipe(Effect.uninterruptible)

/** A copy of the writable layer of a container whose files stand still, in a folder that is removed when the scope closes. */
export const copied = (container: Container, upper: string, maxBytes = DEFAULT_LAYER_BYTES_MAX) => {
  const { berth, ids } = container.state
  return copyLayer(berth, { container: container.id, upper, ids, maxBytes })
}

/** The same by a copy, as the ids of a user namespace are not those of the next, and a file of a fixed size is a file system of its own. */
const placeCopy = (
  container: Container,
  upper: string,
  key: string | undefined
): Effect.Effect<Image, BerthError> =>
  Effect.gen(function* () {
    const { base, berth, release } = container.state
    const folder = Kept.folderOf(berth, base.image, key)
    const prepared = yield* copied(container, upper)
    yield* Kept.place(berth, prepared, folder, base.image, key)
    yield* Kept.use(berth, folder)
    yield* release
    return imageOf(base.image, folder)
  }).pipe(Effect.scoped)

const keepIn = (container: Container, { key }: KeepOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    if (key !== undefined) yield* checkKey(key)
    const upper = yield* ownUpper(container)
    const { base, ended, ids, release } = container.state
    if (!(yield* Deferred.isDone(ended))) {
      const detail =
        "it still runs, and its files still change: stop it, or wait for its end, and then keep its layer; or use Container.snapshot"
      return yield* new ContainerError({ reason: "Running", container: container.id, detail })
    }
    return ids === undefined && base.upper !== undefined
      ? yield* place(berth, { image: base.image, upper, release }, key)
      : yield* placeCopy(container, upper, key)
  })

export const keep = (container: Container, options: KeepOptions): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return keepIn(container, options).pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    Effect.withSpan("berth.Container.keep", { attributes: { "container.id": container.id } })
  )
}
