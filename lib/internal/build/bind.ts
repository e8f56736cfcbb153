/** Files of another build that a command sees while it runs, or that are the first ones of a cache. */
import * as fs from "node:fs"
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import * as Mount from "../../Mount.ts"
import { failedAs } from "../files/fileFailure.ts"
import { type Metadata, metadataOf, setMetadata } from "../files/metadata.ts"
import * as inRoot from "../files/rooted.ts"
import { outside, own } from "../ids/idMaps.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import * as Kept from "../layer/kept.ts"
import { O_PATH } from "../system/addon.ts"
import { ELOOP, ENOENT, ENOTDIR } from "../util/errno.ts"
import { ofLayers } from "../volume/ofLayers.ts"
import type { State } from "./evaluate.ts"
import { failedStep, failure } from "./failure.ts"
import * as files from "./files.ts"
import type { Bind, Cache, Run, Shown } from "./node.ts"

/** What tells the files of a build from other ones. */
export const filesOf = (berth: Berth, { identity, image }: State) => ({
  identity,
  layers: Kept.relative(berth, image.layers)
})

/** Opens a file or folder of an image, with links followed within the image. `path` is without links, from its root. */
const opened = (
  berth: Berth,
  node: Run,
  { path }: Pick<Shown, "path">,
  { layers, reference }: Image
): Effect.Effect<
  { readonly fd: number; readonly path: string; readonly isFile: boolean },
  BerthError,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const missing = (cause?: unknown) => failure(node, "NoMatch", `${reference} has no file ${path}`, cause)
    if (layers.length === 0) return yield* missing()
    const root = yield* merged(berth, layers)
    return yield* Effect.acquireRelease(
      Effect.try({
        try: () => {
          const real = inRoot.realPath(root, path)
          const fd = inRoot.open(root, real, O_PATH)
          return { fd, path: real.slice(1), isFile: !fs.statSync(inRoot.via(fd)).isDirectory() }
        },
        catch: (error) =>
          inRoot.isErrno(error, ENOENT, ENOTDIR, ELOOP) ? missing(error) : failedAs(node.text)(error)
      }),
      ({ fd }) => Effect.sync(() => inRoot.using(fd, () => {}))
    )
  })

/** The mount of a bind whose build has made this image. */
export const mountOf = (
  node: Run,
  bind: Bind,
  from: Image,
  workingDirectory: string
): Effect.Effect<Mount.Mount, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { target, writable } = bind
    const { isFile, path } = yield* Effect.scoped(opened(berth, node, bind, from))
    const volume = yield* ofLayers(berth, { layers: from.layers, isWritable: writable, path, isFile })
    return Mount.volume(volume, posix.resolve("/", workingDirectory, target), { readOnly: !writable })
  })

/** Copies a folder of an image into an empty folder of the host, which gets its metadata. */
export const copyInto = (
  berth: Berth,
  node: Run,
  { base, gid, mode, uid }: Pick<Cache, "gid" | "mode" | "uid"> & { readonly base: Shown },
  from: Image,
  folder: string
): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const { fd, isFile, path } = yield* opened(berth, node, base, from)
    if (isFile)
      return yield* failure(node, "NoMatch", `${base.path} of ${from.reference} is no folder`, undefined)
    const { gids, uids } = own()
    yield* Effect.mapError(
      inRoot.promised((signal) =>
        inRoot.using(inRoot.openHost(inRoot.via(fd), inRoot.O_FOLDER), (source) =>
          inRoot.using(inRoot.openHost(folder, inRoot.O_FOLDER), async (target) => {
            const keep = (metadata: Metadata): Metadata => metadata
            const where = { root: target, path: "/", isFolder: true, keep, owner: undefined, signal }
            await files.copyContents(source, where)
            const its = metadataOf(source, fs.statSync(inRoot.via(source)), path)
            const owner = {
              uid: uid === undefined ? its.uid : outside(uids, uid),
              gid: gid === undefined ? its.gid : outside(gids, gid)
            }
            setMetadata(target, { ...its, ...owner, mode: mode ?? its.mode }, folder, true)
          })
        )
      ),
      failedStep(berth, node)
    )
  }).pipe(Effect.scoped)
