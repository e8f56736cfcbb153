/** Cgroups as the supervisor's units: their folders, operations that make and limit them, and errors. */
import * as fs from "node:fs"
import { basename, dirname } from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Inspectable from "effect/Inspectable"
import { pipeArguments } from "effect/Pipeable"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, CgroupError, type OperationFailed, type SupervisorError } from "../../BerthError.ts"
import type { Cgroup, Folder, Limits, TypeId as PublicTypeId } from "../../Cgroup.ts"
import * as Plan from "../../Plan.ts"
import { errnoOf } from "../files/rooted.ts"
import type { Ended } from "../supervisor/protocol.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { EACCES, EBUSY, ENODEV, ENOENT, EPERM, EROFS, ESRCH } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { read } from "../util/readFile.ts"
import { parseLimits, type Setting, type Write } from "./limits.ts"
import type { Tree } from "./tree.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Cgroup") as PublicTypeId

/** The internal state of a cgroup. */
export interface State {
  /** Undefined until the cgroup is made. */
  owner: Owner | undefined
  /** Whether this program has frozen it, or is about to. */
  frozen: boolean
  /** The number of processes that are entering it. */
  entering: number
  /** The number of reported kills by the OOM killer, each for one process. */
  oomKills: number
  /** The names of the files of each folder that has been listed. */
  readonly files: Map<Folder, ReadonlySet<string>>
  /** Held by the fiber that freezes it; a fiber that thaws it does not wait for it. */
  freezing: Effect.Semaphore | undefined
  /** Held by the fiber that adds folders: two fibers that need the same folder make it once. */
  extending: Effect.Semaphore | undefined
}

/** A semaphore that an object keeps under this name from its first use: a start makes none. */
export const inTurn = <Name extends string>(
  of: { [name in Name]: Effect.Semaphore | undefined },
  name: Name
): Effect.Semaphore => {
  const turn = of[name] ?? Effect.unsafeMakeSemaphore(1)
  of[name] = turn
  return turn
}

const Proto = {
  [TypeId]: TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Cgroup) {
    return { _id: "berth/Cgroup", name: this.name, folders: this.folders.map(({ path }) => path) }
  },
  toString(this: Cgroup) {
    return `Cgroup(${this.name} in ${dirname(this.folders[0]?.path ?? "")})`
  },
  [Inspectable.NodeInspectSymbol](this: Cgroup) {
    return this.toString()
  },
  pipe() {
    // biome-ignore lint/complexity/noArguments: this is how Effect's handles pipe
    return pipeArguments(this, arguments)
  }
}

export const unsafeMake = (name: string, folders: ReadonlyArray<Folder>): Cgroup => {
  const state: State = {
    owner: undefined,
    frozen: false,
    entering: 0,
    oomKills: 0,
    files: new Map(),
    freezing: undefined,
    extending: undefined
  }
  return Object.assign(Object.create(Proto), { name, folders, state })
}

/** The name of a unit's cgroup, which contains the name of the supervisor's folder for a later sweep. */
export const nameOf = (folder: string, id: number): string =>
  `berth.${folder.slice(folder.lastIndexOf("/") + 1)}.${id}`

/** Throws if the tree lacks a controller. */
const hierarchyOf = (from: Tree, controller: string, option: string) => {
  const hierarchy = from.controllers[controller]
  if (hierarchy !== undefined) return hierarchy
  const { reason, path, detail } = from.why(controller)
  throw new CgroupError({ reason, controller, path, errno: 0, detail: `${option}: ${detail}` })
}

// Without a counting controller, processes are placed in the freezer's hierarchy.
const countingIn = (from: Tree): ReadonlyArray<string> => {
  const counting = ["memory", "cpu", "cpuacct", "pids"].filter((name) => from.controllers[name] !== undefined)
  return counting.length === 0 ? ["freezer"] : counting
}

/**
 * The folders of a cgroup, one in each hierarchy of these controllers. `above` has the folders of the cgroup that it is made
 * in, for the hierarchies that this one uses.
 */
export const folders = (
  from: Tree,
  name: string,
  controllers: Iterable<string>,
  above: ReadonlyArray<Folder> = []
): Array<Folder> => {
  const byPath = new Map<string, { version: 1 | 2; path: string; controllers: Array<string> }>()
  for (const controller of controllers) {
    const hierarchy = from.controllers[controller]
    if (hierarchy === undefined) continue
    const parent = above.find((folder) => folder.controllers.includes(controller))?.path ?? hierarchy.folder
    const path = `${parent}/${name}`
    const folder = byPath.get(path)
    if (folder !== undefined) {
      if (!folder.controllers.includes(controller)) folder.controllers.push(controller)
      continue
    }
    // All of version 2 is one hierarchy.
    const all = Object.keys(from.controllers).filter((other) => from.controllers[other]!.version === 2)
    byPath.set(path, {
      version: hierarchy.version,
      path,
      controllers: hierarchy.version === 2 ? all : [controller]
    })
  }
  return [...byPath.values()]
}

const toOperation =
  (folder: Folder) =>
  ([file, value]: Write): Plan.Operation =>
    typeof value === "string"
      ? { op: "cgroup-write", file: `${folder.path}/${file}`, value }
      : { op: "cgroup-devices", path: folder.path, program: value }

/** The operations that set limits in these folders; throws if the version of a hierarchy does not support one. */
const writes = (
  tree: Tree,
  to: ReadonlyArray<Folder>,
  settings: ReadonlyArray<Setting>,
  fresh: boolean
): ReadonlyArray<Plan.Operation> =>
  settings.flatMap(({ controller, option, v1, v2 }) => {
    const folder = to.find(({ controllers }) => controllers.includes(controller))
    if (folder === undefined) return []
    const place = { path: folder.path, above: dirname(folder.path), fresh, tree }
    if (folder.version === 2) return v2(place).map(toOperation(folder))
    if (v1 !== undefined) return v1(place).map(toOperation(folder))
    throw new CgroupError({
      reason: "BoundToV1",
      controller,
      path: folder.path,
      errno: 0,
      detail: `${option} needs version 2, and the controller is bound to version 1: boot with systemd.unified_cgroup_hierarchy=1, or leave it out`
    })
  })

/** The operations by which a cgroup of version 2 passes controllers on to the cgroups in it. */
const passOn = (path: string, controllers: Iterable<string>): ReadonlyArray<Plan.Operation> => {
  const there = read(`${path}/cgroup.controllers`).trim().split(" ")
  const passed = read(`${path}/cgroup.subtree_control`).trim().split(" ")
  return [...new Set(controllers)]
    .filter((controller) => there.includes(controller) && !passed.includes(controller))
    .map((controller) => ({
      op: "cgroup-write",
      file: `${path}/cgroup.subtree_control`,
      value: `+${controller}`
    }))
}

/** The operations that pass controllers on to cgroups in these folders, or in the tree's own place for them. */
const passOnTo = (
  from: Tree,
  above: ReadonlyArray<Folder>,
  controllers: Iterable<string>
): ReadonlyArray<Plan.Operation> => {
  const folder = above.find(({ version }) => version === 2)?.path
  const place = Object.values(from.controllers).find(({ passesOnRequest }) => passesOnRequest)?.folder
  if (folder !== undefined) return passOn(folder, controllers)
  return place === undefined ? [] : passOn(place, controllers)
}

/** The folders of a new cgroup and the operations that make and limit it; throws. */
export const operations = (
  from: Tree,
  limits: Limits,
  name: string,
  above: ReadonlyArray<Folder> = []
): { readonly folders: Array<Folder>; readonly create: ReadonlyArray<Plan.Operation> } => {
  const settings = parseLimits(limits)
  for (const { controller, option } of settings) hierarchyOf(from, controller, option)
  const wanted = [...countingIn(from), ...settings.map(({ controller }) => controller)]
  const made = folders(from, name, wanted, above)
  return {
    folders: made,
    create: [
      ...passOnTo(from, above, wanted),
      ...made.map((folder): Plan.Operation => ({ op: "cgroup-create", path: folder.path })),
      ...writes(from, made, settings, true)
    ]
  }
}

// On version 2 a process is in one cgroup only: the last folder.
const isEntered = (folder: Folder, index: number, all: ReadonlyArray<Folder>): boolean =>
  folder.version === 1 || !all.some((other, at) => other.version === 2 && at > index)

/** The folders that a process of the cgroup is in. */
export const entered = (cgroup: Cgroup): ReadonlyArray<Folder> => cgroup.folders.filter(isEntered)

/** The operations that put a process into the cgroup. */
export const joins = (cgroup: Cgroup | undefined): ReadonlyArray<Plan.Operation> =>
  cgroup === undefined
    ? []
    : entered(cgroup).map(({ path, version }) => ({ op: "cgroup-join", path, version }))

// Errors

const controllerOf = (path: string): string => {
  const name = /\/([a-z]+)\.[\w.]+$/.exec(path)?.[1] ?? "cgroup"
  return name === "blkio" ? "io" : name
}

export const failed = (
  controller: string,
  path: string,
  errno: number,
  at: "create" | "made" | "write" | "process",
  cause?: unknown
): CgroupError => {
  const because = (reason: CgroupError["reason"], detail: string): CgroupError =>
    new CgroupError({ reason, controller, path, errno, detail, cause })
  const gone = "the cgroup is gone: its scope has closed, or another program has removed it"
  // A cgroup that failed to be made has been removed by now. When a cgroup is removed, its folder is the last to go; freezer.state,
  // which each cgroup of that hierarchy has, goes before cgroup.procs.
  const isThere =
    at === "made" ||
    (at !== "create" && basename(path) !== "freezer.state" && fs.existsSync(`${dirname(path)}/cgroup.procs`))
  switch (errno) {
    case EROFS:
      return because(
        "ReadOnly",
        "the tree is mounted read-only: remount it writable, or start without limits"
      )
    case EACCES:
    case EPERM:
      return because(
        "NotDelegated",
        "this part of the tree is not delegated to your user: have it delegated, or run as root"
      )
    case ENOENT:
      return isThere
        ? because(
            "NotInKernel",
            "this kernel does not have this limit: use a newer kernel, or one that is built with it"
          )
        : because("Gone", gone)
    case ENODEV:
      return isThere && controller === "io"
        ? because("Refused", "the disk does not exist, or is a partition: name a whole disk")
        : because("Gone", gone)
    case EBUSY:
      return path.endsWith("subtree_control") || at === "process"
        ? because(
            "HasProcesses",
            "a cgroup of version 2 has processes either itself or in cgroups below it: move them first"
          )
        : at !== "create" && (controller === "memory" || controller === "hugetlb")
          ? because(
              "InUse",
              "the processes use more than that, and it cannot be reclaimed: choose a higher limit, or end processes"
            )
          : because("Refused", "the cgroup is busy: try again later")
    default:
      return because("Refused", "the kernel refuses this value")
  }
}

/** Explains the failure of an operation on a cgroup; returns any other error unchanged. */
export const explain =
  (plan: Plan.Plan) =>
  (error: BerthError): BerthError => {
    const operation = error._tag === "OperationFailed" ? plan.operations[error.index] : undefined
    return operation === undefined ? error : explainOperation(plan, operation, error as OperationFailed)
  }

const explainOperation = (plan: Plan.Plan, operation: Plan.Operation, error: OperationFailed): BerthError => {
  switch (operation.op) {
    case "cgroup-create":
      return failed("cgroup", operation.path, error.errno, "create", error)
    case "cgroup-write": {
      const folder = dirname(operation.file)
      const made = plan.operations.some((other) => other.op === "cgroup-create" && other.path === folder)
      const controller = controllerOf(operation.file)
      return failed(controller, operation.file, error.errno, made ? "made" : "write", error)
    }
    case "cgroup-devices":
      return failed("devices", operation.path, error.errno, "write", error)
    case "cgroup-join":
      return failed("cgroup", operation.path, error.errno, "create", error)
    case "process": {
      // The clone enters version 2's; the child enters the others before its first operation.
      const joined = plan.operations.filter((other) => other.op === "cgroup-join")
      const at = joined.find(({ version }) => version === (error.syscall === "write" ? 1 : 2))
      const ours = error.syscall === "write" || error.errno === EBUSY || error.errno === ENODEV
      return at === undefined || !ours ? error : failed("cgroup", at.path, error.errno, "process", error)
    }
    default:
      return error
  }
}

/** Runs a body that works on a cgroup's files, and explains the errors of node:fs. */
export const filesOf = <A>(controller: string, path: string, body: () => A): Effect.Effect<A, BerthError> =>
  attempt(() => {
    try {
      return body()
    } catch (error) {
      const errno = errnoOf(error)
      throw errno === undefined ? error : failed(controller, path, errno, "write", error)
    }
  })

export const gone = (cgroup: Cgroup): CgroupError =>
  failed("cgroup", cgroup.folders[0]?.path ?? cgroup.name, ENOENT, "create")

// A cgroup that is there

/** The owner of a cgroup. */
export interface Owner {
  readonly berth: Berth
  /** The scope with which it ends. */
  readonly scope: Scope.Scope
  /** The end of the container that it was made for, which may come before that of the scope. */
  readonly container: Deferred.Deferred<Ended, SupervisorError> | undefined
  closed?: Deferred.Deferred<void>
}

/** Succeeds once nothing more can happen in it: its process has ended, or its scope closes. */
export const ended = (cgroup: Cgroup): Effect.Effect<void> =>
  Effect.suspend(() => {
    const owner = cgroup.state.owner
    if (owner === undefined) return Effect.void
    const { container } = owner
    const closing = Effect.suspend(() => {
      if (owner.closed !== undefined) return Deferred.await(owner.closed)
      const closed = Deferred.unsafeMake<void>(FiberId.none)
      owner.closed = closed
      return Effect.zipRight(
        Scope.addFinalizer(owner.scope, Deferred.succeed(closed, undefined)),
        Deferred.await(closed)
      )
    })
    return container === undefined
      ? closing
      : Effect.race(closing, Effect.asVoid(Effect.exit(Deferred.await(container))))
  })

export const isThere = (cgroup: Cgroup): boolean => fs.existsSync(cgroup.folders[0]?.path ?? "")

const listed = (path: string): ReadonlyArray<number> =>
  read(`${path}/cgroup.procs`)
    .split("\n")
    .flatMap((line) => (Number(line) > 0 ? [Number(line)] : []))

const below = (path: string): ReadonlyArray<string> => {
  try {
    return fs
      .readdirSync(path, { withFileTypes: true })
      .flatMap((entry) => (entry.isDirectory() ? [`${path}/${entry.name}`] : []))
  } catch {
    return []
  }
}

const members = (path: string): ReadonlyArray<number> => [...listed(path), ...below(path).flatMap(members)]

/** The processes in it and in those below it. */
export const processes = (cgroup: Cgroup): ReadonlyArray<number> => [
  ...new Set(cgroup.folders.flatMap(({ path }) => members(path)))
]

/** Moves a process; does nothing if it has ended. Throws the errors of node:fs. */
export const moveTo = (folder: string, pid: number): void => {
  try {
    fs.writeFileSync(`${folder}/cgroup.procs`, String(pid))
  } catch (error) {
    if (errnoOf(error) !== ESRCH) throw error
  }
}

const PASSES_MAX = 100

/** Moves all of these and their new children, until there are none left. */
export const moveAll = (folder: string, pids: () => ReadonlyArray<number>): Effect.Effect<void, BerthError> =>
  filesOf("cgroup", `${folder}/cgroup.procs`, () => {
    for (let pass = 0; pass < PASSES_MAX; pass++) {
      const there = new Set(members(folder))
      const rest = pids().filter((pid) => !there.has(pid))
      if (rest.length === 0) return
      for (const pid of rest) moveTo(folder, pid)
    }
  })

/** Runs operations as a unit of their own, and returns the effect that releases the unit. */
export const perform = (berth: Berth, name: string, list: ReadonlyArray<Plan.Operation>) => {
  const plan = Plan.make(list)
  const id = berth.supervisor.nextId()
  return berth.supervisor.start(id, plan, {}).pipe(
    Effect.mapError(explain(plan)),
    Effect.map((unit) => releaseUnit(name, unit))
  )
}

/**
 * Adds folders to a cgroup in hierarchies that it lacks, and moves its processes there. On version 1 each controller
 * slows a start down, so a cgroup only has the requested ones.
 */
export const extend = (
  cgroup: Cgroup,
  settings: ReadonlyArray<Pick<Setting, "controller" | "option"> & Partial<Setting>>,
  pids: () => ReadonlyArray<number> = () => processes(cgroup)
): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const known = cgroup.folders.flatMap(({ controllers }) => controllers)
    return settings.every(({ controller }) => known.includes(controller))
      ? Effect.void
      : inTurn(cgroup.state, "extending").withPermits(1)(grow(cgroup, settings, pids))
  })

const grow = (
  cgroup: Cgroup,
  settings: Parameters<typeof extend>[1],
  pids: () => ReadonlyArray<number>
): Effect.Effect<void, BerthError> =>
  Effect.suspend(() => {
    const missing = settings.filter(
      ({ controller }) => !cgroup.folders.some(({ controllers }) => controllers.includes(controller))
    )
    if (missing.length === 0) return Effect.void
    const owner = cgroup.state.owner
    if (owner === undefined) return Effect.fail(gone(cgroup))
    return Effect.uninterruptible(
      Effect.gen(function* () {
        const { added, create } = yield* attempt(() => {
          const from = owner.berth.memory.tree()
          for (const { controller, option } of missing) hierarchyOf(from, controller, option)
          const added = folders(
            from,
            cgroup.name,
            missing.map(({ controller }) => controller)
          )
          const complete = missing.filter((setting): setting is Setting => setting.v2 !== undefined)
          const create = [
            ...passOnTo(
              from,
              [],
              missing.map(({ controller }) => controller)
            ),
            ...added.map((folder): Plan.Operation => ({ op: "cgroup-create", path: folder.path })),
            ...writes(from, added, complete, true)
          ]
          return { added, create }
        })
        const release = yield* perform(owner.berth, `cgroup ${cgroup.name}`, create)
        yield* Scope.addFinalizer(owner.scope, release)
        const to = cgroup.folders as Array<Folder>
        // First, so that processes that start meanwhile enter them.
        to.push(...added)
        for (const { path } of added) yield* moveAll(path, pids)
      })
    )
  })

const RECLAIM_TRIES = 3

/**
 * Reclaims memory until its use is below a new limit, and fails if that does not succeed, as version 1 does by itself.
 * Version 2 would accept the limit and let the OOM killer enforce it.
 */
const makeRoom = (folder: string, max: number): Effect.Effect<void, CgroupError> =>
  Effect.gen(function* () {
    const current = (): number => Number(read(`${folder}/memory.current`))
    for (let tries = 0; tries < RECLAIM_TRIES && current() > max; tries++) {
      // Since Linux 5.19; EAGAIN if less was reclaimed than requested.
      yield* Effect.ignore(
        Effect.tryPromise(() => fs.promises.writeFile(`${folder}/memory.reclaim`, String(current() - max)))
      )
    }
    if (current() > max) return yield* failed("memory", `${folder}/memory.max`, EBUSY, "write")
  })

export const update = (cgroup: Cgroup, limits: Limits): Effect.Effect<void, BerthError> =>
  Effect.gen(function* () {
    const settings = yield* attempt(() => parseLimits(limits))
    const owner = cgroup.state.owner
    if (owner === undefined || !isThere(cgroup)) return yield* gone(cgroup)
    const before = new Set(cgroup.folders.flatMap(({ controllers }) => controllers))
    yield* extend(cgroup, settings)
    const list = yield* attempt(() => {
      const rest = settings.filter(({ controller }) => before.has(controller))
      // A cgroup of version 2 has the controllers that the cgroup above it passes on.
      const unified = cgroup.folders.find(({ version }) => version === 2)
      const wanted = rest.flatMap(({ controller }) =>
        unified?.controllers.includes(controller) === true ? [controller] : []
      )
      const asked = unified === undefined ? [] : passOn(dirname(unified.path), wanted)
      return [...asked, ...writes(owner.berth.memory.tree(), cgroup.folders, rest, false)]
    })
    for (const operation of list) {
      if (operation.op !== "cgroup-write" || !operation.file.endsWith("/memory.max")) continue
      if (operation.value !== "max") yield* makeRoom(dirname(operation.file), Number(operation.value))
    }
    // More controllers may have been passed on to it, and their files are there now.
    cgroup.state.files.clear()
    if (list.length > 0)
      yield* Effect.uninterruptible(
        Effect.flatten(perform(owner.berth, `update of cgroup ${cgroup.name}`, list))
      )
  })
