/** Copies a writable layer, by native/copy/copy.c. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError, ImageError } from "../../BerthError.ts"
import { storageDetail } from "../disk/files.ts"
import { errnoName } from "../util/errno.ts"
import { reportOf, type Source, sourceAt } from "./nativeProgram.ts"
import { decodePath } from "./sidecar.ts"

const ENTRIES_MAX = 10_000_000

export interface Copied extends Source {
  /** The container's id, for errors. */
  readonly container: string
  readonly maxBytes: number
}

const failed = (source: Copied, folder: string, words: ReadonlyArray<string>): BerthError => {
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
export const copyLayer = (berth: Berth, source: Copied): Effect.Effect<string, BerthError, Scope.Scope> =>
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
        ...sourceAt(`${work}/from`, source)
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
