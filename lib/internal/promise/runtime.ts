/** Runs effects as promises, on a supervisor that lives while a call or a box needs it, and for a moment more. */
import { existsSync } from "node:fs"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Berth from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { CallOptions } from "../../promise.ts"
import { folderOf } from "../disk/defaultFolder.ts"
import { duration } from "../util/validate.ts"
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

/** How long a supervisor stays that nothing needs any more, in milliseconds. */
const LINGER_MILLIS = 1000

/** The longest delay of setTimeout; whatever is longer lasts until the program ends. */
const TIMEOUT_MILLIS_MAX = 2 ** 31 - 1

/** The ids that decide what a supervisor may do. */
const identity = (): string =>
  [
    process.getuid!(),
    process.geteuid!(),
    process.getgid!(),
    process.getegid!(),
    ...process.getgroups!()
  ].join(" ")

/** A supervisor that is starting, or that runs. */
interface Kept {
  readonly runtime: Runtime
  /** Undefined until it runs. */
  started: { readonly berth: Berth.Berth; readonly identity: string } | undefined
}

/**
 * A supervisor with a count of its users: the first one starts it. After the last one it lingers without keeping the program
 * alive, because the next call may come soon; a program with nothing else to do ends it and exits.
 */
export class Shared {
  private readonly options: Berth.Options
  private readonly lingers: boolean
  private kept: Kept | undefined
  private holders = 0
  private timer: NodeJS.Timeout | undefined

  constructor(options: Berth.Options, { lingers }: { readonly lingers: boolean }) {
    this.options = options
    this.lingers = lingers
  }

  /** Holds the supervisor until the returned function is called; the supervisor then stays for `linger`. Throws. */
  hold(linger: CallOptions["linger"], site?: Site): () => Promise<void> {
    const millis = this.lingerMillis(linger, site)
    if (this.holders++ === 0) this.resume()
    let held = true
    return async () => {
      if (!held) return
      held = false
      if (--this.holders > 0) return
      if (millis > 0 && this.isUsable()) this.wait(millis)
      else await this.end()
    }
  }

  private lingerMillis(linger: CallOptions["linger"], site: Site | undefined): number {
    try {
      const millis = Duration.toMillis(duration("linger", linger ?? LINGER_MILLIS))
      return this.lingers ? millis : 0
    } catch (error) {
      throw rejectionOf(error, site ?? siteOf(this.hold))
    }
  }

  /** Whether the supervisor runs, and a new one would be no other. */
  private isUsable(): boolean {
    const started = this.kept?.started
    return (
      started?.berth.supervisor.isRunning() === true &&
      started.berth.folder === folderOf(this.options) &&
      existsSync(started.berth.supervisor.folder) &&
      started.identity === identity()
    )
  }

  private wait(millis: number): void {
    process.once("beforeExit", this.endNow)
    if (millis > TIMEOUT_MILLIS_MAX) return
    this.timer = setTimeout(this.endNow, millis)
    this.timer.unref()
  }

  private stopWaiting(): void {
    process.removeListener("beforeExit", this.endNow)
    clearTimeout(this.timer)
    this.timer = undefined
  }

  private resume(): void {
    this.stopWaiting()
    if (this.kept !== undefined && !this.isUsable()) this.endNow()
  }

  private readonly endNow = (): void => {
    void this.end()
  }

  private async end(): Promise<void> {
    this.stopWaiting()
    const { kept } = this
    this.kept = undefined
    await kept?.runtime.dispose()
  }

  private start(): Kept {
    const layer = Layer.provide(Berth.layerWith(this.options), NodeFileSystem.layer)
    const kept: Kept = {
      started: undefined,
      runtime: ManagedRuntime.make(
        Layer.tap(layer, (context) =>
          Effect.sync(() => {
            kept.started = { berth: Context.get(context, Berth.Berth), identity: identity() }
          })
        )
      )
    }
    return kept
  }

  /** Rejects with a tagged error; after an abort with the signal's reason, once the effect is undone. */
  run<A>(effect: Effect.Effect<A, BerthError, Berth.Berth>, options: CallOptions = {}): Promise<A> {
    return this.runFrom(siteOf(this.run), effect, options)
  }

  /** The same for a call that the program made at `site`. A second signal aborts it as well. */
  async runFrom<A>(
    site: Site,
    effect: Effect.Effect<A, BerthError, Berth.Berth>,
    { linger, signal }: CallOptions,
    stop?: AbortSignal
  ): Promise<A> {
    const signals = [signal, stop]
    for (const each of signals) each?.throwIfAborted()
    const release = this.hold(linger, site)
    try {
      this.kept ??= this.start()
      const exit = await settle(this.kept.runtime, effect, signals)
      if (Exit.isSuccess(exit)) return exit.value
      if (Cause.isInterruptedOnly(exit.cause)) for (const each of signals) each?.throwIfAborted()
      throw rejectionOf(Cause.squash(exit.cause), site)
    } finally {
      await release()
    }
  }
}

/** The supervisor of all that is not in a session. */
export const shared: Shared = new Shared({}, { lingers: true })
