/** The functions of images as promises, with the progress of pulls and pushes. */
import * as Effect from "effect/Effect"
import * as Berth from "../../Berth.ts"
import { type BerthError, ImageError, InvalidOption } from "../../BerthError.ts"
import * as Image from "../../Image.ts"
import type { Listener, Progress, ProgressOptions } from "../../Progress.ts"
import type { CallOptions, Images, PullPolicy, Transfer } from "../../promise.ts"
import { later } from "../util/later.ts"
import { streamOf } from "./command.ts"
import { siteOf } from "./rejection.ts"
import type { Shared } from "./runtime.ts"

const building = later(() => import("../../Build.ts"))
const storing = later(() => import("../../Store.ts"))

/**
 * The image of `PATH`, `PATH:TAG` or `PATH@DIGEST`. Paths and tags can have colons themselves: the path is the shortest one
 * that is a layout, as skopeo ends it at the first colon.
 */
const fromLayout = (text: string): Effect.Effect<Image.Image, BerthError, Berth.Berth> =>
  Effect.gen(function* () {
    const { fileSystem } = yield* Berth.Berth
    for (const { index } of text.matchAll(/[:@]|$/g)) {
      const path = text.slice(0, index)
      if (path === "" || !(yield* Effect.orElseSucceed(fileSystem.exists(`${path}/oci-layout`), () => false)))
        continue
      const rest = text.slice(index + 1)
      const separator = text[index]
      return yield* Image.fromLayout(
        path,
        separator === ":" ? { tag: rest } : separator === "@" ? { digest: rest } : {}
      )
    }
    return yield* new ImageError({
      reason: "NotFound",
      subject: `oci:${text}`,
      detail:
        "no OCI image layout is there: write oci:PATH, oci:PATH:TAG or oci:PATH@DIGEST with the folder of one"
    })
  })

/** The image of the first argument of `start` and `run`. */
export const named = (
  image: string | Image.Image,
  { pull }: PullPolicy
): Effect.Effect<Image.Image, BerthError, Berth.Berth> => {
  const isName = typeof image === "string" && image !== "host" && !/^(?:oci:|\/)/.test(image)
  if (isName) return Image.get(image, { pull })
  if (pull === "always") {
    const expected = "the name of an image with it: this image has no registry"
    return new InvalidOption({ option: "pull", value: JSON.stringify(pull), expected })
  }
  if (typeof image !== "string") return Effect.succeed(image)
  if (image === "host") return Image.host
  return image.startsWith("/") ? Image.fromRootfs(image) : fromLayout(image.slice("oci:".length))
}

/** The steps of a transfer that its reader has not taken yet. They are small, so the transfer does not wait for the reader. */
class Steps {
  private readonly told: Array<Progress> = []
  private asked: (() => void) | undefined
  private ended = false

  tell(progress: Progress): void {
    this.told.push(progress)
    this.asked?.()
  }

  end(): void {
    this.ended = true
    this.asked?.()
  }

  async next(): Promise<Progress | undefined> {
    while (this.told.length === 0 && !this.ended)
      await new Promise<void>((resolve) => {
        this.asked = resolve
      })
    return this.told.shift()
  }
}

/** Begins after the statement of its call, in which a reader may ask for its steps. */
const transfer = <A>(
  shared: Shared,
  options: ProgressOptions & CallOptions,
  work: (progress: ProgressOptions["progress"]) => Effect.Effect<A, BerthError, Berth.Berth>
): Transfer<A> => {
  const site = siteOf(transfer)
  const stop = new AbortController()
  const readers = new Set<Steps>()
  const tell: Listener = (progress) => {
    if (typeof options.progress === "function") options.progress(progress)
    for (const steps of readers) steps.tell(progress)
  }
  const begin = async (): Promise<A> => {
    await undefined
    await undefined
    try {
      const effect = work(readers.size > 0 ? tell : options.progress)
      return await shared.runFrom(site, effect, options, stop.signal)
    } finally {
      for (const steps of readers) steps.end()
    }
  }
  const promise = begin()
  return Object.assign(promise, {
    [Symbol.asyncIterator]: (): AsyncIterator<Progress, undefined> => {
      const steps = new Steps()
      readers.add(steps)
      // The iterator throws it at the end.
      promise.catch(() => {})
      return {
        next: async () => {
          const value = await steps.next()
          if (value !== undefined) return { done: false, value }
          await promise
          return { done: true, value: undefined }
        },
        return: async () => {
          stop.abort()
          await promise.catch(() => {})
          return { done: true, value: undefined }
        }
      }
    }
  })
}

export const make = (shared: Shared): Images => ({
  get: (name, options = {}) =>
    transfer(shared, options, (progress) => Image.get(name, { ...options, progress })),
  pull: (reference, options = {}) =>
    transfer(shared, options, (progress) => Image.pull(reference, { ...options, progress })),
  push: (image, reference, options = {}) =>
    transfer(shared, options, (progress) => Image.push(image, reference, { ...options, progress })),
  load: (archive, options = {}) =>
    shared.run(Image.load(typeof archive === "string" ? archive : streamOf(archive), options), options),
  save: (image, path, options) => shared.run(Image.save(image, path, options), options),
  build: (options) =>
    shared.run(
      building((module) => module.dockerfile(options)),
      options
    ),
  export: (options) =>
    shared.run(
      building((module) =>
        Effect.flatMap(module.fromDockerfile(options), (build) => module.export(build, options))
      ),
      options
    ),
  explain: (options) =>
    shared.run(
      building((module) =>
        Effect.flatMap(module.fromDockerfile(options), (build) => module.explain(build, options))
      ),
      options
    ),
  import: (path, options = {}) => shared.run(Image.import(path, options), options),
  fromStore: (name, options = {}) => shared.run(Image.fromStore(name, options), options),
  inspect: (name, options = {}) => shared.run(Image.inspect(name, options), options),
  history: (name, options = {}) => shared.run(Image.history(name, options), options),
  list: (options = {}) => shared.run(Image.list, options),
  tag: (name, newName, options = {}) => shared.run(Image.tag(name, newName), options),
  remove: (name, options = {}) => shared.run(Image.remove(name), options),
  gc: (options = {}) =>
    shared.run(
      storing((module) => module.gc(options)),
      options
    )
})
