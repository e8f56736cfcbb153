/**
 * Random lives of containers, compared with a model. Where one command follows another, the model knows the result of
 * each; where many run at once, it knows what has to hold in every order. BERTH_LIFECYCLE_RUNS is the number of lives of
 * either kind. A failure prints the seed and the path that repeat it.
 */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import fc from "fast-check"
import { type Berth, BerthError, Cgroup, Container, Image } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { berthIn, suite } from "../support/effect.ts"
import { isAlive, leftovers, snapshot, until } from "../support/leftovers.ts"

const runs = Number(process.env.BERTH_LIFECYCLE_RUNS ?? 25)

const tree = detect()
const skip: string | false =
  tree.controllers.freezer === undefined ? `no freezer: ${tree.missing("freezer")}` : false

type Status = readonly [exitCode: number, signal: string | undefined]

const KILLED: Status = [137, "SIGKILL"]

/** What a container runs, and how SIGTERM ends it; undefined where the kernel drops that signal, as for pid 1. */
const kinds: Readonly<Record<string, Container.StartOptions & { readonly term: Status | undefined }>> = {
  handler: { command: ["sh", "-c", "trap 'exit 7' TERM; echo; sleep 1000 & wait"], term: [7, undefined] },
  deaf: { command: ["sh", "-c", "echo; exec sleep 1000"], term: undefined },
  init: { command: ["sh", "-c", "echo; exec sleep 1000"], init: true, term: [143, undefined] },
  host: {
    command: ["sh", "-c", "echo; exec sleep 1000"],
    namespaces: { pid: "host" },
    term: [143, "SIGTERM"]
  }
}

type Kind = keyof typeof kinds

interface Box {
  readonly kind: Kind
  readonly container: Container.Container
  readonly scope: Scope.CloseableScope
}

/** A Berth with its containers and its warnings. */
class World {
  readonly boxes: Array<Box> = []
  readonly warnings: Array<string> = []
  private readonly scope = Effect.runSync(Scope.make())
  private context: Context.Context<Berth.Berth> | undefined
  readonly folder: string
  private readonly logger: Layer.Layer<never>

  constructor(folder: string) {
    this.folder = folder
    this.logger = Logger.replace(
      Logger.defaultLogger,
      Logger.make(({ message }) => {
        for (const each of message as ReadonlyArray<unknown>)
          if (each instanceof BerthError.NotReleased) this.warnings.push(each.message)
      })
    )
  }

  async open(): Promise<this> {
    this.context = await Effect.runPromise(Layer.buildWithScope(berthIn(this.folder), this.scope))
    return this
  }

  /** Runs an effect, which counts as hanging after this time. */
  run<A, E>(effect: Effect.Effect<A, E, Berth.Berth>): Promise<A> {
    return Effect.runPromise(
      effect.pipe(Effect.timeout("20 seconds"), Effect.provide(this.context!), Effect.provide(this.logger))
    )
  }

  readonly closing: Effect.Effect<void> = Effect.suspend(() => Scope.close(this.scope, Exit.void))

  close(): Promise<void> {
    return this.run(this.closing)
  }

  async start(kind: Kind, limited: boolean): Promise<Box> {
    const scope = Effect.runSync(Scope.make())
    const { term: _, ...options } = kinds[kind]!
    const started = Effect.flatMap(Image.host, (image) =>
      Container.start(image, { ...options, ...(limited ? { limits: { pids: 50 } } : {}) })
    )
    const container = await this.run(
      started.pipe(
        // By its first line, its signal handlers are set.
        Effect.tap(({ stdout }) => Stream.runDrain(Stream.take(stdout, 1))),
        Scope.extend(scope)
      )
    )
    const box = { kind, container, scope }
    this.boxes.push(box)
    return box
  }

  closeBox({ scope }: Box): Promise<void> {
    return this.run(Scope.close(scope, Exit.void))
  }
}

/** The result of an effect, or the tag and reason of its error. */
const outcome = <A, R>(
  effect: Effect.Effect<A, BerthError.BerthError, R>
): Effect.Effect<A | string, never, R> =>
  Effect.catchAll(effect, (error) =>
    Effect.succeed("reason" in error ? `${error._tag} ${error.reason}` : error.message)
  )

const statusOf = (result: Container.ExitStatus | string): Status | string =>
  typeof result === "string" ? result : [result.exitCode, result.signal]

/** Whether the kernel has frozen the container. */
const isFrozen = ({ state }: Container.Container): boolean => {
  const folder = state.cgroup?.folders.find(({ controllers }) => controllers.includes("freezer"))
  if (folder === undefined) return false
  return folder.version === 1
    ? fs.readFileSync(`${folder.path}/freezer.state`, "utf8") === "FROZEN\n"
    : /^frozen 1$/m.test(fs.readFileSync(`${folder.path}/cgroup.events`, "utf8"))
}

// One command after another

interface Life {
  readonly kind: Kind
  readonly limited: boolean
  state: "running" | "paused" | "ended"
  /** Whether a SIGTERM is pending until the container is resumed. */
  asked: boolean
  hasCgroup: boolean
  open: boolean
  /** The exit status, or the error in its place once the supervisor is gone. */
  end: Status | string
}

interface Model {
  readonly lives: Array<Life>
  open: boolean
}

const end = (life: Life, status: Status | string): void => {
  life.state = "ended"
  life.end = status
}

/** Delivers a SIGTERM to a running container. */
const hear = (life: Life): void => {
  const { term } = kinds[life.kind]!
  life.asked = false
  if (term !== undefined) end(life, term)
}

/** The status of a killed container. One without a handler has died of a SIGTERM that came before, even while frozen. */
const killed = ({ asked, kind }: Life): Status => (asked && kind === "host" ? kinds.host!.term! : KILLED)

type Body = (life: Life, box: Box, world: World) => Promise<void>

/** A command on one of the containers that exist when it runs. */
class OnBox implements fc.AsyncCommand<Model, World> {
  readonly which: number
  readonly name: string
  readonly body: Body

  constructor(which: number, name: string, body: Body) {
    this.which = which
    this.name = name
    this.body = body
  }
  check = ({ lives }: Readonly<Model>): boolean => lives.length > 0
  async run(model: Model, world: World): Promise<void> {
    const k = this.which % model.lives.length
    const [life, box] = [model.lives[k]!, world.boxes[k]!]
    await this.body(life, box, world)
    // An exit status never changes, and the kernel agrees with it.
    if (life.state === "ended") {
      const status = await world.run(outcome(Container.wait(box.container)))
      assert.deepEqual(statusOf(status), life.end)
      await until("the end of the container's process", () => !isAlive(box.container.pid))
    } else {
      const status = await world.run(Effect.timeoutOption(Container.wait(box.container), 1))
      assert.ok(Option.isNone(status), "the container should run")
      assert.equal(isFrozen(box.container), life.state === "paused")
    }
  }
  toString = (): string => `${this.name}(${this.which})`
}

class Start implements fc.AsyncCommand<Model, World> {
  readonly kind: Kind
  readonly limited: boolean

  constructor(kind: Kind, limited: boolean) {
    this.kind = kind
    this.limited = limited
  }
  check = ({ lives }: Readonly<Model>): boolean => lives.length < 4
  async run(model: Model, world: World): Promise<void> {
    if (!model.open) {
      const started = Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["true"] }))
      return assert.equal(await world.run(outcome(Effect.scoped(started))), "SupervisorError Gone")
    }
    const { kind, limited } = this
    await world.start(kind, limited)
    const life = {
      kind,
      limited,
      state: "running",
      asked: false,
      // A container in the host's pid namespace is killed by its cgroup, so it always has one.
      hasCgroup: limited || kind === "host",
      open: true,
      end: ""
    } as const
    model.lives.push({ ...life })
  }
  toString = (): string => `start(${this.kind}${this.limited ? ", limited" : ""})`
}

class CloseBerth implements fc.AsyncCommand<Model, World> {
  check = ({ open }: Readonly<Model>): boolean => open
  async run(model: Model, world: World): Promise<void> {
    await world.close()
    model.open = false
    for (const life of model.lives) if (life.state !== "ended") end(life, "SupervisorError Gone")
  }
  toString = (): string => "closeBerth()"
}

const NOT_RUNNING = "ContainerError NotRunning"

const bodies: Readonly<Record<string, Body>> = {
  exec: async (life, { container }, world) => {
    const result = await world.run(outcome(Container.exec(container, ["sh", "-c", "exit 5"])))
    const expected = { running: [5, undefined], paused: "ContainerError Paused", ended: NOT_RUNNING }
    assert.deepEqual(statusOf(result), expected[life.state])
  },
  execCut: async (life, { container }, world) => {
    // The scope of the exec closes while it runs; in a paused container it does not start.
    const cut = Effect.scoped(
      Effect.map(Container.execStream(container, ["sleep", "1000"]), ({ pid }) => pid)
    )
    const result = await world.run(outcome(cut))
    if (typeof result === "number") assert.ok(!isAlive(result))
    else assert.equal(result, life.state === "paused" ? "ContainerError Paused" : NOT_RUNNING)
    assert.equal(typeof result === "number", life.state === "running")
  },
  pause: async (life, { container }, world) => {
    const result = await world.run(outcome(Container.pause(container)))
    assert.equal(result, life.state === "ended" ? NOT_RUNNING : undefined)
    if (life.state === "ended") return
    life.state = "paused"
    life.hasCgroup = true
  },
  resume: async (life, { container }, world) => {
    assert.equal(await world.run(outcome(Container.resume(container))), undefined)
    if (life.state !== "paused") return
    life.state = "running"
    if (life.asked) hear(life)
  },
  stop: async (life, { container }, world) => {
    // Where SIGTERM ends the container, the grace period must not run out.
    const grace = kinds[life.kind]!.term === undefined ? "20 millis" : "15 seconds"
    const result = statusOf(await world.run(outcome(Container.stop(container, { grace }))))
    if (life.state !== "ended") end(life, kinds[life.kind]!.term ?? KILLED)
    assert.deepEqual(result, life.end)
  },
  term: async (life, { container }, world) => {
    assert.equal(await world.run(outcome(Container.signal(container, "SIGTERM"))), undefined)
    if (life.state === "running") hear(life)
    if (life.state !== "paused") return
    life.asked = true
    // The freezer of version 2 lets a frozen process die.
    if (life.kind === "host" && tree.controllers.freezer?.version === 2) hear(life)
  },
  kill: async (life, { container }, world) => {
    assert.equal(await world.run(outcome(Container.signal(container, 9))), undefined)
    if (life.state !== "ended") end(life, killed(life))
  },
  top: async (life, { container }, world) => {
    const result = await world.run(outcome(Container.top(container)))
    if (life.state === "ended") assert.equal(result, NOT_RUNNING)
    else assert.ok(typeof result !== "string" && result.some(({ pid }) => pid === container.pid))
  },
  cgroup: async (life, { container }, world) => {
    const result = await world.run(outcome(Container.cgroup(container)))
    if (life.state === "ended" && !life.hasCgroup) return assert.equal(result, NOT_RUNNING)
    assert.ok(Cgroup.isCgroup(result))
    life.hasCgroup = true
  },
  stats: async (life, { container }, world) => {
    const result = await world.run(outcome(Container.stats(container)))
    if (!life.hasCgroup) return assert.equal(result, "ContainerError NoCgroup")
    if (life.state !== "ended") assert.ok(typeof result !== "string", String(result))
    else assert.ok(typeof result !== "string" || result === NOT_RUNNING, String(result))
  },
  // A second close does nothing.
  close: async (life, box, world) => {
    await world.closeBox(box)
    life.open = false
    if (life.state !== "ended") end(life, killed(life))
  }
}

const kindArbitrary = fc.constantFrom(...Object.keys(kinds))

const commands = fc.commands<Model, World, false>(
  [
    fc.tuple(kindArbitrary, fc.boolean()).map(([kind, limited]) => new Start(kind, limited)),
    ...Object.entries(bodies).map(([name, body]) => fc.nat(3).map((which) => new OnBox(which, name, body))),
    fc.constant(new CloseBerth())
  ],
  { maxCommands: 30, size: "max" }
)

// Many at once

interface Step {
  readonly which: number
  readonly name: keyof typeof steps
  /** Milliseconds before the step. */
  readonly wait: number
}

const exec = ({ container }: Box) => Container.exec(container, ["sh", "-c", "exit 5"])

const steps = {
  exec: (box: Box) => Effect.map(exec(box), statusOf),
  execCut: ({ container }: Box) => Effect.scoped(Container.execStream(container, ["sleep", "1000"])),
  pause: ({ container }: Box) => Container.pause(container),
  pauseCut: ({ container }: Box) => Effect.timeoutOption(Container.pause(container), 1),
  resume: ({ container }: Box) => Container.resume(container),
  top: ({ container }: Box) => Container.top(container),
  cgroup: ({ container }: Box) => Container.cgroup(container),
  stop: ({ container }: Box) => Container.stop(container, { grace: "50 millis" }),
  term: ({ container }: Box) => Container.signal(container, "SIGTERM"),
  kill: ({ container }: Box) => Container.signal(container, "SIGKILL"),
  close: ({ scope }: Box) => Scope.close(scope, Exit.void)
} satisfies Record<string, (box: Box) => Effect.Effect<unknown, BerthError.BerthError>>

const gentle = ["exec", "execCut", "pause", "pauseCut", "resume", "top", "cgroup"] as const
const ending = ["stop", "term", "kill", "close"] as const

/** Whether a step may have this result while others run; `over` tells whether any of these ends the container. */
const mayBe = (name: Step["name"], result: unknown, over: boolean, closed: boolean): boolean => {
  if (typeof result !== "string") {
    if (name !== "exec") return true
    const status = JSON.stringify(result)
    return status === "[5,null]" || (over && status === JSON.stringify(KILLED))
  }
  if (closed && result === "SupervisorError Gone") return true
  if (name.startsWith("exec") && result === "ContainerError Paused") return true
  return over && !["resume", ...ending].includes(name) && result === NOT_RUNNING
}

const fibers = (count: number): fc.Arbitrary<ReadonlyArray<ReadonlyArray<Step>>> => {
  const name = fc.oneof(
    { arbitrary: fc.constantFrom(...gentle), weight: 6 },
    { arbitrary: fc.constantFrom(...ending), weight: 1 }
  )
  const step = fc.record({ which: fc.nat(count - 1), name, wait: fc.oneof(fc.constant(0), fc.nat(6)) })
  return fc.array(fc.array(step, { minLength: 1, maxLength: 8 }), { minLength: 2, maxLength: 6 })
}

interface Many {
  readonly boxes: ReadonlyArray<readonly [Kind, boolean]>
  readonly fibers: ReadonlyArray<ReadonlyArray<Step>>
  /** Milliseconds until the Berth closes, or -1 where it does not. */
  readonly closeAt: number
}

const many: fc.Arbitrary<Many> = fc
  .array(fc.tuple(kindArbitrary, fc.boolean()), { minLength: 1, maxLength: 2 })
  .chain((boxes) =>
    fc.record({
      boxes: fc.constant(boxes),
      fibers: fibers(boxes.length),
      // The Berth closes in one of eight lives.
      closeAt: fc.oneof({ arbitrary: fc.constant(-1), weight: 7 }, { arbitrary: fc.nat(40), weight: 1 })
    })
  )

const atOnce = async (world: World, { boxes, closeAt, fibers }: Many): Promise<void> => {
  for (const [kind, limited] of boxes) await world.start(kind, limited)
  const all = fibers.flat()
  const isOver = (which: number): boolean =>
    closeAt >= 0 ||
    all.some((step) => step.which === which && (ending as ReadonlyArray<string>).includes(step.name))
  let left = fibers.length
  const step = ({ name, wait, which }: Step) =>
    Effect.delay(
      Effect.map(outcome<unknown, never>(steps[name](world.boxes[which]!)), (result) =>
        assert.ok(
          mayBe(name, result, isOver(which), closeAt >= 0),
          `${name}(${which}): ${JSON.stringify(result)}`
        )
      ),
      wait
    )
  const fiber = (list: ReadonlyArray<Step>) =>
    Effect.ensuring(
      Effect.forEach(list, step, { discard: true }),
      Effect.sync(() => left--)
    )
  // Paused execs are resumed again and again, so that every step ends.
  const resuming = Effect.repeat(
    Effect.delay(
      Effect.forEach(world.boxes, ({ container }) => Container.resume(container), { discard: true }),
      30
    ),
    { until: () => left === 0 }
  )
  const closing = closeAt < 0 ? Effect.void : Effect.delay(world.closing, closeAt)
  await world.run(
    Effect.all(
      [Effect.forEach(fibers, fiber, { concurrency: "unbounded", discard: true }), resuming, closing],
      {
        concurrency: "unbounded",
        discard: true
      }
    )
  )
  for (const [which, box] of world.boxes.entries()) {
    const { container, kind } = box
    // A container that nothing has ended runs and is not frozen.
    if (!isOver(which)) {
      assert.deepEqual(statusOf(await world.run(exec(box))), [5, undefined])
      assert.ok(isAlive(container.pid) && !isFrozen(container))
      continue
    }
    const sure =
      closeAt >= 0 ||
      all.some(({ name, which: of }) => of === which && ["stop", "kill", "close"].includes(name))
    const ends = await world.run(
      Effect.timeoutOption(outcome(container.exit), sure || kinds[kind]!.term !== undefined ? 10_000 : 10)
    )
    if (Option.isNone(ends)) {
      assert.ok(!sure && kinds[kind]!.term === undefined, "the container should have ended")
      continue
    }
    const possible = [KILLED, kinds[kind]!.term, ...(closeAt >= 0 ? ["SupervisorError Gone"] : [])]
    assert.ok(
      possible.some((one) => JSON.stringify(one) === JSON.stringify(statusOf(ends.value))),
      String(statusOf(ends.value))
    )
    assert.deepEqual(await world.run(outcome(Container.stop(container))), ends.value)
    assert.equal(await world.run(outcome(exec(box))), NOT_RUNNING)
  }
}

suite("Lifecycle model", (effect, folder) => {
  let count = 0

  /** Runs one life in another Berth, which has to leave no process, mount, cgroup, namespace, descriptor or folder. */
  const live = async (body: (world: World) => Promise<void>): Promise<void> => {
    const at = `${folder()}-${count++}`
    const before = snapshot()
    const world = await new World(at).open()
    try {
      await body(world)
    } finally {
      await world.close()
      for (const box of world.boxes) await world.closeBox(box)
    }
    assert.deepEqual(await leftovers(before, at), [])
    assert.deepEqual(world.warnings, [])
    fs.rmSync(at, { recursive: true, force: true })
  }

  effect(
    "containers behave as the model says when commands come one after another",
    function* () {
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(commands, (list) =>
            live((world) => fc.asyncModelRun(() => ({ model: { lives: [], open: true }, real: world }), list))
          ),
          { numRuns: runs, includeErrorInReport: true }
        )
      )
    },
    { skip }
  )

  effect(
    "containers keep their invariants when many commands come at once",
    function* () {
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(many, (what) => live((world) => atOnce(world, what))),
          // A failure is not made smaller: the same commands may come in another order the next time.
          { numRuns: runs, includeErrorInReport: true, endOnFailure: true }
        )
      )
    },
    { skip }
  )
})
