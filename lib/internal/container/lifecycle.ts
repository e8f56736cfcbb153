import { existsSync } from "node:fs"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import type * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import { type BerthError, ContainerError } from "../../BerthError.ts"
import * as Cgroup from "../../Cgroup.ts"
import type { Container, ExecOptions, RootOptions, SpawnOptions, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Plan from "../../Plan.ts"
import type { BufferOptions, ExitStatus, Process, ProcessOptions, Result } from "../../Process.ts"
import * as Memory from "../berth/memory.ts"
import { lazily } from "../cgroup/tree.ts"
import * as Userns from "../ids/allocation.ts"
import * as Ids from "../ids/idMaps.ts"
import * as networks from "../network/join.ts"
import { inPod, podOf } from "../network/pod.ts"
import { parsePorts } from "../network/ports.ts"
import { publishAll } from "../network/publish.ts"
import { isContainer } from "../typeIds.ts"
import { attempt } from "../util/fromThrowing.ts"
import { spanIfObserved } from "../util/spanIfObserved.ts"
import * as check from "../util/validate.ts"
import { format } from "../volume/image.ts"
import { hasVolumes, hold as holdVolumes } from "../volume/inContainer.ts"
import { buffered, bufferedOptions } from "./buffered.ts"
import { launchInside, running } from "./execIn.ts"
import { launchContainer } from "./launch.ts"
import * as users from "./passwd.ts"
import * as prepare from "./prepare.ts"
import { layerFor } from "./targets.ts"

export const start = (
  image: Image,
  options: StartOptions = {}
): Effect.Effect<Container, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(Berth, (berth) => {
    if (berth.fleet !== undefined) return berth.fleet.start(image, options)
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
    return options.network === undefined && options.ports === undefined && options.name === undefined
      ? startAlone(berth, image, options, userns, id, networks.none)
      : startOnNetworks(berth, image, options, userns, id)
  })

const joinAtStart = (
  id: string,
  options: StartOptions
): Effect.Effect<networks.Joined, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    attempt(() => networks.joinAtStart(id, options)),
    ({ leave }) => Effect.sync(leave)
  )

/** Its addresses are taken before, and given back when nothing of the container is left. A port that cannot be had ends it. */
const startOnNetworks = (
  berth: Berth,
  image: Image,
  options: StartOptions,
  userns: Userns.Mapped | undefined,
  id: string
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  whileStarted(
    Effect.gen(function* () {
      const ports = yield* attempt(() => (options.ports ?? []).flatMap((port) => parsePorts("ports", port)))
      const pod = podOf(options)
      const { joined, options: own } =
        pod === undefined
          ? { joined: yield* joinAtStart(id, options), options }
          : yield* attempt(() => inPod(pod, options))
      const container = yield* startAlone(berth, image, own, userns, id, joined)
      joined.done()
      // In a pod it was started with others.
      container.state.started = options
      yield* publishAll(container, ports)
      return container
    })
  )

const startAlone = (
  berth: Berth,
  image: Image,
  options: StartOptions,
  userns: Userns.Mapped | undefined,
  id: string,
  network: networks.Joined
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.suspend(() => {
    const { folder, nextId } = berth.supervisor
    const prepared = Effect.flatMap(layerFor(berth, image, options), (targets) =>
      attempt(() =>
        prepare.start(image, options, {
          memory: berth.memory,
          folder,
          unit: nextId(),
          id,
          rootless: berth.rootless,
          ids: berth.ids,
          userns,
          targets,
          network
        })
      )
    )
    return launchPrepared(berth, options, prepared, id).pipe(
      spanIfObserved("berth.Container.start", { "container.id": id, "container.image.name": image.reference })
    )
  })

type Prepared = ReturnType<typeof prepare.start>

const launchPrepared = (
  berth: Berth,
  { mounts }: RootOptions,
  prepared: Effect.Effect<Prepared, BerthError>,
  id: string
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  hasVolumes(mounts)
    ? whileStarted(Effect.zipRight(holdVolumes(berth, mounts, id), launching(berth, prepared)))
    : launching(berth, prepared)

const launching = (berth: Berth, prepared: Effect.Effect<Prepared, BerthError>) =>
  Effect.flatMap(prepared, (ready) =>
    ready.disk === undefined
      ? launchContainer({ ...ready, berth })
      : Effect.zipRight(format(ready.disk), launchContainer({ ...ready, berth }))
  )

/** Releases at once what a start has acquired, if it fails; else at the end of the scope. */
export const whileStarted = <A, R>(
  effect: Effect.Effect<A, BerthError, R | Scope.Scope>
): Effect.Effect<A, BerthError, R | Scope.Scope> =>
  Effect.flatMap(Effect.scope, (outer) =>
    Effect.acquireUseRelease(
      Scope.fork(outer, ExecutionStrategy.sequential),
      (scope) => Scope.extend(effect, scope),
      (scope, exit) => (Exit.isSuccess(exit) ? Effect.void : Scope.close(scope, exit))
    )
  )

/** For plans that no Berth runs: a cache of data about this machine. */
const unattended = Memory.make(lazily())

export const plan = (image: Image, options: StartOptions = {}): Effect.Effect<Plan.Plan, BerthError> =>
  attempt(() => {
    const rootless = process.geteuid?.() !== 0
    const at = {
      memory: unattended,
      folder: "/var/lib/berth/run/0",
      unit: 1,
      id: "000000000000",
      rootless,
      ids: Ids.all,
      userns: undefined,
      network: networks.none,
      targets: undefined
    }
    return Plan.make(prepare.start(image, options, at).operations)
  })

export const run = (
  image: Image,
  options: StartOptions & BufferOptions = {}
): Effect.Effect<Result, BerthError, Berth> =>
  Effect.flatMap(
    attempt(() => bufferedOptions(options)),
    (how) => Effect.scoped(Effect.flatMap(start(image, how), (container) => buffered(container, how)))
  ).pipe(spanIfObserved("berth.Container.run", { "container.image.name": image.reference }))

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
    const { ids, memory, rootless } = berth
    const { folder, nextId } = berth.supervisor
    const at = { memory, folder, unit: nextId(), id: prepare.makeId(), rootless, ids }
    const prepared = attempt(() => prepare.spawn(options, at))
    const started = yield* launchPrepared(berth, options, prepared, at.id)
    if (namespaces.kinds.includes("mount")) namespaces.root = rootfs
    return started
  })

/** Looks up a user in the present files of a running container. */
const userInside = (container: Container, user: string): Effect.Effect<users.User, BerthError> =>
  Effect.gen(function* () {
    const subject = `container ${container.id}`
    const passwd = yield* users.readInside(subject, container.pid, "etc/passwd")
    const group = yield* users.readInside(subject, container.pid, "etc/group")
    // The pid belonged to the container all the time if the container still runs.
    yield* running(container)
    return yield* attempt(() => users.resolve(subject, user, passwd, group))
  })

const execIn = (
  container: Container,
  command: ReadonlyArray<string>,
  options: ProcessOptions
): Effect.Effect<Process, BerthError, Scope.Scope> =>
  Effect.flatMap(running(container), () => {
    const { settings } = container.state
    const launched = (user: users.User) =>
      launchInside(container, options, {
        arguments: command,
        environment: {
          ...settings.environment,
          ...(options.user === undefined ? {} : { HOME: user.home }),
          ...prepare.termOf(options),
          ...options.env
        },
        workingDirectory: options.cwd ?? settings.workingDirectory,
        user
      })
    return Effect.flatMap(
      attempt(() => {
        check.process(options)
        check.command(command)
      }),
      () =>
        options.user === undefined
          ? launched(settings.user)
          : Effect.flatMap(userInside(container, options.user), launched)
    )
  })

export const execStream: {
  (
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): (container: Container) => Effect.Effect<Process, BerthError, Scope.Scope>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): Effect.Effect<Process, BerthError, Scope.Scope>
} = dual(
  (args) => isContainer(args[0]),
  (container: Container, command: ReadonlyArray<string>, options: ProcessOptions = {}) =>
    (container.state.elsewhere?.execStream(command, options) ?? execIn(container, command, options)).pipe(
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
    Effect.flatMap(
      attempt(() => bufferedOptions(options)),
      (how) =>
        container.state.elsewhere?.exec(command, options) ??
        Effect.scoped(Effect.flatMap(execIn(container, command, how), (process) => buffered(process, how)))
    ).pipe(spanIfObserved("berth.Container.exec", { "container.id": container.id }))
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
  const { cgroup, elsewhere } = container.state
  if (elsewhere !== undefined) return elsewhere.stats
  if (cgroup === undefined) {
    const detail =
      "it has no cgroup of its own: start it with limits (which may be empty: {}) or with a cgroup"
    return Effect.fail(new ContainerError({ reason: "NoCgroup", container: container.id, detail }))
  }
  // If the container has ended, its cgroup may be gone: then the error says so.
  return cgroup.folders.every((folder) => existsSync(folder.path))
    ? Cgroup.stats(cgroup)
    : Effect.zipRight(running(container), Cgroup.stats(cgroup))
}

export { cgroupOf, pause, resume, top } from "./pause.ts"
