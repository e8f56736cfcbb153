/** Steps that write files into the root of an image: a copy, and a working directory. */
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import * as RootFs from "../../RootFs.ts"
import { place } from "../container/keep.ts"
import * as users from "../container/passwd.ts"
import type { Metadata } from "../files/metadata.ts"
import * as inRoot from "../files/rooted.ts"
import { outside, own } from "../ids/idMaps.ts"
import { ENOENT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import type { Evaluation, Made } from "./evaluate.ts"
import { failedStep } from "./failure.ts"
import * as files from "./files.ts"
import { changeOf } from "./mode.ts"
import type { Copy, Workdir } from "./node.ts"
import { failedCopy, isBuild, type Opened, type Prepared, prepare } from "./part.ts"

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
export const folder = (evaluation: Evaluation, node: Workdir, image: Image, path: string): Made => ({
  key: ["folder", path, image.config.user],
  make: (key) => {
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
      written(evaluation, image, key, (root) => write(root, owner), failedStep(evaluation.berth, node))
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

/** The target of a step: with a slash at the end, it is a folder. */
const targetOf = (image: Image, to: string): string =>
  `${posix.resolve("/", image.config.workingDirectory, to)}${/(^|\/)\.?$/.test(to) ? "/" : ""}`

/** Copies files of contexts, of addresses and of images. `images` are those of the parts that are builds. */
export const copy = (
  evaluation: Evaluation,
  node: Copy,
  image: Image,
  images: ReadonlyArray<Image | undefined>
): Effect.Effect<Made, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { exclude = [], mode, owner, parents = false, to = "." } = node.options
    const change =
      mode === undefined ? undefined : changeOf(typeof mode === "number" ? mode.toString(8) : mode)
    if (mode !== undefined && change === undefined)
      return yield* new InvalidOption({
        option: "mode",
        value: JSON.stringify(mode),
        expected: "a mode, from 0 to 0o7777, or the symbols of chmod(1), as u=rwX,go=rX"
      })
    const given = yield* ownerOf(image, owner, false)
    const root = yield* ownerOf(image, undefined, true)
    const path = targetOf(image, to)
    const keepAs =
      (ids: files.Owner | undefined) =>
      (metadata: Metadata, isFolder: boolean): Metadata => ({
        ...metadata,
        ...ids,
        mode: change === undefined ? metadata.mode : change(metadata.mode, isFolder)
      })
    const parts = yield* Effect.forEach(node.parts, (part, k) => prepare(evaluation, node, part, images[k]))
    const options = [path, owner ?? null, mode ?? null, exclude, parents]
    const keyed = (of: ReadonlyArray<Pick<Prepared, "key" | "files">>) => ({
      key: ["copy", options, of.map(({ key }) => key)],
      files: new Map(of.flatMap(({ files = [] }) => [...files]))
    })
    const write = (opened: ReadonlyArray<Opened>) => async (to: number, signal: AbortSignal) => {
      const count = opened.reduce((sum, { selection }) => sum + selection.sources.length, 0)
      const target = { root: to, path, owner: given, signal, isFolder: path.endsWith("/") || count > 1 }
      for (const [k, { selection, top, unpacked }] of opened.entries()) {
        const keep = keepAs(given ?? (isBuild(node.parts[k]!.from) ? undefined : root))
        for (const source of selection.sources) {
          const archive = unpacked.get(source)
          if (archive === undefined) await files.copy(top, selection, source, { ...target, keep })
          else await files.copyContents(archive, { ...target, keep: keepAs(given) })
        }
        await files.checkUnchanged(top, selection, signal)
      }
      return "changed" as const
    }
    return {
      ...keyed(parts),
      refined: parts.every(({ refined }) => refined === undefined)
        ? undefined
        : Effect.map(
            Effect.forEach(parts, (part) => part.refined ?? Effect.succeed(part)),
            keyed
          ),
      make: (key) =>
        Effect.scoped(
          Effect.flatMap(
            Effect.forEach(parts, ({ open }) => open),
            (opened) =>
              written(evaluation, image, key, write(opened), failedCopy(evaluation.berth, node, "its source"))
          )
        )
    }
  })
