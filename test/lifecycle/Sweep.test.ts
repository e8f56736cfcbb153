import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import { Berth, BerthError, Plan } from "../../lib/index.ts"
import { ranges } from "../../lib/internal/ids/idMaps.ts"
import { REPLY_BYTES } from "../../lib/internal/supervisor/protocol.ts"
import { native } from "../../lib/internal/system/addon.ts"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { EBUSY } from "../../lib/internal/util/errno.ts"
import { gone, sleeper, start, waitUntil } from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import type { Hiding, Kind } from "../support/hiding.ts"
import { cgroupsOf, isAlive, sleep } from "../support/leftovers.ts"
import { logging } from "../support/logged.ts"
import { ended, firstLine, program } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

/** Runs an effect in another Berth, at `folder`; gives its result and what was logged. */
const another = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth>) =>
  logging((logged) =>
    Effect.map(Effect.provide(effect, berthIn(folder)), (result) => ({ result, warnings: logged }))
  )

/** The state folder of a dead supervisor, as it is left when the supervisor and its program are killed. */
const makeStale = (folder: string): string => {
  const state = `${folder}/run/1-stale`
  fs.mkdirSync(state, { recursive: true, mode: 0o700 })
  fs.writeFileSync(`${state}/lock`, "")
  return state
}

const ids = process.getuid?.() === 0 ? undefined : ranges()

const freezer = "/sys/fs/cgroup/freezer"
const whyNoFreezer = fs.existsSync(`${freezer}/tasks`) ? false : "no freezer of cgroup version 1"

suite("Sweep", (effect, folder) => {
  effect.asRoot(
    "a process that cleared its parent-death signal and has no cgroup is swept after its supervisor's death",
    function* () {
      const at = `${folder()}/let-go`
      fs.mkdirSync(`${at}/run/1-gone/dev`, { recursive: true })
      fs.writeFileSync(`${at}/run/1-gone/lock`, "")
      // Such a process is in a mount namespace with mounts of a dead supervisor, which is no longer its parent.
      const mounts = `mount -t tmpfs berth.1-gone ${at}/run/1-gone/dev && exec sleep 1000`
      const child = spawn("unshare", ["--mount", "sh", "-c", mounts], { stdio: "ignore" })
      yield* waitUntil("the mount in the child", () =>
        fs.readFileSync(`/proc/${child.pid}/mountinfo`, "utf8").includes("berth.1-gone")
      )
      const died = new Promise((resolve) => child.on("exit", (_, signal) => resolve(signal)))
      yield* another(at, Effect.void)
      assert.equal(yield* Effect.promise(() => died), "SIGKILL")
      assert.deepEqual(fs.readdirSync(`${at}/run`), [])
    }
  )

  effect("a folder that a supervisor has not removed to the end is swept", function* () {
    const at = `${folder()}/half-removed`
    const state = makeStale(at)
    fs.rmSync(`${state}/lock`)
    fs.writeFileSync(`${state}/holds`, "")
    yield* another(at, Effect.void)
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect("the mounts of a container's devices name its supervisor", function* () {
    const { supervisor } = yield* Berth.Berth
    const name = supervisor.folder.slice(supervisor.folder.lastIndexOf("/") + 1)
    const box = yield* sleeper
    assert.ok(fs.readFileSync(`/proc/${box.pid}/mountinfo`, "utf8").includes(` berth.${name} `))
  })

  const hides: ReadonlyArray<Kind> = ["hidden"]
  const others: ReadonlyArray<Kind> = [
    "hidden as another user",
    "another user",
    "a second process of another user"
  ]
  effect(
    "processes that hide in namespaces or run as another user are swept after their supervisor's death",
    function* () {
      const at = `${folder()}/hidden`
      const kinds = typeof ids === "string" ? hides : [...hides, ...others]
      const hiding = program("hiding.ts", [at, ...kinds], { stdio: ["ignore", "pipe", "inherit"] })
      const line = yield* Effect.promise(() => firstLine(hiding))
      const { started, supervisor }: Hiding = JSON.parse(line)
      assert.equal(started.length, kinds.length)
      for (const { said } of started) assert.match(said, /^(hide|stay) ok$|^\d+$/)
      const end = ended(hiding)
      // The one that lives longer would end the containers, so the program is stopped first.
      process.kill(hiding.pid!, "SIGSTOP")
      const isStopped = () => /\) T /.test(fs.readFileSync(`/proc/${hiding.pid}/stat`, "utf8"))
      yield* waitUntil("the program is stopped", isStopped)
      process.kill(supervisor, "SIGKILL")
      process.kill(hiding.pid!, "SIGKILL")
      yield* Effect.promise(() => end)
      yield* gone(supervisor)
      // The kernel frees the lock of a killed process later; until then, a sweep takes the supervisor for alive.
      const [state] = fs.readdirSync(`${at}/run`)
      const isFree = () => spawnSync("flock", ["-n", `${at}/run/${state}/lock`, "true"]).status === 0
      yield* waitUntil("the supervisor's lock is free", isFree)
      // The attack has worked: the processes are alive, and those that hide have no mount with Berth's name.
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

  effect("a process that has the recorded pid but another start time or boot is not swept", function* () {
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
  })

  effect("a tree deeper than the longest path, and folders of mode 0, are swept", function* () {
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

  effect("a stopped supervisor is continued when its scope closes", function* () {
    const at = `${folder()}/stopped`
    const { result } = yield* another(
      at,
      Effect.scoped(
        Effect.gen(function* () {
          const { supervisor } = yield* Berth.Berth
          const box = yield* sleeper
          process.kill(supervisor.pid, "SIGSTOP")
          return box.pid
        })
      )
    )
    assert.ok(!isAlive(result))
    assert.deepEqual(fs.readdirSync(`${at}/run`), [])
  })

  effect.asRoot(
    "a cgroup that cannot be removed is a warning by name, and the next Berth removes it",
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
            yield* start("exec sleep 1000", { limits: { pids: 9 } })
            fs.writeFileSync(`${left().find((path) => path.includes("/pids/"))}/tasks`, String(child.pid))
            // A process that is frozen in version 1 only dies once it is thawed.
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

  effect.asRoot("a Berth folder that another user owns is refused with the owner's uid", function* () {
    for (const below of ["", "/store", "/layers"]) {
      const at = `${folder()}/theirs`
      fs.mkdirSync(`${at}${below}`, { recursive: true })
      fs.chownSync(`${at}${below}`, 1234, 1234)
      const error = yield* failure("OperationFailed", Effect.provide(Berth.Berth, berthIn(at)))
      assert.match(error.message, /theirs.*1234/)
      fs.rmSync(at, { recursive: true })
    }
  })

  effect.asRoot("the supervisor answers malformed messages with an error and ends cleanly", function* () {
    const addon = native()
    const state = makeStale(`${folder()}/messages`)
    fs.mkdirSync(`${state}/dev`)
    const lock = fs.openSync(`${state}/lock`, "r+")
    const [ours, theirs] = addon.socketpair()
    const [pid, pidfd] = addon.startSupervisor(
      programPath("berth-supervisor"),
      state,
      [theirs, lock],
      "root",
      ""
    )
    addon.close(theirs)
    fs.closeSync(lock)
    assert.ok(pid > 0)
    const reply = new Uint8Array(REPLY_BYTES)
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
      // The release of an unknown unit succeeds.
      [message(2, 7, 0), [], { type: 5, id: 7, errno: 0 }]
    ]
    for (const [bytes, fds, expected] of answers) {
      // A message without a whole header gets no answer.
      addon.send(ours, bytes.subarray(0, 7), [])
      assert.equal(addon.send(ours, bytes, fds), bytes.length)
      assert.deepEqual(yield* Effect.promise(next), { n: REPLY_BYTES, ...expected })
    }
    addon.close(ours)
    yield* waitUntil("the supervisor's end", () => addon.reap(pidfd) === pid)
    addon.close(pidfd)
    assert.ok(!fs.existsSync(state))
  })
})
