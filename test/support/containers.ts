/** Containers of this machine's own root for tests, and ways to wait for what they do. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { isAlive, until } from "./leftovers.ts"

export const sh = (script: string): ReadonlyArray<string> => ["sh", "-c", script]

export const start = (script: string, options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.start(image, { command: sh(script), ...options }))

export const run = (script: string, options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, { command: sh(script), ...options }))

/** The output of a script, which has to end with exit code 0. */
export const out = (script: string, options: Container.StartOptions = {}) =>
  Effect.map(run(script, options), ({ exitCode, stdout, stderr }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })

/** A container that runs until it is ended. */
export const sleeper = start("exec sleep 1000")

/** Everything that a stream gives, as bytes. */
export const bytesOf = <E, R>(stream: Stream.Stream<Uint8Array, E, R>): Effect.Effect<Buffer, E, R> =>
  Effect.map(Stream.runCollect(stream), (chunks) => Buffer.concat(Chunk.toReadonlyArray(chunks)))

/** Everything that a stream gives, as text. */
export const textOf = <E, R>(stream: Stream.Stream<Uint8Array, E, R>): Effect.Effect<string, E, R> =>
  Stream.mkString(Stream.decodeText(stream))

/** The first line of output of a container, a process or a command. */
export const firstLineOf = <E, R>({ stdout }: { readonly stdout: Stream.Stream<Uint8Array, E, R> }) =>
  stdout.pipe(Stream.decodeText(), Stream.splitLines, Stream.runHead, Effect.map(Option.getOrThrow))

/** Reads a stream to its end in a daemon fiber. The second effect waits until the first bytes have arrived. */
export const readInBackground = <E>(stream: Stream.Stream<Uint8Array, E>) =>
  Effect.gen(function* () {
    const begun = yield* Deferred.make<void>()
    const reader = yield* Effect.forkDaemon(
      Stream.runDrain(Stream.tap(stream, () => Deferred.succeed(begun, undefined)))
    )
    return { reader, begun: Deferred.await(begun) }
  })

/** Waits until a condition holds; fails with the name of what was awaited. */
export const waitUntil = (what: string, condition: () => boolean | Promise<boolean>, millis?: number) =>
  Effect.promise(() => until(what, condition, millis))

/** Repeats an effect until its value is right; fails with the name of what was awaited after 30 seconds. */
export const repeatUntil = <A, E, R>(
  what: string,
  effect: Effect.Effect<A, E, R>,
  isRight: (value: A) => boolean
): Effect.Effect<A, E | Error, R> =>
  Effect.repeat(Effect.delay(effect, 5), { until: isRight }).pipe(
    Effect.timeoutFail({
      duration: "30 seconds",
      onTimeout: () => new Error(`it should come within 30 seconds: ${what}`)
    })
  )

/** Waits until none of the processes is alive. */
export const gone = (...pids: ReadonlyArray<number>) =>
  waitUntil(`the end of ${pids.join(", ")}`, () => !pids.some(isAlive))

/** Waits until a process has executed the program of this name and sleeps in it. */
export const sleepsIn = (pid: number, name: string) =>
  waitUntil(`process ${pid} sleeps in ${name}`, () =>
    fs.readFileSync(`/proc/${pid}/stat`, "utf8").includes(` (${name}) S `)
  )
