/** Runs native/unpack/unpack.c on a blob, as a unit of the supervisor, in its own namespaces. */
import { constants } from "node:fs"
import * as Effect from "effect/Effect"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { Berth } from "../service.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { AT_FDCWD, native } from "../system/addon.ts"
import { programPath } from "../system/nativePart.ts"
import { makePipe, Output } from "../system/pipe.ts"
import { Captured } from "../util/captured.ts"
import { REPORT_BYTES_MAX } from "./sidecar.ts"

export interface Options {
  /** The blob's path on the host. */
  readonly blob: string
  /** An empty folder, the root of the unpacker. */
  readonly directory: string
  readonly compression: "gzip" | "zstd" | "none"
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
    const [ours, theirs] = yield* Effect.try({
      try: () => makePipe(0),
      catch: (error) => error as BerthError
    })
    const output = new Output(ours, "unpack")
    yield* Effect.addFinalizer(() => Effect.sync(() => output.close()))
    const plan = Plan.make([
      { op: "process", namespaces: flagsOf(["mount", "pid", "uts", "ipc", "network"]) },
      { op: "session" },
      // The dynamic loader says on standard error why it cannot start the program.
      { op: "stdio", stdin: "blob", stdout: "report", stderr: "report" },
      {
        op: "exec",
        program: null,
        paths: [programPath("berth-unpack")],
        arguments: [
          "berth-unpack",
          `--compression=${options.compression}`,
          `--xattr=${berth.rootless ? "user" : "trusted"}`,
          `--max-bytes=${options.maxBytes}`,
          `--max-entries=${options.maxEntries}`,
          `--max-cpu=${options.maxCpuSeconds}`,
          // If only root's id is available, all files belong to root.
          ...(berth.rootless && berth.ids.uids.length === 1 ? ["--ignore-chown"] : []),
          options.directory
        ],
        environment: []
      }
    ])
    yield* Effect.ensuring(
      scopedUnit(berth, berth.supervisor.nextId(), `unpacking ${options.blob}`, plan, {
        blob,
        report: theirs
      }),
      Effect.sync(() => native().close(theirs))
    )
    const report = new Captured(REPORT_BYTES_MAX)
    yield* output.collect(
      report,
      () =>
        new OperationFailed({
          operation: `unpack ${options.blob}`,
          index: -1,
          syscall: "read",
          errno: 27,
          hint: ""
        })
    )
    return report.soFar()
  }).pipe(Effect.scoped)
