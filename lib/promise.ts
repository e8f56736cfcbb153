/**
 * Berth for programs that do not use Effect: promises, `await using`, `AbortSignal` and async iterables. Errors are
 * the same tagged values, thrown. Needs the package `@effect/platform-node` beside berth.
 *
 * @since 0.1.0
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Berth from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as Container from "./Container.ts"
import * as Image from "./Image.ts"
import { words } from "./internal/words.ts"

/**
 * What can be aborted: the promise then rejects with the signal's reason, an `AbortError` unless another was given, and
 * what had been started is gone.
 *
 * @since 0.1.0
 * @category models
 */
export interface Abortable {
  readonly signal?: AbortSignal | undefined
}

/**
 * A running container.
 *
 * @since 0.1.0
 * @category models
 */
export interface Box extends AsyncDisposable {
  readonly id: string
  /** Its first process, as the host sees it. */
  readonly pid: number
  /** What it writes, from byte zero; each byte is given once. */
  readonly stdout: AsyncIterable<Uint8Array>
  readonly stderr: AsyncIterable<Uint8Array>
  /** Waits for its end. */
  readonly wait: (options?: Abortable) => Promise<Container.ExitStatus>
  /** Runs a command inside and gives what it wrote. */
  readonly exec: (
    command: ReadonlyArray<string>,
    options?: Container.ExecOptions & Abortable
  ) => Promise<Container.Result>
  /**
   * Runs a command inside. The text is split into words as a shell would, quotes included, but there is no shell: a
   * value in `${}` is, or is part of, one word whatever it holds, and an array is a word for each of its elements.
   */
  readonly $: (text: TemplateStringsArray, ...values: ReadonlyArray<Value>) => Promise<Container.Result>
  /** Sends a signal by name or number. */
  readonly kill: (signal?: string | number) => Promise<void>
  /** Asks it to stop, and kills it when the grace is over. */
  readonly stop: (options?: Container.StopOptions & Abortable) => Promise<Container.ExitStatus>
}

/**
 * What can stand in a command's `${}`.
 *
 * @since 0.1.0
 * @category models
 */
export type Value = string | number | ReadonlyArray<string | number>

// One supervisor for the program. It holds nothing alive, and ends with the process whatever its end is.
let shared: ManagedRuntime.ManagedRuntime<Berth.Berth, BerthError> | undefined

const runtime = (): ManagedRuntime.ManagedRuntime<Berth.Berth, BerthError> => {
  shared ??= ManagedRuntime.make(Layer.provide(Berth.layer, NodeFileSystem.layer))
  return shared
}

const run = async <A>(
  effect: Effect.Effect<A, BerthError, Berth.Berth>,
  { signal }: Abortable = {}
): Promise<A> => {
  signal?.throwIfAborted()
  const exit = await runtime().runPromiseExit(effect, signal === undefined ? {} : { signal })
  if (Exit.isSuccess(exit)) return exit.value
  if (Cause.isInterruptedOnly(exit.cause)) signal?.throwIfAborted()
  throw Cause.squash(exit.cause)
}

const named = (image: string | Image.Image): Effect.Effect<Image.Image, BerthError, Berth.Berth> => {
  if (typeof image !== "string") return Effect.succeed(image)
  if (image === "host") return Image.host
  const layout = /^oci:(.+?)(?::([\w][\w.-]{0,127}))?$/.exec(image)
  if (layout !== null) return Image.fromLayout(layout[1]!, layout[2] === undefined ? {} : { tag: layout[2] })
  return image.startsWith("/") ? Image.fromRootfs(image) : Image.pull(image)
}

const makeBox = (container: Container.Container, scope: Scope.CloseableScope): Box => {
  const exec: Box["exec"] = (command, options = {}) =>
    run(Container.exec(container, command, options), options)
  return {
    id: container.id,
    pid: container.pid,
    stdout: Stream.toAsyncIterable(container.stdout),
    stderr: Stream.toAsyncIterable(container.stderr),
    wait: (options) => run(container.exit, options),
    exec,
    $: async (text, ...values) => exec(words(text.raw, values)),
    kill: (signal = "SIGTERM") => run(Container.signal(container, signal)),
    stop: (options = {}) => run(Container.stop(container, options), options),
    [Symbol.asyncDispose]: () => run(Scope.close(scope, Exit.void))
  }
}

/**
 * Starts a container: of the machine's own root (`"host"`), a folder (an absolute path), an OCI layout
 * (`"oci:PATH[:TAG]"`), or an image of a registry. It is gone when it is disposed of, or when the program ends.
 *
 * @since 0.1.0
 * @category constructors
 */
export const start = (
  image: string | Image.Image,
  options: Container.StartOptions & Abortable = {}
): Promise<Box> =>
  run(
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Scope.make(), (scope) =>
        restore(Effect.flatMap(named(image), (from) => Container.start(from, options))).pipe(
          Scope.extend(scope),
          Effect.map((container) => makeBox(container, scope)),
          Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
        )
      )
    ),
    options
  )

/**
 * Starts a container, waits for its end and gives all that it wrote.
 *
 * @since 0.1.0
 * @category constructors
 */
export const runContainer = (
  image: string | Image.Image,
  options: Container.StartOptions & Container.BufferOptions & Abortable = {}
): Promise<Container.Result> =>
  run(
    Effect.flatMap(named(image), (from) => Container.run(from, options)),
    options
  )

export { runContainer as run }
