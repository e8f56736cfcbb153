/** `Container.keep`: an ended container's writable layer becomes a layer of the store, by a rename. */
import { execFile } from "node:child_process"
import * as fs from "node:fs/promises"
import { basename, dirname } from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError, ImageError, InvalidOption, Unsupported } from "../../BerthError.ts"
import type { Container, KeepOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { storageDetail } from "../disk/files.ts"
import { noFilesError } from "../files/archiveCopy.ts"
import { checkKey, imageOf } from "../image/kept.ts"
import * as Kept from "../layer/kept.ts"
import { removeTree } from "../layer/sweep.ts"
import * as Holds from "../store/leases.ts"

/** The folder of the writable layer, once nothing but this program has the container's files. */
const upperOf = (container: Container): Effect.Effect<string, BerthError> =>
  Effect.gen(function* () {
    const { base, ended, ids, root } = container.state
    if (!base.isOwn)
      return yield* new InvalidOption({
        option: "container",
        value: container.id,
        expected:
          "a container of Container.start with a pid namespace of its own: its end is the end of all that writes to the layer"
      })
    if (base.upper === undefined)
      return yield* new InvalidOption({
        option: "container",
        value: container.id,
        expected: `a container with its writable layer on disk: start it with upper: "disk" and without upperSize${
          base.image.upper === "memory" ? ", of another image than the host's root" : ""
        }`
      })
    if (ids !== undefined)
      return yield* new Unsupported({
        feature: "keeping the layer of a container with userns",
        why: "its files are owned by the ids of that user namespace, which later containers do not have",
        hint: "Make the layer in a container without userns; containers with userns can start from it"
      })
    if (!(yield* Deferred.isDone(ended))) {
      const detail =
        "it still runs, and its files still change: stop it, or wait for its end, and then keep its layer"
      return yield* new ContainerError({ reason: "Running", container: container.id, detail })
    }
    return root < 0 ? yield* noFilesError(container) : base.upper
  })

/** Writes the file system of a folder to disk: the layer came from a `volatile` overlay, which writes nothing by itself. */
const sync = (folder: string): Effect.Effect<void, ImageError> =>
  Effect.async((resume) => {
    execFile("sync", ["-f", folder], (cause, _, stderr) => {
      const detail = `sync -f: ${stderr.trim() || cause?.message}`
      resume(
        cause === null ? Effect.void : new ImageError({ reason: "Storage", subject: folder, detail, cause })
      )
    })
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

/** Makes a writable layer a layer of the store. */
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
      yield* sync(prepared)
      yield* Kept.place(berth, prepared, folder, image, key)
    }).pipe(Effect.ensuring(Effect.ignore(removeTree(berth, prepared))))
    yield* Kept.use(berth, folder)
    return imageOf(image, folder)
  }).pipe(Effect.uninterruptible)

const keepIn = (container: Container, { key }: KeepOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    if (key !== undefined) yield* checkKey(key)
    const upper = yield* upperOf(container)
    const { base, release } = container.state
    return yield* place(berth, { image: base.image, upper, release }, key)
  })

export const keep = (container: Container, options: KeepOptions): Effect.Effect<Image, BerthError> => {
  const { berth } = container.state
  return keepIn(container, options).pipe(
    Holds.keeping(berth.holds),
    Effect.provideService(Berth, berth),
    Effect.withSpan("berth.Container.keep", { attributes: { "container.id": container.id } })
  )
}
