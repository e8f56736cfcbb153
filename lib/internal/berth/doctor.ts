/**
 * Finds out which features work on this machine. Features of the kernel are tried, with small plans for a temporary
 * supervisor in a temporary folder. Files of /proc, /sys and /etc, and programs, are only read.
 */
import { mkdtempSync, rmSync } from "node:fs"
import * as os from "node:os"
import { dirname } from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import * as Doctor from "../../Doctor.ts"
import type { Kind } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import { nameOf, operations } from "../cgroup/cgroup.ts"
import * as systemd from "../cgroup/systemdScope.ts"
import type { Tree } from "../cgroup/tree.ts"
import { defaultFolder } from "../disk/defaultFolder.ts"
import * as Ids from "../ids/idMaps.ts"
import { flags, idMap } from "../ids/namespaceFlags.ts"
import type { Supervisor } from "../supervisor/connection.ts"
import { start } from "../supervisor/start.ts"
import { nativeFix, programPath } from "../system/nativePart.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as look from "./inspect.ts"
import { checkSystem, makeState, NATIVE_PART } from "./layer.ts"

/** Tries a plan and releases what it made: the error, or undefined if it works. */
type Try = (operations: ReadonlyArray<Plan.Operation>) => Effect.Effect<BerthError | undefined>

const trying =
  (supervisor: Supervisor): Try =>
  (operations) =>
    Effect.flatMap(
      Effect.either(supervisor.start(supervisor.nextId(), Plan.make(operations), {})),
      (result) =>
        result._tag === "Left" ? Effect.succeed(result.left) : Effect.as(result.right.release, undefined)
    )

// Asked when it is needed: Deno may refuse it, and the import of Berth needs no permission.
const ownIds = (): Ids.Ids =>
  look.isRootless() ? Ids.single(process.geteuid!(), process.getegid!()) : Ids.all

// A process that performs the operations in between, and then nothing: that it executes shows that they worked.
const inChild = (
  kinds: ReadonlyArray<Kind>,
  between: ReadonlyArray<Plan.Operation>
): ReadonlyArray<Plan.Operation> => [
  { op: "process", namespaces: kinds.reduce((all, kind) => all | flags[kind], 0) },
  ...(kinds.includes("user") ? [idMap(Ids.nested(ownIds()))] : []),
  { op: "session" },
  { op: "stdio", stdin: null, stdout: null, stderr: null },
  ...between,
  { op: "exec-self", arguments: ["berth-hold"], environment: [] }
]

const needed: ReadonlyArray<Kind> = ["mount", "pid", "uts", "ipc", "network", "cgroup"]
const all: ReadonlyArray<Kind> = [...needed, "user", "time"]

const namespaces = (run: Try): Effect.Effect<Doctor.Check> =>
  Effect.map(
    Effect.forEach(all, (kind) => Effect.map(run(inChild([kind], [])), (error) => ({ kind, error }))),
    (results) => {
      const there = results.filter(({ error }) => error === undefined).map(({ kind }) => kind)
      const failed = results.filter(({ error }) => error !== undefined)
      const lacking = failed.some(({ kind }) => needed.includes(kind))
      return {
        name: "namespaces",
        required: true,
        status: lacking ? "missing" : failed.length > 0 ? "limited" : "ok",
        detail: [there.join(", "), ...failed.map(({ error, kind }) => `no ${kind}: ${error!.message}`)].join(
          "; "
        ),
        fix:
          failed.length === 0
            ? undefined
            : (look.userNamespaceLimits() ??
              `Use a kernel with ${failed.map(({ kind }) => `CONFIG_${look.kernelName(kind)}=y`).join(", ")}, and with /proc/sys/user/max_*_namespaces above 0`)
      }
    }
  )

// The steps of a non-root user, which root tries as nobody. A security module such as Ubuntu's, which only removes the
// capabilities in the new namespace, makes the second step fail.
const unprivileged: ReadonlyArray<Plan.Operation> = [
  { op: "user", uid: 65534, gid: 65534, groups: [] },
  { op: "capabilities", effective: 0, permitted: 0, inheritable: 0, ambient: 0 },
  { op: "unshare", namespaces: flags.user },
  { op: "unshare", namespaces: flags.mount }
]

const userNamespaces = (run: Try): Effect.Effect<Doctor.Check> =>
  Effect.map(look.isRootless() ? Effect.succeed(undefined) : run(inChild([], unprivileged)), (error) => ({
    name: "user namespaces",
    required: look.isRootless(),
    status: error === undefined ? "ok" : "missing",
    detail: error === undefined ? look.userNamespaceDetail() : `refused to non-root users: ${error.message}`,
    fix: error === undefined ? undefined : (look.userNamespaceLimits() ?? look.noUserNamespaces())
  }))

const union = (folder: string, rootless: boolean): Plan.Operation => ({
  op: "overlay-memory",
  lower: [`${folder}/empty`],
  mode: 0o755,
  tmpfs: [],
  options: rootless ? ["volatile", "userxattr"] : ["volatile"],
  attributes: 0
})

const overlay = (run: Try, folder: string): Effect.Effect<ReadonlyArray<Doctor.Check>> => {
  const check =
    (name: "overlay" | "overlay in user namespaces", required: boolean) =>
    (error: BerthError | undefined): Doctor.Check => ({
      name,
      required,
      status: error === undefined ? "ok" : "missing",
      detail: error === undefined ? "mounted, with a writable layer in memory" : error.message,
      fix:
        error === undefined
          ? undefined
          : "modprobe overlay && echo overlay > /etc/modules-load.d/overlay.conf\nas a non-root user: use Linux 5.11 or later, or run as root"
    })
  // A supervisor without root is in a user namespace itself.
  const inside = run(
    look.isRootless() ? [union(folder, true)] : inChild(["user", "mount"], [union(folder, true)])
  )
  const nested = Effect.map(inside, check("overlay in user namespaces", look.isRootless()))
  return look.isRootless()
    ? Effect.map(nested, (one) => [one])
    : Effect.all([Effect.map(run([union(folder, false)]), check("overlay", true)), nested])
}

/** The mount of the layers of a container with `userns`. */
const idmapped = (run: Try, folder: string): Effect.Effect<Doctor.Check> => {
  const map = "0 100000 65536\n"
  const layers: ReadonlyArray<Plan.Operation> = [
    { op: "layer-map", uids: map, gids: map },
    union(folder, false)
  ]
  const fix =
    "Use Linux 5.19 or later, and a filesystem that can be idmapped (ext4, xfs, btrfs, tmpfs since 6.3) for Berth's folder"
  return look.isRootless()
    ? Effect.succeed({
        name: "idmapped mounts",
        required: false,
        status: "missing",
        detail: "only root can make them, and so only root can use userns",
        fix: "Run as root"
      })
    : Effect.map(
        run(layers),
        (error): Doctor.Check => ({
          name: "idmapped mounts",
          required: false,
          status: error === undefined ? "ok" : "missing",
          detail: error === undefined ? "layers with other ids were mounted" : error.message,
          fix: error === undefined ? undefined : fix
        })
      )
}

const seccomp = (run: Try): Effect.Effect<Doctor.Check> => {
  // struct sock_filter: BPF_RET | BPF_K, SECCOMP_RET_ALLOW.
  const program = new Uint8Array([0x06, 0, 0, 0, 0, 0, 0xff, 0x7f])
  return Effect.map(
    run(inChild([], [{ op: "no-new-privileges" }, { op: "seccomp", program, flags: 0, listener: null }])),
    (error): Doctor.Check => ({
      name: "seccomp",
      required: false,
      status: error === undefined ? "ok" : "missing",
      detail: error === undefined ? "a filter was set" : error.message,
      fix: error === undefined ? undefined : "Use a kernel with CONFIG_SECCOMP_FILTER=y"
    })
  )
}

const limits = ["memory", "cpu", "pids"]

const cgroups = (run: Try, folder: string, tree: Tree): Effect.Effect<Doctor.Check> => {
  const { controllers, kind, missing } = tree
  const lacking = limits.filter((controller) => controllers[controller] === undefined)
  const make = attempt(() => operations(tree, {}, nameOf(folder, 1)).create)
  return Effect.map(
    kind === "none" ? Effect.succeed(undefined) : Effect.merge(Effect.flatMap(make, run)),
    (error): Doctor.Check => {
      const works = kind !== "none" && error === undefined
      const where = [...new Set(Object.values(controllers).map((hierarchy) => hierarchy.folder))].join(", ")
      const why = lacking.length === 0 ? "" : `; no ${lacking.join(", ")}: ${missing(lacking[0]!)}`
      return {
        name: "cgroups",
        required: false,
        status: !works ? "missing" : lacking.length > 0 ? "limited" : "ok",
        detail: works
          ? `${kind}, below ${where}: ${Object.keys(controllers).join(", ")}${why}`
          : (error?.message ?? missing("memory")),
        fix: works && lacking.length === 0 ? undefined : look.cgroupFix(kind)
      }
    }
  )
}

const nearestFolder = (folder: string): string => {
  for (let at = dirname(folder); at !== "/"; at = dirname(at)) if (look.isWritable(at)) return at
  return os.tmpdir()
}

/** A temporary supervisor, in a folder beside the one that Berth would use. */
const supervisor: Effect.Effect<Supervisor, BerthError, Scope.Scope> = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(`${nearestFolder(defaultFolder(look.isRootless()))}/.berth-doctor-`)),
    (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
  )
  const { lock, state } = yield* makeState(folder)
  return yield* Effect.acquireRelease(
    start(state, lock, {
      mode: look.isRootless() ? "single-id" : "root",
      ids: ownIds(),
      guard: { missing: () => [], hold: () => Effect.void }
    }),
    (started) => started.stop
  )
})

const notStarted = (error: BerthError): Doctor.Check =>
  error._tag === "OperationFailed" && error.operation === "supervisor" && look.isRootless()
    ? {
        name: "user namespaces",
        required: true,
        status: "missing",
        detail: `the kernel refuses one to the supervisor: ${error.syscall}: ${error.code}`,
        fix: look.userNamespaceLimits() ?? look.noUserNamespaces()
      }
    : {
        name: "supervisor",
        required: true,
        status: "missing",
        detail: error.message,
        fix: error._tag === "SupervisorError" ? nativeFix() : undefined
      }

const tried: Effect.Effect<ReadonlyArray<Doctor.Check>> = Effect.gen(function* () {
  const started = yield* supervisor
  const tree = yield* systemd.delegate(started.pid)
  const run = trying(started)
  return [
    {
      name: "supervisor",
      required: true,
      status: "ok",
      detail: programPath("berth-supervisor"),
      fix: undefined
    } satisfies Doctor.Check,
    yield* namespaces(run),
    yield* userNamespaces(run),
    ...(yield* overlay(run, started.folder)),
    yield* idmapped(run, started.folder),
    yield* seccomp(run),
    yield* cgroups(run, started.folder, tree())
  ]
}).pipe(
  Effect.scoped,
  Effect.catchAll((error) => Effect.succeed([notStarted(error)]))
)

export const doctor: Effect.Effect<Doctor.Report> = Effect.flatMap(
  Effect.suspend(() => Effect.either(checkSystem)),
  (system) => {
    if (system._tag === "Left") {
      const { feature, hint, message } = system.left
      const check: Doctor.Check = {
        name: "system",
        required: true,
        status: "missing",
        detail: message,
        fix: hint
      }
      // Without the native part there is more to look at; a missing system, runtime or permission is all there is to say.
      const checks = feature === NATIVE_PART ? [look.kernel(), look.addon(), look.unpacker()] : [check]
      return Effect.succeed(Doctor.unsafeMake(look.isRootless(), checks))
    }
    return Effect.map(tried, (checks) =>
      Doctor.unsafeMake(look.isRootless(), [
        look.kernel(),
        look.addon(),
        ...checks,
        look.unpacker(),
        ...look.others()
      ])
    )
  }
).pipe(Effect.withSpan("berth.Berth.doctor"))
