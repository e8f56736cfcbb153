/** `Container.keep`: an ended container's writable layer becomes a layer of the store, by a rename where that is possible. */
import * as fs from "node:fs/promises"
import { dirname } from "node:path"
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

/** Takes the folder of the writable layer from the container. */
const renamed = (container: Container, upper: string) =>
  Effect.gen(function* () {
    const { berth, release } = container.state
    // In the state folder until it has a name: a sweep removes the files of a killed supervisor.
    const prepared = `${berth.supervisor.folder}/kept-${container.id}`
    yield* rename(dirname(upper), prepared)
    yield* Effect.addFinalizer(() => Effect.ignore(removeTree(berth, prepared)))
    // From here on nothing has the files open, not even this program.
    yield* release
    yield* removeTree(berth, `${prepared}/work`)
    return prepared
  })

/** A copy of the writable layer of a container whose files stand still, in a folder that is removed when the scope closes. */
export const copied = (container: Container, upper: string, maxBytes = DEFAULT_LAYER_BYTES_MAX) => {
  const { berth, ids } = container.state
  return copyLayer(berth, { container: container.id, upper, ids, maxBytes })
}

const keepIn = (container: Container, { key }: KeepOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    if (key !== undefined) yield* checkKey(key)
    const upper = yield* ownUpper(container)
    const { base, ended, ids } = container.state
    if (!(yield* Deferred.isDone(ended))) {
      const detail =
        "it still runs, and its files still change: stop it, or wait for its end, and then keep its layer; or use Container.snapshot"
      return yield* new ContainerError({ reason: "Running", container: container.id, detail })
    }
    const folder = Kept.folderOf(berth, base.image, key)
    // Ids of a user namespace are not those of the next, and a file of a fixed size is a file system of its own.
    const canRename = ids === undefined && base.upper !== undefined
    const make = Effect.gen(function* () {
      const prepared = yield* canRename ? renamed(container, upper) : copied(container, upper)
      yield* Kept.place(berth, prepared, folder, base.image, key)
      yield* container.state.release
      yield* Kept.use(berth, folder)
      return imageOf(base.image, folder)
    })
    return yield* Effect.scoped(canRename ? Effect.uninterruptible(make) : make)
  })

export const keep = (container: Container, options: KeepOptions): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return keepIn(container, options).pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    Effect.withSpan("berth.Container.keep", { attributes: { "container.id": container.id } })
  )
}
