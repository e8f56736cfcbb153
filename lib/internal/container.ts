import { randomBytes } from "node:crypto"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth } from "../Berth.ts"
import { type BerthError, ContainerError, InvalidOption } from "../BerthError.ts"
import * as Cgroup from "../Cgroup.ts"
import type {
  BufferOptions,
  Container,
  ExecOptions,
  ExitStatus,
  LogEntry,
  LogsOptions,
  ProcessOptions,
  Result,
  RootOptions,
  SpawnOptions,
  StartOptions,
  StopOptions,
  TerminalSize
} from "../Container.ts"
import { isContainer } from "../Container.ts"
import type { Image } from "../Image.ts"
import * as Namespace from "../Namespace.ts"
import { isNamespace, type Kind } from "../Namespace.ts"
import * as Plan from "../Plan.ts"
import * as Security from "../Security.ts"
import * as cgroupFiles from "./cgroup.ts"
import * as compile from "./compile.ts"
import { native } from "./native.ts"
import * as check from "./options.ts"
import { type Launch, launch } from "./process.ts"
import * as RootFs from "./rootFs.ts"
import { signalNumber } from "./signals.ts"
import { stdioNames } from "./stdio.ts"
import * as users from "./users.ts"

const makeId = (): string => randomBytes(6).toString("hex")

// An image never changes, so what its files say of a user is read once.
const resolvedUsers = new WeakMap<Image, Map<string, users.User>>()

const userOf = (image: Image, user: string): Effect.Effect<users.User, BerthError> =>
  Effect.suspend(() => {
    const known = resolvedUsers.get(image) ?? new Map<string, users.User>()
    resolvedUsers.set(image, known)
    const found = known.get(user)
    if (found !== undefined) return Effect.succeed(found)
    const [passwd, group] = [
      users.readMerged(image.layers, "etc/passwd"),
      users.readMerged(image.layers, "etc/group")
    ]
    return Effect.tap(users.resolve(image.reference, user, passwd, group), (resolved) =>
      known.set(user, resolved)
    )
  })

const termOf = (options: ProcessOptions): Readonly<Record<string, string>> =>
  options.terminal === undefined || options.terminal === false ? {} : { TERM: "xterm" }

/** The part of the settings that the options alone decide. */
const common = (options: ProcessOptions) =>
  Effect.all({
    capabilities: Security.resolveCapabilities(options.capabilities ?? {}),
    rlimits: Security.resolveRlimits(options.rlimits ?? {}),
    umask: check.umask(options.umask),
    terminal: check.terminal(options.terminal)
  })

const settings = (
  image: Image,
  options: RootOptions,
  cgroup: ReadonlyArray<Plan.Operation>,
  joined: ReadonlyArray<compile.Joined>
): Effect.Effect<compile.Process, BerthError> =>
  Effect.gen(function* () {
    yield* check.process(options)
    const { config } = image
    yield* check.config(config)
    const command = [...(options.entrypoint ?? config.entrypoint), ...(options.command ?? config.command)]
    if (command.length === 0 || command[0] === "") {
      const expected = "a command: the image has neither an entrypoint nor a command of its own"
      return yield* new InvalidOption({ option: "command", value: JSON.stringify(command), expected })
    }
    yield* check.strings("command", command)
    const user = yield* userOf(image, options.user ?? config.user)
    return {
      ...(yield* common(options)),
      arguments: command,
      environment: {
        PATH: compile.defaultPath,
        HOME: user.home,
        ...termOf(options),
        ...config.environment,
        ...options.env
      },
      workingDirectory: options.cwd ?? (config.workingDirectory || "/"),
      createWorkingDirectory: true,
      user,
      noNewPrivileges: options.noNewPrivileges ?? true,
      init: options.init ?? false,
      stdio: stdioNames(options),
      cgroup,
      joined
    }
  })

interface Sources {
  readonly created: ReadonlySet<Kind>
  readonly joined: ReadonlyArray<compile.Joined>
  readonly descriptors: Readonly<Record<string, number>>
  /** All that are not the host's. */
  readonly kinds: ReadonlyArray<Kind>
  /** Those to make the first process's root in. */
  readonly user: boolean
}

const defaults: ReadonlyArray<Kind> = ["mount", "pid", "uts", "ipc", "network", "cgroup"]

/** Where each namespace comes from. What is shared by several kinds is joined once. */
const sources = (options: StartOptions): Effect.Effect<Sources, BerthError> =>
  Effect.suspend(() => {
    const created = new Set<Kind>(defaults)
    const joined = new Map<number, Array<Kind>>()
    for (const [name, from] of Object.entries(options.namespaces ?? {})) {
      const kind = name as Kind
      if (Namespace.flags[kind] === undefined || kind === "mount") {
        const expected = `one of ${Object.keys(Namespace.flags).filter((k) => k !== "mount")}`
        return Effect.fail(new InvalidOption({ option: "namespaces", value: name, expected }))
      }
      if (typeof from === "string" && from !== "new" && from !== "host") {
        const expected = '"new", "host", a container or a Namespace'
        return Effect.fail(
          new InvalidOption({ option: `namespaces.${kind}`, value: JSON.stringify(from), expected })
        )
      }
      if (from === "new") created.add(kind)
      else if (from !== undefined) created.delete(kind)
      if (typeof from !== "object") continue
      const holder = isNamespace(from) ? from : from.state
      if (!holder.kinds.includes(kind)) {
        const expected = `one that has a ${kind} namespace of its own: it has ${holder.kinds.join(", ")}`
        return Effect.fail(new InvalidOption({ option: `namespaces.${kind}`, value: String(from), expected }))
      }
      joined.set(holder.pidfd, [...(joined.get(holder.pidfd) ?? []), kind])
    }
    const names = [...joined].map(([pidfd, kinds], index) => ({
      pidfd,
      kinds,
      descriptor: `namespace${index}`
    }))
    const kinds = [...created, ...names.flatMap((name) => name.kinds)]
    return Effect.succeed({
      created,
      joined: names,
      descriptors: Object.fromEntries(names.map((name) => [name.descriptor, name.pidfd])),
      kinds,
      user: kinds.includes("user")
    })
  })

const surroundings = (
  options: RootOptions,
  at: { readonly folder: string; readonly id: string },
  own: ReadonlyArray<Kind>,
  rest: Pick<compile.Surroundings, "created" | "inUserNamespace" | "idMap" | "cgroup" | "scratch" | "root">
): Effect.Effect<compile.Surroundings, InvalidOption> =>
  Effect.gen(function* () {
    const hostname = yield* check.hostname(options.hostname, own)
    return {
      ...rest,
      folder: at.folder,
      hostname: rest.created.has("uts") ? (hostname ?? at.id) : hostname,
      mounts: yield* check.mounts(options.mounts ?? []),
      maskedPaths: yield* check.paths("maskedPaths", options.maskedPaths ?? Security.defaultMaskedPaths),
      readonlyPaths: yield* check.paths(
        "readonlyPaths",
        options.readonlyPaths ?? Security.defaultReadonlyPaths
      ),
      readOnly: options.readOnly ?? false,
      shmBytes: yield* check.bytes("shmSize", options.shmSize ?? 64 * 1024 * 1024),
      sysctls: yield* check.sysctls(options.sysctls ?? {}, own)
    }
  })

/** Everything that a start needs, compiled but not done. */
const prepare = (
  image: Image,
  options: StartOptions,
  at: { readonly folder: string; readonly unit: number; readonly id: string; readonly rootless: boolean },
  idMap: Plan.Operation
): Effect.Effect<Omit<Launch, "berth">, BerthError> =>
  Effect.gen(function* () {
    const from = yield* sources(options)
    // In the host's pid namespace nothing ends with the first process: a cgroup says what belongs to the container.
    const made =
      options.cgroup === undefined && (options.limits !== undefined || !from.kinds.includes("pid"))
        ? yield* Cgroup.operations(options.limits ?? {}, cgroupFiles.nameOf(at.folder, at.unit))
        : undefined
    const cgroup = options.cgroup ?? made?.cgroup
    const joins = cgroup === undefined ? [] : Cgroup.joins(cgroup)
    const process = yield* settings(image, options, joins, from.joined)
    const root = yield* RootFs.compose(
      image,
      { upper: options.upper, size: options.upperSize },
      at.folder,
      at.unit,
      at.rootless
    )
    const around = yield* surroundings(options, at, [...from.created], {
      created: from.created,
      inUserNamespace: at.rootless || from.user,
      idMap: from.created.has("user") ? idMap : undefined,
      cgroup: made?.create ?? [],
      scratch: root.scratch,
      root: root.mount
    })
    return {
      unit: at.unit,
      id: at.id,
      options,
      settings: process,
      operations: compile.container(process, around),
      descriptors: from.descriptors,
      created: [...from.created],
      kinds: from.kinds,
      cgroup,
      stopSignal: image.config.stopSignal,
      logs: options.logs
    }
  })

export const start = (
  image: Image,
  options: StartOptions = {}
): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => {
    const id = makeId()
    const at = {
      folder: berth.supervisor.folder,
      unit: berth.supervisor.nextId(),
      id,
      rootless: berth.rootless
    }
    return Effect.flatMap(prepare(image, options, at, Namespace.idMap(berth, undefined)), (prepared) =>
      launch({ ...prepared, berth })
    ).pipe(
      Effect.withSpan("berth.Container.start", {
        attributes: { "container.id": id, "container.image.name": image.reference },
        captureStackTrace: false
      })
    )
  })

export const plan = (image: Image, options: StartOptions = {}): Effect.Effect<Plan.Plan, BerthError> =>
  Effect.suspend(() => {
    const rootless = process.geteuid?.() !== 0
    const at = { folder: "/var/lib/berth/run/0", unit: 1, id: "000000000000", rootless }
    return Effect.map(prepare(image, options, at, Namespace.idMap({ rootless }, undefined)), (prepared) =>
      Plan.make(prepared.operations)
    )
  })

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024

const utf8 = new TextDecoder()

/** Reads both streams to their ends while the process runs; too much of either ends it. */
const buffered = (container: Container, options: BufferOptions): Effect.Effect<Result, BerthError> => {
  const max = options.maxOutputBytes ?? OUTPUT_BYTES_MAX
  const { stdout, stderr } = container.state
  const read = (output: typeof stdout, name: string): Effect.Effect<string, BerthError> =>
    output === undefined
      ? Effect.succeed("")
      : Effect.map(
          output.collect(
            max,
            () =>
              new ContainerError({
                reason: "OutputTooLong",
                container: container.id,
                detail: `more than ${max} bytes on ${name}: raise maxOutputBytes, or read it as a stream`
              })
          ),
          (bytes) => utf8.decode(bytes)
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
  Effect.scoped(Effect.flatMap(start(image, options), (container) => buffered(container, options)))

export const spawn = (options: SpawnOptions): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { namespaces, rootfs } = options
    const id = makeId()
    const unit = berth.supervisor.nextId()
    const joined = [{ descriptor: "namespace", kinds: namespaces.kinds }]
    const joins = options.cgroup === undefined ? [] : Cgroup.joins(options.cgroup)
    const process = yield* settings(rootfs.image, options, joins, joined)
    const shared = namespaces.kinds.includes("mount")
    if (shared && namespaces.root !== undefined && namespaces.root !== rootfs) {
      const expected = "the root that the first process in this mount namespace was given"
      return yield* new InvalidOption({ option: "rootfs", value: rootfs.image.reference, expected })
    }
    const inUserNamespace = berth.rootless || namespaces.kinds.includes("user")
    const around = yield* surroundings(options, { folder: berth.supervisor.folder, id }, namespaces.kinds, {
      created: new Set<Kind>(shared ? [] : ["mount"]),
      inUserNamespace,
      idMap: undefined,
      cgroup: [],
      scratch: [],
      root: { op: "root-mount", mount: "root" }
    })
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
      stopSignal: rootfs.image.config.stopSignal,
      logs: undefined
    })
    if (shared) namespaces.root = rootfs
    return started
  }).pipe(Effect.withSpan("berth.Container.spawn", { captureStackTrace: false }))

/** Fails where the container has ended. */
const running = (container: Container): Effect.Effect<void, ContainerError> =>
  Effect.flatMap(Deferred.isDone(container.state.ended), (ended) =>
    ended || native().signal(container.state.pidfd, 0) < 0
      ? Effect.fail(
          new ContainerError({
            reason: "NotRunning",
            container: container.id,
            detail: "it has ended; start another one"
          })
        )
      : Effect.void
  )

/** Who a user is to a running container: by the files that it has now. */
const userInside = (
  container: Container,
  user: string | undefined
): Effect.Effect<users.User, BerthError> => {
  const { settings } = container.state
  if (user === undefined) return Effect.succeed(settings.user)
  const root = `/proc/${container.pid}/root`
  const [passwd, group] = [users.readMerged([root], "etc/passwd"), users.readMerged([root], "etc/group")]
  // The pid was the container's all the while if the container is still there.
  return Effect.zipRight(running(container), users.resolve(`container ${container.id}`, user, passwd, group))
}

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
    Effect.gen(function* () {
      const { state } = container
      yield* running(container)
      yield* check.process(options)
      yield* check.command(command)
      const user = yield* userInside(container, options.user)
      const process: compile.Process = {
        ...(yield* common(options)),
        ...(options.capabilities === undefined ? { capabilities: state.settings.capabilities } : {}),
        ...(options.rlimits === undefined ? { rlimits: state.settings.rlimits } : {}),
        arguments: command,
        environment: {
          ...state.settings.environment,
          ...(options.user === undefined ? {} : { HOME: user.home }),
          ...termOf(options),
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
      const ended = (error: BerthError): Effect.Effect<never, BerthError> =>
        error._tag === "OperationFailed"
          ? Effect.zipRight(running(container), Effect.fail(error))
          : Effect.fail(error)
      return yield* launch({
        berth: state.berth,
        unit: state.berth.supervisor.nextId(),
        id: container.id,
        options,
        settings: process,
        operations: compile.joining(process),
        descriptors: { container: state.pidfd },
        created: [],
        kinds: state.kinds,
        cgroup: state.cgroup,
        stopSignal: undefined,
        logs: undefined
      }).pipe(Effect.catchAll(ended))
    }).pipe(
      Effect.withSpan("berth.Container.exec", {
        attributes: { "container.id": container.id },
        captureStackTrace: false
      })
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
      Effect.flatMap(execStream(container, command, options), (process) => buffered(process, options))
    )
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
    // The number of a descriptor that was closed with its scope may be another container's by now.
    return Effect.map(Deferred.isDone(container.state.ended), (ended) => {
      if (!ended) native().signal(container.state.pidfd, number)
    })
  })
)

export const resize: {
  (size: TerminalSize): (container: Container) => Effect.Effect<void>
  (container: Container, size: TerminalSize): Effect.Effect<void>
} = dual(2, (container: Container, size: TerminalSize) =>
  Effect.sync(() => container.state.terminal?.resize(size.rows, size.columns))
)

export const wait = (container: Container): Effect.Effect<ExitStatus, BerthError> => container.exit

export const stop: {
  (options?: StopOptions): (container: Container) => Effect.Effect<ExitStatus, BerthError>
  (container: Container, options?: StopOptions): Effect.Effect<ExitStatus, BerthError>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, options: StopOptions = {}): Effect.Effect<ExitStatus, BerthError> =>
    signal(container, options.signal ?? container.state.stopSignal ?? "SIGTERM").pipe(
      Effect.zipRight(
        Effect.timeoutTo(container.exit, {
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
  Stream.suspend(() => container.state.log().stream(options))

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
  return Effect.map(Effect.repeat(once, restart), () => last!)
}

export const stats = (container: Container): Effect.Effect<Cgroup.Stats, BerthError> =>
  container.state.cgroup === undefined
    ? Effect.fail(
        new ContainerError({
          reason: "NoCgroup",
          container: container.id,
          detail:
            "it has no cgroup of its own: start it with limits (which may be empty: {}) or with a cgroup"
        })
      )
    : Cgroup.stats(container.state.cgroup)

export { attach } from "./attach.ts"
