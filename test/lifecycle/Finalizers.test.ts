/** How a scope gives things back: in the reverse order, each once, within a bound, and never by failing. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { Berth, BerthError, Cgroup, Container, Image, Namespace } from "../../lib/index.ts"
import { EBUSY, ETIMEDOUT } from "../../lib/internal/util/errno.ts"
import { tree, without } from "../support/controllers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { eventually, isAlive } from "../support/leftovers.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"

const sleeping = (options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.start(image, { command: ["sleep", "1000"], ...options }))

const freezer = tree.controllers.freezer?.folder
const whyNoFreezer =
  without("freezer") || (tree.controllers.freezer?.version === 1 ? false : "no freezer of cgroup version 1")

const whyNoPids =
  without("pids") || (tree.controllers.pids?.version === 1 ? false : "no pids of cgroup version 1")

/** A cgroup of the test's own, in which what is put stands still, whatever signal comes, until it is let go. */
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
      await eventually(() => fs.readFileSync(`${path}/cgroup.procs`, "utf8") === "")
      fs.rmdirSync(path)
    })
)

/** A folder for a Berth of the test's own. What is left there when the test is over, as it has failed, is swept. */
const makeFolder = (at: string) =>
  Effect.acquireRelease(Effect.succeed(at), () =>
    Effect.ignore(Effect.provide(Berth.Berth, Layer.fresh(berthIn(at)))).pipe(
      Effect.zipRight(Effect.sync(() => fs.rmSync(at, { recursive: true, force: true })))
    )
  )

/** What is warned of while the effect runs. */
const warningsOf = <A, E, R>(effect: (warned: Array<BerthError.NotReleased>) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const warned: Array<BerthError.NotReleased> = []
    const logger = Logger.make(({ message }) => {
      for (const each of message as ReadonlyArray<unknown>)
        if (each instanceof BerthError.NotReleased) warned.push(each)
    })
    return Effect.provide(effect(warned), Logger.replace(Logger.defaultLogger, logger))
  })

suite("finalizers", (effect, folder) => {
  effect("run in the reverse order of what was made, each after what was made later is gone", function* () {
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
    "run once, however often and by how many the scope is closed, and warn by the name of what is left",
    function* () {
      yield* warningsOf((warned) =>
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
              warned.map(({ errno, resource }) => [errno, resource]),
              [[EBUSY, `cgroup ${cgroup.name}`]]
            )
            return folder!.path
          }).pipe(Effect.provide(Layer.fresh(berthIn(at))))
          // A sweep has tried again by now, and named the folder.
          assert.ok(warned.slice(1).some(({ errno, resource }) => errno === EBUSY && resource === left))
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
    "wait no longer than their limit for a supervisor that cannot answer, and it gives all back once it can",
    function* () {
      yield* warningsOf((warned) =>
        Effect.gen(function* () {
          const at = yield* makeFolder(`${folder()}-mute`)
          const frozen = yield* makeFreezer
          const timed = <A, E, R>(body: Effect.Effect<A, E, R>) =>
            Effect.map(Effect.timed(body), ([took]) => assert.ok(Duration.toSeconds(took) < 5, String(took)))
          const berth = yield* Scope.make()
          const timeLimits = { release: 300, end: 300 }
          const context = yield* Layer.buildWithScope(Layer.fresh(berthIn(at, { timeLimits })), berth)
          const pid = yield* Effect.provide(
            Effect.gen(function* () {
              const { supervisor } = yield* Berth.Berth
              const scope = yield* Scope.make()
              const box = yield* Scope.extend(sleeping({ limits: { pids: 9 } }), scope)
              frozen.take(supervisor.pid)
              frozen.freeze()
              yield* timed(Scope.close(scope, Exit.void))
              assert.deepEqual(
                warned.map(({ errno, resource }) => [errno, resource]),
                [[ETIMEDOUT, `container ${box.id}`]]
              )
              assert.ok(isAlive(box.pid))
              frozen.thaw()
              // Who waits for it is told all the same.
              assert.equal((yield* Effect.timeout(box.exit, "10 seconds")).signal, "SIGKILL")
              frozen.freeze()
              return supervisor.pid
            }),
            context
          )
          yield* timed(Scope.close(berth, Exit.void))
          assert.deepEqual(
            warned.slice(1).map(({ errno, resource }) => [errno, resource.split(" of ")[0]]),
            [[ETIMEDOUT, `supervisor ${pid}`]]
          )
          frozen.thaw()
          assert.ok(yield* Effect.promise(() => eventually(() => fs.readdirSync(`${at}/run`).length === 0)))
        })
      )
    },
    { skip: whyNoFreezer }
  )

  effect.asRoot(
    "remove a large folder where the supervisor can have no process for it",
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
