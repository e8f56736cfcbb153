/** Files of another build that a command sees while it runs. */
import * as fs from "node:fs"
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed } from "../../BerthError.ts"
import type { Image } from "../../Image.ts"
import * as Mount from "../../Mount.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import { O_PATH } from "../system/addon.ts"
import { ELOOP, ENOENT, ENOTDIR } from "../util/errno.ts"
import { ofLayers } from "../volume/ofLayers.ts"
import type { Bind, Run } from "./node.ts"

/** The mount of a bind whose build has made this image. */
export const mountOf = (
  node: Run,
  { path, target, writable }: Bind,
  from: Image,
  workingDirectory: string
): Effect.Effect<Mount.Mount, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { layers, reference } = from
    const missing = (cause?: unknown) =>
      new BuildFailed({
        reason: "NoMatch",
        step: node.text,
        place: node.place,
        detail: `${reference} has no file ${path}`,
        exitCode: undefined,
        log: [],
        cause
      })
    if (layers.length === 0) return yield* missing()
    const found = yield* Effect.scoped(
      Effect.flatMap(merged(berth, layers), (root) =>
        Effect.try({
          try: () => {
            const real = inRoot.realPath(root, path)
            return inRoot.using(inRoot.open(root, real, O_PATH), (fd) => ({
              path: real.slice(1),
              isFile: !fs.statSync(inRoot.via(fd)).isDirectory()
            }))
          },
          catch: (error) =>
            inRoot.isErrno(error, ENOENT, ENOTDIR, ELOOP) ? missing(error) : failedAs(node.text)(error)
        })
      )
    )
    const volume = yield* ofLayers(berth, { layers, isWritable: writable, ...found })
    return Mount.volume(volume, posix.resolve("/", workingDirectory, target), { readOnly: !writable })
  })
