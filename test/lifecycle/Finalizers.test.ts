/** How a scope releases its resources: in reverse order, each once, within a time limit, and without failing. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Berth, BerthError, Cgroup, Container, Image, Namespace } from "../../lib/index.ts"
import { limits } from "../../lib/internal/supervisor/connection.ts"
import { EBUSY, ETIMEDOUT } from "../../lib/internal/util/errno.ts"
import { waitUntil } from "../support/containers.ts"
import { tree, without } from "../support/controllers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { isAlive, until } from "../support/leftovers.ts"
import { logging } from "../support/logged.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"

const sleeping = (options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["sleep", "1000"], ...options }))

const freezer = tree.controllers.freezer?.folder
const whyNoFreezer =
  without("freezer") || (tree.controllers.freezer?.version === 1 ? false : "no freezer of cgroup version 1")

const whyNoPids =
  without("pids") || (tree.controllers.pids?.version === 1 ? false : "no pids of cgroup version 1")

/** A cgroup whose processes can be frozen: they get no signal until they are thawed. */
const makeFreezer = Effect.acquireRelease(
  Effect.sync(() => {
    const path = `${freezer}/berth-test-${process.pid}`
    fs.mkdirSync(path)
    const set = (state: string) => () => fs.writeFileSync(`${path}/freezer.state`, state)
    return {
      path,
      take: (pid: number) => fs.writeFileSync(`${path}/cgroup.procs`, String(pid)),
      freeze: set("FROZEN"),
      thaw: set("THAWED")
    }
  }),
  ({ path, thaw }) =>
    Effect.promise(async () => {
      thaw()
      await until("the cgroup is empty", () => fs.readFileSync(`${path}/cgroup.procs`, "utf8") === "")
      fs.rmdirSync(path)
    })
)

/** A folder for another Berth. When the test ends, what it left there is swept, even if it failed. */
const makeFolder = (at: string) =>
  Effect.acquireRelease(Effect.succeed(at), () =>
    Effect.ignore(Effect.provide(Berth.Berth, Layer.fresh(berthIn(at)))).pipe(
      Effect.zipRight(Effect.sync(() => fs.rmSync(at, { recursive: true, force: true })))
    )
  )

/** Reduces the time that a release may take. */
const impatiently = Effect.acquireRelease(
  Effect.sync(() => {
    const before = { ...limits }
    Object.assign(limits, { release: 300, end: 300 })
    return before
  }),
  (before) => Effect.sync(() => Object.assign(limits, before))
)

const warningsIn = (logged: ReadonlyArray<unknown>) =>
  logged.filter((each) => each instanceof BerthError.NotReleased)

suite("Finalizers", (effect, folder) => {
  effect("finalizers run in reverse order, each after everything made later is gone", function* () {
    const seen: Array<string> = []
    const look = (name: string, there: () => boolean, later: () => boolean) =>
      Effect.addFinalizer(() =>
        Effect.sync(() => seen.push(`${name}: ${there()}, what was made later: ${later()}`))
      )
    yield* Effect.scoped(
      Effect.gen(function* () {
        let holder = 0
        let box = 0
        let process = 0
        const cgroup = yield* Cgroup.make({ pids: 50 })
        const isCgroup = () => cgroup.folders.every(({ path }) => fs.existsSync(path))
        yield* look("cgroup", isCgroup, () => isAlive(holder))
        holder = (yield* Namespace.make(["pid"])).pid
        yield* look(
          "holder",
          () => isAlive(holder),
          () => isAlive(box)
        )
        const container = yield* sleeping({ cgroup })
        box = container.pid
        yield* look(
          "container",
          () => isAlive(box),
          () => isAlive(process)
        )
        process = (yield* Container.execStream(container, ["sleep", "1000"])).pid
        yield* look(
          "process",
          () => isAlive(process),
          () => false
        )
      })
    )
    assert.deepEqual(
      seen,
      ["process", "container", "holder", "cgroup"].map((name) => `${name}: true, what was made later: false`)
    )
  })

  effect(
    "finalizers run once, however often the scope is closed, and warn by name of what is left",
    function* () {
      yield* logging((logged) =>
        Effect.gen(function* () {
          const at = yield* makeFolder(`${folder()}-once`)
          const frozen = yield* makeFreezer
          const child = yield* Effect.acquireRelease(
            Effect.sync(() => spawn("sleep", ["1000"], { stdio: "ignore" })),
            (spawned) => Effect.sync(() => spawned.kill("SIGKILL"))
          )
          const died = new Promise((resolve) => child.on("exit", resolve))
          const left = yield* Effect.gen(function* () {
            const scope = yield* Scope.make()
            const cgroup = yield* Scope.extend(Cgroup.make({ pids: 9 }), scope)
            const [folder] = cgroup.folders
            fs.mkdirSync(`${folder!.path}/ours`)
            fs.writeFileSync(`${folder!.path}/ours/cgroup.procs`, String(child.pid))
            frozen.take(child.pid!)
            frozen.freeze()
            const close = Scope.close(scope, Exit.void)
            const began = Date.now()
            yield* Effect.all([close, close, close], { concurrency: "unbounded", discard: true })
            yield* close
            assert.ok(Date.now() - began < 10_000, "it should be bounded")
            assert.deepEqual(
              warningsIn(logged).map(({ errno, resource }) => [errno, resource]),
              [[EBUSY, `cgroup ${cgroup.name}`]]
            )
            return folder!.path
          }).pipe(Effect.provide(Layer.fresh(berthIn(at))))
          // The sweep has tried again since, and its warning names the folder.
          assert.ok(
            warningsIn(logged)
              .slice(1)
              .some(({ errno, resource }) => errno === EBUSY && resource === left)
          )
          frozen.thaw()
          yield* Effect.promise(() => died)
          yield* Effect.provide(Berth.Berth, Layer.fresh(berthIn(at)))
          assert.deepEqual([fs.existsSync(left), fs.readdirSync(`${at}/run`)], [false, []])
        })
      )
    },
    { skip: whyNoFreezer }
  )

  effect(
    "finalizers wait for a frozen supervisor no longer than their limit, and it releases everything once it is thawed",
    function* () {
      yield* logging((logged) =>
        Effect.gen(function* () {
          const at = yield* makeFolder(`${folder()}-mute`)
          const frozen = yield* makeFreezer
          const timed = <A, E, R>(body: Effect.Effect<A, E, R>) =>
            Effect.map(Effect.timed(body), ([took]) => assert.ok(Duration.toSeconds(took) < 5, String(took)))
          const berth = yield* Scope.make()
          const context = yield* Layer.buildWithScope(Layer.fresh(berthIn(at)), berth)
          const pid = yield* Effect.provide(
            Effect.gen(function* () {
              const { supervisor } = yield* Berth.Berth
              const scope = yield* Scope.make()
              const box = yield* Scope.extend(sleeping({ limits: { pids: 9 } }), scope)
              yield* impatiently
              frozen.take(supervisor.pid)
              frozen.freeze()
              yield* timed(Scope.close(scope, Exit.void))
              assert.deepEqual(
                warningsIn(logged).map(({ errno, resource }) => [errno, resource]),
                [[ETIMEDOUT, `container ${box.id}`]]
              )
              assert.ok(isAlive(box.pid))
              frozen.thaw()
              // Whoever waits for the container still gets its exit status.
              assert.equal((yield* Effect.timeout(box.exit, "10 seconds")).signal, "SIGKILL")
              frozen.freeze()
              return supervisor.pid
            }),
            context
          )
          yield* timed(Scope.close(berth, Exit.void))
          assert.deepEqual(
            warningsIn(logged)
              .slice(1)
              .map(({ errno, resource }) => [errno, resource.split(" of ")[0]]),
            [[ETIMEDOUT, `supervisor ${pid}`]]
          )
          frozen.thaw()
          yield* waitUntil("the state folder is removed", () => fs.readdirSync(`${at}/run`).length === 0)
        })
      )
    },
    { skip: whyNoFreezer }
  )

  effect.asRoot(
    "finalizers remove a large folder even when the supervisor cannot fork",
    function* () {
      const { folder: own, supervisor } = yield* Berth.Berth
      const image = yield* makeImage(`${own}/root`)
      const scope = yield* Scope.make()
      const box = yield* Scope.extend(
        Container.start(image, {
          upper: "disk",
          command: ["sh", "-c", "seq 10000 | (cd /tmp; xargs touch)"]
        }),
        scope
      )
      assert.equal((yield* box.exit).exitCode, 0)
      const upper = box.state.base!.upper!
      const { folder } = tree.controllers.pids!
      const cgroup = `${folder}/berth.${process.pid}-finalizers`
      fs.mkdirSync(cgroup)
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          fs.writeFileSync(`${folder}/cgroup.procs`, String(supervisor.pid))
          fs.rmdirSync(cgroup)
        })
      )
      fs.writeFileSync(`${cgroup}/pids.max`, "1")
      fs.writeFileSync(`${cgroup}/cgroup.procs`, String(supervisor.pid))
      yield* failure("OperationFailed", Container.run(image, { command: ["true"] }))
      yield* Scope.close(scope, Exit.void)
      assert.ok(!fs.existsSync(upper))
    },
    { skip: whyNoPids || whyNoBusybox }
  )
})
