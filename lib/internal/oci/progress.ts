/** Listeners to the progress of a pull or a push: a function, bars on a terminal, or none. */
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../BerthError.ts"
import type { Listener, Phase, Progress, ProgressOptions } from "../../Progress.ts"
import type { Digest } from "../../Reference.ts"
import * as digests from "../util/digest.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import type * as Oci from "./documents.ts"

/** The events of one blob, in the order in which they happen. */
export interface Steps {
  readonly enter: (phase: Phase) => void
  /** The same for a blob that must be transferred: it begins at 0 bytes. */
  readonly begin: (phase: Phase) => void
  readonly moved: (bytes: number) => void
}

export const stepsOf = (listener: Listener, descriptor: Oci.Descriptor): Steps => {
  const digest = descriptor.digest as Digest
  const { size } = descriptor
  let phase: Phase = "waiting"
  let bytes = 0
  const tell = (): void => listener({ _tag: "Layer", digest, phase, bytes, size })
  return {
    enter: (next) => {
      phase = next
      tell()
    },
    begin: (next) => {
      phase = next
      bytes = 0
      tell()
    },
    moved: (more) => {
      bytes += more
      tell()
    }
  }
}

/** The same bytes, counted; each run counts from 0. */
export const counted = <E, R>(
  stream: Stream.Stream<Uint8Array, E, R>,
  { begin, moved }: Steps,
  phase: Phase
): Stream.Stream<Uint8Array, E, R> =>
  Stream.suspend(() => {
    begin(phase)
    return Stream.map(stream, (chunk) => {
      moved(chunk.length)
      return chunk
    })
  })

/** Turns an effect with a listener into a stream of the events, followed by the effect's result. */
export const told = <A, E, R>(
  work: (listener: Listener) => Effect.Effect<A, E, R>
): Stream.Stream<Progress | A, E, R> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const mailbox = yield* Mailbox.make<Progress | A, E>()
      const all = Effect.map(
        work((progress) => void mailbox.unsafeOffer(progress)),
        (last) => mailbox.unsafeOffer(last)
      )
      yield* Effect.forkScoped(Mailbox.into(all, mailbox))
      return Mailbox.toStream(mailbox)
    })
  )

const nobody: Listener = () => {}

/** The listener of the options; bars are drawn until the scope closes. */
export const listening = (options: ProgressOptions): Effect.Effect<Listener, BerthError, Scope.Scope> => {
  const { progress = "auto" } = options
  if (typeof progress === "function") return Effect.succeed(progress)
  if (progress !== "auto" && progress !== "none")
    return attempt((): Listener => check.invalid("progress", progress, '"auto", "none" or a function'))
  return progress === "auto" && process.stderr.isTTY ? bars : Effect.succeed(nobody)
}

// Loaded on first use: most programs draw no bars.
const bars: Effect.Effect<Listener, never, Scope.Scope> = Effect.gen(function* () {
  const { MultiBar, Presets } = yield* Effect.promise(async () => (await import("cli-progress")).default)
  const multi = yield* Effect.acquireRelease(
    Effect.sync(
      () =>
        new MultiBar(
          {
            stream: process.stderr,
            format: "{digest} {bar} {megabytes} MB {phase}",
            hideCursor: true,
            clearOnComplete: false,
            // Ctrl-C interrupts the pull, whose scope stops the bars.
            gracefulExit: false,
            barsize: 30
          },
          Presets.shades_classic
        )
    ),
    (drawn) => Effect.sync(() => drawn.stop())
  )
  const drawn = new Map<string, ReturnType<typeof multi.create>>()
  return ({ bytes, digest, phase, size }) => {
    const all = phase === "done" || phase === "present"
    const megabytes = (size / 1e6).toFixed(1).padStart(8)
    const shown = { digest: digests.parts(digest).hex.slice(0, 12), megabytes, phase: phase.padEnd(12) }
    const bar = drawn.get(digest) ?? multi.create(Math.max(size, 1), 0, shown)
    drawn.set(digest, bar)
    bar.update(all ? Math.max(size, 1) : bytes, shown)
  }
})
