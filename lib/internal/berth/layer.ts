import { createHash } from "node:crypto"
import * as fs from "node:fs"
import { basename, resolve } from "node:path"
import * as FileSystem from "@effect/platform/FileSystem"
import * as HttpClient from "@effect/platform/HttpClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth, Options } from "../../Berth.ts"
import { type BerthError, InvalidOption, OperationFailed, Unsupported } from "../../BerthError.ts"
import * as systemd from "../cgroup/systemdScope.ts"
import { defaultFolder } from "../disk/defaultFolder.ts"
import * as Ids from "../ids/idMaps.ts"
import { sweep as sweepLayers } from "../layer/unpack.ts"
import { sweep as sweepProfiles } from "../security/appArmorProfiles.ts"
import * as Seccomp from "../security/seccomp.ts"
import { TypeId } from "../service.ts"
import * as Holds from "../store/leases.ts"
import * as Supervisor from "../supervisor/connection.ts"
import { AT_FDCWD, LOCK_EX, LOCK_NB, native, nativeFix, programPath } from "../system/addon.ts"
import { EPERM } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { isInChroot, noUserNamespaces } from "./inspect.ts"
import { recordOwner, removeSwept, sweep } from "./sweep.ts"

/** Whether there can be a Berth here at all. */
export const checkSystem: Effect.Effect<void, Unsupported> = Effect.suspend(() => {
  if (process.platform !== "linux") {
    return Effect.fail(
      new Unsupported({
        feature: "containers",
        why: `they are made of Linux namespaces and this is ${process.platform}`,
        hint: "Run the program on Linux: in a virtual machine, or in WSL 2"
      })
    )
  }
  try {
    native()
    return Effect.void
  } catch (cause) {
    return Effect.fail(
      new Unsupported({
        feature: "the native part",
        why: fs.existsSync(programPath("berth.node"))
          ? String(cause)
          : `${programPath("berth.node")} is missing`,
        hint: nativeFix()
      })
    )
  }
})

/**
 * Where unpacked layers are, whose owners are ids of the host's: the folder says for which ids it is, and those of a user
 * whose ranges have changed are others.
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
    hint: "Berth keeps its state there: choose another place with Berth.layerWith({ folder })"
  })
}

/**
 * The folder of one supervisor, and its lock, which the supervisor takes over and holds for as long as it lives. It gets
 * its name only when it is locked, so that no sweep can take it for a dead one's.
 */
export const makeState = (
  folder: string
): Effect.Effect<{ readonly state: string; readonly lock: number }, BerthError> =>
  Effect.try({
    try: () => {
      fs.mkdirSync(`${folder}/run`, { recursive: true, mode: 0o700 })
      const made = fs.mkdtempSync(`${folder}/run/.${process.pid}-`)
      // Opened by the addon, as it is closed by it: a runtime may keep a table of the descriptors that it has opened.
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
      native().flock(lock, LOCK_EX | LOCK_NB)
      fs.mkdirSync(`${made}/empty`)
      fs.mkdirSync(`${made}/dev`)
      const state = `${folder}/run/${basename(made).slice(1)}`
      fs.renameSync(made, state)
      return { state, lock }
    },
    catch: (cause) => storage(`state folder ${folder}/run`, cause)
  })

/** Undefined where it cannot be looked at, which is told by what makes it. */
const ownerOf = (path: string): number | undefined => {
  try {
    return fs.statSync(path).uid
  } catch {
    return undefined
  }
}

/** Layers and programs of a folder are somebody's word, and root's only where root alone can write there. */
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
          hint: `It belongs to uid ${owner}, and this is uid ${uid}: choose another place with Berth.layerWith({ folder })`
        })
      )
    }
    return Effect.void
  })

const explain = (error: BerthError): BerthError =>
  error._tag === "OperationFailed" && error.operation === "supervisor" && error.syscall === "unshare"
    ? new Unsupported({
        feature: "user namespaces",
        why: `you are not root, and the kernel refuses them: ${error.code}`,
        hint: isInChroot()
          ? noUserNamespaces()
          : "Allow them (sysctl kernel.unprivileged_userns_clone=1; user.max_user_namespaces above 0; kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu), or run as root; Berth.doctor says which it is"
      })
    : error

interface Supervised {
  readonly supervisor: Supervisor.Supervisor
  readonly holds: Holds.Holds
  readonly layers: string
}

/** A supervisor of its own, with what earlier ones have left swept before, and what itself has left after. */
const supervised = (
  folder: string,
  rootless: boolean,
  ids: Ids.Ids,
  again: Effect.Effect<unknown, BerthError, Scope.Scope>
): Effect.Effect<Supervised, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { state, lock } = yield* makeState(folder)
    // Where that cannot be done now (this program may open no more files), a sweep does it.
    const removeState = Effect.ignore(Effect.try(() => fs.rmSync(state, { recursive: true, force: true })))
    const layers = yield* sweep(folder, state).pipe(
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
    const map = (pid: number) => Ids.writeMaps(pid, ids)
    const starting = Supervisor.start(state, lock, mode, map, Holds.guard(holds)).pipe(
      Effect.mapError(explain),
      Effect.tap(({ pid }) => attempt(() => recordOwner(state, pid)))
    )
    const warming = Effect.sync(() => Seccomp.warm(folder))
    const supervisor = yield* Effect.acquireRelease(
      // While the supervisor sets itself up, there is time.
      Effect.zipLeft(starting, warming, { concurrent: true }).pipe(Effect.tapError(() => removeState)),
      // One that was killed, or could not remove something, leaves its folder: another one takes that at once.
      (started) =>
        Effect.zipRight(
          started.stop,
          Effect.when(Effect.ignore(Effect.scoped(again)), () => fs.existsSync(state))
        )
    )
    yield* removeSwept(supervisor)
    return { supervisor, holds, layers }
  })

export const make = (
  options: Options
): Effect.Effect<Berth, BerthError, FileSystem.FileSystem | HttpClient.HttpClient | Scope.Scope> =>
  Effect.gen(function* () {
    yield* checkSystem
    const rootless = process.geteuid!() !== 0
    const folder = resolve(options.folder ?? defaultFolder(rootless))
    yield* checkOwner(folder)
    const ids = yield* idsOf(options.ids)
    const fileSystem = yield* FileSystem.FileSystem
    const httpClient = yield* HttpClient.HttpClient
    // Not all of the context: the scope in it is closed by the time that this is run.
    const services = Context.make(FileSystem.FileSystem, fileSystem).pipe(
      Context.add(HttpClient.HttpClient, httpClient)
    )
    const again = Effect.provide(
      Effect.suspend(() => make(options)),
      services
    )
    const { supervisor, holds, layers } = yield* supervised(folder, rootless, ids, again)
    yield* systemd.delegate(supervisor.pid)
    const berth: Berth = {
      [TypeId]: TypeId,
      folder,
      rootless,
      ids,
      idOwner: options.idOwner ?? "containers",
      fileSystem,
      httpClient,
      supervisor,
      holds,
      layers
    }
    // Layers that a dead supervisor was about to unpack.
    yield* sweepLayers(berth)
    return berth
  })
