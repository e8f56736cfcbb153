import { createHash } from "node:crypto"
import * as fs from "node:fs"
import { basename, dirname } from "node:path"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Scope from "effect/Scope"
import type { Berth, Options, TypeId } from "../../Berth.ts"
import { type BerthError, InvalidOption, OperationFailed, Unsupported } from "../../BerthError.ts"
import * as systemd from "../cgroup/systemdScope.ts"
import { lazily, type Tree } from "../cgroup/tree.ts"
import { folderOf } from "../disk/defaultFolder.ts"
import { tryLock } from "../disk/fileLock.ts"
import * as Ids from "../ids/idMaps.ts"
import { sweep as sweepLayers } from "../layer/sweep.ts"
import { makeResponder } from "../network/names.ts"
import { makeUplink } from "../network/pasta.ts"
import { makeSpares } from "../network/spareNamespace.ts"
import { sweep as sweepProfiles } from "../security/appArmorProfiles.ts"
import * as Seccomp from "../security/seccomp.ts"
import { Proto } from "../service.ts"
import * as Holds from "../store/leases.ts"
import type { Supervisor } from "../supervisor/connection.ts"
import { start } from "../supervisor/start.ts"
import { AT_FDCWD, native } from "../system/addon.ts"
import { whyNotAllowed } from "../system/denoPermissions.ts"
import { whyNotLoaded } from "../system/nativePart.ts"
import { EPERM } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { isInChroot, noUserNamespaces } from "./inspect.ts"
import * as Memory from "./memory.ts"
import { recordOwner, removeSwept, sweep } from "./sweep.ts"

/** The feature that is missing if the addon cannot be loaded. */
export const NATIVE_PART = "the native part"

/** The oldest Node, as `engines` in package.json says; npm only warns of an older one. */
const OLDEST_NODE = [20, 17] as const

const isOldNode = (): boolean => {
  if ("Deno" in globalThis || "Bun" in globalThis) return false
  const [major, minor] = process.versions.node.split(".").map(Number)
  return major! < OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor! < OLDEST_NODE[1])
}

/** Fails if no Berth can run on this system. */
export const checkSystem: Effect.Effect<void, Unsupported> = Effect.suspend(() => {
  if (process.platform !== "linux")
    return Effect.fail(
      new Unsupported({
        feature: "containers",
        why: `they need Linux namespaces, and this is ${process.platform}`,
        hint: "Run the program on Linux: in a virtual machine, or in WSL 2"
      })
    )
  if (isOldNode())
    return Effect.fail(
      new Unsupported({
        feature: `Node ${process.versions.node}`,
        why: `Berth needs Node ${OLDEST_NODE.join(".")} or later`,
        hint: "Run the program with a newer Node, with Deno or with Bun"
      })
    )
  const notAllowed = whyNotAllowed()
  if (notAllowed !== undefined)
    return Effect.fail(
      new Unsupported({
        feature: "containers",
        why: `Deno runs this program ${notAllowed}`,
        hint: "Run it with --allow-all and without --deny flags: Deno refuses the files of /proc to a program that lacks a permission, or a part of one"
      })
    )
  try {
    native()
    return Effect.void
  } catch (cause) {
    return Effect.fail(
      new Unsupported({
        feature: NATIVE_PART,
        ...whyNotLoaded(cause),
        cause
      })
    )
  }
})

/**
 * The folder of the unpacked layers. The owners of their files are ids of the host, so the folder records its ids, and a
 * user whose ranges have changed gets another folder.
 */
const layersFolder = (folder: string, rootless: boolean, { gids, uids }: Ids.Ids): string => {
  const layers = `${folder}/layers`
  if (!rootless) return layers
  const text = `${Ids.print(uids)}\n${Ids.print(gids)}`
  fs.mkdirSync(layers, { recursive: true, mode: 0o700 })
  try {
    fs.writeFileSync(`${layers}/ids`, text, { flag: "wx" })
  } catch (cause) {
    if ((cause as { code?: unknown }).code !== "EEXIST") throw cause
  }
  return fs.readFileSync(`${layers}/ids`, "utf8") === text
    ? layers
    : `${layers}-${createHash("sha256").update(text).digest("hex").slice(0, 12)}`
}

const idsOf = (wanted: Options["ids"] = "auto"): Effect.Effect<Ids.Ids, BerthError> =>
  Effect.suspend((): Effect.Effect<Ids.Ids, BerthError> => {
    if (!["auto", "ranges", "single"].includes(wanted)) {
      const expected = '"auto", "ranges" or "single"'
      return Effect.fail(new InvalidOption({ option: "ids", value: JSON.stringify(wanted), expected }))
    }
    if (process.geteuid!() === 0) return Effect.succeed(Ids.all)
    const single = Ids.single(process.geteuid!(), process.getegid!())
    const ranges = wanted === "single" ? single : Ids.ranges()
    if (typeof ranges !== "string") return Effect.succeed(ranges)
    return wanted === "auto"
      ? Effect.succeed(single)
      : Effect.fail(new Unsupported({ feature: "ranges of ids", why: ranges, hint: Ids.rangesHint }))
  })

const storage = (operation: string, cause: unknown): BerthError => {
  const { errno, syscall } = cause as { errno?: number; syscall?: string }
  return new OperationFailed({
    operation,
    index: -1,
    syscall: syscall ?? "unknown",
    errno: Math.abs(errno ?? 0),
    hint: "Berth keeps its state there: choose another folder with Berth.layerWith({ folder }), or without root with XDG_DATA_HOME",
    cause
  })
}

/** Makes a folder and those above it. Node's error for a read-only file system is ENOENT, so the first missing folder is tried alone. */
const makeFolders = (path: string): void => {
  try {
    fs.mkdirSync(path, { recursive: true, mode: 0o700 })
  } catch (cause) {
    let missing = path
    while (!fs.existsSync(dirname(missing))) missing = dirname(missing)
    fs.mkdirSync(missing, { mode: 0o700 })
    throw cause
  }
}

/**
 * Makes the folder of one supervisor, with a lock that the supervisor takes over and holds while it lives. The folder gets
 * its name only when it is locked, so that no sweep takes it for the folder of a dead supervisor.
 */
export const makeState = (
  folder: string
): Effect.Effect<{ readonly state: string; readonly lock: number }, BerthError> =>
  Effect.try({
    try: () => {
      makeFolders(`${folder}/run`)
      const made = fs.mkdtempSync(`${folder}/run/.${process.pid}-`)
      // The addon opens it, because the addon closes it: a runtime may keep a table of the descriptors that it opened.
      const lock = native().openIn(
        AT_FDCWD,
        `${made}/lock`,
        fs.constants.O_RDWR | fs.constants.O_CREAT,
        0,
        0o600
      )
      if (lock < 0) {
        fs.rmdirSync(made)
        throw Object.assign(new Error("lock"), { syscall: "openat2", errno: lock })
      }
      tryLock(lock, "exclusive")
      fs.mkdirSync(`${made}/empty`)
      fs.mkdirSync(`${made}/dev`)
      const state = `${folder}/run/${basename(made).slice(1)}`
      fs.renameSync(made, state)
      return { state, lock }
    },
    catch: (cause) => storage(`state folder ${folder}/run`, cause)
  })

/** The uid of the owner; undefined if the path cannot be examined: the step that makes it reports why. */
const ownerOf = (path: string): number | undefined => {
  try {
    return fs.statSync(path).uid
  } catch {
    return undefined
  }
}

/** Berth trusts the layers and programs in its folder, so no other user may own it. */
const checkOwner = (folder: string): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const uid = process.geteuid!()
    for (const path of [folder, `${folder}/run`, `${folder}/store`, `${folder}/layers`]) {
      const owner = ownerOf(path)
      if (owner === undefined || owner === uid) continue
      return Effect.fail(
        new OperationFailed({
          operation: `state folder ${path}`,
          index: -1,
          syscall: "stat",
          errno: EPERM,
          hint: `The folder belongs to uid ${owner} and this process runs as uid ${uid}: choose another folder with Berth.layerWith({ folder })`
        })
      )
    }
    return Effect.void
  })

const explain = (error: BerthError): BerthError =>
  error._tag === "OperationFailed" && error.operation === "supervisor" && error.syscall === "unshare"
    ? new Unsupported({
        feature: "user namespaces",
        why: `the kernel refuses them to this non-root user: ${error.code}`,
        hint: isInChroot()
          ? noUserNamespaces()
          : "Allow them (sysctl kernel.unprivileged_userns_clone=1; user.max_user_namespaces above 0; kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu), or run as root; Berth.doctor says which it is",
        cause: error
      })
    : error

interface Supervised {
  readonly supervisor: Supervisor
  readonly holds: Holds.Holds
  readonly layers: string
}

/**
 * Starts a supervisor. The remains of earlier supervisors in these cgroups are swept before the start; `again` sweeps
 * the remains of this one.
 */
const supervised = (
  options: Options,
  folder: string,
  rootless: boolean,
  ids: Ids.Ids,
  filters: Seccomp.Filters,
  tree: () => Tree,
  again: Effect.Effect<unknown, BerthError, Scope.Scope>
): Effect.Effect<Supervised, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { state, lock } = yield* makeState(folder)
    // If that fails now (this program may open no more files), a later sweep removes it.
    const removeState = Effect.ignore(Effect.try(() => fs.rmSync(state, { recursive: true, force: true })))
    const layers = yield* sweep(folder, state, tree).pipe(
      Effect.zipRight(sweepProfiles(folder)),
      Effect.zipRight(
        Effect.try({
          try: () => layersFolder(folder, rootless, ids),
          catch: (cause) => storage(`layers folder ${folder}/layers`, cause)
        })
      ),
      Effect.onError(() =>
        Effect.zipRight(
          removeState,
          Effect.sync(() => native().close(lock))
        )
      )
    )
    const holds = Holds.make(folder, layers, state)
    const mode = !rootless ? "root" : ids.uids.length > 1 ? "ranges" : "single-id"
    const guard = Holds.guard(holds)
    const starting = start(state, lock, { mode, ids, guard, limits: options.timeLimits }).pipe(
      Effect.mapError(explain),
      Effect.tap(({ pid }) => attempt(() => recordOwner(state, pid)))
    )
    const warming = Effect.sync(() => Seccomp.warm(folder, filters))
    const supervisor = yield* Effect.acquireRelease(
      // The filters are made while the supervisor sets itself up.
      Effect.zipLeft(starting, warming, { concurrent: true }).pipe(Effect.tapError(() => removeState)),
      // A supervisor that was killed, or could not remove something, leaves its folder: another one removes that at once.
      (started) =>
        Effect.zipRight(
          started.stop,
          Effect.when(Effect.ignore(Effect.scoped(again)), () => fs.existsSync(state))
        )
    )
    yield* removeSwept(supervisor)
    return { supervisor, holds, layers }
  })

/** `before` is the tree of an earlier Berth, which may have left cgroups in it. */
export const make = (
  options: Options,
  before: () => Tree = lazily()
): Effect.Effect<Berth, BerthError, FileSystem.FileSystem | Scope.Scope> =>
  Effect.gen(function* () {
    yield* checkSystem
    const rootless = process.geteuid!() !== 0
    const folder = folderOf(options)
    yield* checkOwner(folder)
    const ids = yield* idsOf(options.ids)
    const fileSystem = yield* FileSystem.FileSystem
    let tree = before
    // Not with the whole context: its scope is closed when this runs.
    const again = Effect.provideService(
      Effect.suspend(() => make(options, tree)),
      FileSystem.FileSystem,
      fileSystem
    )
    const filters: Seccomp.Filters = new Map()
    const { supervisor, holds, layers } = yield* supervised(
      options,
      folder,
      rootless,
      ids,
      filters,
      before,
      again
    )
    tree = yield* systemd.delegate(supervisor.pid)
    const fields: Omit<Berth, TypeId | keyof Inspectable.Inspectable> = {
      folder,
      rootless,
      ids,
      idOwner: options.idOwner ?? "containers",
      fileSystem,
      supervisor,
      holds,
      layers,
      memory: Memory.make(tree, filters),
      turns: new Map(),
      responder: yield* makeResponder({ supervisor }),
      uplink: yield* makeUplink({ supervisor, rootless }),
      usualNamespace: yield* makeSpares({ supervisor })
    }
    const berth: Berth = Object.assign(Object.create(Proto), fields)
    // Layers that a dead supervisor has not unpacked to the end.
    yield* sweepLayers(berth)
    return berth
  }).pipe(Effect.withSpan("berth.Berth.layer"))
