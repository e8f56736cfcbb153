import { existsSync } from "node:fs"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError, InvalidOption } from "../../BerthError.ts"
import * as Cgroup from "../../Cgroup.ts"
import type {
  BufferOptions,
  Container,
  ExecOptions,
  ExitStatus,
  LogEntry,
  LogsOptions,
  ProcessOptions,
  Result,
  SpawnOptions,
  StartOptions,
  StopOptions,
  TerminalSize
} from "../../Container.ts"
import type { Image } from "../../Image.ts"
import type { Kind } from "../../Namespace.ts"
import * as Plan from "../../Plan.ts"
import * as Userns from "../ids/allocation.ts"
import * as Ids from "../ids/idMaps.ts"
import * as Seccomp from "../security/seccomp.ts"
import { native } from "../system/addon.ts"
import { isContainer } from "../typeIds.ts"
import { attempt } from "../util/fromThrowing.ts"
import { signalNumber } from "../util/signals.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import * as check from "../util/validate.ts"
import * as compile from "./compile.ts"
import { launchInside, running } from "./execIn.ts"
import { launch } from "./launch.ts"
import * as users from "./passwd.ts"
import { letEnd, resume } from "./pause.ts"
import * as prepare from "./prepare.ts"
import { stdioNames } from "./stdio.ts"

export const start = (
  image: Image,
  options: StartOptions = {}
): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => {
    const userns = options.userns
    if (userns === undefined) return startIn(berth, image, options, undefined)
    return Effect.acquireUseRelease(
      attempt(() => Userns.acquire(userns, berth)),
      (mapped) => startIn(berth, image, options, mapped),
      (mapped) => Effect.sync(() => Userns.release(mapped))
    )
  })

const startIn = (
  berth: Berth,
  image: Image,
  options: StartOptions,
  userns: Userns.Mapped | undefined
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.suspend(() => {
    const id = prepare.makeId()
    const { folder, nextId } = berth.supervisor
    const prepared = attempt(() =>
      prepare.start(image, options, {
        folder,
        unit: nextId(),
        id,
        rootless: berth.rootless,
        ids: berth.ids,
        userns
      })
    )
    return Effect.flatMap(prepared, (ready) => launch({ ...ready, berth })).pipe(
      spanIfObserved("berth.Container.start", { "container.id": id, "container.image.name": image.reference })
    )
  })

export const plan = (image: Image, options: StartOptions = {}): Effect.Effect<Plan.Plan, BerthError> =>
  attempt(() => {
    const rootless = process.geteuid?.() !== 0
    const at = {
      folder: "/var/lib/berth/run/0",
      unit: 1,
      id: "000000000000",
      rootless,
      ids: Ids.all,
      userns: undefined
    }
    return Plan.make(prepare.start(image, options, at).operations)
  })

const SIGKILL = 9

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024

/** Reads both streams to their ends while the process runs; too much of either ends it. */
const buffered = (container: Container, options: BufferOptions): Effect.Effect<Result, BerthError> => {
  const max = options.maxOutputBytes ?? OUTPUT_BYTES_MAX
  const { stdout, stderr } = container.state
  const read = (output: typeof stdout, name: string): Effect.Effect<string, BerthError> =>
    output === undefined
      ? Effect.succeed("")
      : output.collect(
          max,
          () =>
            new ContainerError({
              reason: "OutputTooLong",
              container: container.id,
              detail: `more than ${max} bytes on ${name}: raise maxOutputBytes, or read it as a stream`
            })
        )
  return Effect.map(
    Effect.all([read(stdout, "stdout"), read(stderr, "stderr"), container.exit], {
      concurrency: "unbounded"
    }),
    ([out, err, status]) => ({ ...status, stdout: out, stderr: err })
  )
}

export const run = (
  image: Image,
  options: StartOptions & BufferOptions = {}
): Effect.Effect<Result, BerthError, Berth> =>
  Effect.scoped(Effect.flatMap(start(image, options), (container) => buffered(container, options))).pipe(
    spanIfObserved("berth.Container.run", { "container.image.name": image.reference })
  )

export const spawn = (options: SpawnOptions): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.suspend(() => {
    const { kinds, root, settingUp } = options.namespaces
    const spawned = spawnIn(options)
    return kinds.includes("mount") && root === undefined ? settingUp.withPermits(1)(spawned) : spawned
  }).pipe(spanIfObserved("berth.Container.spawn"))

const spawnIn = (options: SpawnOptions): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { namespaces, rootfs } = options
    const id = prepare.makeId()
    const unit = berth.supervisor.nextId()
    const joined = [{ descriptor: "namespace", kinds: namespaces.kinds }]
    const joins = options.cgroup === undefined ? [] : Cgroup.joins(options.cgroup)
    const inUserNamespace = berth.rootless || namespaces.kinds.includes("user")
    const process = yield* attempt(() =>
      prepare.settings(rootfs.image, options, joins, joined, inUserNamespace)
    )
    const shared = namespaces.kinds.includes("mount")
    if (shared && namespaces.root !== undefined && namespaces.root !== rootfs) {
      const expected = "the root that the first process in this mount namespace was given"
      return yield* new InvalidOption({ option: "rootfs", value: rootfs.image.reference, expected })
    }
    if (!Userns.areFor(rootfs.mapped, namespaces.mapped)) {
      const expected = "a root that is made for the ids of these namespaces: RootFs.overlay with userns"
      return yield* new InvalidOption({ option: "rootfs", value: rootfs.image.reference, expected })
    }
    const around = yield* attempt(() =>
      prepare.surroundings(options, { folder: berth.supervisor.folder, unit, id }, namespaces.kinds, {
        created: new Set<Kind>(shared ? [] : ["mount"]),
        inUserNamespace,
        idMap: undefined,
        cgroup: [],
        scratch: [],
        root: { op: "root-mount", mount: "root" },
        content: rootfs.content
      })
    )
    const started = yield* launch({
      berth,
      unit,
      id,
      options,
      settings: process,
      operations: namespaces.root === rootfs ? compile.joining(process) : compile.container(process, around),
      descriptors: { namespace: namespaces.pidfd, root: rootfs.mount },
      created: [...around.created],
      kinds: [...namespaces.kinds, ...around.created],
      cgroup: options.cgroup,
      ownsCgroup: false,
      inside: undefined,
      stopSignal: rootfs.image.config.stopSignal,
      healthcheck: rootfs.image.config.healthcheck,
      logs: undefined,
      ids: rootfs.mapped?.ids,
      base: {
        image: rootfs.image,
        upper: rootfs.upper,
        ids: rootfs.mapped?.ids ?? berth.ids,
        isThere: () => rootfs.mount >= 0
      }
    })
    if (shared) namespaces.root = rootfs
    return started
  })

/** Who a user is to a running container: by the files that it has now. */
const userInside = (
  container: Container,
  user: string | undefined
): Effect.Effect<users.User, BerthError> => {
  const { settings } = container.state
  if (user === undefined) return Effect.succeed(settings.user)
  const subject = `container ${container.id}`
  return Effect.gen(function* () {
    const passwd = yield* users.readInside(subject, container.pid, "etc/passwd")
    const group = yield* users.readInside(subject, container.pid, "etc/group")
    // The pid was the container's all the while if the container is still there.
    yield* running(container)
    return yield* attempt(() => users.resolve(subject, user, passwd, group))
  })
}

const execIn = (
  container: Container,
  command: ReadonlyArray<string>,
  options: ProcessOptions
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { state } = container
    yield* running(container)
    yield* attempt(() => {
      check.process(options)
      check.command(command)
    })
    const user = yield* userInside(container, options.user)
    const inUserNamespace = state.berth.rootless || state.kinds.includes("user")
    const common = yield* attempt(() => prepare.common(options, inUserNamespace))
    const { ambient, capabilities } = options.capabilities === undefined ? state.settings : common
    const seccompProfile = options.seccomp ?? state.settings.seccompProfile
    const onSystemCall = options.onSystemCall ?? state.settings.onSystemCall
    const process: compile.Process = {
      ...common,
      capabilities,
      ambient,
      ...(options.appArmor === undefined ? { appArmor: state.settings.appArmor } : {}),
      ...(options.rlimits === undefined ? { rlimits: state.settings.rlimits } : {}),
      seccompProfile,
      seccomp: yield* attempt(() => Seccomp.filter(seccompProfile, capabilities, onSystemCall !== undefined)),
      onSystemCall,
      arguments: command,
      environment: {
        ...state.settings.environment,
        ...(options.user === undefined ? {} : { HOME: user.home }),
        ...prepare.termOf(options),
        ...options.env
      },
      workingDirectory: options.cwd ?? state.settings.workingDirectory,
      createWorkingDirectory: false,
      user,
      noNewPrivileges: options.noNewPrivileges ?? state.settings.noNewPrivileges,
      init: false,
      stdio: stdioNames(options),
      cgroup: state.cgroup === undefined ? [] : Cgroup.joins(state.cgroup),
      joined: [{ descriptor: "container", kinds: state.kinds }]
    }
    return yield* launchInside(container, process, options)
  })

export const execStream: {
  (
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): (container: Container) => Effect.Effect<Container, BerthError, Scope.Scope>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): Effect.Effect<Container, BerthError, Scope.Scope>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, command: ReadonlyArray<string>, options: ProcessOptions = {}) =>
    execIn(container, command, options).pipe(
      spanIfObserved("berth.Container.execStream", { "container.id": container.id })
    )
)

export const exec: {
  (
    command: ReadonlyArray<string>,
    options?: ExecOptions
  ): (container: Container) => Effect.Effect<Result, BerthError>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ExecOptions
  ): Effect.Effect<Result, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, command: ReadonlyArray<string>, options: ExecOptions = {}) =>
    Effect.scoped(
      Effect.flatMap(execIn(container, command, options), (process) => buffered(process, options))
    ).pipe(spanIfObserved("berth.Container.exec", { "container.id": container.id }))
)

export const signal: {
  (signal: string | number): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, signal: string | number): Effect.Effect<void, BerthError>
} = dual(2, (container: Container, which: string | number) =>
  Effect.suspend(() => {
    const number = signalNumber(which)
    if (number === undefined) {
      const expected = "a signal of signal(7), by name or number"
      return Effect.fail(new InvalidOption({ option: "signal", value: JSON.stringify(which), expected }))
    }
    native().signal(container.state.pidfd, number)
    return number === SIGKILL ? letEnd(container) : Effect.void
  }).pipe(spanIfObserved("berth.Container.signal", { "container.id": container.id, "berth.signal": which }))
)

export const resize: {
  (size: TerminalSize): (container: Container) => Effect.Effect<void>
  (container: Container, size: TerminalSize): Effect.Effect<void>
} = dual(2, (container: Container, size: TerminalSize) =>
  Effect.sync(() => container.state.terminal?.resize(size.rows, size.columns))
)

export const wait = (container: Container): Effect.Effect<ExitStatus, BerthError> =>
  Effect.withSpan(container.exit, "berth.Container.wait", { attributes: { "container.id": container.id } })

export const stop: {
  (options?: StopOptions): (container: Container) => Effect.Effect<ExitStatus, BerthError>
  (container: Container, options?: StopOptions): Effect.Effect<ExitStatus, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options: StopOptions = {}): Effect.Effect<ExitStatus, BerthError> =>
    signal(container, options.signal ?? container.state.stopSignal ?? "SIGTERM").pipe(
      // One that is paused hears of it when it goes on.
      Effect.zipRight(resume(container)),
      Effect.zipRight(
        // Also as a finalizer, where nothing else can be interrupted, it waits no longer than that.
        Effect.timeoutTo(Effect.interruptible(container.exit), {
          duration: options.grace ?? "10 seconds",
          onSuccess: (status) => Effect.succeed(status),
          onTimeout: () => Effect.zipRight(signal(container, "SIGKILL"), container.exit)
        })
      ),
      Effect.flatten,
      Effect.withSpan("berth.Container.stop", { attributes: { "container.id": container.id } })
    )
)

export const logs = (container: Container, options: LogsOptions = {}): Stream.Stream<LogEntry, BerthError> =>
  Stream.suspend(() => container.state.log().stream(options)).pipe(
    Stream.withSpan("berth.Container.logs", { attributes: { "container.id": container.id } })
  )

export const supervised = <Out, R>(
  image: Image,
  options: StartOptions & {
    readonly onStart?: ((container: Container) => Effect.Effect<unknown, BerthError>) | undefined
  },
  restart: Schedule.Schedule<Out, ExitStatus, R>
): Effect.Effect<ExitStatus, BerthError, Berth | R> => {
  let last: ExitStatus | undefined
  const once = start(image, options).pipe(
    Effect.flatMap((container) =>
      Effect.raceFirst(
        container.exit,
        Effect.zipRight(options.onStart?.(container) ?? Effect.void, container.exit)
      )
    ),
    Effect.scoped,
    Effect.tap((status) => Effect.sync(() => (last = status)))
  )
  return Effect.map(Effect.repeat(once, restart), () => last!).pipe(
    Effect.withSpan("berth.Container.supervised", { attributes: { "container.image.name": image.reference } })
  )
}

export const stats = (container: Container): Effect.Effect<Cgroup.Stats, BerthError> =>
  statsOf(container).pipe(spanIfObserved("berth.Container.stats", { "container.id": container.id }))

const statsOf = (container: Container): Effect.Effect<Cgroup.Stats, BerthError> => {
  const { cgroup } = container.state
  if (cgroup === undefined) {
    const detail =
      "it has no cgroup of its own: start it with limits (which may be empty: {}) or with a cgroup"
    return Effect.fail(new ContainerError({ reason: "NoCgroup", container: container.id, detail }))
  }
  // Of a container that has ended well, the cgroup is gone already.
  return cgroup.folders.every((folder) => existsSync(folder.path))
    ? Cgroup.stats(cgroup)
    : Effect.zipRight(running(container), Cgroup.stats(cgroup))
}

export { attach } from "./attach.ts"
export { cgroupOf, pause, resume, top } from "./pause.ts"
