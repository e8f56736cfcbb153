/** Copies a writable layer, by native/copy/copy.c. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError, ImageError } from "../../BerthError.ts"
import type { IdRange } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { storageDetail } from "../disk/files.ts"
import * as Ids from "../ids/idMaps.ts"
import { errnoName } from "../util/errno.ts"
import {
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY
} from "../util/mountAttributes.ts"
import { reportOf } from "./nativeProgram.ts"
import { decodePath } from "./sidecar.ts"

const ENTRIES_MAX = 10_000_000

export interface Source {
  /** The container's id, for errors. */
  readonly container: string
  /** The folder of the writable layer, in the supervisor's mount namespace. */
  readonly upper: string
  /** The ids of the container's user namespace, with which its files are on disk; undefined if they are Berth's own. */
  readonly ids: Ids.Ids | undefined
  readonly maxBytes: number
}

const inverse = (ranges: ReadonlyArray<IdRange>): ReadonlyArray<IdRange> =>
  ranges.map(({ container, host, size }) => ({ container: host, host: container, size }))

/** The source as a mount of its own, which shows the files of a container with userns with the ids that they have inside. */
const mountAt = (at: string, { ids, upper }: Source): ReadonlyArray<Plan.Operation> => [
  ...(ids === undefined
    ? []
    : [{ op: "layer-map", uids: Ids.print(inverse(ids.uids)), gids: Ids.print(inverse(ids.gids)) } as const]),
  {
    op: "tree",
    path: upper,
    mapped: ids === undefined ? 0 : 1,
    attributes: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
  },
  { op: "attach", path: at, discard: 0 }
]

const failed = (source: Source, folder: string, words: ReadonlyArray<string>): BerthError => {
  const [kind, number, syscall = "", path = "", message = ""] = words
  const errno = Number(number)
  const code = errno > 0 ? errnoName(errno) : ""
  const said = decodePath(message)
  const detail = [decodePath(path), syscall, said].filter((part) => part !== "" && part !== "-").join(": ")
  if (kind === "changed")
    return new ContainerError({
      reason: "Running",
      container: source.container,
      detail: `${detail}, to which it has given access to its files: end that process, or the container, first`
    })
  return new ImageError({
    reason: kind === "limit" ? "TooLarge" : "Storage",
    subject: `the writable layer of container ${source.container}`,
    detail: storageDetail(code, detail, folder)
  })
}

/** Copies the layer to `upper` in a new folder, which it succeeds with. The folder is removed when the scope closes, unless it was renamed. */
export const copyLayer = (berth: Berth, source: Source): Effect.Effect<string, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { folder, nextId } = berth.supervisor
    // In the state folder until it has a name: a sweep removes the files of a killed supervisor.
    const work = `${folder}/copy-${nextId()}`
    const kept = `${work}/kept`
    const text = yield* reportOf(berth, {
      name: "berth-copy",
      work: `copying the files of container ${source.container}`,
      before: [
        ...[work, kept, `${work}/from`].map((path) => ({ op: "scratch", path, mode: 0o700 }) as const),
        ...mountAt(`${work}/from`, source)
      ],
      arguments: [`--max-bytes=${source.maxBytes}`, `--max-entries=${ENTRIES_MAX}`, work],
      input: undefined
    })
    const [word, ...rest] = text.trimEnd().split(" ")
    if (word === "ok") return kept
    if (word === "error") return yield* failed(source, folder, rest)
    return yield* new ImageError({
      reason: "Storage",
      subject: `the writable layer of container ${source.container}`,
      detail: `berth-copy ended without a report: ${JSON.stringify(text.slice(-200))}`
    })
  })
