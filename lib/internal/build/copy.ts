/** Steps that write files into the root of an image: a copy, and a working directory. */
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed, InvalidOption } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import * as RootFs from "../../RootFs.ts"
import { place } from "../container/keep.ts"
import * as users from "../container/passwd.ts"
import { failedAs } from "../files/fileFailure.ts"
import type { Metadata } from "../files/metadata.ts"
import * as inRoot from "../files/rooted.ts"
import { outside, own } from "../ids/idMaps.ts"
import * as Kept from "../layer/kept.ts"
import { ENOENT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import type { Evaluation, Made } from "./evaluate.ts"
import * as fileIndex from "./fileIndex.ts"
import * as files from "./files.ts"
import { compile } from "./ignore.ts"
import type { Context, Copy } from "./node.ts"

/** Lets `write` change the root of an image, and makes a layer of what it wrote. */
const written = (
  { berth }: Evaluation,
  image: Image,
  key: string,
  write: (root: number, signal: AbortSignal) => Promise<"changed" | "unchanged">,
  failed: (error: unknown) => BerthError
): Effect.Effect<Image | undefined, BerthError, Berth> =>
  Effect.acquireUseRelease(
    Scope.make(),
    (scope) =>
      Effect.gen(function* () {
        const root = yield* Scope.extend(RootFs.overlay(image, { upper: "disk" }), scope)
        const done = yield* Effect.mapError(
          inRoot.promised((signal) => write(root.mount, signal)),
          failed
        )
        if (done === "unchanged") return undefined
        const release = Scope.close(scope, Exit.void)
        return yield* place(berth, { image, upper: root.upper!, release }, key)
      }),
    (scope, exit) => Scope.close(scope, exit)
  )

/** A folder that is made unless the image has it, for the image's user. */
export const folder = (evaluation: Evaluation, image: Image, path: string): Made => ({
  key: ["folder", path, image.config.user],
  make: (key) => {
    const operation = `make the folder ${path}`
    const write = async (root: number, owner: files.Owner | undefined): Promise<"changed" | "unchanged"> => {
      try {
        inRoot.using(inRoot.open(root, path, inRoot.O_FOLDER), () => {})
        return "unchanged"
      } catch (error) {
        if (!inRoot.isErrno(error, ENOENT)) throw error
      }
      files.makeFolders(root, path, owner)
      return "changed"
    }
    return Effect.flatMap(ownerOf(image, image.config.user || undefined, false), (owner) =>
      written(evaluation, image, key, (root) => write(root, owner), failedAs(operation))
    )
  }
})

/** The ids that the copies get on the host; undefined for those of the sources. */
const ownerOf = (
  image: Image,
  owner: string | undefined,
  isContext: boolean
): Effect.Effect<files.Owner | undefined, BerthError> =>
  attempt(() => {
    const { gids, uids } = own()
    if (owner === undefined) return isContext ? { uid: outside(uids, 0), gid: outside(gids, 0) } : undefined
    const [passwd, group] = ["etc/passwd", "etc/group"].map((path) =>
      users.readMerged(image.reference, image.layers, path)
    )
    // As in Docker, a number alone is that of the group too.
    const both = /^\d+$/.test(owner) ? `${owner}:${owner}` : owner
    const { gid, uid } = users.resolve(image.reference, both, passwd!, group!)
    return { uid: outside(uids, uid), gid: outside(gids, gid) }
  })

const failedCopy =
  ({ place, text }: Copy, from: string) =>
  (error: unknown): BerthError => {
    const failed = (reason: BuildFailed["reason"], detail: string) =>
      new BuildFailed({ reason, step: text, place, detail, exitCode: undefined, log: [], cause: error })
    if (error instanceof files.NoMatch)
      return failed(
        "NoMatch",
        `${from} has no file ${error.pattern}, or its patterns of ignored files leave it out`
      )
    if (error instanceof files.Archive)
      return failed(
        "Unsupported",
        `${error.message}: Berth does not unpack it. Use COPY for the archive itself, or unpack it in a RUN`
      )
    if (error instanceof files.Changed)
      return failed("Changed", `${error.message}: build again when nothing writes to ${from}`)
    if (error instanceof SyntaxError)
      return new InvalidOption({ option: "paths", value: text, expected: error.message, cause: error })
    return failedAs(text)(error)
  }

/** The opened folder that a step copies from, until the scope closes. */
const sourceOf = (
  from: Context | Image,
  step: Copy
): Effect.Effect<number, BerthError, Berth | Scope.Scope> =>
  "_tag" in from
    ? Effect.acquireRelease(
        Effect.try({
          try: () => inRoot.openHost(from.folder, inRoot.O_FOLDER),
          catch: failedAs(`${step.text}: ${from.folder}`)
        }),
        (fd) => Effect.sync(() => inRoot.using(fd, () => {}))
      )
    : Effect.map(RootFs.overlay(from, { upper: "memory" }), ({ mount }) => mount)

/** Copies files of a context or of an image. */
export const copy = (
  evaluation: Evaluation,
  node: Copy,
  image: Image,
  fromImage: Image | undefined
): Effect.Effect<Made, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { berth } = evaluation
    const { mode, owner, paths, to = "." } = node.options
    const context = node.from._tag === "Context" ? node.from : undefined
    const shown = context?.folder ?? fromImage!.reference
    const failed = failedCopy(node, shown)
    const ignore = yield* Effect.try({ try: () => compile(context?.ignore ?? []), catch: failed })
    const ids = yield* ownerOf(image, owner, context !== undefined)
    const path = `${posix.resolve("/", image.config.workingDirectory, to)}${/(^|\/)\.?$/.test(to) ? "/" : ""}`
    const index = yield* Effect.promise(() => fileIndex.open(berth, shown))
    const select = (source: number) =>
      Effect.mapError(
        inRoot.promised(async (signal) => {
          const { refusesArchives = false } = node
          const options = { index, withOwners: context === undefined, refusesArchives, signal }
          const selected = await files.select(source, paths, ignore, options)
          await index.save()
          return selected
        }),
        failed
      )
    const keep = (metadata: Metadata): Metadata => ({ ...metadata, ...ids, mode: mode ?? metadata.mode })
    const options = [path, owner ?? null, mode ?? null]
    const keyed = ({ digest, files, sources }: files.Selection) => ({
      key: ["copy", options, sources.map(({ isFolder, name }) => [name, isFolder]), digest],
      files
    })
    const copied = (key: string, source: number, selection: files.Selection) =>
      written(
        evaluation,
        image,
        key,
        async (root, signal) => {
          const made = owner === undefined ? undefined : ids
          await files.copy(source, selection, { root, path, keep, owner: made, signal })
          return "changed"
        },
        failed
      )
    // The layers of an image in the store never change: they say what its files are without a look at them.
    if (fromImage?.layers.every((layer) => layer.startsWith(`${berth.layers}/`)) === true)
      return {
        key: ["copy", options, paths, Kept.relative(berth, fromImage.layers)],
        // Other layers can have equal files.
        refined: Effect.scoped(
          Effect.map(Effect.flatMap(sourceOf(fromImage, node), select), (selection) => keyed(selection))
        ),
        make: (key) =>
          Effect.scoped(
            Effect.flatMap(sourceOf(fromImage, node), (source) =>
              Effect.flatMap(select(source), (selection) => copied(key, source, selection))
            )
          )
      }
    const source = yield* sourceOf(context ?? fromImage!, node)
    const selection = yield* select(source)
    return {
      ...keyed(selection),
      make: (key) => copied(key, source, selection)
    }
  })
