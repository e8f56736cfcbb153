/** Runs a program of the native part that reads or writes a layer, as a unit of the supervisor in its own namespaces, and reads its report. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, OperationFailed } from "../../BerthError.ts"
import type { IdRange } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import * as Ids from "../ids/idMaps.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { native } from "../system/addon.ts"
import { programPath } from "../system/nativePart.ts"
import { makePipe, Output } from "../system/pipe.ts"
import { Captured } from "../util/captured.ts"
import { EFBIG } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import {
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY
} from "../util/mountAttributes.ts"
import { REPORT_BYTES_MAX } from "./sidecar.ts"

/** A writable layer. */
export interface Source {
  /** Its folder in the supervisor's mount namespace. */
  readonly upper: string
  /** The ids of the container's user namespace, with which its files are on disk; undefined if they are Berth's own. */
  readonly ids: Ids.Ids | undefined
}

const inverse = (ranges: ReadonlyArray<IdRange>): ReadonlyArray<IdRange> =>
  ranges.map(({ container, host, size }) => ({ container: host, host: container, size }))

/** The source as a mount of its own, which shows the files of a container with userns with the ids that they have inside. */
export const sourceAt = (at: string, { ids, upper }: Source): ReadonlyArray<Plan.Operation> => [
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

export interface Program {
  readonly name: "berth-unpack" | "berth-copy" | "berth-pack"
  /** The work in messages: `unpack PATH`. */
  readonly work: string
  /** Operations before the process, whose results live as long as the scope. */
  readonly before: ReadonlyArray<Plan.Operation>
  readonly arguments: ReadonlyArray<string>
  /** The descriptor that it reads or writes, which the caller keeps; none for nothing. */
  readonly input: number | undefined
}

/** Succeeds with the report at the program's end. The program is killed when the scope closes. */
export const reportOf = (berth: Berth, program: Program): Effect.Effect<string, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { before, input, name, work } = program
    const [ours, theirs] = yield* attempt(() => makePipe(0))
    const output = new Output(ours, name)
    yield* Effect.addFinalizer(() => Effect.sync(() => output.close()))
    const plan = Plan.make([
      ...before,
      { op: "process", namespaces: flagsOf(["mount", "pid", "uts", "ipc", "network"]) },
      { op: "session" },
      // The dynamic loader says on standard error why it cannot start the program.
      { op: "stdio", stdin: input === undefined ? null : "input", stdout: "report", stderr: "report" },
      {
        op: "exec",
        program: null,
        paths: [programPath(name)],
        arguments: [name, `--xattr=${berth.rootless ? "user" : "trusted"}`, ...program.arguments],
        environment: []
      }
    ])
    yield* Effect.ensuring(
      scopedUnit(berth, berth.supervisor.nextId(), work, plan, {
        ...(input === undefined ? {} : { input }),
        report: theirs
      }),
      Effect.sync(() => native().close(theirs))
    )
    const report = new Captured(REPORT_BYTES_MAX)
    const tooLong = () =>
      new OperationFailed({ operation: work, index: -1, syscall: "read", errno: EFBIG, hint: "" })
    yield* output.collect(report, tooLong)
    return report.soFar()
  })
