/**
 * Copies between this machine and a container of another one, as archives. What comes from there is unpacked into a folder of its own
 * first: an archive may have links, and whatever it has gets no further than the copy of a tree does.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import type { PlatformError } from "@effect/platform/Error"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidData, isBerthError } from "../../BerthError.ts"
import type { CopyOutOptions } from "../../Container.ts"
import * as copy from "../files/archiveCopy.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import * as idMaps from "../ids/idMaps.ts"
import { native, O_NOFOLLOW } from "../system/addon.ts"
import type { ContainerElsewhere } from "../util/elsewhere.ts"
import { EINVAL, ENOENT, ENOTDIR } from "../util/errno.ts"
import { archiveFrom, openSource, Unpacking, unpacked } from "./containerTar.ts"
import { streamed } from "./members.ts"

/** The files of a container of another machine. */
export type Far = Pick<ContainerElsewhere, "fileSystem" | "tarIn" | "tarOut">

/** Where an archive is unpacked, and the name that its source gets there. */
interface Target {
  readonly folder: string
  readonly as: string | undefined
}

/** The target of a copy by the rules of `copyIn`. */
const targetOf = (
  { fileSystem }: Far,
  path: string,
  source: copy.Source,
  failed: (error: unknown) => BerthError
): Effect.Effect<Target, BerthError> => {
  const asNew = (at: string): Effect.Effect<Target, BerthError> =>
    Effect.try({
      try: () => {
        const { folder, name, slash } = inRoot.split(at)
        if (!inRoot.isName(name) || (slash && !copy.isFolder(source))) return inRoot.fail(ENOENT, "open", at)
        return { folder, as: name }
      },
      catch: failed
    })
  const refused = (errno: number, syscall: string) =>
    Effect.try({ try: () => inRoot.fail(errno, syscall, path), catch: failed })
  const why = (error: PlatformError): BerthError => (isBerthError(error.cause) ? error.cause : failed(error))
  const missing = (error: PlatformError): Effect.Effect<Target, BerthError> => {
    const reason = error._tag === "SystemError" ? error.reason : undefined
    if (reason === "NotFound") return asNew(path)
    return reason === "BadResource" ? refused(ENOTDIR, "open") : Effect.fail(why(error))
  }
  return fileSystem.stat(path).pipe(
    Effect.matchEffect({
      onFailure: missing,
      onSuccess: ({ type }) =>
        type === "Directory"
          ? Effect.succeed({ folder: path, as: undefined })
          : copy.isFolder(source)
            ? refused(ENOTDIR, "mkdir")
            : Effect.flatMap(Effect.mapError(fileSystem.realPath(path), why), asNew)
    })
  )
}

const refuseDevice = (status: fs.Stats, path: string): void => {
  if (status.isCharacterDevice() || status.isBlockDevice())
    inRoot.fail(EINVAL, "mknod", `${path} (a device, which is not copied)`)
}

export const copyIn = (far: Far, hostPath: string, path: string): Effect.Effect<void, BerthError> => {
  const failed = failedAs(`copy ${hostPath} -> ${path}`)
  return Effect.scoped(
    Effect.gen(function* () {
      const source = yield* Effect.acquireRelease(
        Effect.tryPromise({ try: () => openSource(copy.host, hostPath), catch: failed }),
        ({ folder }) => Effect.sync(() => native().close(folder))
      )
      const { as, folder } = yield* targetOf(far, path, source, failed)
      const archive = streamed(
        (signal) =>
          archiveFrom(
            source,
            { ids: idMaps.all, as, check: refuseDevice, maxHoleBytes: Number.MAX_SAFE_INTEGER },
            signal
          ),
        failed
      )
      yield* Stream.run(archive, far.tarIn(folder))
    })
  )
}

/** An opened folder of this machine that is removed when the scope closes. */
const temporaryFolder: Effect.Effect<number, unknown, Scope.Scope> = Effect.gen(function* () {
  const path = yield* Effect.acquireRelease(
    Effect.try(() => fs.mkdtempSync(`${os.tmpdir()}/berth-copy-`)),
    (made) => Effect.sync(() => fs.rmSync(made, { recursive: true, force: true }))
  )
  return yield* Effect.acquireRelease(
    Effect.try(() => inRoot.openHost(path, inRoot.O_FOLDER)),
    (fd) => Effect.sync(() => native().close(fd))
  )
})

/** The one entry of what was unpacked. */
const entryOf = async (folder: number, path: string, signal: AbortSignal): Promise<string> => {
  const [name, ...more] = await copy.namesIn(folder, path, signal)
  if (name === undefined)
    return inRoot.fail(EINVAL, "mknod", `${path} (a socket or a device, which is not copied)`)
  if (more.length === 0) return name
  const expected = `${name} and what is in it`
  throw new InvalidData({ format: "tar", value: JSON.stringify(more[0]), expected })
}

export const copyOut = (
  far: Far,
  path: string,
  hostPath: string,
  options: CopyOutOptions
): Effect.Effect<void, BerthError> => {
  const failed = failedAs(`copy ${path} -> ${hostPath}`)
  const keep = copy.keptOut(options)
  // The archive of `folder/.` would lack the folder's own metadata.
  const asked = path.replace(/\/\.$/, "/")
  const isNamed = inRoot.isName(inRoot.split(asked).name)
  return Effect.scoped(
    Effect.gen(function* () {
      const folder = yield* Effect.mapError(temporaryFolder, failed)
      const open = () => new Unpacking(native().duplicate(folder), "/", idMaps.all, keep)
      const archive = far.tarOut(asked, { maxHoleBytes: Number.MAX_SAFE_INTEGER })
      yield* Stream.run(archive, unpacked(open, failed))
      yield* Effect.mapError(
        inRoot.promised(async (signal) => {
          const to = (source: copy.Source) => copy.copyTo(source, copy.host, hostPath, { keep, signal })
          if (!isNamed) return to({ folder, name: undefined, path })
          const name = await entryOf(folder, path, signal)
          if (asked === path) return to({ folder, name, path })
          const at = inRoot.place(folder, name, path)
          return inRoot.using(inRoot.openPlace(at, inRoot.O_FOLDER | O_NOFOLLOW), (inner) =>
            to({ folder: inner, name: undefined, path })
          )
        }),
        failed
      )
    })
  )
}
