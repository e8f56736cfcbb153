import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { type BerthError, Cgroup, Container, Image } from "../../lib/index.ts"
import { gone, repeatUntil } from "../support/containers.ts"
import { disk, fileOf, folderOf, tree, without } from "../support/controllers.ts"
import { failure, suite } from "../support/effect.ts"
import { commandOf, ended, root } from "../support/program.ts"

const isV1 = (controller: string): boolean => tree.controllers[controller]?.version === 1

const onV1 = (controller: string): string | false =>
  without(controller) || (isV1(controller) ? false : `${controller} is of version 2 here`)

const onV2 = (controller: string): string | false =>
  without(controller) || (isV1(controller) ? `${controller} is of version 1 here` : false)

const weight = (cgroup: Cgroup.Cgroup): string => fileOf(cgroup, "cpu", "cpu.shares", "cpu.weight")

const MiB = 2 ** 20

/** The exit code of a child, or -1 where a signal ended it. */
const exitOf = (child: ChildProcess) => {
  const exit = new Promise<number>((resolve) => child.on("exit", (status) => resolve(status ?? -1)))
  return Effect.promise(() => exit)
}

/** A shell that waits for a line and then runs a script, so that it can be moved into a cgroup before. */
const waitingShell = (script: string) =>
  spawn("sh", ["-c", `read line; ${script}`], { stdio: ["pipe", "ignore", "ignore"] })

suite("Cgroup: limits", (effect, folder) => {
  effect(
    "a CPU weight is set and changed on either version",
    function* () {
      const cgroup = yield* Cgroup.make({ cpu: { weight: 200 } })
      assert.equal(weight(cgroup), isV1("cpu") ? "2048" : "200")
      yield* Cgroup.update(cgroup, { cpu: { weight: 100 } })
      assert.equal(weight(cgroup), isV1("cpu") ? "1024" : "100")
    },
    { skip: without("cpu") }
  )

  effect("an invalid weight is refused by name", function* () {
    for (const weight of [-1, 0, 10001, 1.5, Number.NaN])
      for (const [limits, option] of [
        [{ cpu: { weight } }, "limits.cpu.weight"],
        [{ io: { weight } }, "limits.io.weight"]
      ] as const)
        assert.equal((yield* failure("InvalidOption", Cgroup.make(limits))).option, option, String(weight))
  })

  effect(
    "an idle cgroup can be given a weight in the same update that ends its idleness",
    function* () {
      const cgroup = yield* Cgroup.make({ cpu: { idle: true } })
      assert.equal(fileOf(cgroup, "cpu", "cpu.idle", "cpu.idle"), "1")
      yield* Cgroup.update(cgroup, { cpu: { idle: false, weight: 50 } })
      assert.equal(fileOf(cgroup, "cpu", "cpu.idle", "cpu.idle"), "0")
      assert.equal(weight(cgroup), isV1("cpu") ? "512" : "50")
      const both = yield* failure("InvalidOption", Cgroup.make({ cpu: { idle: true, weight: 5 } }))
      assert.equal(both.option, "limits.cpu.weight")
    },
    { skip: without("cpu") }
  )

  effect(
    "quota and burst are changed in the order that the kernel accepts",
    function* () {
      const burst = (cgroup: Cgroup.Cgroup) => fileOf(cgroup, "cpu", "cpu.cfs_burst_us", "cpu.max.burst")
      const cgroup = yield* Cgroup.make({ cpus: 0.5, cpu: { burstMicros: 40_000 } })
      assert.equal(burst(cgroup), "40000")
      yield* Cgroup.update(cgroup, { cpus: 0.02, cpu: { burstMicros: 1000 } })
      assert.equal(burst(cgroup), "1000")
      yield* Cgroup.update(cgroup, { cpus: 2, cpu: { burstMicros: 200_000, periodMicros: 100_000 } })
      assert.equal(burst(cgroup), "200000")
      const { cpu } = yield* Cgroup.stats(cgroup)
      assert.equal(cpu.limit, 2)
      const tooMuch = yield* failure("InvalidOption", Cgroup.make({ cpus: 1, cpu: { burstMicros: 100_001 } }))
      assert.equal(tooMuch.option, "limits.cpu.burstMicros")
      const alone = yield* failure("InvalidOption", Cgroup.make({ cpu: { burstMicros: 1 } }))
      assert.equal(alone.option, "limits.cpu.burstMicros")
    },
    { skip: without("cpu") }
  )

  effect(
    "a cpuset holds a container to CPUs, and CPUs that do not exist are refused",
    function* () {
      const image = yield* Image.host
      const script = "grep Cpus_allowed_list /proc/self/status"
      const result = yield* Container.run(image, {
        command: ["sh", "-c", script],
        limits: { cpuset: { cpus: "0" } }
      })
      assert.match(result.stdout, /:\s*0\n$/)
      for (const cpus of ["", "5000", "0-9999", "1-0", "a", "-1"]) {
        const error = yield* failure("InvalidOption", Cgroup.make({ cpuset: { cpus } }))
        assert.equal(error.option, "limits.cpuset.cpus", cpus)
      }
      assert.equal(
        (yield* failure("InvalidOption", Cgroup.make({ cpuset: { mems: "63" } }))).option,
        "limits.cpuset.mems"
      )
    },
    { skip: without("cpuset") }
  )

  effect(
    "limits are changed while a container runs, also of controllers that it started without",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sleep", "1000"],
        limits: { memory: "64MiB", pids: 10 }
      })
      const cgroup = yield* Container.cgroup(container)
      yield* Cgroup.update(cgroup, {
        memory: "96MiB",
        pids: 20,
        cpuset: { cpus: "0" }
      })
      const { memory, pids } = yield* Container.stats(container)
      assert.deepEqual([memory.limit, pids.limit], [96 * MiB, 20])
      const allowed = () => fs.readFileSync(`/proc/${container.pid}/status`, "utf8")
      assert.match(allowed(), /^Cpus_allowed_list:\s*0$/m)
      // An exec after the change has the same limits.
      const inside = yield* Container.exec(container, ["grep", "Cpus_allowed_list", "/proc/self/status"])
      assert.match(inside.stdout, /:\s*0\n$/)
      yield* Cgroup.update(cgroup, { memory: "max", pids: "max", cpus: 0.5 })
      yield* Cgroup.update(cgroup, { memory: "48MiB", cpus: "max" })
      const later = yield* Container.stats(container)
      assert.deepEqual(
        [later.memory.limit, later.pids.limit, later.cpu.limit],
        [48 * MiB, undefined, undefined]
      )
    },
    { skip: without("memory") || without("pids") || without("cpuset") }
  )

  effect(
    "a container that was started without limits can be given limits",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sh", "-c", "sleep 1000 & exec sleep 1000"]
      })
      yield* Container.execStream(container, ["sleep", "1000"])
      yield* repeatUntil("three processes", Container.top(container), (all) => all.length === 3)
      const cgroup = yield* Container.cgroup(container)
      yield* Cgroup.update(cgroup, { pids: 5 })
      const { pids } = yield* Container.stats(container)
      assert.deepEqual([pids.current, pids.limit], [3, 5])
      assert.equal(yield* Container.cgroup(container), cgroup)
      yield* Container.execStream(container, ["sleep", "1000"])
      // The process that has made it in the container's namespaces may be there a moment longer.
      yield* repeatUntil("four processes", Container.stats(container), ({ pids }) => pids.current === 4)
    },
    { skip: without("pids") }
  )

  effect(
    "a memory limit below the memory in use is refused, and no process is killed",
    function* () {
      const image = yield* Image.host
      const hold = "head -c 40000000 /dev/zero | tail | sleep 1000"
      const container = yield* Container.start(image, {
        command: ["sh", "-c", hold],
        limits: { memory: "96MiB", pids: 20 },
        init: true
      })
      yield* repeatUntil(
        "30 MiB in use",
        Container.stats(container),
        ({ memory }) => (memory.anon ?? 0) > 30 * MiB
      )
      const cgroup = yield* Container.cgroup(container)
      const error = yield* failure("CgroupError", Cgroup.update(cgroup, { memory: "8MiB" }))
      assert.deepEqual([error.reason, error.controller], ["InUse", "memory"])
      const { memory } = yield* Container.stats(container)
      assert.equal(memory.oomKills, 0)
      // A limit below the present number of processes is accepted: it only refuses new ones.
      yield* Cgroup.update(cgroup, { pids: 1 })
      assert.equal((yield* Container.stats(container)).pids.limit, 1)
    },
    { skip: without("memory") || without("pids") }
  )

  effect(
    "limits of memory include a soft limit and swap",
    function* () {
      const cgroup = yield* Cgroup.make({ memory: { max: "64MiB", low: "16MiB", swap: "8MiB" } })
      assert.equal(fileOf(cgroup, "memory", "memory.soft_limit_in_bytes", "memory.low"), String(16 * MiB))
      const { path, version } = folderOf(cgroup, "memory")
      const swap = version === 1 ? "memory.memsw.limit_in_bytes" : "memory.swap.max"
      if (fs.existsSync(`${path}/${swap}`)) {
        const read = () => fs.readFileSync(`${path}/${swap}`, "utf8").trim()
        assert.equal(read(), String((version === 1 ? 72 : 8) * MiB))
        yield* Cgroup.update(cgroup, { memory: { max: "128MiB", swap: "1MiB" } })
        assert.equal(read(), String((version === 1 ? 129 : 1) * MiB))
      }
      const alone = yield* failure("InvalidOption", Cgroup.make({ memory: { swap: "1MiB" } }))
      assert.equal(alone.option, "limits.memory.swap")
    },
    { skip: without("memory") }
  )

  effect(
    "limits of version 2 are refused when the controller is bound to version 1",
    function* () {
      for (const memory of [{ high: "32MiB" }, { oomGroup: true }]) {
        const error = yield* failure("CgroupError", Cgroup.make({ memory }))
        assert.deepEqual([error.reason, error.controller], ["BoundToV1", "memory"])
        assert.match(error.message, /version 2/)
      }
    },
    { skip: onV1("memory") }
  )

  effect(
    "limits of version 2 are set on a controller of version 2",
    function* () {
      const cgroup = yield* Cgroup.make({ memory: { high: "32MiB", max: "64MiB", oomGroup: true } })
      assert.equal(fileOf(cgroup, "memory", "", "memory.high"), String(32 * MiB))
      assert.equal(fileOf(cgroup, "memory", "", "memory.oom.group"), "1")
    },
    { skip: onV2("memory") }
  )

  effect(
    "limits of a disk are bytes and operations per second",
    function* () {
      const cgroup = yield* Cgroup.make({
        io: { devices: [{ device: disk!, readBps: "1MiB", writeIops: 100 }] }
      })
      const read = (v1: string) => fileOf(cgroup, "io", v1, "io.max")
      if (isV1("io")) {
        assert.equal(read("blkio.throttle.read_bps_device"), `${disk} ${MiB}`)
        assert.equal(read("blkio.throttle.write_iops_device"), `${disk} 100`)
      } else assert.match(read(""), new RegExp(`^${disk} rbps=${MiB} wbps=max riops=max wiops=100$`))
      yield* Cgroup.update(cgroup, {
        io: { devices: [{ device: disk!, readBps: "max", writeIops: "max" }] }
      })
      assert.equal(read("blkio.throttle.read_bps_device"), "")
    },
    { skip: without("io") || (disk === undefined ? "no disk with a known name" : false) }
  )

  effect(
    "an invalid disk or device is refused by name",
    function* () {
      for (const [limits, option] of [
        ...["/dev/null", "/etc/passwd", "/no/such", "vda", "a:b"].map(
          (device) => [{ io: { devices: [{ device, readBps: 1 }] } }, "io.devices[0].device"] as const
        ),
        ...["/etc/passwd", "/", "/no/such", "null"].map(
          (path) => [{ devices: [{ path }] }, "devices[0].path"] as const
        ),
        [{ devices: [{ path: "/dev/null", access: "x" }] }, "devices[0].access"] as const
      ])
        assert.equal(
          (yield* failure("InvalidOption", Cgroup.make(limits))).option,
          `limits.${option}`,
          JSON.stringify(limits)
        )
      const absent = yield* failure(
        "CgroupError",
        Cgroup.make({ io: { devices: [{ device: "4000:4000", readBps: "1MiB" }] } })
      )
      assert.deepEqual([absent.reason, absent.controller], ["Refused", "io"])
    },
    { skip: without("io") }
  )

  effect("a limit of a missing controller is refused with the controller and the reason", function* () {
    const asked = {
      hugetlb: { hugetlb: { "2MB": "4MiB" } },
      rdma: { rdma: { mlx5_0: { handles: 2 } } },
      misc: { misc: { res_a: 1 } }
    } as const
    for (const [controller, limits] of Object.entries(asked)) {
      if (without(controller) === false) continue
      const error = yield* failure("CgroupError", Cgroup.make(limits))
      assert.equal(error.controller, controller)
      assert.ok(["NotMounted", "NotDelegated", "NotInKernel"].includes(error.reason), error.reason)
      assert.ok(error.message.includes(controller) && error.detail.length > 20)
    }
    const size = yield* failure("InvalidOption", Cgroup.make({ hugetlb: { "3MB": 1 } }))
    assert.equal(size.option, "limits.hugetlb")
  })

  effect(
    "a limit of huge pages is set and read",
    function* () {
      const cgroup = yield* Cgroup.make({ hugetlb: { "2MB": "4MiB" } })
      const { hugetlb } = yield* Cgroup.stats(cgroup)
      assert.deepEqual(hugetlb["2MB"], { current: 0, limit: 4 * MiB, failures: 0 })
    },
    { skip: without("hugetlb") }
  )

  // Opening a device fails with EPERM where the cgroup forbids it, as it does for kmsg (1:11).
  const open = (container: Container.Container, path: string) =>
    Effect.map(Container.exec(container, ["sh", "-c", `: <${path}`]), ({ exitCode }) => exitCode === 0)

  effect.asRoot(
    "limits of devices allow Docker's list and the devices that are added",
    function* () {
      const image = yield* Image.host
      const cgroup = yield* Cgroup.make({ devices: [] })
      const child = waitingShell(": </dev/null && : </dev/zero && : </dev/kmsg")
      const code = exitOf(child)
      yield* Cgroup.move(cgroup, child.pid!)
      child.stdin.end("go\n")
      assert.notEqual(yield* code, 0)

      const more = yield* Cgroup.make({ devices: [{ path: "/dev/kmsg", access: "r" }] })
      const other = waitingShell(": </dev/kmsg || exit 1; : >>/dev/kmsg && exit 2; exit 3")
      const otherCode = exitOf(other)
      yield* Cgroup.move(more, other.pid!)
      other.stdin.end("go\n")
      // dash ends with 2 when a redirection of a special builtin fails, so the write was refused and the read was not.
      assert.equal(yield* otherCode, 2)

      const container = yield* Container.start(image, {
        command: ["sleep", "1000"],
        limits: { devices: [] }
      })
      for (const name of ["null", "zero", "full", "random", "urandom"])
        assert.ok(yield* open(container, `/dev/${name}`), name)
    },
    { skip: without("devices") }
  )

  effect.asRoot(
    "limits of devices are changed for running processes",
    function* () {
      const cgroup = yield* Cgroup.make({ devices: [] })
      const script =
        "while read line; do if (: </dev/kmsg) 2>/dev/null; then echo yes; else echo no; fi; done"
      const child = spawn("sh", ["-c", script], { stdio: ["pipe", "pipe", "ignore"] })
      const ask = (): Promise<string> =>
        new Promise((resolve) => {
          child.stdout.once("data", (data) => resolve(String(data).trim()))
          child.stdin.write("go\n")
        })
      yield* Cgroup.move(cgroup, child.pid!)
      assert.equal(yield* Effect.promise(ask), "no")
      yield* Cgroup.update(cgroup, { devices: [{ type: "char", major: 1, minor: 11 }] })
      assert.equal(yield* Effect.promise(ask), "yes")
      yield* Cgroup.update(cgroup, { devices: [] })
      assert.equal(yield* Effect.promise(ask), "no")
      child.stdin.end()
    },
    { skip: without("devices") }
  )

  effect(
    "a limit holds for all cgroups below its cgroup",
    function* () {
      const image = yield* Image.host
      const parent = yield* Cgroup.make({ pids: 3 })
      const cgroups = [yield* Cgroup.makeIn(parent, { memory: "64MiB" }), yield* Cgroup.makeIn(parent)]
      for (const cgroup of cgroups) yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
      assert.equal((yield* Cgroup.stats(parent)).pids.current, 2)
      assert.equal((yield* Cgroup.stats(cgroups[0]!)).memory.limit, 64 * MiB)
      const script = "for i in 1 2 3; do sleep 0.2 & done; wait"
      const crowd = yield* Container.start(image, {
        command: ["sh", "-c", script],
        cgroup: cgroups[1]!
      })
      assert.notEqual((yield* crowd.exit).exitCode, 0)
    },
    { skip: without("pids") || without("memory") }
  )

  effect(
    "a cgroup with processes of its own refuses limits for cgroups below it",
    function* () {
      const image = yield* Image.host
      const cgroup = yield* Cgroup.make({ pids: 5 })
      yield* Container.start(image, { command: ["sleep", "1000"], cgroup })
      const error = yield* failure("CgroupError", Cgroup.makeIn(cgroup, { pids: 2 }))
      assert.equal(error.reason, "HasProcesses")
    },
    { skip: onV2("pids") }
  )

  effect("Cgroup.move takes a running process and its later children", function* () {
    const cgroup = yield* Cgroup.make({})
    const child = waitingShell("sleep 1000 & wait")
    yield* Cgroup.move(cgroup, child.pid!)
    assert.deepEqual(yield* Cgroup.processes(cgroup), [child.pid])
    child.stdin.write("go\n")
    yield* repeatUntil("two processes", Cgroup.processes(cgroup), (all) => all.length === 2)
    const closed = yield* Effect.scoped(Cgroup.make({}))
    assert.equal((yield* failure("CgroupError", Cgroup.move(closed, child.pid!))).reason, "Gone")
    child.kill("SIGKILL")
    yield* gone(child.pid!)
    // Moving a process that has ended does nothing.
    yield* Cgroup.move(cgroup, child.pid!)
  })

  effect.asRoot(
    "a limit in a tree that is mounted read-only fails with ReadOnly",
    function* () {
      yield* Effect.promise(async () => {
        const at = `${folder()}-readonly`
        const { args, command } = commandOf("limited.ts", [at])
        // The program has its own mount namespace, so only it sees these mounts.
        const script =
          'for at in $(findmnt -rno TARGET -t cgroup,cgroup2); do mount -o remount,bind,ro "$at"; done; exec "$@"'
        const child = spawn("unshare", ["--mount", "sh", "-c", script, "sh", command, ...args], {
          cwd: root,
          stdio: ["ignore", "pipe", "inherit"]
        })
        const { code, stdout } = await ended(child)
        assert.equal(code, 0)
        const error = JSON.parse(stdout) as BerthError.CgroupError
        assert.deepEqual([error._tag, error.reason, error.errno], ["CgroupError", "ReadOnly", 30])
        assert.match(error.message, /read-only/)
        fs.rmSync(at, { recursive: true, force: true })
      })
    },
    { skip: without("pids") }
  )

  effect("every use of a cgroup that another program removed fails with Gone", function* () {
    const cgroup = yield* Cgroup.make({ pids: 5 })
    for (const { path } of cgroup.folders) fs.rmdirSync(path)
    for (const use of [
      Cgroup.stats(cgroup),
      Cgroup.update(cgroup, { pids: 6 }),
      Cgroup.processes(cgroup),
      Cgroup.makeIn(cgroup, {}),
      Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"], cgroup }))
    ])
      assert.equal(
        (yield* failure("CgroupError", use as Effect.Effect<unknown, never, never>)).reason,
        "Gone"
      )
  })
})
