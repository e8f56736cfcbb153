/** Runs native/unpack/unpack.c on a blob. */
import { constants } from "node:fs"
import * as Effect from "effect/Effect"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import { Berth } from "../service.ts"
import { AT_FDCWD, native } from "../system/addon.ts"
import { reportOf } from "./nativeProgram.ts"

export interface Options {
  /** The blob's path on the host. */
  readonly blob: string
  /** An empty folder, the root of the unpacker. */
  readonly directory: string
  readonly compression: "gzip" | "zstd" | "xz" | "bzip2" | "none"
  /** Whether it is an archive, and not a layer: then names of whiteouts are refused. */
  readonly isPlain?: boolean
  /** Limits of the output: the unpacker stops above them. */
  readonly maxBytes: number
  readonly maxEntries: number
  readonly maxCpuSeconds: number
}

const openBlob = (path: string): Effect.Effect<number, OperationFailed> =>
  Effect.suspend(() => {
    const fd = native().openIn(AT_FDCWD, path, constants.O_RDONLY, 0, 0)
    return fd >= 0
      ? Effect.succeed(fd)
      : Effect.fail(
          new OperationFailed({
            operation: `unpack ${path}`,
            index: -1,
            syscall: "openat2",
            errno: -fd,
            hint: ""
          })
        )
  })

const descriptor = (fd: number) =>
  Effect.acquireRelease(Effect.succeed(fd), (owned) => Effect.sync(() => native().close(owned)))

/** Unpacks and returns the unpacker's report, lines of `key value`; native/unpack/unpack.h describes them. */
export const unpack = (options: Options): Effect.Effect<string, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const blob = yield* Effect.flatMap(openBlob(options.blob), descriptor)
    return yield* reportOf(berth, {
      name: "berth-unpack",
      work: `unpack ${options.blob}`,
      before: [],
      arguments: [
        `--compression=${options.compression}`,
        `--max-bytes=${options.maxBytes}`,
        `--max-entries=${options.maxEntries}`,
        `--max-cpu=${options.maxCpuSeconds}`,
        // If only root's id is available, all files belong to root.
        ...(options.isPlain === true ? ["--plain"] : []),
        ...(berth.rootless && berth.ids.uids.length === 1 ? ["--ignore-chown"] : []),
        options.directory
      ],
      input: blob
    })
  }).pipe(Effect.scoped)
