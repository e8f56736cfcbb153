/** Runs effects as promises, on a supervisor that lives only while a call or a box needs it. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Berth from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import { rejectionOf, type Site, siteOf } from "./rejection.ts"

type Runtime = ManagedRuntime.ManagedRuntime<Berth.Berth, BerthError>

/** Runs an effect until its end. An abort interrupts it, and this waits for the end of the interruption. */
const settle = <A>(
  runtime: Runtime,
  effect: Effect.Effect<A, BerthError, Berth.Berth>,
  signals: ReadonlyArray<AbortSignal | undefined>
): Promise<Exit.Exit<A, BerthError>> =>
  new Promise((resolve) => {
    const fiber = runtime.runFork(effect)
    const abort = (): void => fiber.unsafeInterruptAsFork(fiber.id())
    // By hand, as a signal may live for longer than thousands of commands.
    for (const signal of signals) signal?.addEventListener("abort", abort, { once: true })
    fiber.addObserver((exit) => {
      for (const signal of signals) signal?.removeEventListener("abort", abort)
      resolve(exit)
    })
  })

/**
 * A supervisor with a count of its users: the first one starts it; the last one ends it and waits for its end, so that a program
 * without boxes has nothing open.
 */
export class Shared {
  private readonly options: Berth.Options
  private runtime: Runtime | undefined
  private holders = 0

  constructor(options: Berth.Options) {
    this.options = options
  }

  /** Holds the supervisor until the function that this gives is called. */
  hold(): () => Promise<void> {
    this.holders++
    let held = true
    return async () => {
      if (!held) return
      held = false
      if (--this.holders > 0) return
      const { runtime } = this
      this.runtime = undefined
      await runtime?.dispose()
    }
  }

  /** Rejects with a tagged error; after an abort with the signal's reason, once the effect is undone. */
  run<A>(
    effect: Effect.Effect<A, BerthError, Berth.Berth>,
    ...signals: ReadonlyArray<AbortSignal | undefined>
  ): Promise<A> {
    return this.runFrom(siteOf(this.run), effect, ...signals)
  }

  /** The same for a call that the program made at `site`. */
  async runFrom<A>(
    site: Site,
    effect: Effect.Effect<A, BerthError, Berth.Berth>,
    ...signals: ReadonlyArray<AbortSignal | undefined>
  ): Promise<A> {
    for (const signal of signals) signal?.throwIfAborted()
    const release = this.hold()
    try {
      this.runtime ??= ManagedRuntime.make(Layer.provide(Berth.layerWith(this.options), NodeFileSystem.layer))
      const exit = await settle(this.runtime, effect, signals)
      if (Exit.isSuccess(exit)) return exit.value
      if (Cause.isInterruptedOnly(exit.cause)) for (const signal of signals) signal?.throwIfAborted()
      throw rejectionOf(Cause.squash(exit.cause), site)
    } finally {
      await release()
    }
  }
}
