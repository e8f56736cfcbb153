/** Makes the blob of an image layer of a writable layer, by native/pack. */
import { closeSync, openSync } from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, ImageError, OperationFailed } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import { storageDetail } from "../disk/files.ts"
import { tooManyHoles } from "../tar/members.ts"
import { errnoName } from "../util/errno.ts"
import { reportOf, type Source, sourceAt } from "./nativeProgram.ts"
import { decodePath } from "./sidecar.ts"
import { DEFAULT_LAYER_BYTES_MAX } from "./unpack.ts"

export type Compression = "gzip" | "zstd" | "none"

export interface Options {
  readonly compression: Compression
  /** The limit of bytes in holes, which are zeros in the tar. */
  readonly maxHoleBytes: number
  /** Later times of files become this one, in seconds since 1970. */
  readonly latest: number | undefined
}

export interface Packed {
  readonly digest: Digest
  /** The blob's bytes. */
  readonly size: number
  /** The digest of the uncompressed tar. */
  readonly diffId: Digest
}

const failed = (
  subject: string,
  folder: string,
  { maxHoleBytes }: Options,
  [kind, number, syscall = "", encoded = "", said = ""]: ReadonlyArray<string>
): BerthError => {
  const errno = Number(number)
  const path = encoded === "-" ? "" : decodePath(encoded)
  const message = decodePath(said)
  switch (kind) {
    case "unsupported":
      return new ImageError({ reason: "Unsupported", subject: path, detail: message })
    case "holes":
      return tooManyHoles(path, maxHoleBytes)
    case "io":
      return new OperationFailed({
        operation: `archive ${path === "" ? subject : path}`,
        index: -1,
        syscall,
        errno,
        hint: ""
      })
    default: {
      const code = errno > 0 ? errnoName(errno) : ""
      const detail = storageDetail(code, [syscall, message].filter((part) => part !== "-").join(": "), folder)
      return new ImageError({ reason: kind === "limit" ? "TooLarge" : "Storage", subject, detail })
    }
  }
}

/** Writes the blob to an opened file, which the caller keeps. */
export const pack = (
  berth: Berth,
  subject: string,
  source: Source,
  options: Options,
  blob: number
): Effect.Effect<Packed, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { folder, nextId } = berth.supervisor
    const work = `${folder}/pack-${nextId()}`
    const { compression, latest, maxHoleBytes } = options
    const text = yield* reportOf(berth, {
      name: "berth-pack",
      work: `making a layer of ${subject}`,
      before: [
        ...[work, `${work}/from`].map((path) => ({ op: "scratch", path, mode: 0o700 }) as const),
        ...sourceAt(`${work}/from`, source)
      ],
      arguments: [
        `--compression=${compression}`,
        `--max-bytes=${DEFAULT_LAYER_BYTES_MAX}`,
        `--max-hole-bytes=${maxHoleBytes}`,
        ...(latest === undefined ? [] : [`--max-time=${latest}`]),
        work
      ],
      input: blob
    })
    const [word, ...rest] = text.split("\n", 1)[0]!.split(" ")
    if (word === "error") return yield* failed(subject, folder, options, rest)
    const [digest, size, diffId] = rest
    if (word === "ok") return { digest: digest as Digest, size: Number(size), diffId: diffId as Digest }
    return yield* new ImageError({
      reason: "Storage",
      subject,
      detail: `berth-pack ended without a report: ${JSON.stringify(text.slice(-200))}`
    })
  })

/** A digest of all files of a layer without their times: equal for layers that differ in nothing else. */
export const contentOf = (berth: Berth, layer: string): Effect.Effect<Digest, BerthError> =>
  Effect.gen(function* () {
    const nowhere = yield* Effect.acquireRelease(
      Effect.sync(() => openSync("/dev/null", "w")),
      (fd) => Effect.sync(() => closeSync(fd))
    )
    const options = { compression: "none", maxHoleBytes: DEFAULT_LAYER_BYTES_MAX, latest: 0 } as const
    const packed = yield* pack(berth, `layer ${layer}`, { upper: layer, ids: undefined }, options, nowhere)
    return packed.diffId
  }).pipe(Effect.scoped)
