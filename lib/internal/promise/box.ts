/** A container as an object with promises: its commands, files, conditions and lifetime. */
import type { PlatformError } from "@effect/platform/Error"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption, OperationFailed } from "../../BerthError.ts"
import * as Cgroup from "../../Cgroup.ts"
import type * as Connection from "../../Connection.ts"
import * as Container from "../../Container.ts"
import * as Network from "../../Network.ts"
import type {
  Abortable,
  Box,
  BoxConnection,
  BoxNetwork,
  CallOptions,
  Closable,
  Conditions,
  Faulty,
  Files,
  ForkOptions,
  Inside,
  InsideOptions,
  StartOptions
} from "../../promise.ts"
import * as WaitFor from "../../WaitFor.ts"
import { feed } from "../container/buffered.ts"
import { errnoOf, Failure } from "../files/rooted.ts"
import * as http from "../network/fetch.ts"
import { publish } from "../network/publish.ts"
import { words } from "../util/commandTemplate.ts"
import { EIO } from "../util/errno.ts"
import { later } from "../util/later.ts"
import { whole } from "../util/whole.ts"
import { exec, makeCommand, streamOf, withInput } from "./command.ts"
import { fetchIn } from "./fetch.ts"
import { iterableOf } from "./rejection.ts"
import type { Shared } from "./runtime.ts"

const snapshotting = later(() => import("../container/snapshot.ts"))

/** The container of each box, for options that take a box. */
const containers = new WeakMap<Box, Container.Container>()

/** The options of `Container.start`, in which containers stand for boxes. */
export const withContainers = ({ namespaces, ...options }: StartOptions): Container.StartOptions => {
  if (namespaces === undefined) return options
  const entries = Object.entries(namespaces).map(([kind, from]) => [
    kind,
    containers.get(from as Box) ?? from
  ])
  return { ...options, namespaces: Object.fromEntries(entries) }
}

/** The container of a box. Something that is no box stays as it is, and is refused where it is used. */
export const containerOf = (box: Box): Container.Container => containers.get(box) ?? (box as never)

const inside = (shared: Shared, container: Container.Container, options: InsideOptions): Inside => {
  const merged = (more: InsideOptions): InsideOptions => ({
    ...options,
    ...more,
    env: { ...options.env, ...more.env }
  })
  return {
    $: (text, ...values) => makeCommand(shared, container, () => words(text.raw, values), options),
    exec: (command, more = {}) => {
      const all = merged(more)
      return withInput(all.input, (input) => shared.run(exec(container, command, { ...all, input }), all))
    },
    with: (more) => inside(shared, container, merged(more))
  }
}

/** Turns a PlatformError of a file operation into an error of Berth. */
const failedAs =
  (operation: string) =>
  (error: PlatformError): BerthError => {
    const { cause } = error
    const errno = errnoOf(cause)
    if (errno === undefined && error._tag === "BadArgument")
      return new InvalidOption({ option: "path", value: operation, expected: "text without NUL", cause })
    const { syscall = "open" } = (cause ?? {}) as NodeJS.ErrnoException
    const hint = cause instanceof Failure ? cause.hint : errno === undefined ? error.message : ""
    return new OperationFailed({ operation, index: -1, syscall, errno: errno ?? EIO, hint, cause })
  }

const filesOf = (shared: Shared, container: Container.Container): Files => {
  const system = Container.fileSystem(container)
  const asBerth = <A>(
    name: string,
    path: string,
    effect: Effect.Effect<A, PlatformError>
  ): Effect.Effect<A, BerthError> => Effect.mapError(effect, failedAs(`${name} ${path}`))
  return {
    readFile: (path, { signal } = {}) =>
      shared.run(asBerth("readFile", path, system.readFile(path)), { signal }),
    readText: (path, { signal } = {}) =>
      shared.run(asBerth("readText", path, system.readFileString(path)), { signal }),
    writeFile: (path, data, { mode, signal } = {}) => {
      const options = mode === undefined ? {} : { mode }
      const written =
        typeof data === "string"
          ? system.writeFileString(path, data, options)
          : system.writeFile(path, data, options)
      return shared.run(asBerth("writeFile", path, written), { signal })
    },
    makeFolder: (path, { recursive = false, signal } = {}) =>
      shared.run(asBerth("makeFolder", path, system.makeDirectory(path, { recursive })), { signal }),
    list: (path, { signal } = {}) =>
      shared.run(asBerth("list", path, system.readDirectory(path)), { signal }),
    remove: (path, { force = false, recursive = false, signal } = {}) =>
      shared.run(asBerth("remove", path, system.remove(path, { force, recursive })), { signal }),
    rename: (from, to, { signal } = {}) =>
      shared.run(asBerth("rename", `${from} -> ${to}`, system.rename(from, to)), { signal }),
    exists: (path, { signal } = {}) => shared.run(asBerth("exists", path, system.exists(path)), { signal }),
    stat: (path, { signal } = {}) => {
      const status = Effect.map(asBerth("stat", path, system.stat(path)), (info) => ({
        type: info.type,
        size: Number(info.size),
        mode: info.mode,
        uid: Option.getOrUndefined(info.uid),
        gid: Option.getOrUndefined(info.gid),
        modified: Option.getOrUndefined(info.mtime)
      }))
      return shared.run(status, { signal })
    }
  }
}

const conditionsOf = (shared: Shared, container: Container.Container): Conditions => ({
  log: (pattern, options = {}) => shared.run(WaitFor.log(container, pattern, options), options),
  port: (port, options = {}) => shared.run(WaitFor.port(container, port, options), options),
  http: (options) => shared.run(WaitFor.http(container, options), options),
  command: (command, options = {}) => shared.run(WaitFor.command(container, command, options), options),
  healthCheck: (options = {}) => shared.run(WaitFor.healthCheck(container, options), options)
})

/** Runs an effect in a scope that is made for it and closes if it fails; `use` gets its value and the scope. */
export const inScope = <A, B>(
  effect: Effect.Effect<A, BerthError, Berth | Scope.Scope>,
  use: (value: A, scope: Scope.CloseableScope) => B,
  makeScope: Effect.Effect<Scope.CloseableScope> = Scope.make()
): Effect.Effect<B, BerthError, Berth> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(makeScope, (scope) =>
      restore(effect).pipe(
        Scope.extend(scope),
        Effect.map((value) => use(value, scope)),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    )
  )

/** Makes a value that exists until it is closed, or `scope`. */
export const closableIn = <A, B extends object>(
  shared: Shared,
  scope: Scope.Scope,
  effect: Effect.Effect<A, BerthError, Berth | Scope.Scope>,
  give: (value: A) => B,
  options: Abortable = {}
): Promise<B & Closable> =>
  shared.run(
    inScope(
      whole(effect),
      (value, own) => {
        const close = (): Promise<void> => Effect.runPromise(Scope.close(own, Exit.void))
        return Object.assign(give(value), { close, [Symbol.asyncDispose]: close })
      },
      Scope.fork(scope, ExecutionStrategy.sequential)
    ),
    options
  )

/** Adds `toxic` to something that a proxy serves. */
export const faulty = <A extends Network.ToxicTarget>(
  shared: Shared,
  scope: Scope.Scope,
  target: A
): A & Faulty =>
  Object.assign(target, {
    toxic: (options: Network.ToxicOptions) =>
      closableIn(shared, scope, Network.toxic(target, options), () => ({}))
  })

/** Finds published ports: see `Container.published`. */
export const publishedOf =
  (shared: Shared, scope: Scope.Scope, of: Container.Container | Network.Pod): BoxNetwork["published"] =>
  (port, protocol) =>
    shared.run(Effect.map(Container.published(of, port, protocol), (found) => faulty(shared, scope, found)))

const connectionOf = (shared: Shared, { sink, stream }: Connection.Connection): BoxConnection => ({
  stream: iterableOf(stream),
  send: (input, options) =>
    withInput(input, (given) => shared.run(Stream.run(streamOf(given), sink), options))
})

const networkOf = (
  shared: Shared,
  container: Container.Container,
  scope: Scope.CloseableScope
): BoxNetwork => {
  return {
    connect: (address, options) =>
      closableIn(
        shared,
        scope,
        Container.connect(container, address),
        (connection) => connectionOf(shared, connection),
        options
      ),
    netSocket: (address) => Container.netSocket(container, address),
    listen: (address, handler) => {
      const handle = (connection: Connection.Connection) =>
        Effect.tryPromise({
          try: async () => handler(connectionOf(shared, connection)),
          catch: (error) => error
        })
      return closableIn(shared, scope, Container.listen(container, address, handle), (listening) => ({
        ...listening
      }))
    },
    netServer: (address, onConnection) => Container.netServer(container, address, onConnection),
    fetch: fetchIn(shared, scope, http.subjectOf(container), http.fetcher(container)),
    publish: ((port: Connection.Publishable) =>
      closableIn(shared, scope, publish(container, port), (published) =>
        faulty(shared, scope, published)
      )) as Box["publish"],
    published: publishedOf(shared, scope, container)
  }
}

/** Holds the supervisor until the scope is closed by the function that this gives. */
export const closing = (
  shared: Shared,
  scope: Scope.CloseableScope,
  linger: CallOptions["linger"]
): (() => Promise<void>) => {
  const release = shared.hold(linger)
  let closed: Promise<void> | undefined
  const end = async (): Promise<void> => {
    await shared.run(Scope.close(scope, Exit.void))
    await release()
  }
  return () => {
    closed ??= end()
    return closed
  }
}

/** Starts forks, each in a scope of its own; the layer that they share goes with the last. */
const forked = (
  shared: Shared,
  container: Container.Container,
  { count, linger, signal: _, ...options }: ForkOptions
): Effect.Effect<ReadonlyArray<Box>, BerthError, Berth> =>
  inScope(
    Effect.flatMap(Effect.scope, (outer) => {
      // One for the start of all.
      let left = 1
      const counted = Effect.acquireRelease(
        Effect.sync(() => left++),
        () =>
          Effect.suspend(() =>
            --left === 0 ? Scope.close(outer as Scope.CloseableScope, Exit.void) : Effect.void
          )
      )
      const forks = snapshotting(({ forkEach }) =>
        forkEach(container, { ...withContainers(options), count }, (start) =>
          inScope(
            Effect.zipRight(counted, start),
            (made, scope) => makeBox(shared, made, scope, linger),
            Scope.fork(outer, ExecutionStrategy.sequential)
          )
        )
      )
      return Effect.tap(forks, () => Effect.sync(() => left--))
    }),
    (boxes) => boxes
  )

export const makeBox = (
  shared: Shared,
  container: Container.Container,
  scope: Scope.CloseableScope,
  linger: CallOptions["linger"]
): Box => {
  const close = closing(shared, scope, linger)
  const box: Box = {
    ...inside(shared, container, {}),
    ...networkOf(shared, container, scope),
    id: container.id,
    pid: container.pid,
    stdout: iterableOf(container.stdout),
    stderr: iterableOf(container.stderr),
    files: filesOf(shared, container),
    waitFor: conditionsOf(shared, container),
    logs: (options) => iterableOf(Container.logs(container, options)),
    stdin: (input, options) =>
      withInput(input, (given) => shared.run(feed(container, streamOf(given)), options)),
    attach: (options: Abortable = {}) => shared.run(Container.attach(container), options),
    resize: (size) => shared.run(Container.resize(container, size)),
    copyIn: (hostPath, path, options: Abortable = {}) =>
      shared.run(Container.copyIn(container, hostPath, path), options),
    copyOut: (path, hostPath, options = {}) =>
      shared.run(Container.copyOut(container, path, hostPath, options), options),
    tarIn: (path, archive, options) =>
      withInput(archive, (given) =>
        shared.run(Stream.run(streamOf(given), Container.tarIn(container, path)), options)
      ),
    tarOut: (path, options = {}) => iterableOf(Container.tarOut(container, path, options)),
    wait: (options) => shared.run(container.exit, options),
    kill: (signal = "SIGTERM") => shared.run(Container.signal(container, signal)),
    pause: () => shared.run(Container.pause(container)),
    resume: () => shared.run(Container.resume(container)),
    top: () => shared.run(Container.top(container)),
    stats: () => shared.run(Container.stats(container)),
    update: (limits) => shared.run(Effect.flatMap(Container.cgroup(container), Cgroup.update(limits))),
    stop: (options = {}) => shared.run(Container.stop(container, options), options),
    commit: (options = {}) => shared.run(Container.commit(container, options), options),
    keep: (options) => shared.run(Container.keep(container, options)),
    snapshot: (options = {}) => shared.run(Container.snapshot(container, options), options),
    fork: (options = {}) => shared.run(forked(shared, container, options), options),
    close,
    [Symbol.asyncDispose]: close
  }
  containers.set(box, container)
  return box
}
