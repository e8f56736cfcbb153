import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { Berth, BerthError, Container, Image, Plan } from "../../lib/index.ts"
import { ranges } from "../../lib/internal/ids/idMaps.ts"
import { native, programPath } from "../../lib/internal/system/addon.ts"
import { EBUSY } from "../../lib/internal/util/errno.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import type { Hiding, Kind } from "../support/hiding.ts"
import { cgroupsOf, eventually, isAlive, sleep } from "../support/leftovers.ts"
import { ended, firstLine, program } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

/** A Berth of its own at `folder`, for as long as the effect takes; with what it warns of. */
const another = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth>) =>
  Effect.suspend(() => {
    const warnings: Array<unknown> = []
    const logger = Logger.make(({ message }) => {
      warnings.push(...(message as ReadonlyArray<unknown>))
    })
    const quiet = Logger.replace(Logger.defaultLogger, logger)
    return Effect.map(effect.pipe(Effect.provide(berthIn(folder)), Effect.provide(quiet)), (result) => ({
      result,
      warnings
    }))
  })

const start = (command: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) => Container.start(image, { command, ...options }))

/** The state folder of a supervisor that is dead, as a kill of it and its program leaves it. */
const makeStale = (folder: string): string => {
  const state = `${folder}/run/1-stale`
  fs.mkdirSync(state, { recursive: true, mode: 0o700 })
  fs.writeFileSync(`${state}/lock`, "")
  return state
}

const ids = process.getuid?.() === 0 ? undefined : ranges()

const freezer = "/sys/fs/cgroup/freezer"
const whyNoFreezer = fs.existsSync(`${freezer}/tasks`) ? false : "no freezer of cgroup version 1"

suite("what is swept", (effect, folder) => {
  effect.asRoot(
    "a process that has let go of its parent and lost its program and supervisor, without a cgroup",
    function* () {
      const at = `${folder()}/let-go`
      fs.mkdirSync(`${at}/run/1-gone/dev`, { recursive: true })
      fs.writeFileSync(`${at}/run/1-gone/lock`, "")
      // As such a process is: in a mount namespace that has the mounts of a dead supervisor, and nobody's child.
      const mounts = `mount -t tmpfs berth.1-gone ${at}/run/1-gone/dev && exec sleep 1000`
      const child = spawn("unshare", ["--mount", "sh", "-c", mounts], { stdio: "ignore" })
      yield* Effect.promise(() =>
        eventually(() => fs.readFileSync(`/proc/${child.pid}/mountinfo`, "utf8").includes("berth.1-gone"))
      )
      const died = new Promise((resolve) => child.on("exit", (_, signal) => resolve(signal)))
      yield* another(at, Effect.void)
      assert.equal(yield* Effect.promise(() => died), "SIGKILL")
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    }
  )

  effect("every mount of a container's devices tells whose it is", function* () {
    const { supervisor } = yield* Berth.Berth
    const name = supervisor.folder.slice(supervisor.folder.lastIndexOf("/") + 1)
    const box = yield* start(["sleep", "1000"])
    assert.ok(fs.readFileSync(`/proc/${box.pid}/mountinfo`, "utf8").includes(` berth.${name} `))
  })

  const hides: ReadonlyArray<Kind> = ["hidden"]
  const others: ReadonlyArray<Kind> = [
    "hidden as another user",
    "another user",
    "a second process of another user"
  ]
  effect(
    "what has hidden, where it may make namespaces, or is another user's, and has lost its program and supervisor",
    function* () {
      const at = `${folder()}/hidden`
      const kinds = typeof ids === "string" ? hides : [...hides, ...others]
      const hiding = program("hiding.ts", [at, ...kinds], { stdio: ["ignore", "pipe", "inherit"] })
      const line = yield* Effect.promise(() => firstLine(hiding))
      const { started, supervisor }: Hiding = JSON.parse(line)
      assert.equal(started.length, kinds.length)
      for (const { said } of started) assert.match(said, /^(hide|stay) ok$|^\d+$/)
      const gone = ended(hiding)
      // Whichever outlives the other would end the containers: the program is stopped first.
      process.kill(hiding.pid!, "SIGSTOP")
      const isStopped = () => /\) T /.test(fs.readFileSync(`/proc/${hiding.pid}/stat`, "utf8"))
      assert.ok(yield* Effect.promise(() => eventually(isStopped, 20_000)))
      process.kill(supervisor, "SIGKILL")
      process.kill(hiding.pid!, "SIGKILL")
      yield* Effect.promise(() => gone)
      // Whose lock can be had is dead.
      assert.ok(yield* Effect.promise(() => eventually(() => !isAlive(supervisor), 20_000)))
      yield* Effect.sleep("50 millis")
      // As the attack has it: alive, and where it has hidden with no mount that tells of Berth.
      for (const { kind, pid } of started) {
        assert.ok(isAlive(pid), kind)
        if (!kind.startsWith("hidden")) continue
        assert.doesNotMatch(fs.readFileSync(`/proc/${pid}/mountinfo`, "utf8"), /berth/)
      }
      yield* another(at, Effect.void)
      assert.deepEqual(
        started.filter(({ pid }) => isAlive(pid)),
        []
      )
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a process is not taken for one whose number it has got, in this life of the machine or an earlier one",
    function* () {
      const at = `${folder()}/number`
      const child = spawn("sleep", ["1000"], { stdio: "ignore" })
      const died = new Promise((resolve) => child.on("exit", resolve))
      const stat = fs.readFileSync(`/proc/${child.pid}/stat`, "utf8").split(" ")
      const swept = (start: number, age: number) => {
        const record = `${makeStale(at)}/1.first`
        fs.mkdirSync(record)
        fs.writeFileSync(`${record}/stat`, [...stat.slice(0, 21), start, ...stat.slice(22)].join(" "))
        const recorded = Date.now() / 1000 - age
        fs.utimesSync(`${record}/stat`, recorded, recorded)
        return Effect.map(another(at, Effect.void), () => fs.readdirSync(`${at}/run`))
      }
      assert.deepEqual(yield* swept(Number(stat[21]) - 1, 0), [])
      assert.deepEqual(yield* swept(Number(stat[21]), os.uptime() + 10), [])
      assert.ok(isAlive(child.pid!))
      assert.deepEqual(yield* swept(Number(stat[21]), 0), [])
      assert.equal(yield* Effect.promise(() => died), null)
    }
  )

  effect("a tree that is deeper than any path, and folders that may not be entered", function* () {
    const at = `${folder()}/deep`
    const state = makeStale(at)
    const deep = spawn(
      "sh",
      [
        "-c",
        "n=$(printf %0200d 0); k=0; while [ $k -lt 60 ]; do mkdir $n && cd -P $n || exit 1; k=$((k+1)); done; :"
      ],
      { cwd: state, stdio: "ignore" }
    )
    assert.equal(yield* Effect.promise(() => new Promise((resolve) => deep.on("exit", resolve))), 0)
    const own = join(state, "work", "work")
    fs.mkdirSync(own, { recursive: true })
    fs.chmodSync(own, 0)
    yield* another(at, Effect.void)
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect("a supervisor that somebody has stopped is set going for whoever waits for it", function* () {
    const at = `${folder()}/stopped`
    const { result } = yield* another(
      at,
      Effect.scoped(
        Effect.gen(function* () {
          const { supervisor } = yield* Berth.Berth
          const box = yield* start(["sleep", "1000"])
          process.kill(supervisor.pid, "SIGSTOP")
          return box.pid
        })
      )
    )
    assert.ok(!isAlive(result))
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect.asRoot(
    "a cgroup that cannot be removed is a warning with its name, and the next Berth takes it",
    function* () {
      const at = `${folder()}/busy`
      const frozen = `${freezer}/berth-test-${process.pid}`
      fs.mkdirSync(frozen)
      const child = spawn("sleep", ["1000"], { stdio: "ignore" })
      const died = new Promise((resolve) => child.on("exit", resolve))
      const others = cgroupsOf([process.pid])
      const left = () => cgroupsOf([process.pid]).filter((path) => !others.includes(path))
      const { warnings } = yield* another(
        at,
        Effect.scoped(
          Effect.gen(function* () {
            yield* start(["sleep", "1000"], { limits: { pids: 9 } })
            fs.writeFileSync(`${left().find((path) => path.includes("/pids/"))}/tasks`, String(child.pid))
            // What is frozen in version 1 does not die before it is thawed.
            fs.writeFileSync(`${frozen}/tasks`, String(child.pid))
            fs.writeFileSync(`${frozen}/freezer.state`, "FROZEN")
          })
        )
      )
      const warned = warnings.filter((warning) => warning instanceof BerthError.NotReleased)
      fs.writeFileSync(`${frozen}/freezer.state`, "THAWED")
      yield* Effect.promise(() => died)
      fs.rmdirSync(frozen)
      assert.ok(warned.some(({ errno, resource }) => errno === EBUSY && /^container /.test(resource)))
      assert.ok(warned.some(({ resource }) => resource.includes("/pids/")))
      assert.equal(left().length, 1)
      yield* another(at, Effect.void)
      assert.deepEqual([left(), fs.readdirSync(`${at}/run`)], [[], []])
    },
    { skip: whyNoFreezer }
  )

  effect.asRoot("a folder that is somebody else's is refused, by his number", function* () {
    for (const below of ["", "/store", "/layers"]) {
      const at = `${folder()}/theirs`
      fs.mkdirSync(`${at}${below}`, { recursive: true })
      fs.chownSync(`${at}${below}`, 1234, 1234)
      const error = yield* failure("OperationFailed", Effect.provide(Berth.Berth, berthIn(at)))
      assert.match(error.message, /theirs.*1234/)
      fs.rmSync(at, { recursive: true })
    }
  })

  effect.asRoot(
    "messages that are cut, too large, unknown, out of order or with too few descriptors are answered, and harm nothing",
    function* () {
      const addon = native()
      const state = makeStale(`${folder()}/messages`)
      fs.mkdirSync(`${state}/dev`)
      const lock = fs.openSync(`${state}/lock`, "r+")
      const [ours, theirs] = addon.socketpair()
      const [pid, pidfd] = addon.startSupervisor(
        programPath("berth-supervisor"),
        state,
        [theirs, lock],
        "root"
      )
      addon.close(theirs)
      fs.closeSync(lock)
      assert.ok(pid > 0)
      const reply = new Uint8Array(72)
      const next = async () => {
        let n = -11
        for (const end = Date.now() + 20_000; n === -11 && Date.now() < end; await sleep(2))
          [n] = addon.receive(ours, reply)
        const view = new DataView(reply.buffer)
        return {
          n,
          type: view.getUint32(0, true),
          id: view.getUint32(4, true),
          errno: view.getInt32(44, true)
        }
      }
      const message = (type: number, id: number, planBytes: number, body = new Uint8Array(0)) => {
        const bytes = new Uint8Array(16 + body.length)
        new Uint32Array(bytes.buffer, 0, 3).set([type, id, planBytes])
        bytes.set(body, 16)
        return bytes
      }
      assert.equal((yield* Effect.promise(next)).type, 1)
      const needsOne = new Uint8Array(Plan.encode(Plan.make([{ op: "keep-open", descriptor: "sent" }])).bytes)
      const answers: Array<readonly [Uint8Array, ReadonlyArray<number>, object]> = [
        [message(1, 2, 0, new Uint8Array([1, 2, 3])), [], { type: 3, id: 2, errno: 74 }],
        [message(1, 3, 1000), [], { type: 3, id: 3, errno: 74 }],
        [message(1, 4, 0xffffffff), [ours], { type: 3, id: 4, errno: 74 }],
        [message(9, 5, 0), [], { type: 3, id: 5, errno: 74 }],
        [message(1, 6, 0, new Uint8Array(170 * 1024)), [], { type: 3, id: 6, errno: 90 }],
        [message(1, 8, 0, needsOne), [], { type: 3, id: 8, errno: 74 }],
        // A release of what was never there: nothing of it is.
        [message(2, 7, 0), [], { type: 5, id: 7, errno: 0 }]
      ]
      for (const [bytes, fds, expected] of answers) {
        // Without a whole head there is nobody to answer to.
        addon.send(ours, bytes.subarray(0, 7), [])
        assert.equal(addon.send(ours, bytes, fds), bytes.length)
        assert.deepEqual(yield* Effect.promise(next), { n: 72, ...expected })
      }
      addon.close(ours)
      assert.ok(yield* Effect.promise(() => eventually(() => addon.reap(pidfd) === pid, 20_000)))
      addon.close(pidfd)
      assert.ok(!fs.existsSync(state))
    }
  )
})
